//! What serve refuses because it is revoked, and what every command says of it.

use std::fs;

use crate::Folder;
use crate::whoami::compare;

const TENANTS: &str = "name = \"tenants\"\nroots = \"pki/tenants-ca.crt\"\n";

/// The config reads the list of the tenants' CA, and deny lists.
fn folder(more: &str) -> Folder {
    let folder = Folder::new();
    folder.check(&["crl", "pki", "--authority", "tenants-ca"], 0, "");
    folder.change("ringfence.toml", TENANTS, &format!("{TENANTS}{more}"));
    fs::create_dir(folder.path("deny.d")).unwrap();
    fs::write(folder.path("deny.d/a.txt"), "# nothing yet\n").unwrap();
    let deny = "[revocation]\ndeny_files = [\"deny.d/*.txt\"]\n\n[policy]";
    folder.change("ringfence.toml", "[policy]", deny);
    folder
}

const HARD: &str = "crl_files = [\"pki/tenants-ca.crl\"]\n";

fn checked(folder: &Folder) -> (bool, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    let output = command.arg("check").current_dir(folder.path("")).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn a_revoked_client_is_told_by_which_list() {
    let folder = folder(HARD);
    folder.check(&["whoami", "pki/acme.crt"], 0, "pki/acme.crt: tenant(");
    folder.check(&["revoke", "pki", "acme"], 0, "serial ");
    let serial = folder.serial("pki/acme.crt");
    let said = folder.check(&["whoami", "pki/acme.crt"], 1, "pki/acme.crt: refused at the");
    assert!(
        said.contains("  revoked by  the revocation list pki/tenants-ca.crl:1 of CN=demo"),
        "{said}"
    );
    assert!(said.contains(&format!(", by serial number {serial}\n")), "{said}");
    assert!(said.contains("  recorded as certificate_revoked: "), "{said}");
    compare(&folder, "acme", "it is revoked").await;
    folder.check(&["whoami", "pki/globex.crt"], 0, "pki/globex.crt: tenant(");
    // A CA without lists is judged as before.
    folder.check(&["whoami", "pki/apiserver.crt"], 0, "pki/apiserver.crt: apiserver");
}

#[tokio::test]
async fn a_denied_client_is_told_by_which_line() {
    let folder = folder(HARD);
    let key = folder.json(&["inspect", "pki/acme.crt"])[0]["key"]["spki_sha256"].clone();
    let line = format!("# stolen\nspki-sha256 {}\n", key.as_str().unwrap());
    fs::write(folder.path("deny.d/b.txt"), line).unwrap();
    compare(&folder, "acme", "it is revoked").await;
    let found = folder.json(&["whoami", "pki/acme.crt"]);
    assert_eq!(
        found["revoked_by"],
        serde_json::json!(["the deny list deny.d/b.txt:2, by its key"])
    );
    assert_eq!(found["reason"], "certificate_revoked");
    // Who asks whether it may do something is told the same.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(["can-i", "--certificate", "pki/acme.crt", "get", "/a/b"]);
    let output = command.current_dir(folder.path("")).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("is refused at the handshake: it is revoked"), "{said}");
    let (success, said) = checked(&folder);
    assert!(success && said.ends_with("rules, 1 revocation lists, 1 denied\n"), "{said}");
}

#[test]
fn lists_are_listed_with_their_next_update_in_pem_and_der() {
    let folder = folder(HARD);
    let said = folder.check(&["list", "--within-days", "8"], 1, "EXPIRES ");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.contains(
            "client.ca `tenants` crl_files: pki/tenants-ca.crl:1, revocation list of CN=demo"
        ),
        "{said}"
    );
    let der = rustls::pki_types::CertificateRevocationListDer::from(pem(&folder));
    fs::write(folder.path("pki/tenants-ca.crl"), &der).unwrap();
    let said = folder.check(&["list", "--within-days", "8"], 1, "EXPIRES ");
    assert!(said.contains("revocation list of CN=demo tenants CA"), "{said}");
    folder.check(&["inspect", "pki/tenants-ca.crl"], 0, "pki/tenants-ca.crl:1: revocation list\n");
    let (success, said) = checked(&folder);
    assert!(success, "{said}");
    fs::remove_file(folder.path("pki/tenants-ca.crl")).unwrap();
    let (code, _, complained) = folder.run(&["list"]);
    assert_eq!(code, 2);
    assert!(complained.contains("`pki/tenants-ca.crl` matches no file"), "{complained}");
}

