//! What expires when, of all that the config names.

use std::fs;

use crate::Folder;

/// A certificate that has two of three days left.
const ENDING: &str = "[[certificate]]\nname = \"ending\"\nauthority = \"kubernetes-ca\"\nuse = [\"client\"]\n\
    valid_days = 3\n";

#[test]
fn everything_that_the_config_names_is_listed_by_its_end() {
    let folder = Folder::new();
    let found = folder.json(&["list"]);
    let rows: Vec<(&str, Vec<&str>)> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let uses =
                row["used_for"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
            (row["file"].as_str().unwrap(), uses.collect())
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("pki/ringfence-client.crt", vec!["upstream.certificate"]),
            ("pki/ringfence-server.crt", vec!["client.certificate"]),
            ("pki/kubernetes-ca.crt", vec!["client.ca `kubernetes`", "upstream.ca"]),
            ("pki/tenants-ca.crt", vec!["client.ca `tenants`"]),
        ]
    );
    let said = folder.check(&["list"], 0, "EXPIRES ");
    assert_eq!(said.lines().count(), 5, "{said}");
    assert_eq!(said.matches(" ok ").count(), 4, "{said}");
}

#[test]
fn files_of_sinks_and_of_identities_are_listed_too() {
    let folder = Folder::new();
    let sink = "[[audit.sink]]\nname = \"siem\"\nto = \"syslog+tls://siem.example:6514\"\n\
        ca = \"pki/foreign-ca.crt\"\ncertificate = \"pki/acme.crt\"\nkey = \"pki/acme.key\"\n\n[policy]";
    folder.change("ringfence.toml", "[policy]", sink);
    let upstream = "upstream = { certificate = \"pki/globex.crt\", key = \"pki/globex.key\" }\nroles = [\"reader\"]";
    folder.change("policy.toml", "roles = [\"reader\"]", upstream);
    let found = folder.json(&["list"]);
    let uses = |file: &str| {
        let row = found.as_array().unwrap().iter().find(|row| row["file"] == file).unwrap();
        row["used_for"].clone()
    };
    assert_eq!(uses("pki/foreign-ca.crt"), serde_json::json!(["audit.sink `siem` ca"]));
    assert_eq!(uses("pki/acme.crt"), serde_json::json!(["audit.sink `siem` certificate"]));
    let identity = serde_json::json!(["identity `tenant` upstream.certificate"]);
    assert_eq!(uses("pki/globex.crt"), identity);
}

#[test]
fn what_has_expired_fails_and_what_will_is_warned_of() {
    let folder = Folder::with(ENDING);
    folder.change("ringfence.toml", "pki/ringfence-client", "pki/ending");
    let said = folder.check(&["list"], 0, "EXPIRES ");
    // Two of three days are left: that is no warning. After a renewal for one day it is none, either.
    assert!(said.lines().nth(1).unwrap().contains(" ok "), "{said}");
    folder.change("ringfence.toml", "pki/ending", "pki/expired");
    let said = folder.check(&["list"], 1, "EXPIRES ");
    let first = said.lines().nth(1).unwrap();
    assert!(
        first.contains(" EXPIRED ")
            && first.contains("upstream.certificate: pki/expired.crt:1, CN=acme"),
        "{said}"
    );
}

#[test]
fn only_what_ends_within_some_days_is_shown_and_fails() {
    let folder = Folder::with(ENDING);
    folder.change("ringfence.toml", "pki/ringfence-client", "pki/ending");
    folder.check(&["list", "--within-days", "1"], 0, "nothing expires within 1 days\n");
    let said = folder.check(&["list", "--within-days", "2"], 1, "EXPIRES ");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(folder.json(&["list", "--within-days", "100"]).as_array().unwrap().len(), 2);
    assert_eq!(folder.json(&["list", "--within-days", "1"]), serde_json::json!([]));
}

#[test]
fn a_revocation_list_beside_the_roots_has_its_date_too() {
    let folder = Folder::new();
    folder.check(&["crl", "pki", "--authority", "tenants-ca"], 0, "");
    let both =
        format!("{}{}", folder.text("pki/tenants-ca.crt"), folder.text("pki/tenants-ca.crl"));
    fs::write(folder.path("pki/tenants-ca.crt"), both).unwrap();
    let said = folder.check(&["list", "--within-days", "8"], 1, "EXPIRES ");
    assert!(said.contains("revocation list of CN=demo tenants CA"), "{said}");
}

#[test]
fn every_file_that_cannot_be_read_is_named_and_the_others_are_listed() {
    let folder = Folder::new();
    folder.change("ringfence.toml", "pki/ringfence-client.crt", "pki/gone.crt");
    folder.change("ringfence.toml", "pki/ringfence-server.crt", "pki/ringfence-server.key");
    folder.change("ringfence.toml", "[audit]", "[audit]\ndirectry = \"x\"");
    let (code, said, complained) = folder.run(&["list"]);
    assert_eq!(code, 2);
    assert_eq!(said.lines().count(), 3, "{said}");
    for expected in [
        "error: ringfence.toml:31: `audit.directry` is not a known key",
        "error: ringfence.toml:27: cannot read `pki/gone.crt`: No such file",
        "error: ringfence.toml:7: `pki/ringfence-server.key` holds no certificate that can be read\n  hint: ",
    ] {
        assert!(complained.contains(expected), "{expected}\n{complained}");
    }
    let said = folder.check(&["list", "--config", "gone.toml"], 2, "error: gone.toml: ");
    assert!(!said.contains("names no file"), "{said}");
}

#[test]
fn what_has_less_than_a_third_left_is_warned_of() {
    let folder = Folder::new();
    let now = time::OffsetDateTime::now_utc();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = now - time::Duration::days(8);
    params.not_after = now + time::Duration::days(3);
    let signed = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.path("pki/ringfence-client.crt"), signed.pem()).unwrap();
    let said = folder.check(&["list"], 0, "EXPIRES ");
    assert_eq!(said.matches(" WARNING ").count(), 1, "{said}");
    assert!(said.lines().nth(1).unwrap().contains(" WARNING "), "{said}");
    assert_eq!(folder.json(&["list"])[0]["subject"], "");
}

#[test]
fn a_state_is_said_once() {
    let folder = Folder::new();
    folder.change("ringfence.toml", "pki/ringfence-client", "pki/expired");
    let said = folder.check(&["list"], 1, "EXPIRES ");
    assert_eq!(said.matches("EXPIRED").count(), 1, "{said}");
    assert!(said.contains(" EXPIRED  2 days ago "), "{said}");
}
