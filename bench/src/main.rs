//! `ringfence-bench`: the programs behind the speed figures, one subcommand each.
//! Everything here talks to loopback only and ends by itself or with its parent.

mod audit;
mod compare;
mod contestant;
mod figures;
mod fill;
mod grpc;
mod histogram;
mod load;
mod machine;
mod passthrough;
mod pki;
mod process;
mod report;
mod series;
mod stop;
mod suite;
mod tls;
mod upstream;
mod watch;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What every part of the bench answers with: a result, or one line that says what went wrong.
pub type Outcome<T> = Result<T, String>;

#[derive(Parser)]
#[command(name = "ringfence-bench", about = "Measures ringfence beside what would be used instead")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a CA and the server, client and proxy certificates
    Pki(pki::Arguments),
    /// Serve as a stand-in for etcd: mutual TLS, canned answers
    Upstream(upstream::Arguments),
    /// Forward h2 to h2 with mutual TLS on both hops and nothing else: the floor
    Passthrough(passthrough::Arguments),
    /// Drive unary gRPC calls in a closed loop and print what came of it as JSON
    Load(load::Arguments),
    /// Drive many watchers of the same keys, and print how fast every event reached each as JSON
    Watch(watch::Arguments),
    /// Run the contestants in turns and print one table
    Compare(compare::Arguments),
    /// Run the sections of the bench, and write every figure and what was made of it
    Suite(suite::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Pki(arguments) => pki::run(&arguments),
        Command::Upstream(arguments) => upstream::run(&arguments),
        Command::Passthrough(arguments) => passthrough::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
        Command::Watch(arguments) => watch::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Suite(arguments) => suite::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ringfence-bench: {message}");
            ExitCode::FAILURE
        }
    }
}
