//! `ringfence audit blame`

use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Progress;
use super::question::{HashKey, Naming, complain_unnamed, files};
use super::{COULD_NOT, complain_reading};
use crate::cli::{complain, say};
use crate::evidence::calls::{Call, read};
use crate::evidence::keys::AskedKey;
use crate::evidence::question::Blame;
use crate::evidence::record::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The key
    key: String,
    /// Folders or files of audit logs
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    hashes: HashKey,
}

/// Exit code 0 when somebody did, 1 when nobody is known, 2 when it could not be told.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let segments = match files(&arguments.paths) {
        Ok(segments) => segments,
        Err(faults) => {
            faults.iter().for_each(|fault| complain(fault));
            return ExitCode::from(COULD_NOT);
        }
    };
    let hash = match arguments.hashes.read() {
        Ok(hash) => hash,
        Err(error) => {
            complain(&error);
            return ExitCode::from(COULD_NOT);
        }
    };
    let key = AskedKey::new(arguments.key.clone().into_bytes(), hash.as_ref());
    let mut blame = Blame::default();
    let concerns = |call: &Call| Blame::concerns(&key, call);
    let progress = Progress::new(&segments);
    let mut tell_blame = |call| blame.take(&key, arguments.naming.name(call));
    let reading = read(&segments, &concerns, &mut tell_blame, &|bytes| progress.add(bytes));
    progress.end();
    blame.conclude();
    tell(&key, &blame);
    complain_unnamed(blame.unnamed);
    if blame.forgotten > 0 {
        complain(&format!(
            "note: {} older calls that may have changed it are not shown; `audit query --key` shows all",
            blame.forgotten
        ));
    }
    if complain_reading(&reading) {
        ExitCode::from(COULD_NOT)
    } else if blame.last.is_some() || !blame.perhaps.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(key: &AskedKey, blame: &Blame) {
    let name = key.shown();
    match &blame.last {
        Some(call) => {
            say(&format!("{name}: last changed by"));
            describe(call);
        }
        None => say(&format!("{name}: no change that etcd confirmed is in these records")),
    }
    if !blame.perhaps.is_empty() {
        say(
            "after that perhaps (a transaction takes one of two branches, a deletion of a range may have found other \
             keys; without etcd's word, or with a cut or hashed key, it is not known):",
        );
        blame.perhaps.iter().for_each(describe);
    }
    if blame.denied > 0 {
        say(&format!("{} tries were denied or refused", blame.denied));
    }
}

fn describe(call: &Call) {
    let or =
        |text: &Option<String>, otherwise: &str| printable(text.as_deref().unwrap_or(otherwise));
    say(&format!("  principal  {}", or(&call.principal, "(nobody)")));
    say(&format!("  source     {}", or(&call.source, "not in these records")));
    say(&format!("  time       {}", printable(&call.time)));
    say(&format!("  rpc        {}", printable(&call.rpc)));
    say(&format!("  touches    {}", call.touches.join("; ")));
    say(&format!("  rules      {}", printable(&call.rules.join("; "))));
    say(&format!("  result     {}", call.result()));
    say(&format!("  record     {} of chain {}", call.seq, call.chain));
}
