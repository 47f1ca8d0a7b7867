//! Plays the story and prints it as a table.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use super::process;
use super::raw::{RawClient, Reply};
use super::stage::Stage;
use super::story::{Action, PERMISSION_DENIED, STORY, Step, Verdict};
use crate::cli::say;

const CALL_LIMIT: &str = "10s";
/// etcdctl tries again and again after a failed handshake.
const HANDSHAKE_LIMIT: &str = "1s";
/// For the process as a whole.
const PROCESS_LIMIT: Duration = Duration::from_secs(30);
/// What is shown of an answer.
const ANSWER_CHARACTERS: usize = 42;
const STATUS_DENIED: &str = "etcdserver: permission denied";

/// How it went.
pub(super) struct Tally {
    pub(super) steps: usize,
    pub(super) unmet: usize,
}

struct Got {
    verdict: Verdict,
    detail: String,
}

impl Got {
    fn new(verdict: Verdict, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { verdict, detail }
    }
}

/// Plays every step, whatever came of those before.
pub(super) async fn play(stage: &Stage) -> Result<Tally, String> {
    let table = Table::new();
    let mut tally = Tally { steps: 0, unmet: 0 };
    for chapter in STORY {
        say("");
        say(chapter.title);
        table.head();
        for step in chapter.steps {
            let got = perform(stage, step).await?;
            tally.steps += 1;
            if !table.row(step, &got) {
                tally.unmet += 1;
            }
        }
    }
    Ok(tally)
}

async fn perform(stage: &Stage, step: &Step) -> Result<Got, String> {
    match &step.action {
        Action::Etcdctl(arguments, input) => {
            let mut command = etcdctl(stage, step, stage.addresses.ringfence, CALL_LIMIT);
            command.args(*arguments);
            Ok(judge(&process::run(command, input, PROCESS_LIMIT).await?))
        }
        Action::EtcdctlBehind(arguments) => {
            let mut command = etcdctl(stage, step, stage.addresses.etcd, CALL_LIMIT);
            command.args(*arguments);
            Ok(judge(&process::run(command, "", PROCESS_LIMIT).await?))
        }
        Action::Forged(key) => {
            let client = RawClient::new(stage, step.certificate);
            Ok(match client.forged_range(key).await {
                Ok(Reply::Values(values)) => Got::new(Verdict::Allowed, values.join(" ")),
                Ok(Reply::Status(text)) if text == STATUS_DENIED => {
                    Got::new(Verdict::Denied, PERMISSION_DENIED)
                }
                Ok(Reply::Status(text)) | Err(text) => Got::new(Verdict::Unclear, text),
            })
        }
        Action::Handshake => {
            let mut command = etcdctl(stage, step, stage.addresses.ringfence, HANDSHAKE_LIMIT);
            command.args(["get", "/tenants/acme/colour"]);
            let ended = process::run(command, "", PROCESS_LIMIT).await?;
            let got = judge(&ended);
            if got.verdict != Verdict::Unclear {
                return Ok(got);
            }
            // etcdctl does not reliably tell why it got nowhere.
            let client = RawClient::new(stage, step.certificate);
            Ok(match client.refusal().await {
                Ok(alert) => Got::new(Verdict::Refused, alert),
                Err(text) => Got::new(Verdict::Unclear, text),
            })
        }
    }
}

fn etcdctl(stage: &Stage, step: &Step, endpoint: SocketAddr, limit: &str) -> Command {
    let mut command = Command::new(&stage.programs.etcdctl);
    // The caller's ETCDCTL_ variables are settings of etcdctl and not meant for this one.
    command.env_clear().env("ETCDCTL_API", "3");
    command.arg(format!("--endpoints=https://{endpoint}"));
    command.arg(format!("--command-timeout={limit}"));
    command.arg(format!("--dial-timeout={limit}"));
    command.arg("--cacert").arg(stage.pki("kubernetes-ca.crt"));
    if let Some(name) = step.certificate {
        command.arg("--cert").arg(stage.pki(&format!("{name}.crt")));
        command.arg("--key").arg(stage.pki(&format!("{name}.key")));
    }
    command
}

fn judge(ended: &process::Ended) -> Got {
    if ended.success {
        let lines = ended.stdout.lines().filter(|line| !line.is_empty());
        return Got::new(Verdict::Allowed, lines.collect::<Vec<_>>().join(" "));
    }
    let error = ended.stderr.lines().next_back().unwrap_or_default();
    let error = error.strip_prefix("Error: ").unwrap_or(error);
    if error == STATUS_DENIED {
        Got::new(Verdict::Denied, PERMISSION_DENIED)
    } else {
        Got::new(Verdict::Unclear, error)
    }
}

/// An answer as expected is there to be recognised, not to be read to its end.
fn cut(answer: &str) -> String {
    if answer.chars().count() <= ANSWER_CHARACTERS {
        return answer.to_owned();
    }
    let head: String = answer.chars().take(ANSWER_CHARACTERS - 3).collect();
    format!("{head}...")
}

struct Table {
    who_width: usize,
    what_width: usize,
    colour: bool,
}

impl Table {
    fn new() -> Self {
        let steps = || STORY.iter().flat_map(|chapter| chapter.steps);
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            who_width: steps().map(|step| step.who.len()).max().unwrap_or(0),
            what_width: steps().map(|step| step.what.len()).max().unwrap_or(0),
            colour: std::io::stdout().is_terminal() && !asked_not_to,
        }
    }

    fn head(&self) {
        let line = self.line("    ", "who", "what", "expected", "got      answer");
        say(&self.painted("2", &line));
    }

    /// Whether the expectation was met.
    fn row(&self, step: &Step, got: &Got) -> bool {
        let met = got.verdict == step.expected && got.detail == step.detail;
        let mark = if met { self.painted("32", "ok  ") } else { self.painted("1;31", "FAIL") };
        let expected = step.expected.name();
        let answer = if met { cut(&got.detail) } else { got.detail.clone() };
        let text = format!("{:7}  {answer}", got.verdict.name());
        say(&self.line(&mark, step.who, step.what, expected, &text));
        if !met {
            let wanted = format!("{:7}  {}", expected, step.detail);
            say(&self.line("    ", "", "", "  and not", &wanted));
        }
        met
    }

    fn line(&self, mark: &str, who: &str, what: &str, expected: &str, got: &str) -> String {
        let (who_width, what_width) = (self.who_width, self.what_width);
        format!("  {mark}  {who:who_width$}  {what:what_width$}  {expected:9} {got}")
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
