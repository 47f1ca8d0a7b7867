//! What stands in a file is told, whatever it is.

use std::fs;

use crate::Folder;

#[test]
fn a_certificate_is_told_with_all_that_a_policy_can_ask_for() {
    let folder = Folder::new();
    let found = folder.json(&["inspect", "pki/etcd-server.crt"])[0].clone();
    assert_eq!(found["kind"], "certificate");
    assert_eq!(found["line"], 1);
    assert_eq!(found["subject"], "CN=etcd");
    assert_eq!(found["issuer"], "CN=demo kubernetes etcd CA");
    assert_eq!(found["dns"], serde_json::json!(["localhost"]));
    assert_eq!(found["ip"], serde_json::json!(["127.0.0.1", "::1"]));
    assert_eq!(found["key"]["algorithm"], "ECDSA P-256");
    assert_eq!(found["key"]["size_bits"], 256);
    assert_eq!(found["key_usage"], serde_json::json!(["digitalSignature"]));
    assert_eq!(found["extended_key_usage"], serde_json::json!(["serverAuth", "clientAuth"]));
    assert_eq!(found["ca"], false);
    assert_eq!(found["state"], "valid");
    assert!(found["not_after"].as_str().unwrap().ends_with('Z'));
    let said = folder.check(
        &["inspect", "pki/etcd-server.crt"],
        0,
        "pki/etcd-server.crt:1: certificate\n",
    );
    let spki = found["key"]["spki_sha256"].as_str().unwrap();
    for row in ["  DNS names      localhost\n", "  CA             no\n", " left of 90 days\n", spki]
    {
        assert!(said.contains(row), "{row}: {said}");
    }
    // What `inspect` calls the SHA-256 of the key is what a policy means by it.
    let pattern = format!("match = {{ ca = \"kubernetes\", spki = \"{spki}\" }}");
    folder.change(
        "policy.toml",
        "match = { ca = \"kubernetes\", cn = \"kube-apiserver-etcd-client\" }",
        &pattern,
    );
    folder.check(&["whoami", "pki/etcd-server.crt"], 0, "pki/etcd-server.crt: apiserver\n");
}

#[test]
fn authorities_lists_and_keys_in_one_file_are_told_as_what_they_are() {
    let folder = Folder::new();
    folder.check(&["revoke", "pki", "acme", "--reason", "key-compromise"], 0, "");
    let files = ["pki/tenants-ca.crt", "pki/acme.crt", "pki/tenants-ca.crl", "pki/acme.key"];
    let mut all: String = files.iter().map(|file| folder.text(file)).collect();
    all.push_str(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    fs::write(folder.path("all.pem"), all).unwrap();
    let said = folder.check(&["inspect", "all.pem"], 0, "all.pem:1: certificate\n");
    for part in [
        "  CA             yes\n",
        ": revocation list\n",
        "since 2",
        "KeyCompromise\n",
        ": private key, PKCS#8: whoever reads it is its owner\n  key            ECDSA P-256, 256 bits\n",
        ": ENCRYPTED PRIVATE KEY: ringfence asks for no passphrase\n",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let kinds: Vec<String> = folder
        .json(&["inspect", "all.pem"])
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["certificate", "certificate", "revocation_list", "private_key", "other"]);
    // Nothing of a private key is shown.
    let key = folder.text("pki/acme.key");
    let secret = key.lines().nth(1).unwrap();
    assert!(!said.contains(secret));
}

#[test]
fn what_has_expired_and_what_is_not_valid_yet_is_said_plainly() {
    let later = "[[certificate]]\nname = \"later\"\nauthority = \"tenants-ca\"\nuse = [\"client\"]\nstarts_in_days = 5\n";
    let folder = Folder::with(later);
    let said = folder.check(
        &["inspect", "pki/expired.crt", "pki/later.crt"],
        0,
        "pki/expired.crt:1: certificate\n",
    );
    assert!(said.contains("  state          EXPIRED 2 days ago\n"), "{said}");
    assert!(said.contains("  state          NOT YET VALID: begins in "), "{said}");
}

/// The attack: a name that steers the terminal of whoever looks at the certificate.
#[test]
fn a_name_in_a_certificate_cannot_steer_a_terminal() {
    let evil = "[[certificate]]\nname = \"evil\"\nauthority = \"tenants-ca\"\nuse = [\"client\"]\n\
        common_name = \"a\\u001b[2Jb\\n  CA yes\"\n";
    let folder = Folder::with(evil);
    for arguments in [["inspect", "pki/evil.crt"], ["whoami", "pki/evil.crt"]] {
        let (_, said, _) = folder.run(&arguments);
        assert!(said.contains("a\\u{1b}[2Jb\\u{a}  CA yes"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}
