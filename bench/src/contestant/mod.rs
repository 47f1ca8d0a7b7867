//! What is compared: how each contestant is configured and started, all on the same terms.
//! Same certificates, mutual TLS on both hops, as many threads as the machine has cores. Measures nothing itself.

mod envoy;
mod etcd;
mod haproxy;
mod nginx;
mod ringfence;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use etcd::Listener;
pub use ringfence::{LARGE, ROLES_OF_LOAD, identity_name, policy_text};

use crate::Outcome;
use crate::process::{Running, free_address, tied};

/// More than any shape of the bench opens; every proxy is told so.
const CONNECTIONS_MAX: usize = 4096;
/// Streams of one connection, and no more than HAProxy and Envoy take by default.
const STREAMS_MAX: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Contestant {
    /// The load goes straight to the upstream: what driver and upstream can do with nothing in between
    Direct,
    Passthrough,
    Haproxy,
    /// Its access log is on
    Nginx,
    /// RBAC by path and an access log
    Envoy,
    /// Audit `buffered`
    Ringfence,
    /// Its audit level is `none`: no request is recorded
    RingfenceUnrecorded,
    /// Audit `blocking`
    RingfenceBlocking,
    /// Audit `blocking`, with a signed checkpoint every second or ten thousand records
    RingfenceSealed,
    /// Audit `buffered`, files rotated and compressed as by default; the others have one file to the end
    RingfenceRotating,
    /// 10,000 identities and 100,000 rules instead of one and 1,000
    RingfenceLargePolicy,
    /// etcd's own port with mutual TLS, gRPC and HTTP on one listener: how etcd is run by default
    EtcdOwnPort,
    /// etcd's port with mutual TLS when HTTP has a listener of its own
    EtcdSplit,
    /// etcd's grpc-proxy before the split port
    GrpcProxy,
    /// ringfence with a plain etcd behind, on loopback: any process of this machine could reach that etcd, too
    RingfencePlainUpstream,
}

/// The programs that may take part, where they are.
#[derive(Clone, clap::Args)]
pub struct Programs {
    /// The HAProxy program
    #[arg(long, default_value = "haproxy")]
    pub haproxy: PathBuf,
    /// The nginx program
    #[arg(long, default_value = "nginx")]
    pub nginx: PathBuf,
    /// The Envoy program
    #[arg(long, default_value = "envoy")]
    pub envoy: PathBuf,
    /// The etcd program
    #[arg(long, default_value = "etcd")]
    pub etcd: PathBuf,
    /// The ringfence program; by default the one beside this program
    #[arg(long)]
    pub ringfence: Option<PathBuf>,
}

impl Programs {
    pub fn ringfence(&self) -> Outcome<PathBuf> {
        if let Some(given) = &self.ringfence {
            let path = given.canonicalize();
            return path.map_err(|error| format!("{}: {error}", given.display()));
        }
        let own =
            std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
        Ok(own.with_file_name("ringfence"))
    }
}

/// What every contestant is given.
#[derive(Clone)]
pub struct Setting {
    /// Folder of this turn, empty at its start.
    pub directory: PathBuf,
    pub pki: PathBuf,
    /// The address of the server behind, mutual TLS unless the contestant says otherwise.
    pub upstream: String,
    pub threads: usize,
    pub programs: Programs,
}

/// A contestant that was started; it may not listen yet. `process` is None where nothing stands in between.
pub struct Started {
    pub address: String,
    pub process: Option<Running>,
    pub audit: Option<PathBuf>,
    /// Where its metrics are.
    pub admin: Option<String>,
}

