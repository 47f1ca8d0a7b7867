//! The real program, started and signalled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use super::{Pki, free_port, http_get, wait_for};

/// Two tenants by certificate, an API server, and one that may only write.
pub const POLICY: &str = r#"
[[identity]]
name = "apiserver"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["kubernetes"]
[[identity]]
name = "tenant"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["tenant"]
[[role]]
name = "kubernetes"
rules = [
  { prefix = "/registry/", allow = ["get", "list", "watch", "put", "delete"] },
  { allow = ["compact", "lease", "status", "member.list", "version", "metrics"] },
]
[[role]]
name = "tenant"
rules = [
  { prefix = "/tenants/${uri.path.2}/", allow = ["get", "list", "watch", "put", "delete"] },
  { key = "/tenants/${uri.path.2}/quota", deny = ["put", "delete"] },
  { prefix = "/inbox/", allow = ["put", "delete"] },
  { allow = ["lease", "health"] },
]
"#;

/// What can differ from one ringfence to the next.
#[derive(Default)]
pub struct Settings<'a> {
    /// More lines of the config.
    pub config: &'a str,
    /// Where its records are; in its own folder otherwise.
    pub audit_folder: Option<&'a Path>,
    /// More lines of its table `audit`.
    pub audit: &'a str,
    /// More identities and roles.
    pub policy: &'a str,
    /// Identities and roles instead of the usual ones.
    pub only_policy: &'a str,
    /// Keys of leases that others use too; its own otherwise.
    pub lease_keys: Option<&'a Path>,
    /// Where its standard output goes; into its own folder otherwise.
    pub stdout: Option<fs::File>,
    /// More variables of its environment.
    pub environment: &'a [(&'a str, &'a Path)],
}

pub struct Ringfence {
    child: Child,
    folder: tempfile::TempDir,
    audit_folder: PathBuf,
    pub port: u16,
    pub admin_port: u16,
}

impl Ringfence {
    /// Starts it before that endpoint, with [`POLICY`] and the default limits.
    pub fn start(pki: &Pki, endpoint: &str) -> Self {
        Self::start_with(pki, endpoint, "")
    }

    /// The same, with more lines in the config.
    pub fn start_with(pki: &Pki, endpoint: &str, more: &str) -> Self {
        Self::start_as(pki, endpoint, &Settings { config: more, ..Settings::default() })
    }

    /// The same, with another policy.
    pub fn start_with_policy(pki: &Pki, endpoint: &str, policy: &str, more: &str) -> Self {
        let settings = Settings { only_policy: policy, config: more, ..Settings::default() };
        Self::start_as(pki, endpoint, &settings)
    }

    /// The same, with any lines that say where etcd is.
    pub fn start_before(pki: &Pki, upstream: &str, more: &str) -> Self {
        let settings = Settings { config: more, ..Settings::default() };
        Self::launch(pki, upstream, &settings, Self::program())
    }

    /// The same, quiet, with a small audit queue, and no file of it can grow beyond 64 KiB.
    pub fn start_with_regular_files(pki: &Pki, endpoint: &str) -> Self {
        let mut command = Command::new("sh");
        // An ignored SIGXFSZ is inherited: a write fails instead of ending the process.
        let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_ringfence")]).env("RUST_LOG", "error");
        let audit = "queue_bytes = 65536\nwait_seconds = 1";
        let settings = Settings { audit, ..Settings::default() };
        Self::launch(pki, &format!("endpoints = [\"{endpoint}\"]"), &settings, command)
    }

    /// The same, with anything that can differ.
    pub fn start_as(pki: &Pki, endpoint: &str, settings: &Settings<'_>) -> Self {
        let upstream = format!("endpoints = [\"{endpoint}\"]");
        Self::launch(pki, &upstream, settings, Self::program())
    }

