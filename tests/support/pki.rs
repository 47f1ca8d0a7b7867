//! The PKI of `certs/demo.toml`, made by the program itself.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::repository;

pub struct Pki {
    folder: tempfile::TempDir,
}

impl Pki {
    pub fn make() -> Self {
        Self::make_with("")
    }

    /// The same, with more certificates.
    pub fn make_with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("recipe.toml");
        let usual = std::fs::read_to_string(repository().join("certs/demo.toml")).unwrap();
        std::fs::write(&recipe, format!("{usual}\n{more}")).unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["cert", "make"])
            .arg(&recipe)
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { folder }
    }

    /// Another client of an authority, which lives as long; its last second, since 1970.
    pub fn issue(
        &self,
        name: &str,
        authority: &str,
        uri: &str,
        lifetime: std::time::Duration,
    ) -> u64 {
        let text = |file: String| String::from_utf8(self.pem(&file)).unwrap();
        let key = rcgen::KeyPair::from_pem(&text(format!("{authority}.key"))).unwrap();
        let der = CertificateDer::from_pem_slice(&self.pem(&format!("{authority}.crt"))).unwrap();
        let facts = ringfence::identity::CertificateFacts::read(&der).unwrap();
        let mut signer = rcgen::CertificateParams::default();
        signer.distinguished_name = rcgen::DistinguishedName::new();
        signer.distinguished_name.push(rcgen::DnType::CommonName, &facts.common_names[0]);
        let issuer = rcgen::Issuer::new(signer, key);
        let mut params = rcgen::CertificateParams::default();
        params.not_before = time::OffsetDateTime::now_utc() - std::time::Duration::from_secs(60);
        params.not_after = time::OffsetDateTime::now_utc() + lifetime;
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let own = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&own, &issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), leaf.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), own.serialize_pem()).unwrap();
        u64::try_from(params.not_after.unix_timestamp()).unwrap()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn pem(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    /// A client's TLS config; without a name it has no certificate.
    pub fn client_config(&self, name: Option<&str>, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.pem("kubernetes-ca.crt")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(ringfence::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::pem_slice_iter(&self.pem(&format!("{name}.crt")))
                    .collect::<Result<Vec<_>, _>>()
                    .unwrap();
                let key = PrivateKeyDer::from_pem_slice(&self.pem(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A server of etcd's certificate that asks for none.
    pub fn tls_server(&self) -> Arc<ServerConfig> {
        let chain = CertificateDer::from_pem_slice(&self.pem("etcd-server.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&self.pem("etcd-server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(ringfence::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key);
        Arc::new(config.unwrap())
    }
}
