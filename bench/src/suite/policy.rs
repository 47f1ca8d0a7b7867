//! The section about a large policy: how long it takes to load, what one decision takes, and what a request costs under it.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use rcgen::{CertificateParams, DnType, KeyPair};
use ringfence::document::Problems;
use ringfence::etcd::{KeyRange, KeyVerb, StoredKey, Touch};
use ringfence::identity::CertificateFacts;
use ringfence::policy::{Policy, PolicySource, Rights, decide_touch};

use super::section::{CALL_COLUMNS, Claim, Section, Table, call_cells, cell, points, proxy_cost};
use super::{Plan, section};
use crate::Outcome;
use crate::contestant::{self, Contestant, LARGE, ROLES_OF_LOAD, identity_name, policy_text};
use crate::figures::Points;
use crate::load::Mix;
use crate::series::{Behind, Bench, Shape};

/// Identities that decisions are timed for, spread over all.
const ASKERS: usize = 5000;
const DECISIONS: usize = 2_000_000;

pub fn policy(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    let rounds = plan.rounds(5);
    let text = policy_text(LARGE);
    let timed = (1..=rounds).map(|round| Ok((round, time(&text)?))).collect::<Outcome<Vec<_>>>()?;
    let of = |figure: fn(&Timed) -> f64| {
        Points::new(timed.iter().map(|(round, timed)| (*round, figure(timed))))
    };
    let checked = checks(bench, rounds)?;
    let contestants = [Contestant::Ringfence, Contestant::RingfenceLargePolicy];
    let shape = Shape::four_by_sixteen(Mix::Range, plan.seconds(4));
    let turns = bench.calls(&contestants, &[shape], plan.rounds(10), Behind::StandIn)?;
    let cost = |contestant: &str| points(&turns, contestant, "range", proxy_cost);
    let mut table = Table::new(&[""]);
    table.head.extend(CALL_COLUMNS.map(str::to_owned));
    for contestant in contestants {
        let mut row = vec![contestant.name().to_owned()];
        row.extend(call_cells(&turns, contestant.name(), "range"));
        table.rows.push(row);
    }
    let claims = [
        Claim::at_most(
            "nanoseconds of one decision, tenants in turns",
            1000.0,
            &of(|timed| timed.tenants_nanoseconds),
        ),
        Claim::at_most(
            "nanoseconds of one decision, the identity with 1,000 rules",
            1000.0,
            &of(|timed| timed.wide_nanoseconds),
        ),
        Claim::at_most(
            "seconds of `ringfence check`, from start to end",
            2.0,
            &Points::new(checked),
        ),
        Claim::at_most(
            "CPU per request, large policy / small",
            1.03,
            &cost("ringfence-large-policy").over(&cost("ringfence")),
        ),
    ];
    let about = format!(
        "10,000 identities and 100,000 rules in 10,000 roles, beside the one identity with 1,000 rules that the load \
         comes as in either. Reading and compiling it in-process took {} s; finding who a certificate is and what it may \
         do, once a connection, {} us. Decisions are timed in-process, half of them denials.",
        cell(of(|timed| timed.compile_seconds).median(), 2),
        cell(of(|timed| timed.identify_microseconds).median(), 0),
    );
    Ok(Section {
        claims: claims.into_iter().flatten().collect(),
        table,
        ..section("A large policy", &about, &turns)?
    })
}

struct Timed {
    compile_seconds: f64,
    identify_microseconds: f64,
    /// Of identities in turns, with ten rules each: little of one is left in the processor's caches for the next.
    tenants_nanoseconds: f64,
    /// Of the identity with a thousand rules.
    wide_nanoseconds: f64,
}

fn time(text: &str) -> Outcome<Timed> {
    let start = Instant::now();
    let problems = Problems::default();
    let mut source = PolicySource::default();
    source.read("policy.toml", text, &problems);
    let policy = Policy::compile(source, &["bench"], &problems);
    let compile_seconds = start.elapsed().as_secs_f64();
    if problems.has_errors() {
        return Err("the policy of the bench has errors".to_owned());
    }
    // Tenants spread over all; the last has the wide identity behind it.
    let step = LARGE.identities / ASKERS;
    let tenants: Vec<usize> = (1..=ASKERS).map(|asker| asker * step - 1).collect();
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let facts = tenants.iter().chain(&[0]).map(|identity| facts(*identity, &key));
    let facts = facts.collect::<Outcome<Vec<_>>>()?;
    let start = Instant::now();
    let found = facts.iter().map(|facts| policy.identify("bench", facts));
    let mut found = found.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let identify_microseconds = start.elapsed().as_secs_f64() * 1e6 / found.len() as f64;
    let wide = found.pop().ok_or("nobody was identified")?;
    // Every other question is about a role that the asker does not have.
    let of_tenants = found.iter().zip(&tenants).enumerate().map(|(index, (found, tenant))| {
        (&*found.rights, key_of_role((tenant + index % 2) % LARGE.roles, index))
    });
    let of_wide = (0..ASKERS).map(|index| {
        let role = index * 7919 % ROLES_OF_LOAD + index % 2 * ROLES_OF_LOAD;
        (&*wide.rights, key_of_role(role, index))
    });
    Ok(Timed {
        compile_seconds,
        identify_microseconds,
        tenants_nanoseconds: decide_in_turns(&of_tenants.collect::<Vec<_>>())?,
        wide_nanoseconds: decide_in_turns(&of_wide.collect::<Vec<_>>())?,
    })
}

fn decide_in_turns(questions: &[(&Rights, Touch)]) -> Outcome<f64> {
    let allowed =
        questions.iter().filter(|(rights, touch)| decide_touch(rights, touch).is_ok()).count();
    if allowed * 2 != questions.len() {
        let all = questions.len();
        return Err(format!("{allowed} of {all} questions are allowed, and half should be"));
    }
    let start = Instant::now();
    for (rights, touch) in questions.iter().cycle().take(DECISIONS) {
        let _ = black_box(decide_touch(black_box(rights), black_box(touch)));
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / DECISIONS as f64)
}

fn key_of_role(role: usize, number: usize) -> Touch {
    let key = format!("/bench-role-{role}/7/key-{number:06}");
    Touch::Key { verb: KeyVerb::Get, range: KeyRange::point(StoredKey::new(key)) }
}

/// What is known of a certificate with the common name of that identity.
fn facts(identity: usize, key: &KeyPair) -> Outcome<CertificateFacts> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, identity_name(identity));
    let certificate = parameters.self_signed(key).map_err(|error| error.to_string())?;
    CertificateFacts::read(certificate.der()).map_err(|error| error.to_string())
}

/// `ringfence check` over the large policy, as a whole command.
fn checks(bench: &Bench, rounds: u32) -> Outcome<Vec<(u32, f64)>> {
    let setting = bench.setting("check", "127.0.0.1:1".to_owned())?;
    let config = contestant::configure_large_policy(&setting)?;
    let program = bench.programs.ringfence()?;
    let mut seconds = Vec::new();
    for round in 1..=rounds {
        let start = Instant::now();
        let output = Command::new(&program).arg("check").arg("--config").arg(&config).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        seconds.push((round, start.elapsed().as_secs_f64()));
        if !output.status.success() {
            return Err(format!("ringfence check: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(seconds)
}
