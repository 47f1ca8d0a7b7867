//! What is revoked is refused by rustls, and a list only ever grows.

use std::fs;

use crate::{Folder, is_revoked};

#[test]
fn a_revoked_certificate_is_refused_and_a_renewed_one_accepted() {
    let folder = Folder::new();
    let (ca, list) = ("pki/tenants-ca.crt", "pki/tenants-ca.crl");
    let accepts = |file: &str| folder.accepts(ca, &[list], file);
    folder.accepts(ca, &[], "pki/acme.crt").unwrap();
    folder.check(&["revoke", "pki", "acme", "--reason", "key-compromise"], 0, "serial ");
    assert!(is_revoked(&accepts("pki/acme.crt")), "{:?}", accepts("pki/acme.crt"));
    accepts("pki/globex.crt").unwrap();
    let serial = folder.serial("pki/acme.crt");
    folder.check(&["renew", "pki", "acme", "--even-though-revoked"], 0, "");
    accepts("pki/acme.crt").unwrap();
    assert!(is_revoked(&accepts(&format!("pki/acme.crt.{serial}"))));
}

#[test]
fn an_old_certificate_is_revoked_by_its_serial_number() {
    let folder = Folder::new();
    let serial = folder.serial("pki/acme.crt");
    folder.check(&["renew", "pki", "acme"], 0, "");
    // The folder has three authorities; the kept certificate says whose it is.
    let colons: Vec<String> = serial
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
        .collect();
    let colons = colons.join(":");
    let said =
        folder.check(&["revoke", "pki", "--serial", &colons], 0, &format!("serial {serial} is"));
    assert!(said.contains("pki/tenants-ca.crl: list 1 of `tenants-ca`, 1 revoked"), "{said}");
    let accepts = |file: &str| folder.accepts("pki/tenants-ca.crt", &["pki/tenants-ca.crl"], file);
    assert!(is_revoked(&accepts(&format!("pki/acme.crt.{serial}"))));
    accepts("pki/acme.crt").unwrap();
}

#[test]
fn a_list_grows_and_its_number_goes_up() {
    let folder = Folder::new();
    let list = |folder: &Folder| folder.json(&["inspect", "pki/tenants-ca.crl"])[0].clone();
    folder.check(
        &["crl", "pki", "--authority", "tenants-ca"],
        0,
        "pki/tenants-ca.crl: list 1 of `tenants-ca`, 0 ",
    );
    folder.accepts("pki/tenants-ca.crt", &["pki/tenants-ca.crl"], "pki/acme.crt").unwrap();
    folder.check(&["revoke", "pki", "acme", "--reason", "superseded"], 0, "serial ");
    folder.check(&["revoke", "pki", "globex", "--days", "30"], 0, "serial ");
    let found = list(&folder);
    assert_eq!(found["number"], "3");
    assert_eq!(found["revoked"].as_array().unwrap().len(), 2);
    assert_eq!(found["revoked"][0]["reason"], "Superseded");
    assert_eq!(found["revoked"][1]["reason"], serde_json::Value::Null);
    let days = found["seconds_left"].as_i64().unwrap() / 86_400;
    assert!((29..=30).contains(&days), "{days}");
    // Again: nothing is signed.
    folder.check(&["revoke", "pki", "acme"], 0, "serial ");
    assert_eq!(list(&folder)["number"], "3");
    // All lists of the folder, with a date of seven days.
    let said = folder.check(&["crl", "pki"], 0, "pki/foreign-ca.crl: list 1 of ");
    assert!(said.contains("pki/tenants-ca.crl: list 4 of `tenants-ca`, 2 revoked"), "{said}");
    let found = list(&folder);
    assert_eq!(found["revoked"].as_array().unwrap().len(), 2);
    assert_eq!(found["revoked"][0]["reason"], "Superseded");
    let days = found["seconds_left"].as_i64().unwrap() / 86_400;
    assert!((6..=7).contains(&days), "{days}");
}

/// The attack: a list of somebody else, or a broken one, in the place of the authority's own, so that the next
/// revocation throws the earlier ones away.
#[test]
fn a_list_that_is_not_the_authoritys_is_never_carried_on() {
    let folder = Folder::new();
    folder.check(&["revoke", "pki", "acme"], 0, "serial ");
    let own = folder.text("pki/tenants-ca.crl");
    folder.check(&["crl", "pki", "--authority", "foreign-ca"], 0, "");
    let foreign = folder.text("pki/foreign-ca.crl");
    let cut = own.split("-----END").next().unwrap().to_owned();
    for (text, why) in [
        (
            foreign.clone(),
            "the list `pki/tenants-ca.crl` cannot be carried on: the authority `tenants-ca` has not",
        ),
        (cut, "`pki/tenants-ca.crl`, line 1: the line `-----END X509 CRL-----` is missing"),
        (String::new(), "`pki/tenants-ca.crl` is empty"),
        (
            format!("{own}{foreign}"),
            "the list `pki/tenants-ca.crl` cannot be carried on: it is not one",
        ),
        (
            folder.text("pki/acme.crt"),
            "the list `pki/tenants-ca.crl` cannot be carried on: it is no",
        ),
    ] {
        fs::write(folder.path("pki/tenants-ca.crl"), &text).unwrap();
        let said = folder.check(&["revoke", "pki", "globex"], 1, &format!("error: {why}"));
        assert!(said.contains("\n  hint: "), "{said}");
        assert_eq!(folder.text("pki/tenants-ca.crl"), text);
    }
}

