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
        let issuer = self.issuer(authority);
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

    fn issuer(&self, authority: &str) -> rcgen::Issuer<'static, rcgen::KeyPair> {
        let key = String::from_utf8(self.pem(&format!("{authority}.key"))).unwrap();
        let mut signer = rcgen::CertificateParams::default();
        signer.distinguished_name = rcgen::DistinguishedName::new();
        let name = self.facts(authority).common_names[0].clone();
        signer.distinguished_name.push(rcgen::DnType::CommonName, name);
        rcgen::Issuer::new(signer, rcgen::KeyPair::from_pem(&key).unwrap())
    }

    /// What a certificate says.
    pub fn facts(&self, name: &str) -> ringfence::identity::CertificateFacts {
        let der = CertificateDer::from_pem_slice(&self.pem(&format!("{name}.crt"))).unwrap();
        ringfence::identity::CertificateFacts::read(&der).unwrap()
    }

    /// `ringfence cert COMMAND FOLDER ...`, which must go well.
    pub fn command(&self, command: &[&str]) {
        let (first, rest) = command.split_first().unwrap();
        let done = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["cert", first])
            .arg(self.folder.path())
            .args(rest)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// An empty revocation list that is past its time before long.
    pub fn brief_list(&self, authority: &str, lifetime: std::time::Duration) {
        let now = time::OffsetDateTime::now_utc();
        let params = rcgen::CertificateRevocationListParams {
            this_update: now - std::time::Duration::from_secs(60),
            next_update: now + lifetime,
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer(authority)).unwrap();
        std::fs::write(self.path(&format!("{authority}.crl")), list.pem().unwrap()).unwrap();
    }

    /// A client that would resume what it can, of one version of TLS.
    pub fn resuming_client_config(
        &self,
        name: &str,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.pem("kubernetes-ca.crt")).unwrap()).unwrap();
        let chain = CertificateDer::from_pem_slice(&self.pem(&format!("{name}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&self.pem(&format!("{name}.key"))).unwrap();
        let mut config = ClientConfig::builder_with_provider(ringfence::tls::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain], key)
            .unwrap();
        config.resumption = rustls::client::Resumption::in_memory_sessions(16);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
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
