//! `ringfence cert`: what stands in files is told, what expires is listed, who somebody is is said as `serve` says it,
//! and what is renewed or revoked is accepted or refused by rustls.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

mod broken;
mod foreign;
mod inspect;
mod list;
mod renew;
mod revoke;
mod revoked;
mod whoami;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};

/// A folder with a config, a policy and the PKI of certs/demo.toml.
struct Folder(tempfile::TempDir);

const POLICY: &str = r#"
[[identity]]
name = "apiserver"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["reader", "writer"]

[[identity]]
name = "tenant"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["reader"]

[[role]]
name = "reader"
rules = [{ prefix = "/a/", allow = ["get"] }]

[[role]]
name = "writer"
rules = [{ prefix = "/a/", allow = ["put"] }]
"#;

impl Folder {
    fn new() -> Self {
        Self::with("")
    }

    /// The same, with more in the recipe.
    fn with(more: &str) -> Self {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Self(tempfile::tempdir().unwrap());
        let recipe = fs::read_to_string(repository.join("certs/demo.toml")).unwrap();
        fs::write(folder.path("recipe.toml"), format!("{recipe}\n{more}")).unwrap();
        folder.check(&["make", "recipe.toml", "pki"], 0, "pki/");
        fs::copy(repository.join("config/minimal.toml"), folder.path("ringfence.toml")).unwrap();
        folder.change("ringfence.toml", "policy-kubernetes.toml", "policy.toml");
        let tenants = "[[client.ca]]\nname = \"tenants\"\nroots = \"pki/tenants-ca.crt\"\n\n[client.advertise]";
        folder.change("ringfence.toml", "[client.advertise]", tenants);
        fs::write(folder.path("policy.toml"), POLICY).unwrap();
        folder
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn change(&self, file: &str, old: &str, new: &str) {
        let text = self.text(file);
        assert!(text.contains(old), "`{old}` is not in {file}");
        fs::write(self.path(file), text.replacen(old, new, 1)).unwrap();
    }

    /// Exit code, stdout and stderr of `ringfence cert ...`.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let program = env!("CARGO_BIN_EXE_ringfence");
        let mut command = Command::new(program);
        let output =
            command.arg("cert").args(arguments).current_dir(self.0.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Runs, and compares the exit code and how all that is said begins.
    fn check(&self, arguments: &[&str], code: i32, expected: &str) -> String {
        let (found, said, complained) = self.run(arguments);
        let all = format!("{said}{complained}");
        assert_eq!(found, code, "{arguments:?}: {all}");
        assert!(all.starts_with(expected), "{arguments:?}: {all}");
        all
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let (_, said, complained) = self.run(&[arguments, &["--output", "json"]].concat());
        let parsed = serde_json::from_str(&said);
        assert!(parsed.is_ok(), "{arguments:?}: {said}{complained}");
        parsed.unwrap()
    }

    fn serial(&self, file: &str) -> String {
        self.json(&["inspect", file])[0]["serial"].as_str().unwrap().to_owned()
    }

    /// Whether rustls accepts a client that shows the chain in a file.
    fn accepts(&self, ca: &str, lists: &[&str], file: &str) -> Result<(), rustls::Error> {
        let chain = |file: &str| {
            let text = fs::read(self.path(file)).unwrap();
            CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().unwrap()
        };
        let mut roots = RootCertStore::empty();
        roots.add(chain(ca)[0].clone()).unwrap();
        let lists = lists.iter().map(|list| {
            CertificateRevocationListDer::from_pem_slice(&fs::read(self.path(list)).unwrap())
                .unwrap()
        });
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), ringfence::tls::provider())
                .with_crls(lists)
                .enforce_revocation_expiration()
                .build()
                .unwrap();
        let chain = chain(file);
        verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(drop)
    }
}

fn is_revoked(verdict: &Result<(), rustls::Error>) -> bool {
    matches!(verdict, Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)))
}
