//! Child processes with bounds: none outlives the demonstration, none is waited for without end.
//!
//! The workspace builds tokio without its process driver, and a few children need none: they are
//! polled.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(10);
/// From SIGTERM to SIGKILL; longer than ringfence lets open calls go on.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// What is read of a child's output.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// What is quoted of a log.
const LOG_LINES: usize = 5;

/// Killed when dropped. It has a process group of its own: a Ctrl-C reaches the demonstration only,
/// which then ends its children in order.
struct Guarded(Child);

impl Guarded {
    fn spawn(command: &mut Command) -> Result<Self, String> {
        let child = command.process_group(0).spawn();
        let name = command.get_program().display();
        child.map(Self).map_err(|error| format!("cannot start `{name}`: {error}"))
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    async fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            sleep(POLL).await;
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // It may end by itself just now; either way it is gone after the wait.
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// What a child that ran to its end left.
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs a program to its end with that input.
pub(super) async fn run(
    mut command: Command,
    input: &str,
    limit: Duration,
) -> Result<Ended, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guarded::spawn(&mut command)?;
    if let Some(mut stdin) = child.0.stdin.take() {
        // INVARIANT: inputs are our own and fit into a pipe. A child that ends without reading
        // says itself what is wrong.
        drop(stdin.write_all(input.as_bytes()));
    }
    let Some(status) = child.end(limit).await else {
        let name = command.get_program().display();
        let seconds = limit.as_secs();
        return Err(format!("`{name}` did not end within {seconds} seconds"));
    };
    Ok(Ended {
        success: status.success(),
        stdout: text(child.0.stdout.take()),
        stderr: text(child.0.stderr.take()),
    })
}

fn text(pipe: Option<impl std::io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read is shown, and an expectation is not met without the rest.
        drop(pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that runs until it is told to end.
pub(super) struct Server {
    name: &'static str,
    child: Guarded,
    log: PathBuf,
}

impl Server {
    /// Starts it; what it says goes to the log.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
    ) -> Result<Self, String> {
        let fault = |error| format!("cannot write `{}`: {error}", log.display());
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.map_err(fault)?;
        let twin = file.try_clone().map_err(fault)?;
        command.stdin(Stdio::null()).stdout(file).stderr(twin);
        let child = Guarded::spawn(&mut command)?;
        Ok(Self { name, child, log })
    }

    /// An error once it has ended, which is always too early.
    pub(super) fn check(&mut self) -> Result<(), String> {
        match self.child.ended() {
            None => Ok(()),
            Some(status) => Err(format!(
                "{} ended too early ({status}); it said:\n{}",
                self.name,
                self.last_words()
            )),
        }
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let text = text(File::open(&self.log).ok());
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LOG_LINES));
        last.map(|line| format!("  {line}\n")).collect()
    }

    /// SIGTERM, and SIGKILL for one that does not obey.
    pub(super) async fn stop(mut self) -> Result<ExitStatus, String> {
        if let Some(status) = self.child.ended() {
            return Ok(status);
        }
        terminate(self.child.0.id()).await?;
        let ended = self.child.end(STOP_LIMIT).await;
        ended.ok_or_else(|| {
            let seconds = STOP_LIMIT.as_secs();
            format!("{} did not end within {seconds} seconds of SIGTERM", self.name)
        })
    }
}

/// The standard library sends SIGKILL only; every shell has a `kill` of its own.
async fn terminate(process_id: u32) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "kill -TERM \"$0\""]);
    command.arg(process_id.to_string());
    let ended = run(command, "", Duration::from_secs(5)).await?;
    if ended.success {
        Ok(())
    } else {
        Err(format!("cannot send SIGTERM: {}", ended.stderr.trim()))
    }
}
