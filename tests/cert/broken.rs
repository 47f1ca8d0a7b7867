//! Files that are not what they should be: one error for each, with the file and a way out, and no waiting.

use std::fs::{self, File};
use std::process::Command;

use crate::Folder;

/// The file, what every command says of it, and what `inspect` says on top.
fn broken(folder: &Folder) -> Vec<(&'static str, &'static str)> {
    let pem = folder.text("pki/acme.crt");
    fs::write(folder.path("cut.crt"), pem.split("-----END").next().unwrap()).unwrap();
    fs::write(folder.path("der.crt"), b"\x30\x82\x01\xff\xfe").unwrap();
    fs::write(folder.path("empty.crt"), "").unwrap();
    fs::write(folder.path("words.crt"), "these are words\n").unwrap();
    fs::create_dir(folder.path("folder.crt")).unwrap();
    File::create(folder.path("large.crt")).unwrap().set_len(100 << 20).unwrap();
    let made = Command::new("mkfifo").arg(folder.path("pipe.crt")).status().unwrap();
    assert!(made.success());
    vec![
        (
            "cut.crt",
            "`cut.crt`, line 1: the line `-----END CERTIFICATE-----` is missing\n  hint: copy",
        ),
        ("der.crt", "`der.crt` holds nothing in PEM\n  hint: it looks like DER: openssl"),
        ("empty.crt", "`empty.crt` is empty\n  hint: a certificate in PEM begins"),
        ("words.crt", "`words.crt` holds nothing in PEM\n  hint: a certificate in PEM begins"),
        ("folder.crt", "cannot read `folder.crt`: it is no regular file\n  hint: name files in it"),
        (
            "large.crt",
            "cannot read `large.crt`: it is larger than 16777216 bytes\n  hint: certificates",
        ),
        ("pipe.crt", "cannot read `pipe.crt`: it is no regular file\n  hint: name a file"),
        (
            "gone.crt",
            "cannot read `gone.crt`: No such file or directory (os error 2)\n  hint: is the name",
        ),
    ]
}

#[test]
fn each_broken_file_gets_one_error_with_a_way_out() {
    let folder = Folder::new();
    for (file, expected) in broken(&folder) {
        let said = folder.check(&["inspect", file], 1, &format!("error: {expected}"));
        assert_eq!(said.lines().count(), 2, "{said}");
    }
    // All at once, and what can be read is told.
    let (code, said, complained) =
        folder.run(&["inspect", "empty.crt", "pki/acme.crt", "gone.crt"]);
    assert!(code == 1 && said.starts_with("pki/acme.crt:1: certificate\n"), "{said}");
    assert_eq!(complained.matches("error: ").count(), 2, "{complained}");
}

#[test]
fn every_command_refuses_a_broken_file_without_waiting() {
    let folder = Folder::new();
    for (file, expected) in broken(&folder) {
        folder.check(&["whoami", file], 2, "error: ");
        folder.check(&["renew", ".", file], 1, "error: ");
        folder.check(&["revoke", ".", file], 1, "error: ");
        let config = folder.text("ringfence.toml").replace("pki/ringfence-client.crt", file);
        fs::write(folder.path("other.toml"), config).unwrap();
        let (code, said, complained) = folder.run(&["list", "--config", "other.toml"]);
        assert!(code == 2 && said.lines().count() == 4, "{file}: {said}");
        assert!(
            complained.starts_with(&format!("error: other.toml:27: {expected}")),
            "{complained}"
        );
        assert_eq!(complained.matches("error: ").count(), 1, "{complained}");
    }
}

#[test]
fn a_section_that_is_no_certificate_is_told_from_the_others() {
    let folder = Folder::new();
    let odd = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    fs::write(folder.path("odd.pem"), format!("{odd}{}", folder.text("pki/acme.crt"))).unwrap();
    let (code, said, complained) = folder.run(&["inspect", "odd.pem"]);
    assert!(code == 1 && said.starts_with("odd.pem:4: certificate\n"), "{said}");
    assert!(
        complained.starts_with("error: `odd.pem`, line 1: the certificate does not parse\n"),
        "{complained}"
    );
}
