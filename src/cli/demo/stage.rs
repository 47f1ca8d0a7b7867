//! etcd and ringfence, with a PKI and a config of their own, on ports that were free.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::admin;
use super::process::Server;
use super::programs::Programs;
use crate::pki::Recipe;
use crate::{clock, pki};

const RECIPE: &str = include_str!("../../../certs/demo.toml");
const POLICY_KUBERNETES: &str = include_str!("../../../config/policy-kubernetes.toml");
const POLICY_TENANTS: &str = include_str!("../../../config/policy-tenants.toml");

const READY_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Between looking for free ports and using them somebody else may take one.
const PORT_ATTEMPTS: u32 = 3;

/// Where the two listen.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    /// ringfence's client port: the one that everybody is to use.
    pub(super) ringfence: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) etcd: SocketAddr,
    etcd_peer: SocketAddr,
}

/// The two servers and what belongs to them.
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    pub(super) programs: Programs,
    pub(super) addresses: Addresses,
    etcd: Option<Server>,
    ringfence: Option<Server>,
}

impl Stage {
    pub(super) fn new(folder: &Path, programs: Programs) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            folder: folder.to_owned(),
            programs,
            addresses: Addresses {
                ringfence: nowhere,
                admin: nowhere,
                etcd: nowhere,
                etcd_peer: nowhere,
            },
            etcd: None,
            ringfence: None,
        }
    }

    /// A file of the PKI, such as `acme.crt`.
    pub(super) fn pki(&self, file: &str) -> PathBuf {
        self.folder.join("pki").join(file)
    }

    /// Where ringfence writes its records.
    pub(super) fn audit(&self) -> PathBuf {
        self.folder.join("audit")
    }

    /// Makes everything and waits until ringfence says that it is ready.
    pub(super) async fn start(&mut self) -> Result<(), String> {
        let recipe = Recipe::read("certs/demo.toml", RECIPE).map_err(|problems| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(
                "
",
            )
        })?;
        pki::make(&recipe, &self.folder.join("pki"), clock::since_epoch())
            .map_err(|error| error.to_string())?;
        self.write("policy-kubernetes.toml", POLICY_KUBERNETES)?;
        self.write("policy-tenants.toml", POLICY_TENANTS)?;
        let mut attempt = 1;
        loop {
            let started = self.start_on_free_ports(attempt).await;
            match started {
                Err(error) if attempt < PORT_ATTEMPTS && is_port_taken(&error) => {
                    // What ended too early is reported if it happens again.
                    drop(self.stop().await);
                    attempt += 1;
                }
                started => return started,
            }
        }
    }

    async fn start_on_free_ports(&mut self, attempt: u32) -> Result<(), String> {
        self.addresses = free_addresses()
            .map_err(|error| format!("cannot find free ports on 127.0.0.1: {error}"))?;
        self.write("ringfence.toml", &self.config())?;
        let etcd = self.etcd_command(attempt);
        let etcd = Server::start("etcd", etcd, self.folder.join("etcd.log"))?;
        self.etcd = Some(etcd);
        let mut serve = Command::new(&self.programs.ringfence);
        serve.arg("serve").arg("--config");
        serve.arg(self.folder.join("ringfence.toml"));
        let ringfence = Server::start("ringfence", serve, self.folder.join("ringfence.log"))?;
        self.ringfence = Some(ringfence);
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            for server in [&mut self.etcd, &mut self.ringfence].into_iter().flatten() {
                server.check()?;
            }
            let Err(not_ready) = admin::get(self.addresses.admin, "/readyz?verbose").await else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let seconds = READY_LIMIT.as_secs();
                let etcd = self.etcd.as_ref().map(Server::last_words);
                return Err(format!(
                    "ringfence was not ready within {seconds} seconds: {not_ready}\netcd said:\n{}",
                    etcd.unwrap_or_default()
                ));
            }
            sleep(POLL).await;
        }
    }

    /// Waits until one of them ends, and says which and why.
    pub(super) async fn first_to_end(&mut self) -> String {
        loop {
            for server in [&mut self.etcd, &mut self.ringfence].into_iter().flatten() {
                if let Err(error) = server.check() {
                    return error;
                }
            }
            sleep(POLL).await;
        }
    }

    /// Ends ringfence, then etcd.
    pub(super) async fn stop(&mut self) -> Result<(), String> {
        let mut ringfence = Ok(());
        if let Some(server) = self.ringfence.take() {
            ringfence = match server.stop().await {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(format!("ringfence did not end in good order: {status}")),
                Err(error) => Err(error),
            };
        }
        let etcd = match self.etcd.take() {
            // etcd ends itself by the signal it was sent, so its status says nothing.
            Some(server) => server.stop().await.map(drop),
            None => Ok(()),
        };
        ringfence.and(etcd)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)
            .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
    }

    fn config(&self) -> String {
        let Addresses { ringfence, admin, etcd, .. } = self.addresses;
        format!(
            r#"# Made by `ringfence demo`. Paths are relative to this file.
version = 1

[client]
listen = ["{ringfence}"]
certificate = "pki/ringfence-server.crt"
key = "pki/ringfence-server.key"

[[client.ca]]
name = "kubernetes"
roots = "pki/kubernetes-ca.crt"

[[client.ca]]
name = "tenants"
roots = "pki/tenants-ca.crt"

[client.advertise]
demo = ["https://{ringfence}"]

[leases]
keys = "lease-keys"

[upstream]
endpoints = ["https://{etcd}"]
ca = "pki/kubernetes-ca.crt"
certificate = "pki/ringfence-client.crt"
key = "pki/ringfence-client.key"

[audit]
directory = "audit"

[admin]
listen = "{admin}"

[policy]
files = ["policy-kubernetes.toml", "policy-tenants.toml"]
"#
        )
    }

    fn etcd_command(&self, attempt: u32) -> Command {
        let Addresses { etcd, etcd_peer, .. } = self.addresses;
        let mut command = Command::new(&self.programs.etcd);
        // The caller's ETCD_ variables are settings of etcd and not meant for this one.
        command.env_clear().current_dir(&self.folder);
        command.args(["--name", "demo", "--logger", "zap", "--log-outputs", "stderr"]);
        command.args(["--data-dir", &format!("etcd-{attempt}")]);
        command.args(["--listen-client-urls", &format!("https://{etcd}")]);
        command.args(["--advertise-client-urls", &format!("https://{etcd}")]);
        command.args(["--listen-peer-urls", &format!("https://{etcd_peer}")]);
        command.args(["--initial-advertise-peer-urls", &format!("https://{etcd_peer}")]);
        command.args(["--initial-cluster", &format!("demo=https://{etcd_peer}")]);
        for (certificate, key, authority, verify) in [
            ("--cert-file", "--key-file", "--trusted-ca-file", "--client-cert-auth"),
            (
                "--peer-cert-file",
                "--peer-key-file",
                "--peer-trusted-ca-file",
                "--peer-client-cert-auth",
            ),
        ] {
            command.args([certificate, "pki/etcd-server.crt", key, "pki/etcd-server.key"]);
            command.args([authority, "pki/kubernetes-ca.crt", verify]);
        }
        command
    }
}

/// All four are held until all are known, so that they differ.
fn free_addresses() -> std::io::Result<Addresses> {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = (free()?, free()?, free()?, free()?);
    Ok(Addresses {
        ringfence: held.0.local_addr()?,
        admin: held.1.local_addr()?,
        etcd: held.2.local_addr()?,
        etcd_peer: held.3.local_addr()?,
    })
}

fn is_port_taken(error: &str) -> bool {
    error.to_ascii_lowercase().contains("address already in use")
}