#[test]
fn what_to_revoke_must_be_clear() {
    let folder = Folder::new();
    let check = |arguments: &[&str], code, expected: &str| {
        folder.check(&[&["revoke", "pki"], arguments].concat(), code, expected);
    };
    check(
        &["tenants-ca"],
        1,
        "error: `pki/tenants-ca.crt` is an authority's own certificate\n  hint: no list",
    );
    check(&["--serial", "xyz"], 1, "error: `xyz` is no serial number\n  hint: ");
    let unclear = "error: which authority has given the serial number `0102` is not clear\n  hint: \
        --authority NAME, one of: `foreign-ca`, `kubernetes-ca`, `tenants-ca`";
    check(&["--serial", "0102", "--unknown"], 1, unclear);
    check(&["--serial", "01", "--authority", "acme"], 1, "error: `pki` has no authority `acme`\n");
    let typo = ["--serial", "0102", "--authority", "tenants-ca"];
    check(&typo, 1, "error: no certificate in `pki` has the serial number `0102`\n  hint: a rev");
    check(&[typo.as_slice(), &["--unknown"]].concat(), 0, "serial 0102 is revoked\n");
    let said = folder.check(&["revoke", "pki"], 2, "error: ");
    assert!(said.contains("<NAME|--serial <HEX>>"), "{said}");
    check(&["acme", "--unknown"], 2, "error: ");
    check(&["acme", "--authority", "nope"], 1, "error: `pki` has no authority `nope`\n");
    let not =
        "error: the authority `foreign-ca` has not signed `pki/acme.crt`\n  hint: it was: `te";
    check(&["acme", "--authority", "foreign-ca"], 1, not);
    check(&["acme", "--serial", "01"], 2, "error: ");
    check(&["acme", "--reason", "because"], 2, "error: ");
}

/// The attack: the number goes on the list of another authority, and the certificate stays good.
#[test]
fn a_serial_number_is_not_revoked_by_another_authority() {
    let folder = Folder::new();
    let serial = folder.serial("pki/acme.crt");
    let run = ["revoke", "pki", "--serial", &serial, "--authority", "foreign-ca"];
    let not =
        format!("error: the serial number `{serial}` is of `tenants-ca`, not of `foreign-ca`");
    folder.check(&run, 1, &not);
    assert!(!folder.path("pki/foreign-ca.crl").exists());
    let own = folder.serial("pki/tenants-ca.crt");
    let not = "error: `pki/tenants-ca.crt` is an authority's own certificate\n";
    folder.check(&["revoke", "pki", "--serial", &own], 1, not);
}

/// The attack: a copy of the authority's certificate that comes first by name gets a list of its own, and the one
/// that is handed out does not change.
#[test]
fn two_names_of_one_authority_do_not_make_two_lists() {
    let folder = Folder::new();
    let copy = |from: &str, to: &str| fs::copy(folder.path(from), folder.path(to)).unwrap();
    copy("pki/tenants-ca.crt", "pki/aa.crt");
    let said = folder.check(&["revoke", "pki", "acme"], 0, "serial ");
    assert!(said.contains("pki/tenants-ca.crl: list 1 "), "{said}");
    assert!(said.contains("note: there was no list of `tenants-ca`: this one begins"), "{said}");
    copy("pki/tenants-ca.key", "pki/aa.key");
    let unclear = "error: whose list `pki/globex.crt` belongs on is not clear\n  hint: --authority";
    folder.check(&["revoke", "pki", "globex"], 1, unclear);
    let other = "error: `pki/tenants-ca.crl` is a list of the same authority as `aa`\n";
    folder.check(&["revoke", "pki", "globex", "--authority", "aa"], 1, other);
    folder.check(&["revoke", "pki", "globex", "--authority", "tenants-ca"], 0, "serial ");
    let said = folder.check(&["crl", "pki"], 1, "pki/foreign-ca.crl: ");
    assert!(said.contains("error: whose list is to be signed is not clear"), "{said}");
    assert!(!folder.path("pki/aa.crl").exists());
}

/// The attack: the key is taken away, the scheduled `crl` says nothing, and the list lapses.
#[test]
fn an_authority_without_a_key_is_named_and_its_list_fails_the_run() {
    let folder = Folder::new();
    fs::remove_file(folder.path("pki/foreign-ca.key")).unwrap();
    let said = folder.check(&["crl", "pki"], 0, "pki/kubernetes-ca.crl: list 1 ");
    assert!(said.contains("note: `foreign-ca` has no key here: no list is signed\n"), "{said}");
    fs::remove_file(folder.path("pki/kubernetes-ca.key")).unwrap();
    let said = folder.check(&["crl", "pki"], 1, "pki/tenants-ca.crl: list 2 ");
    assert!(said.contains("note: `kubernetes-ca` has no key here: its list stays"), "{said}");
}

/// The attack: a file's name steers the terminal of whoever revokes.
#[test]
fn a_file_name_does_not_steer_the_terminal() {
    let folder = Folder::new();
    let odd = folder.path("pki/\u{1b}]0;odd\u{7}.crt");
    fs::copy(folder.path("pki/tenants-ca.crt"), odd).unwrap();
    for run in [
        &["crl", "pki", "--authority", "nope"][..],
        &["revoke", "pki", "--serial", "01", "--unknown"],
    ] {
        let said = folder.check(run, 1, "error: ");
        assert!(said.contains("\\u{1b}]0;odd") && !said.contains('\u{1b}'), "{said}");
    }
}
