//! `make bench`: the sections, each about one question, and what is written of them. `section` has the words and cells,
//! `document` writes RESULTS.md and the chart. A section says what it aims at and never leaves out what it missed.

mod calls;
mod chart;
mod document;
mod policy;
mod section;
mod watches;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::section::{Section, Table};
use crate::contestant::{Contestant, Programs};
use crate::series::Bench;
use crate::{Outcome, machine};

/// Well above what all sections take; whatever hangs ends then.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

#[derive(clap::Args)]
pub struct Arguments {
    /// Which sections to run; what earlier runs wrote of the others stays
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "proxy,etcd,latency,watches,handshakes,policy,growth,soak"
    )]
    sections: Vec<Name>,
    /// One round of one second each, to see that everything runs; such figures are of no use
    #[arg(long)]
    smoke: bool,
    /// About half of the rounds, and shorter ones: some 20 minutes, and ten of full load
    #[arg(long, conflicts_with = "smoke")]
    brief: bool,
    #[command(flatten)]
    programs: Programs,
    /// Folder for results.json, RESULTS.md and chart.svg
    #[arg(long)]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    Proxy,
    Etcd,
    Latency,
    Watches,
    Handshakes,
    Policy,
    Growth,
    Soak,
}

impl Name {
    const ALL: [Self; 8] = [
        Self::Proxy,
        Self::Etcd,
        Self::Latency,
        Self::Watches,
        Self::Handshakes,
        Self::Policy,
        Self::Growth,
        Self::Soak,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Etcd => "etcd",
            Self::Latency => "latency",
            Self::Watches => "watches",
            Self::Handshakes => "handshakes",
            Self::Policy => "policy",
            Self::Growth => "growth",
            Self::Soak => "soak",
        }
    }

    fn run(self, bench: &Bench, plan: &Plan) -> Outcome<Section> {
        match self {
            Self::Proxy => calls::proxy(bench, plan),
            Self::Etcd => calls::etcd(bench, plan),
            Self::Latency => calls::latency(bench, plan),
            Self::Watches => watches::watches(bench, plan),
            Self::Handshakes => calls::handshakes(bench, plan),
            Self::Policy => policy::policy(bench, plan),
            Self::Growth => calls::growth(bench, plan),
            Self::Soak => calls::soak(bench, plan),
        }
    }
}

/// How thoroughly to measure.
enum Plan {
    Full,
    Brief,
    Smoke,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        match arguments {
            Arguments { smoke: true, .. } => Self::Smoke,
            Arguments { brief: true, .. } => Self::Brief,
            Arguments { .. } => Self::Full,
        }
    }

    fn rounds(&self, wanted: u32) -> u32 {
        match self {
            Self::Full => wanted,
            Self::Brief => wanted.div_ceil(2),
            Self::Smoke => 1,
        }
    }

    fn seconds(&self, wanted: u64) -> u64 {
        match self {
            Self::Full => wanted,
            Self::Brief => wanted.saturating_sub(1).max(1),
            Self::Smoke => 1,
        }
    }

    /// For whoever reads the figures.
    fn note(&self) -> &'static str {
        match self {
            Self::Full => "",
            Self::Brief => "Measured briefly, with half of the rounds. ",
            Self::Smoke => "**A smoke run: these figures are of no use.** ",
        }
    }
}

/// `results.json`: what all runs came to.
#[derive(Serialize, Deserialize)]
struct Results {
    machine: Value,
    sections: BTreeMap<String, Section>,
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    let bench = Bench::create(arguments.programs.clone(), LIMIT)?;
    let path = arguments.output.join("results.json");
    let machine = machine::describe(bench.threads);
    let mut results = earlier(&path, &machine)?;
    let mut versions = BTreeMap::new();
    for contestant in [
        Contestant::Haproxy,
        Contestant::Nginx,
        Contestant::Envoy,
        Contestant::EtcdSplit,
        Contestant::Ringfence,
    ] {
        let version = contestant.version(&bench.programs)?;
        versions.insert(contestant.name().to_owned(), version);
    }
    let plan = Plan::of(arguments);
    for name in &arguments.sections {
        let mut section = name.run(&bench, &plan)?;
        section.versions.clone_from(&versions);
        section.about.insert_str(0, plan.note());
        print!("{}", document::section(&section));
        results.sections.insert(name.text().to_owned(), section);
        // At once: a later section that fails takes no earlier one with it.
        write(&arguments.output, &path, &results)?;
    }
    Ok(())
}

/// What is there already, as long as it was measured on such a machine as this.
fn earlier(path: &Path, machine: &Value) -> Outcome<Results> {
    let fresh = Results { machine: machine.clone(), sections: BTreeMap::new() };
    let Ok(text) = fs::read(path) else {
        return Ok(fresh);
    };
    let found: Results = serde_json::from_slice(&text)
        .map_err(|error| format!("{}: {error}; remove it to begin anew", path.display()))?;
    Ok(if found.machine == *machine { found } else { fresh })
}

fn write(folder: &Path, path: &Path, results: &Results) -> Outcome<()> {
    let text = serde_json::to_string_pretty(results).map_err(|error| error.to_string())? + "\n";
    let files = [
        (path.to_owned(), text),
        (folder.join("RESULTS.md"), document::whole(results)),
        (folder.join("chart.svg"), chart::draw(results)),
    ];
    for (path, text) in files {
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The parts that are alike in all sections.
fn section(title: &str, about: &str, turns: &impl Serialize) -> Outcome<Section> {
    let now = OffsetDateTime::now_utc().format(&Rfc3339);
    Ok(Section {
        title: title.to_owned(),
        about: about.to_owned(),
        measured_at: now.map_err(|error| error.to_string())?,
        table: Table::default(),
        claims: Vec::new(),
        versions: BTreeMap::new(),
        turns: serde_json::to_value(turns).map_err(|error| error.to_string())?,
    })
}
