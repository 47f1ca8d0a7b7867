//! The config file: TOML as written -> everything that `serve` needs, or every mistake in it.
//!
//! Only `cli` and `server` may use it; each module has its own `Config` or `Limits` that this one
//! fills.

mod audit;
mod audit_levels;
mod audit_sinks;
mod certificates;
mod endpoints;
mod files;
mod fixed;
mod lease_keys;
mod named;
mod numbers;
mod raw;
mod raw_audit;
mod raw_revocation;
mod resolve;
mod revocation;
mod upgrade;
mod users;

pub use certificates::{CertificateFile, certificate_files};
pub use files::{TextError, read_text};
pub use fixed::Fixed;
pub use lease_keys::LeaseKeyFile;
pub use named::{Look, Named};
pub use resolve::{Loaded, admin_address, load, load_again};
pub use revocation::{LoadedRevocation, RevocationFiles};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::document::Problem;
use crate::policy::Policy;
use crate::proxy::{Advertise, Limits};
use crate::tls::{Authority, Connector, KeyPair, Revocation};
use crate::upstream;
use crate::upstream::Logins;

/// Everything that `serve` needs.
#[derive(Debug)]
pub struct Config {
    /// Where etcd's clients connect.
    pub listen: Vec<SocketAddr>,
    /// The certificate clients see.
    pub certificate: KeyPair,
    /// Who may vouch for clients.
    pub authorities: Vec<Authority>,
    /// Which files say what is revoked; to be read again while the rest stays.
    pub revocation_files: RevocationFiles,
    /// What they said, with what goes on counting from before.
    pub revocation: Arc<Revocation>,
    /// How etcd is reached.
    pub upstream: upstream::Config,
    /// The ways to etcd with certificates of identities, in the order of the policy.
    pub identity_connectors: Vec<Connector>,
    /// Users of etcd as which identities reach it.
    pub logins: Logins,
    /// The audit log.
    pub audit: crate::audit::Config,
    /// Where metrics and health are.
    pub admin_listen: SocketAddr,
    /// Identities and rules.
    pub policy: Policy,
    /// The keys of leases.
    pub lease_keys: LeaseKeyFile,
    /// Where members are said to be.
    pub advertise: Advertise,
    /// Bounds of the client port.
    pub limits: Limits,
    /// Threads that serve, each with its own connections.
    pub cores: usize,
    /// Every file of certificates that it is made of.
    pub certificate_files: Vec<CertificateFile>,
    /// When it is read again.
    pub reload: Reload,
    /// Where a newer ringfence takes over, if one may.
    pub upgrade_socket: Option<PathBuf>,
    /// What holds until the process ends.
    pub fixed: Fixed,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
}

/// When a config is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// When one of its files changes.
    pub watches_files: bool,
    /// Whatever happens.
    pub every: Option<std::time::Duration>,
    /// How long a certificate may wait for its key, or a key for its certificate.
    pub pair_wait: std::time::Duration,
}
