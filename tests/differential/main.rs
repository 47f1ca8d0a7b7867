//! Random users, rights and requests, decided by ringfence and by real etcds whose authentication says
//! the same. Each difference is stricter on purpose (a row of docs/authorization.md), a known fault of
//! that etcd, or a failure. A third reading, in `request`, says which rights a request needs.
//!
//! `make differential` prints the table of 200,000 decisions and more; the gate takes a few thousand.
//! `RINGFENCE_DIFFERENTIAL_SEED` repeats a run.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

mod classes;
mod rbac;
mod request;
mod sides;

use std::sync::Arc;

use classes::{Stricter, Table, class, shown};
use rbac::{CERTIFICATES, Dice, User};
use request::{Leases, Maker, Request};
use sides::{Library, Member, agrees, ask, theirs};
use support::{Pki, RawClient, Ringfence, number_from_environment};

/// How many users there are at a time; the last of them is root.
const USERS: usize = 24;
/// Each Watch and LeaseKeepAlive is given up after its first answer, faster than an honest client does.
const LIMITS: &str = "[limits]\nresets_per_second = 1000000";
/// How many requests wait for an answer at a time.
const IN_FLIGHT: usize = 32;

/// What a run is to do on one etcd.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    /// In each round; a tenth of them on leases.
    requests: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_from_etcds_own_rights_has_a_reason() {
    let decisions = number_from_environment("RINGFENCE_DIFFERENTIAL_DECISIONS", 4000);
    let seed = number_from_environment("RINGFENCE_DIFFERENTIAL_SEED", 1);
    let is_whole = decisions > 100_000;
    let lines: &[&str] = if is_whole { &["3.4", "3.5", "3.6", "3.7"] } else { &["3.4", "3.7"] };
    let each = usize::try_from(decisions).unwrap().div_ceil(lines.len());
    let rounds = if is_whole { 10 } else { 2 };
    let size = Size { rounds, requests: each.div_ceil(rounds) };
    println!("RINGFENCE_DIFFERENTIAL_SEED={seed}");
    let pki = Pki::make();
    let (mut table, mut through) = (Table::default(), 0);
    let mut failures = Vec::new();
    for line in lines {
        let mut run = Run::new(line, &pki, seed).await;
        for round in 0..size.rounds {
            run.round(round, size.requests).await;
        }
        through += run.through;
        failures.extend(run.failures);
        table.merge(run.table);
    }
    println!("{}", table.text());
    println!("{} decisions; {through} of them by the program, too", table.count());
    let shown: Vec<&String> = failures.iter().take(20).collect();
    assert!(failures.is_empty(), "{} differences: {shown:#?}", failures.len());
    // Agreement about nothing would be no proof.
    for class in ["same: allowed", "same: denied", "stricter: ", "fault of etcd: "] {
        assert!(table.count_of(class) > 0, "no decision of class `{class}`");
    }
    assert!(table.count() >= usize::try_from(decisions).unwrap() && through > 0);
}

#[test]
fn what_is_stricter_is_in_the_document() {
    let text = include_str!("../../docs/authorization.md");
    let (_, table) = text.split_once("## What is stricter than etcd").unwrap();
    for row in Stricter::ALL {
        assert!(table.contains(&format!("| {} |", row.row())), "no row `{}`", row.row());
    }
}

/// One etcd with authentication, and one without behind the real program.
struct Run<'a> {
    line: &'a str,
    pki: &'a Pki,
    dice: Dice,
    guarded: Member,
    behind: Member,
    table: Table,
    through: usize,
    failures: Vec<String>,
}

/// A request and who asks, by position.
type Asked = (usize, Request);

impl<'a> Run<'a> {
    async fn new(line: &'a str, pki: &'a Pki, seed: u64) -> Self {
        let (guarded, behind) = (Member::start(line, pki).await, Member::start(line, pki).await);
        let dice = Dice::new(seed);
        let (table, failures) = (Table::default(), Vec::new());
        Self { line, pki, dice, guarded, behind, table, through: 0, failures }
    }

