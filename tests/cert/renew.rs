//! What is renewed says the same, is accepted, and leaves the old pair behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::Folder;

const NAMES: &str = r#"
[[certificate]]
name = "names"
authority = "tenants-ca"
common_name = "names"
organization = ["o"]
organizational_unit = ["ou"]
dns = ["a.example.org", "b.example.org"]
uri = ["spiffe://example.org/tenant/names"]
ip = ["10.0.0.1", "::1"]
use = ["server", "client"]
valid_days = 3
"#;

#[test]
fn a_renewed_certificate_says_the_same_and_is_accepted() {
    let folder = Folder::with(NAMES);
    let old = folder.json(&["inspect", "pki/names.crt"])[0].clone();
    let said = folder.check(&["renew", "pki", "names"], 0, "pki/names.key\npki/names.crt\n");
    let new = folder.json(&["inspect", "pki/names.crt"])[0].clone();
    for same in ["subject", "issuer", "dns", "uri", "ip", "key_usage", "extended_key_usage", "ca"] {
        assert_eq!(new[same], old[same], "{same}");
    }
    assert_eq!(new["dns"].as_array().unwrap().len(), 2);
    for other in ["serial", "sha256", "not_after"] {
        assert_ne!(new[other], old[other], "{other}");
    }
    assert_ne!(new["key"]["spki_sha256"], old["key"]["spki_sha256"]);
    assert_eq!(new["key"]["algorithm"], "ECDSA P-256");
    assert_eq!(new["serial"].as_str().unwrap().len(), 32, "126 random bits");
    let days = new["seconds_left"].as_i64().unwrap() / 86_400;
    assert!((364..=365).contains(&days), "{days}");
    folder.accepts("pki/tenants-ca.crt", &[], "pki/names.crt").unwrap();

    // The new key is the new certificate's, and nobody else may read it.
    let key = &folder.json(&["inspect", "pki/names.key"])[0];
    assert_eq!(key["public"]["spki_sha256"], new["key"]["spki_sha256"]);
    let mode = |file: &str| folder.path(file).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("pki/names.key"), mode("pki/names.crt")], [0o600, 0o644]);

    // The old pair is whole.
    let serial = old["serial"].as_str().unwrap();
    let (kept, kept_key) = (format!("pki/names.crt.{serial}"), format!("pki/names.key.{serial}"));
    assert_eq!(folder.json(&["inspect", &kept])[0]["sha256"], old["sha256"]);
    let key = &folder.json(&["inspect", &kept_key])[0];
    assert_eq!(key["public"]["spki_sha256"], old["key"]["spki_sha256"]);
    assert_eq!(mode(&kept_key), 0o600);
    assert!(said.contains(&format!("{kept}: the old one")), "{said}");
    assert!(said.contains(&format!("ringfence cert revoke pki --serial {serial}")), "{said}");
    let hidden = fs::read_dir(folder.path("pki")).unwrap();
    let hidden =
        hidden.filter(|entry| entry.as_ref().unwrap().file_name().as_encoded_bytes()[0] == b'.');
    assert_eq!(hidden.count(), 1, "no temporary file is left, only the lock");
}

#[test]
fn a_renewed_certificate_is_the_same_principal() {
    let folder = Folder::new();
    let whoami =
        |folder: &Folder| folder.json(&["whoami", "pki/apiserver.crt"])["principal"].clone();
    let before = whoami(&folder);
    folder.check(&["renew", "pki", "apiserver.crt", "--days", "30"], 0, "pki/apiserver.key\n");
    assert_eq!(before, "apiserver");
    assert_eq!(whoami(&folder), before);
}

