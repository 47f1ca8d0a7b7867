//! Other processes: starting them, ending them, and what they used according to the kernel.
//! Ends only what it started, by its id.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::stop::Stop;

/// Longer than ringfence gives open calls to end.
const END_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
const LOG_TAIL_BYTES: usize = 2000;

#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// The most there ever was, of each process by itself.
    pub peak_resident_bytes: u64,
}

/// CPU time (user and system, all threads, ended ones too) since the process began, and its resident memory now; its
/// children (nginx has its workers as such) are counted with it, but no memory that they share is taken off.
pub fn usage(pid: u32) -> Outcome<Usage> {
    let mut total = usage_of_one(pid)?;
    for child in children(pid) {
        // It may have ended in between.
        let Ok(usage) = usage_of_one(child) else { continue };
        total.cpu_seconds += usage.cpu_seconds;
        total.resident_bytes += usage.resident_bytes;
        total.peak_resident_bytes += usage.peak_resident_bytes;
    }
    Ok(total)
}

fn usage_of_one(pid: u32) -> Outcome<Usage> {
    let read = |path: String| fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"));
    let status = read(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let stat = Stat::read(&read(format!("/proc/{pid}/stat"))?);
    let stat = stat.ok_or_else(|| format!("/proc/{pid}/stat: not as expected"))?;
    Ok(Usage {
        cpu_seconds: stat.ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        resident_bytes: stat.resident_bytes,
        peak_resident_bytes: peak.map_or(stat.resident_bytes, |kibibytes| kibibytes * 1024),
    })
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Stat::read(&text).is_some_and(|stat| stat.parent == parent)
    };
    numbers.filter(is_child).collect()
}

/// What matters here of `/proc/PID/stat`.
struct Stat {
    parent: u32,
    ticks: u64,
    resident_bytes: u64,
}

impl Stat {
    /// The name (field 2) may hold spaces and parentheses, so fields are counted from its last `)`: what follows is field 3.
    fn read(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            ticks: field(14)? + field(15)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

/// The program, to be asked to end when this process is gone, however it went: nothing of a run
/// outlives it. `setpriv` becomes the program, so its process id is the program's.
pub fn tied(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A process of ours. It is ended when this is dropped; what it said is in the log beside its other files.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// The command must come from `tied`. All it says goes to the log.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Outcome<Self> {
        let file = create(log)?;
        let twin = file.try_clone();
        let twin = twin.map_err(|error| format!("{}: {error}", log.display()))?;
        Self::spawn(name, command.stdout(file).stderr(twin), log)
    }

    /// The same, with what it prints in a file of its own.
    pub fn start_printing(
        name: &str,
        command: &mut Command,
        log: &Path,
        printed: &Path,
    ) -> Outcome<Self> {
        let command = command.stdout(create(printed)?).stderr(create(log)?);
        Self::spawn(name, command, log)
    }

    fn spawn(name: &str, command: &mut Command, log: &Path) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{name}: setpriv (of util-linux): {error}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error, with the end of its log, when it has ended by itself.
    pub fn still_there(&mut self) -> Outcome<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(format!("{} ended by itself ({status}); it said:\n{}", self.name, self.said()))
            }
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Waits until it ends by itself, or the run must end.
    pub fn wait(&mut self, stop: &Stop) -> Outcome<()> {
        loop {
            let ended = self.child.try_wait();
            stop.check()?;
            match ended.map_err(|error| format!("{}: {error}", self.name))? {
                None => thread::sleep(POLL),
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(format!("{}: {}", self.name, self.said().trim_end())),
            }
        }
    }

    pub fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    /// Asks it to end, and makes it when it takes too long.
    pub fn end(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended in between; waiting below settles that.
            let _ = kill_process(pid, Signal::TERM);
        }
        let limit = Instant::now() + END_LIMIT;
        while Instant::now() < limit {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn create(path: &Path) -> Outcome<File> {
    File::create(path).map_err(|error| format!("{}: {error}", path.display()))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A loopback address that nothing listens on at this moment.
pub fn free_address() -> Outcome<String> {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    address.map(|address| address.to_string()).map_err(|error| format!("no free port: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_moves_no_field() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 9 4096 3 0";
        let stat = Stat::read(stat).unwrap();
        assert_eq!((stat.parent, stat.ticks), (1, 200));
        assert_eq!(stat.resident_bytes, 3 * rustix::param::page_size() as u64);
    }

    #[test]
    fn children_are_counted_with_their_parent() {
        let mut parent = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        // It has become `sleep` when its name says so.
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let child = loop {
            match children(parent.id()).as_slice() {
                [child] if name(*child) == "sleep\n" => break *child,
                _ => assert!(Instant::now() < limit, "no child"),
            }
            thread::sleep(POLL);
        };
        let apart = usage_of_one(parent.id()).unwrap().resident_bytes
            + usage_of_one(child).unwrap().resident_bytes;
        let together = usage(parent.id()).unwrap().resident_bytes;
        let child = i32::try_from(child).ok().and_then(Pid::from_raw).unwrap();
        kill_process(child, Signal::KILL).unwrap();
        parent.wait().unwrap();
        assert_eq!(together, apart);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(usage(std::process::id()).unwrap().resident_bytes > 0);
    }
}