/// What stands in the list, as bytes.
fn pem(folder: &Folder) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    let text = folder.text("pki/tenants-ca.crl");
    rustls::pki_types::CertificateRevocationListDer::from_pem_slice(text.as_bytes())
        .unwrap()
        .to_vec()
}

#[test]
fn every_mistake_about_revocation_is_reported_at_once() {
    let folder = folder("crl_files = [\"pki/gone.crl\", \"pki/foreign-ca.cr*\"]\ncrl = \"firm\"\n");
    folder.change("ringfence.toml", "[client.advertise]", "[client.advertize]");
    folder.change("ringfence.toml", "\n[[client.ca]]", "\n[[client.ca]]\ncrl = \"soft\"");
    folder.check(&["crl", "pki", "--authority", "foreign-ca"], 0, "");
    fs::write(folder.path("deny.d/a.txt"), "\nserial nobody 5\nspki 00\n").unwrap();
    let (success, said) = checked(&folder);
    assert!(!success, "{said}");
    for expected in [
        "`client.ca.crl` is there, and `client.ca.crl_files` is not\n  hint: without a list",
        "`client.ca.crl` is `firm`, neither `hard` nor `soft`\n  hint: crl = \"hard\"",
        "`pki/gone.crl` matches no file\n  hint: ",
        "error: pki/foreign-ca.crt:1: what begins here is no revocation list\n",
        "warning: pki/foreign-ca.crl:1: the list of `CN=demo foreign CA` is of no root of the CA `tenants`",
        "error: deny.d/a.txt:2: `nobody` is no CA of the config",
        "error: deny.d/a.txt:3: `spki` begins no entry",
        "`client.advertize` is not a known key",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}

#[test]
fn a_start_with_a_list_past_its_next_update_is_warned_of_and_refuses_its_clients() {
    let folder = folder(HARD);
    let list = stale(&folder);
    fs::write(folder.path("pki/tenants-ca.crl"), list).unwrap();
    let (success, said) = checked(&folder);
    assert!(success, "{said}");
    assert!(said.contains("warning: pki/tenants-ca.crl:1: the list of `CN=demo tenants CA` is past its next update: every"), "{said}");
    let said = folder.check(&["whoami", "pki/acme.crt"], 1, "");
    let words =
        "refused at the handshake: the revocation list of its issuer is past its next update";
    assert!(said.contains(words) && said.contains("certificate_refused: "), "{said}");
    folder.change("ringfence.toml", HARD, &format!("{HARD}crl = \"soft\"\n"));
    folder.check(&["whoami", "pki/acme.crt"], 0, "");
}

/// A list that lapsed yesterday, signed by the tenants' CA.
fn stale(folder: &Folder) -> String {
    let day = |days| time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "demo tenants CA");
    let key = rcgen::KeyPair::from_pem(&folder.text("pki/tenants-ca.key")).unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: day(-8),
        next_update: day(-1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&rcgen::Issuer::new(params, key)).unwrap().pem().unwrap()
}

/// The attack: the files are taken away while ringfence runs. They can be read again without the rest of the config.
#[test]
fn files_that_are_read_again_take_nothing_back() {
    let folder = folder(HARD);
    folder.check(&["revoke", "pki", "acme"], 0, "serial ");
    fs::write(folder.path("deny.d/b.txt"), "serial tenants 5\n").unwrap();
    let now = ringfence::clock::since_epoch();
    let config = ringfence::config::load(&folder.path("ringfence.toml"), now).unwrap();
    let (files, first) = (&config.revocation_files, &*config.revocation);
    let again = files.load(Some(first), now);
    assert_eq!((&again.revocation, again.problems.len()), (first, 0));
    fs::remove_file(folder.path("pki/tenants-ca.crl")).unwrap();
    fs::remove_dir_all(folder.path("deny.d")).unwrap();
    let again = files.load(Some(first), now);
    assert_eq!(&again.revocation, first);
    assert!(again.problems.len() == 2 && !has_errors(&again), "{:?}", again.problems);
    // A start with that is refused.
    let again = files.load(None, now);
    assert!(has_errors(&again), "{:?}", again.problems);
}

fn has_errors(loaded: &ringfence::config::LoadedRevocation) -> bool {
    loaded.problems.iter().any(|problem| problem.severity == ringfence::document::Severity::Error)
}
