//! Authorities and certificates that another tool made, with names in other encodings than ringfence would choose.

use std::fs;

use rcgen::string::PrintableString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, DnValue, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::{Folder, is_revoked};

/// A folder `other` with an authority of these usages and this last year, and a client's certificate `client` with
/// so many organizational units.
fn folder(usages: Vec<KeyUsagePurpose>, last_year: i32, units: &[&str]) -> Folder {
    let folder = Folder::new();
    fs::create_dir(folder.path("other")).unwrap();
    let name = |params: &mut CertificateParams, common_name: &str| {
        let country = PrintableString::try_from("DE").unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, DnValue::PrintableString(country));
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.not_before = date_time_ymd(2020, 1, 1);
    };
    let mut authority = CertificateParams::default();
    name(&mut authority, "other CA");
    authority.not_after = date_time_ymd(last_year, 1, 1);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = usages;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let issuer = CertifiedIssuer::self_signed(authority, key).unwrap();
    let mut client = CertificateParams::new(["client.example.org".to_owned()]).unwrap();
    name(&mut client, "client");
    // The only way to make rcgen write two of a kind.
    let kinds = [DnType::OrganizationalUnitName, DnType::CustomDnType(vec![2, 5, 4, 11])];
    for (kind, unit) in kinds.into_iter().zip(units) {
        client.distinguished_name.push(kind, *unit);
    }
    client.not_after = date_time_ymd(2040, 1, 1);
    client.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate().unwrap();
    let signed = client.signed_by(&key, &issuer).unwrap();
    let write = |file: &str, text: String| fs::write(folder.path(file), text).unwrap();
    write("other/ca.crt", issuer.pem());
    write("other/ca.key", issuer.key().serialize_pem());
    write("other/client.crt", format!("{}{}", signed.pem(), issuer.pem()));
    write("other/client.key", key.serialize_pem());
    folder
}

#[test]
fn a_foreign_authority_renews_and_revokes_as_well() {
    let folder = folder(vec![], 2040, &["one"]);
    let old = folder.json(&["inspect", "other/client.crt"]);
    folder.check(&["renew", "other", "client"], 0, "other/client.key\n");
    let new = folder.json(&["inspect", "other/client.crt"]);
    assert_eq!(new[0]["subject"], "C=DE, CN=client, OU=one");
    for same in ["subject", "issuer", "dns", "key_usage", "extended_key_usage", "ca"] {
        assert_eq!(new[0][same], old[0][same], "{same}");
    }
    // What followed the certificate in its file follows the new one.
    assert_eq!(new[1]["sha256"], old[1]["sha256"]);
    let accepts = || folder.accepts("other/ca.crt", &["other/ca.crl"], "other/client.crt");
    folder.check(&["crl", "other"], 0, "other/ca.crl: list 1 of `ca`, 0 revoked");
    accepts().unwrap();
    folder.check(&["revoke", "other", "client"], 0, "serial ");
    assert!(is_revoked(&accepts()));
}

#[test]
fn an_authority_that_may_not_sign_is_not_made_to() {
    let certificates_only = folder(vec![KeyUsagePurpose::KeyCertSign], 2040, &[]);
    certificates_only.check(&["renew", "other", "client"], 0, "other/client.key\n");
    let cannot = "error: the list `other/ca.crl` cannot be signed: ";
    let said = certificates_only.check(&["revoke", "other", "client"], 1, cannot);
    assert!(said.contains("\n  hint: the authority needs the key usage cRLSign"), "{said}");
    let lists_only = folder(vec![KeyUsagePurpose::CrlSign], 2040, &[]);
    lists_only.check(&["revoke", "other", "client"], 0, "serial ");
    let cannot = "error: the certificate cannot be renewed: its authority may not sign";
    let anew = ["renew", "other", "client", "--even-though-revoked"];
    lists_only.check(&anew, 1, cannot);
    let expired = folder(vec![], 2021, &[]);
    for command in ["renew", "revoke"] {
        expired.check(&[command, "other", "client"], 1, "error: the authority `ca` has expired\n");
    }
}

/// The attack: of two units only one is written, and the renewed certificate is somebody else.
#[test]
fn a_subject_that_would_not_stay_the_same_is_not_renewed() {
    let folder = folder(vec![], 2040, &["one", "two"]);
    let before = folder.text("other/client.crt");
    let cannot =
        "error: the certificate cannot be renewed: its subject has several values of one kind";
    folder.check(&["renew", "other", "client"], 1, cannot);
    assert_eq!(folder.text("other/client.crt"), before);
}