#[test]
fn what_cannot_be_renewed_leaves_everything_as_it_was() {
    let folder = Folder::new();
    let before = folder.text("pki/acme.crt");
    let check = |name: &str, expected: &str| {
        folder.check(&["renew", "pki", name], 1, &format!("error: {expected}"));
    };
    check("gone", "cannot read `pki/gone.crt`: ");
    check("../acme", "`../acme` is no name of a pair\n  hint: ");
    check("tenants-ca", "`pki/tenants-ca.crt` is an authority's own certificate\n  hint: ");
    let key = folder.text("pki/tenants-ca.key");
    fs::write(folder.path("pki/tenants-ca.key"), folder.text("pki/foreign-ca.key")).unwrap();
    check("acme", "`pki/tenants-ca.key` is not the key of `pki/tenants-ca.crt`\n");
    fs::remove_file(folder.path("pki/tenants-ca.key")).unwrap();
    check("acme", "cannot read `pki/tenants-ca.key`: ");
    fs::write(folder.path("pki/tenants-ca.key"), key).unwrap();
    let own = folder.text("pki/acme.key");
    fs::write(folder.path("pki/acme.key"), folder.text("pki/globex.key")).unwrap();
    check(
        "acme",
        "`pki/acme.key` is not the key of `pki/acme.crt`\n  hint: nothing is thrown away",
    );
    fs::write(folder.path("pki/acme.key"), own).unwrap();
    fs::rename(folder.path("pki/tenants-ca.crt"), folder.path("elsewhere")).unwrap();
    check(
        "acme",
        "no authority in `pki` has signed `pki/acme.crt`\n  hint: authorities in it: `foreign-ca`, ",
    );
    assert_eq!(folder.text("pki/acme.crt"), before);
    folder.check(&["renew", "ringfence.toml", "acme"], 1, "error: `ringfence.toml` is no folder\n");
    folder.check(&["renew", "pki"], 2, "error: ");
    folder.check(&["renew", "pki", "acme", "--days", "0"], 2, "error: ");
}

/// The crash: the new key is in its place, the new certificate is not yet.
#[test]
fn a_run_that_was_killed_between_the_two_renames_can_be_run_again() {
    let folder = Folder::new();
    let certificate = folder.text("pki/acme.crt");
    let serial = folder.serial("pki/acme.crt");
    folder.check(&["renew", "pki", "acme"], 0, "");
    fs::write(folder.path("pki/acme.crt"), certificate).unwrap();
    folder.check(&["renew", "pki", "acme"], 0, "");
    let spki =
        |file: &str, name: &str| folder.json(&["inspect", file])[0][name]["spki_sha256"].clone();
    assert_eq!(spki("pki/acme.key", "public"), spki("pki/acme.crt", "key"));
    let kept = format!("pki/acme.key.{serial}");
    assert_eq!(spki(&kept, "public"), spki(&format!("pki/acme.crt.{serial}"), "key"));
}

#[test]
fn a_certificate_does_not_outlive_its_authority() {
    let folder = Folder::new();
    let said = folder.check(&["renew", "pki", "acme", "--days", "36500"], 0, "");
    assert!(said.contains("note: the authority `tenants-ca` ends then"), "{said}");
    let ends = |file: &str| folder.json(&["inspect", file])[0]["not_after"].clone();
    assert_eq!(ends("pki/acme.crt"), ends("pki/tenants-ca.crt"));
}

