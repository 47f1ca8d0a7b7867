//! One way to an etcd, and etcdctl on it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use crate::cases::{Case, Policy};
use crate::mask::masked;
use crate::support::{Etcd, Pki};

/// etcdctl itself gives up after five seconds.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(12);

/// What a command said, with what may differ hidden.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    /// The lines of standard error that name an error; the others are times and measurements.
    pub errors: Vec<String>,
    /// All of it, as it was.
    pub all: String,
}

impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        (self.code, &self.stdout, &self.errors) == (other.code, &other.stdout, &other.errors)
    }
}

impl Output {
    /// Whether there is such an error, or none.
    pub fn complains_of(&self, error: Option<&str>) -> bool {
        error.map_or(self.errors.is_empty(), |text| {
            self.errors.iter().any(|line| line.contains(text))
        })
    }
}

/// etcdctl with an endpoint and a certificate.
pub struct Side {
    etcdctl: PathBuf,
    arguments: Vec<String>,
    /// It has the old API too, and must be told not to use it.
    speaks_v2: bool,
    /// Values for the names in braces.
    names: BTreeMap<&'static str, String>,
    folder: tempfile::TempDir,
}

impl Side {
    pub fn new(
        etcd: &Etcd,
        endpoint: String,
        pki: &Pki,
        certificate: &str,
        policy: &Policy,
    ) -> Self {
        let file = |name: String| pki.path(&name).to_str().unwrap().to_owned();
        let arguments = vec![
            format!("--endpoints={endpoint}"),
            format!("--cacert={}", file("kubernetes-ca.crt".to_owned())),
            format!("--cert={}", file(format!("{certificate}.crt"))),
            format!("--key={}", file(format!("{certificate}.key"))),
        ];
        let names =
            BTreeMap::from([("p", policy.prefix.to_owned()), ("n", policy.neighbour.to_owned())]);
        let etcdctl = etcd.binary("etcdctl");
        let speaks_v2 = etcdctl.to_str().unwrap().contains("/3.4.");
        Self { etcdctl, arguments, speaks_v2, names, folder: tempfile::tempdir().unwrap() }
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it does not say what its script waits for, or does not end.
    pub fn run(&mut self, case: &Case) -> Result<Output, String> {
        let mut child = self.start(case.command, "main");
        let played = self.play(case, &mut child).and_then(|()| ended(&mut child));
        if played.is_err() {
            // It may have ended in between.
            drop(child.kill());
            child.wait().unwrap();
        }
        let status = played.map_err(|error| format!("{error}; it said {:?}", self.said("main")))?;
        let read = |stream: &str| {
            fs::read_to_string(self.folder.path().join(format!("main.{stream}"))).unwrap()
        };
        let (stdout, stderr) = (read("out"), read("err"));
        if let Some((name, before)) = case.keep {
            let rest = stdout.split_once(before).map_or("", |(_, rest)| rest.trim_start());
            let id = rest.split(|character: char| !character.is_ascii_hexdigit()).next();
            // Where nothing was given out, a command that needs an ID gets one of nobody's.
            let id = id.filter(|id| !id.is_empty()).unwrap_or("1234");
            self.names.insert(name, id.to_owned());
        }
        let errors = stderr.lines().filter(|line| line.starts_with("Error:"));
        let mut shown = masked(&stdout, case.numbers);
        if !case.unordered.is_empty() {
            let mut pieces: Vec<&str> = shown.split(case.unordered).collect();
            pieces.sort_unstable();
            // Each of several watches tells the same progress, as far as the command lives to see it.
            pieces.dedup();
            shown = pieces.join("\n");
        }
        Ok(Output {
            code: status.code(),
            stdout: shown,
            errors: errors.map(|line| masked(line, case.numbers)).collect(),
            all: stdout + &stderr,
        })
    }

    /// Plays the script of a case; the standard input of its command is closed after it.
    fn play(&self, case: &Case, child: &mut Child) -> Result<(), String> {
        let mut stdin = child.stdin.take().unwrap();
        for step in case.script {
            let (kind, text) = step.split_at(1);
            let text = self.filled(text);
            match kind {
                // It may have ended already; what it said is judged.
                ">" => drop(writeln!(stdin, "{text}")),
                "?" => until(&format!("`{text}`"), || self.said("main").contains(&text))?,
                "!" => {
                    let mut other = self.start(&text, "other");
                    if !ended(&mut other)?.success() {
                        return Err(format!("`{text}`: {}", self.said("other")));
                    }
                }
                "^" => {
                    let id = child.id().to_string();
                    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
                }
                _ => panic!("a step is > write, ? wait, ! run or ^ interrupt: {step}"),
            }
        }
        Ok(())
    }

    fn start(&self, command: &str, name: &str) -> Child {
        let file = |stream| File::create(self.folder.path().join(format!("{name}.{stream}")));
        let mut etcdctl = Command::new(&self.etcdctl);
        etcdctl
            .args(&self.arguments)
            .args(command.split(' ').map(|word| self.filled(word)))
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(file("out").unwrap())
            .stderr(file("err").unwrap());
        if self.speaks_v2 {
            etcdctl.env("ETCDCTL_API", "3");
        }
        etcdctl.spawn().unwrap()
    }

    /// Whether the snapshot that was saved ends with the SHA-256 of all before, as etcd sends it.
    pub fn snapshot_is_whole(&self) -> bool {
        let Ok(file) = fs::read(self.folder.path().join("snapshot.db")) else { return false };
        let (database, sum) = file.split_at(file.len().saturating_sub(32));
        !database.is_empty() && digest::digest(&digest::SHA256, database).as_ref() == sum
    }

    /// Puts the values in the place of their names.
    fn filled(&self, text: &str) -> String {
        let fill = |text: String, (name, value): (&&str, &String)| {
            text.replace(&format!("{{{name}}}"), value)
        };
        self.names.iter().fold(text.to_owned(), fill).replace("\"\"", "")
    }

    fn said(&self, name: &str) -> String {
        let read = |stream: &str| {
            fs::read_to_string(self.folder.path().join(format!("{name}.{stream}"))).unwrap()
        };
        read("out") + &read("err")
    }
}

fn ended(child: &mut Child) -> Result<ExitStatus, String> {
    until("its end", || child.try_wait().unwrap().is_some())?;
    Ok(child.wait().unwrap())
}

/// Polls until it holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > COMMAND_TIME_MAX {
            return Err(format!("{what} did not come in {COMMAND_TIME_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
