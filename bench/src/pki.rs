//! A throw-away public key infrastructure for one run: one CA and its leaves, ECDSA P-256, as PEM files.
//! Not for anything but the bench: keys lie unencrypted in a folder and live for a month.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::Outcome;

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder to write ca, server, client and proxy certificates to
    directory: PathBuf,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    create(&arguments.directory)
}

/// Writes `ca.crt` and, for each leaf, `NAME.crt` and `NAME.key`.
pub fn create(directory: &Path) -> Outcome<()> {
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut params = params("ringfence-bench CA", Vec::new());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    write(&directory.join("ca.crt"), &certificate.pem(), 0o644)?;
    let issuer = Issuer::new(params, key);

    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    leaf(directory, &issuer, "server", "localhost", names, ExtendedKeyUsagePurpose::ServerAuth)?;
    leaf(
        directory,
        &issuer,
        "client",
        "bench-client",
        Vec::new(),
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    leaf(
        directory,
        &issuer,
        "proxy",
        "bench-proxy",
        Vec::new(),
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    // etcd's grpc-proxy refuses to start with a certificate that has a common name.
    leaf(directory, &issuer, "nameless", "", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
}

fn leaf(
    directory: &Path,
    issuer: &Issuer<'_, KeyPair>,
    file: &str,
    common_name: &str,
    subject_names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
) -> Outcome<()> {
    let mut params = params(common_name, subject_names);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    write(&directory.join(format!("{file}.crt")), &certificate.pem(), 0o644)?;
    write(&directory.join(format!("{file}.key")), &key.serialize_pem(), 0o600)
}

fn params(common_name: &str, subject_names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(subject_names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(30);
    params
}

/// A file is replaced, never appended to, and a key is private from its first byte.
pub fn write(path: &Path, text: &str, mode: u32) -> Outcome<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}