impl Started {
    fn proxy(address: String, process: Running) -> Self {
        Self { address, process: Some(process), audit: None, admin: None }
    }
}

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Passthrough => "passthrough",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Ringfence => "ringfence",
            Self::RingfenceUnrecorded => "ringfence-unrecorded",
            Self::RingfenceBlocking => "ringfence-blocking",
            Self::RingfenceSealed => "ringfence-sealed",
            Self::RingfenceRotating => "ringfence-rotating",
            Self::RingfenceLargePolicy => "ringfence-large-policy",
            Self::EtcdOwnPort => "etcd-own-port",
            Self::EtcdSplit => "etcd-split",
            Self::GrpcProxy => "grpc-proxy",
            Self::RingfencePlainUpstream => "ringfence-plain-upstream",
        }
    }

    /// The first line the program says of its version, so that a figure can be traced to what it was taken of.
    pub fn version(self, programs: &Programs) -> Outcome<String> {
        let (program, argument) = match self {
            Self::Direct | Self::Passthrough => return Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Haproxy => (programs.haproxy.clone(), "-v"),
            Self::Nginx => (programs.nginx.clone(), "-v"),
            Self::Envoy => (programs.envoy.clone(), "--version"),
            Self::EtcdOwnPort | Self::EtcdSplit | Self::GrpcProxy => {
                (programs.etcd.clone(), "--version")
            }
            Self::Ringfence
            | Self::RingfenceUnrecorded
            | Self::RingfenceBlocking
            | Self::RingfenceSealed
            | Self::RingfenceRotating
            | Self::RingfenceLargePolicy
            | Self::RingfencePlainUpstream => (programs.ringfence()?, "version"),
        };
        let said = output(&program, argument)?;
        let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        // Envoy begins with its own path, which says nothing.
        let own_path = program.display().to_string();
        Ok(line.strip_prefix(&own_path).unwrap_or(line).trim().to_owned())
    }

    /// Whether it is, or is meant to stand before, a real etcd.
    pub fn needs_etcd(self) -> bool {
        matches!(
            self,
            Self::EtcdOwnPort | Self::EtcdSplit | Self::GrpcProxy | Self::RingfencePlainUpstream
        )
    }

    /// Which of etcd's listeners it stands before, in a series with a real etcd.
    pub fn listener(self) -> Listener {
        match self {
            Self::EtcdOwnPort => Listener::Shared,
            Self::RingfencePlainUpstream => Listener::Plain,
            _ => Listener::Split,
        }
    }

    pub fn start(self, setting: &Setting) -> Outcome<Started> {
        match self {
            Self::Direct | Self::EtcdOwnPort | Self::EtcdSplit => Ok(Started {
                address: setting.upstream.clone(),
                process: None,
                audit: None,
                admin: None,
            }),
            Self::Passthrough => start_passthrough(setting),
            Self::Haproxy => haproxy::start(setting),
            Self::Nginx => nginx::start(setting),
            Self::Envoy => envoy::start(setting),
            Self::GrpcProxy => etcd::start_grpc_proxy(setting),
            Self::Ringfence => ringfence::start(setting, &ringfence::Plan::BUFFERED),
            Self::RingfenceUnrecorded => ringfence::start_unrecorded(setting),
            Self::RingfenceBlocking => ringfence::start(
                setting,
                &ringfence::Plan { mode: "blocking", ..ringfence::Plan::BUFFERED },
            ),
            Self::RingfenceSealed => ringfence::start_sealed(setting),
            Self::RingfenceRotating => ringfence::start(
                setting,
                &ringfence::Plan { rotate: "", ..ringfence::Plan::BUFFERED },
            ),
            Self::RingfenceLargePolicy => ringfence::start(
                setting,
                &ringfence::Plan { size: LARGE, ..ringfence::Plan::BUFFERED },
            ),
            Self::RingfencePlainUpstream => ringfence::start(
                setting,
                &ringfence::Plan { plain: true, ..ringfence::Plan::BUFFERED },
            ),
        }
    }
}

/// The config file of a ringfence with the large policy, to be checked and not served.
pub fn configure_large_policy(setting: &Setting) -> Outcome<PathBuf> {
    let plan = ringfence::Plan { size: LARGE, ..ringfence::Plan::BUFFERED };
    ringfence::configure(setting, &plan).map(|configured| configured.config)
}

fn output(program: &Path, argument: &str) -> Outcome<String> {
    let hint = "build it with cargo, or fetch it with bench/get-peer";
    let output = Command::new(program).arg(argument).output();
    let output = output.map_err(|error| format!("{}: {error}; {hint}", program.display()))?;
    if !output.status.success() {
        let status = output.status;
        return Err(format!("`{} {argument}` failed ({status}); {hint}", program.display()));
    }
    // nginx says its version on stderr.
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

pub fn start_upstream(setting: &Setting) -> Outcome<Running> {
    let mut command = own_program()?;
    command.args(["upstream", "--listen", &setting.upstream]).arg("--pki").arg(&setting.pki);
    command.arg("--threads").arg(setting.threads.to_string());
    Running::start("upstream", &mut command, &setting.directory.join("upstream.log"))
}

/// An etcd with a fresh data folder below the setting's, listening where the setting's upstream says.
pub fn start_etcd(setting: &Setting, listener: Listener) -> Outcome<Running> {
    etcd::start(setting, listener)
}

pub fn own_program() -> Outcome<Command> {
    std::env::current_exe()
        .map(|path| tied(&path))
        .map_err(|error| format!("where this program is: {error}"))
}

fn start_passthrough(setting: &Setting) -> Outcome<Started> {
    let address = free_address()?;
    let mut command = own_program()?;
    command.args(["passthrough", "--listen", &address, "--upstream", &setting.upstream]);
    command.arg("--pki").arg(&setting.pki).arg("--threads").arg(setting.threads.to_string());
    let process =
        Running::start("passthrough", &mut command, &setting.directory.join("passthrough.log"))?;
    Ok(Started::proxy(address, process))
}