/// The names in pki that begin with those of a pair.
fn names(folder: &Folder, start: &str) -> Vec<String> {
    let entries = fs::read_dir(folder.path("pki")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    names
}

/// The attack: NAME.crt holds the key, too; the copy of it that is kept may be read by everybody.
#[test]
fn a_certificate_with_its_key_in_one_file_is_not_copied() {
    let folder = Folder::new();
    let both = format!("{}{}", folder.text("pki/acme.crt"), folder.text("pki/acme.key"));
    fs::write(folder.path("pki/acme.crt"), &both).unwrap();
    let said = folder.check(&["renew", "pki", "acme"], 1, "error: `pki/acme.crt`, line ");
    assert!(said.contains("this is no certificate\n  hint: "), "{said}");
    assert_eq!(names(&folder, "acme."), ["acme.crt", "acme.key"]);
    assert_eq!(folder.text("pki/acme.crt"), both);
}

/// The attack: NAME.key is a link out of the folder; its key is copied into the folder, then the run fails.
#[test]
fn a_key_behind_a_link_is_not_copied() {
    let folder = Folder::new();
    fs::rename(folder.path("pki/acme.key"), folder.path("acme.key")).unwrap();
    std::os::unix::fs::symlink("../acme.key", folder.path("pki/acme.key")).unwrap();
    folder.check(&["renew", "pki", "acme"], 1, "error: cannot write `pki/acme.key`: it is no reg");
    assert_eq!(names(&folder, "acme."), ["acme.crt", "acme.key"]);
}

/// The attack: a pair with the same serial number was renewed before; its key is overwritten.
#[test]
fn what_an_earlier_run_kept_is_never_overwritten() {
    let folder = Folder::new();
    let serial = folder.serial("pki/acme.crt");
    for ending in ["key", "crt"] {
        let kept = format!("pki/acme.{ending}.{serial}");
        fs::write(folder.path(&kept), "of another pair").unwrap();
        let before = folder.text("pki/acme.key");
        folder.check(
            &["renew", "pki", "acme"],
            1,
            &format!("error: `{kept}` is there, and is not"),
        );
        assert_eq!(folder.text(&kept), "of another pair");
        assert_eq!(folder.text("pki/acme.key"), before);
        // Nor is there a copy of the key that this run made.
        assert_eq!(names(&folder, "acme.").len(), 3);
        fs::remove_file(folder.path(&kept)).unwrap();
    }
}

/// The attack: somebody went back to the old certificate; the newer key is thrown away.
#[test]
fn the_newer_key_is_not_lost_after_a_roll_back() {
    let folder = Folder::new();
    let certificate = folder.text("pki/acme.crt");
    let serial = folder.serial("pki/acme.crt");
    folder.check(&["renew", "pki", "acme"], 0, "");
    for number in 1..=2 {
        let newer = folder.text("pki/acme.key");
        fs::write(folder.path("pki/acme.crt"), &certificate).unwrap();
        let said = folder.check(&["renew", "pki", "acme"], 0, "");
        let further = format!("pki/acme.key.{serial}.{number}");
        assert_eq!(folder.text(&further), newer);
        assert!(said.contains(&format!("{further}: the key that was there")), "{said}");
    }
}

/// The attack: whoever was revoked is good again after a renewal.
#[test]
fn a_revoked_certificate_is_not_renewed_unless_that_is_meant() {
    let folder = Folder::new();
    folder.check(&["crl", "pki", "--authority", "tenants-ca"], 0, "");
    folder.check(&["renew", "pki", "globex"], 0, "");
    folder.check(&["revoke", "pki", "acme"], 0, "");
    let said = folder.check(
        &["renew", "pki", "acme"],
        1,
        "error: `pki/acme.crt` is revoked by `pki/tenants-ca.crl`\n",
    );
    assert!(said.contains("--even-though-revoked"), "{said}");
    assert_eq!(names(&folder, "acme."), ["acme.crt", "acme.key"]);
    fs::write(folder.path("foreign"), folder.text("pki/tenants-ca.crl")).unwrap();
    fs::write(folder.path("pki/tenants-ca.crl"), "no list").unwrap();
    let unread = "error: the list `pki/tenants-ca.crl` cannot be read: ";
    folder.check(&["renew", "pki", "acme"], 1, unread);
    folder.check(&["crl", "pki", "--authority", "foreign-ca"], 0, "");
    fs::copy(folder.path("pki/foreign-ca.crl"), folder.path("pki/tenants-ca.crl")).unwrap();
    folder.check(&["renew", "pki", "acme"], 1, unread);
    fs::rename(folder.path("foreign"), folder.path("pki/tenants-ca.crl")).unwrap();
    folder.check(&["renew", "pki", "acme", "--even-though-revoked"], 0, "pki/acme.key\n");
}

/// The mistake: a program that reads its key by its group does not start any more.
#[test]
fn a_key_stays_readable_by_its_group() {
    let folder = Folder::new();
    let key = folder.path("pki/acme.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    folder.check(&["renew", "pki", "acme"], 0, "");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o640);
}

/// The attack: an authority whose file is named so that its name steers the terminal of whoever is told of it.
#[test]
fn the_name_of_a_file_cannot_steer_a_terminal() {
    let folder = Folder::new();
    fs::rename(folder.path("pki/kubernetes-ca.crt"), folder.path("pki/\u{1b}]0;evil.crt")).unwrap();
    let said = folder.check(&["renew", "pki", "apiserver"], 1, "error: ");
    assert!(said.contains("u{1b}") && !said.contains('\u{1b}'), "{said}");
}
