//! The command line: one subcommand per file. Exit codes: 0 done, 1 no or failed, 2 wrong usage.

mod audit;
mod can_i;
mod cert;
mod check;
mod client;
mod demo;
mod serve;
mod status;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::document::Problem;

/// Access-control proxy for etcd.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve etcd's clients until SIGTERM or SIGINT
    Serve {
        /// Take the place of the ringfence that runs with the same `upgrade.socket`, without refusing a connection
        #[arg(long)]
        take_over: bool,
        /// The config file
        #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
        config: PathBuf,
    },
    /// Read the config, policies, certificates and keys, and report every mistake
    Check {
        /// The config file
        #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
        config: PathBuf,
    },
    /// Ask the ringfence that runs with this config whether it is ready: exit code 0 for yes, 1 for no
    Status {
        /// The config file
        #[arg(long, value_name = "FILE", default_value = "ringfence.toml")]
        config: PathBuf,
    },
    /// Say whether a certificate may do something: exit code 0 for yes, 1 for no
    CanI(can_i::Arguments),
    /// Look at certificates, see what expires, make, renew and revoke them
    Cert(cert::Arguments),
    /// Keep and check the evidence that an audit log is
    Audit(Box<audit::Arguments>),
    /// Play a short story with a real etcd, etcdctl and this program, all on loopback
    Demo(demo::Arguments),
    /// Print the version
    Version,
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nothing can be done when the terminal is gone.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    start_logging();
    match arguments.command {
        Command::Serve { take_over, config } => serve::run(&config, take_over),
        Command::Check { config } => check::run(&config),
        Command::Status { config } => status::run(&config),
        Command::CanI(arguments) => can_i::run(&arguments),
        Command::Cert(arguments) => cert::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Version => {
            say(&format!("ringfence {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

/// Logs go to stderr; `RUST_LOG` chooses, `info` is the default.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would panic in whichever thread logs when stderr is gone, the audit writer among them.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    if builder.try_init().is_err() {
        complain("error: logging is already set up");
    }
}

/// A line on stdout. A reader that went away is no reason to fail.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

/// A line on stderr.
fn complain(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn complain_all(problems: &[Problem]) {
    for problem in problems {
        complain(&problem.to_string());
    }
}
