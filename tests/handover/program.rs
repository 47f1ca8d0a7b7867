//! More ringfences with the config of one that was started.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::support::{Ringfence, wait_for};

pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// With a config that lies in the folder of another.
    pub fn start(of: &Ringfence, name: &str, config: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.stdin(Stdio::null());
        Self::spawn(command, of, name, config, arguments)
    }

    /// As a service manager does that has a socket for it: file descriptor 3, and two variables.
    pub fn activated(of: &Ringfence, name: &str, socket: OwnedFd) -> Self {
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_ringfence")]).stdin(socket);
        Self::spawn(command, of, name, "ringfence.toml", &[])
    }

    fn spawn(
        mut command: Command,
        of: &Ringfence,
        name: &str,
        config: &str,
        arguments: &[&str],
    ) -> Self {
        let log = of.path(&format!("log-{name}"));
        let child = command
            .arg("serve")
            .args(arguments)
            .arg("--config")
            .arg(of.path(config))
            .env("RUST_LOG", "info")
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it says so.
    pub fn says(&mut self, what: &str) {
        wait_for(what, || {
            let said = self.log().contains(what);
            assert!(said || self.is_running(), "it ended: {}", self.log());
            said
        });
    }

    pub fn serves(&mut self) {
        self.says(" serving ");
    }

    pub fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &process]).status().unwrap().success());
    }

    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of ringfence", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