    /// New users with new rights, and requests of theirs.
    async fn round(&mut self, round: usize, requests: usize) {
        let users = rbac::users(&mut self.dice, round, USERS);
        let id = 1000 + 10 * i64::try_from(round).unwrap();
        let leases: [(i64, Option<&'static [u8]>); 4] =
            [(id, None), (id + 1, Some(b"a")), (id + 2, Some(b"b\0")), (id + 3, Some(b"\xffb"))];
        self.guarded.reset(&leases).await;
        self.behind.reset(&leases).await;
        let tokens: Arc<[String]> = self.guarded.guard(&users).await.into();
        let policy = rbac::policy(&users);
        let ringfence =
            Ringfence::start_with_policy(self.pki, &self.behind.endpoint(), &policy, LIMITS);
        let through = [
            RawClient::connect(self.pki, CERTIFICATES[0], ringfence.port).await,
            RawClient::connect(self.pki, CERTIFICATES[1], ringfence.port).await,
            RawClient::connect(self.pki, CERTIFICATES[2], ringfence.port).await,
        ];
        let direct = self.guarded.connect(self.pki).await;
        // Those that leave the leases as they are come first: the others delete the keys on them.
        for on_leases in [true, false] {
            let count = if on_leases { requests / 10 } else { requests - requests / 10 };
            let asked = self.make(&users, &leases, count, on_leases);
            self.compare(&users, &leases, asked, &direct, &tokens, &through).await;
        }
        self.guarded.open().await;
    }

    fn make(
        &mut self,
        users: &[User],
        leases: &Leases,
        count: usize,
        on_leases: bool,
    ) -> Vec<Asked> {
        let mut asked = Vec::new();
        for _ in 0..count {
            let asker = self.dice.below(users.len());
            let mut maker = Maker::new(&mut self.dice, leases, self.line, users);
            let user = &users[asker];
            let request = if on_leases { maker.on_leases() } else { maker.any(user) };
            asked.push((asker, request));
        }
        asked
    }

    async fn compare(
        &mut self,
        users: &[User],
        leases: &Leases,
        asked: Vec<Asked>,
        direct: &RawClient,
        tokens: &Arc<[String]>,
        through: &[RawClient; 3],
    ) {
        let library = Library::new(users, leases);
        let asked: Arc<[Asked]> = asked.into();
        let mut tasks = tokio::task::JoinSet::new();
        for first in 0..IN_FLIGHT {
            let (asked, tokens) = (Arc::clone(&asked), Arc::clone(tokens));
            let (direct, through) = (direct.clone(), through.clone());
            tasks.spawn(async move {
                let mut said = Vec::new();
                for at in (first..asked.len()).step_by(IN_FLIGHT) {
                    let (asker, request) = &asked[at];
                    let theirs = ask(&direct, Some(&tokens[*asker]), request).await;
                    let program = match through.get(*asker) {
                        Some(client) => Some(ask(client, None, request).await),
                        None => None,
                    };
                    said.push((at, theirs, program));
                }
                said
            });
        }
        for (at, said, program) in tasks.join_all().await.into_iter().flatten() {
            let (asker, request) = &asked[at];
            let user = &users[*asker];
            let ours = library.decide(user, request);
            let theirs = theirs(said);
            if let Some(program) = program {
                self.through += 1;
                if !agrees(request.rpc, &ours, &program) {
                    let shown = shown(request, user);
                    self.failures.push(format!("library {ours:?}, program {program:?}: {shown}"));
                }
            }
            match class(self.line, request, user, &ours, &theirs) {
                Ok(class) => self.table.add(self.line, class, request, user),
                Err(what) => self.failures.push(format!(
                    "{} {what}: ringfence {ours:?}, etcd {theirs:?}: {}",
                    self.line,
                    shown(request, user)
                )),
            }
        }
    }
}