    /// The program, at its most talkative.
    fn program() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.env("RUST_LOG", "debug");
        command
    }

    fn launch(pki: &Pki, upstream: &str, settings: &Settings<'_>, mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let pki_folder = pki.path("");
        let pki_folder = pki_folder.display();
        let usual = if settings.only_policy.is_empty() { POLICY } else { settings.only_policy };
        let policy = format!("{usual}{}", settings.policy);
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        let own_keys = folder.path().join("lease-keys");
        let lease_keys = settings.lease_keys.unwrap_or(&own_keys).display();
        let (more, audit) = (settings.config, settings.audit);
        let audit_folder = settings.audit_folder.unwrap_or_else(|| Path::new("audit"));
        let config = format!(
            r#"
version = 1
cores = 2
[client]
listen = ["127.0.0.1:{port}"]
certificate = "{pki_folder}/ringfence-server.crt"
key = "{pki_folder}/ringfence-server.key"
[[client.ca]]
name = "kubernetes"
roots = "{pki_folder}/kubernetes-ca.crt"
[[client.ca]]
name = "tenants"
roots = "{pki_folder}/tenants-ca.crt"
[client.advertise]
test = ["https://127.0.0.1:{port}"]
[leases]
keys = "{lease_keys}"
[upstream]
{upstream}
ca = "{pki_folder}/kubernetes-ca.crt"
certificate = "{pki_folder}/ringfence-client.crt"
key = "{pki_folder}/ringfence-client.key"
[audit]
directory = {audit_folder:?}
{audit}
[admin]
listen = "127.0.0.1:{admin_port}"
[policy]
files = ["policy.toml"]
{more}
"#
        );
        fs::write(folder.path().join("ringfence.toml"), config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let stdout = match &settings.stdout {
            Some(stdout) => stdout.try_clone().unwrap(),
            None => fs::File::create(folder.path().join("stdout")).unwrap(),
        };
        let mut child = command
            .envs(settings.environment.iter().copied())
            .args(["serve", "--config"])
            .arg(folder.path().join("ringfence.toml"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for("ringfence serving", || {
            let log = || fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "ringfence ended: {}", log());
            http_get(admin_port, "/livez").is_some_and(|(status, _)| status == 200)
        });
        let audit_folder = folder.path().join(audit_folder);
        Self { child, folder, audit_folder, port, admin_port }
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub fn audit_folder(&self) -> &Path {
        &self.audit_folder
    }

    /// Puts another text in the place of a file of its folder, as careful tools do: all at once.
    pub fn replace_file(&self, name: &str, text: &str) {
        let fresh = self.folder.path().join(".fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.folder.path().join(name)).unwrap();
    }

    /// Where a file of its folder is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of its folder.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.metric("ringfence_generation")
    }

    /// The value of a metric, with its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// Waits until that generation is in force.
    pub fn wait_for_generation(&self, number: u64) {
        wait_for("another generation", || self.generation() >= number);
        assert_eq!(self.generation(), number, "{}", self.log());
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The text of its audit log.
    pub fn audit_text(&self) -> String {
        let files: Vec<PathBuf> = audit_files(self.audit_folder());
        assert_eq!(files.len(), 1, "one file, unless a test asks for more");
        fs::read_to_string(&files[0]).unwrap()
    }

    /// What it logged, at the most talkative level.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.folder.path().join("stdout")).unwrap()
    }

    pub fn metrics(&self) -> String {
        http_get(self.admin_port, "/metrics").unwrap().1
    }

    /// Sends SIGTERM and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    pub fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let signalled = Command::new("kill").args(["-s", name, &process]).status().unwrap();
        assert!(signalled.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of ringfence", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Every audit record, in the order of the file; call it after [`Self::stop`].
    pub fn records(&self) -> Vec<Value> {
        let text = self.audit_text();
        let records: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        records.iter().for_each(super::check_record);
        records
    }

    /// Stops it; its decisions on requests of clients.
    pub fn decisions(&mut self) -> Vec<Value> {
        assert_eq!(self.stop().code(), Some(0));
        let of_client = |record: &Value| record["type"] == "decision" && record["step"].is_null();
        self.records().into_iter().filter(of_client).collect()
    }

    /// Resident memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Ringfence {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The files of the audit log, in their order.
pub fn audit_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    // What a compression that was cut short leaves is no file of the log.
    let mut files: Vec<PathBuf> = files.filter(|path| is_segment(path)).collect();
    files.sort();
    files
}

fn is_segment(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.parse::<ringfence::chain::SegmentName>().is_ok()
}
