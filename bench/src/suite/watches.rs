//! The section that drives watches: how fast events come, and what many watchers cost.

use super::section::{Claim, Section, Table, cell, mebibytes};
use super::{Plan, section};
use crate::Outcome;
use crate::contestant::Contestant;
use crate::figures::Points;
use crate::report::WatchTurn;
use crate::series::{Bench, WatchLoad};

const EVENTS: WatchLoad = WatchLoad { connections: 4, watchers: 200, writes: 500 };
const MANY: WatchLoad = WatchLoad { connections: 50, watchers: 5000, writes: 20 };

pub fn watches(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{Envoy, EtcdOwnPort, EtcdSplit, GrpcProxy, Haproxy, Passthrough, Ringfence};
    let few = [EtcdOwnPort, EtcdSplit, Passthrough, Haproxy, Envoy, GrpcProxy, Ringfence];
    let many = [EtcdOwnPort, EtcdSplit, Passthrough, Haproxy, Envoy, GrpcProxy, Ringfence];
    let events = bench.watches(&few, &EVENTS, plan.rounds(5))?;
    let crowd = bench.watches(&many, &MANY, plan.rounds(3))?;
    let mut table = Table::new(&[
        "watchers",
        "reached through",
        "events/s",
        "proxy CPU us/event",
        "behind CPU us/event",
        "set up in s",
        "proxy MiB, idle",
        "proxy MiB, most",
        "behind MiB, idle",
    ]);
    for (load, contestants, turns) in [(&EVENTS, &few[..], &events), (&MANY, &many[..], &crowd)] {
        for contestant in contestants {
            table.rows.push(row(load, contestant.name(), turns));
        }
    }
    let speed =
        |contestant: &str| points(&events, contestant, |turn| Some(turn.report.events_per_second));
    let cost = |contestant: &str| points(&events, contestant, proxy_cost);
    let claims = [
        Claim::at_least(
            "200 watchers: events per second, ringfence / etcd-own-port",
            3.0,
            &speed("ringfence").over(&speed("etcd-own-port")),
        ),
        Claim::shown(
            "200 watchers: events per second, ringfence / etcd-split",
            &speed("ringfence").over(&speed("etcd-split")),
        ),
        Claim::shown(
            "200 watchers: events per second, passthrough / etcd-own-port",
            &speed("passthrough").over(&speed("etcd-own-port")),
        ),
        Claim::at_most(
            "200 watchers: CPU per event, ringfence / envoy",
            1.0 / 3.0,
            &cost("ringfence").over(&cost("envoy")),
        ),
        Claim::at_most(
            "5,000 watchers: seconds until the last is set up",
            2.0,
            &points(&crowd, "ringfence", |turn| Some(turn.report.setup_seconds)),
        ),
        Claim::at_most(
            "5,000 watchers: MiB of ringfence at most",
            120.0,
            &points(&crowd, "ringfence", |turn| Some(most(turn)? / 1_048_576.0)),
        ),
    ];
    Ok(Section {
        claims: claims.into_iter().flatten().collect(),
        table,
        ..section(
            "Watches",
            "Every watcher is a stream of its own and watches all keys of the bench; 16 Puts at a time write 500 keys before \
             200 watchers on 4 connections, then 20 keys before 5,000 watchers on 50. CPU per event includes those Puts. Each \
             watcher checks that revisions follow each other without a gap, so a lost event fails the run. A fresh etcd for \
             each turn; the proxies stand before its split listener, audit `buffered`. nginx is left out: it closes streams on \
             which the client says nothing for as long as its timeouts say.",
            &serde_json::json!({ "events": events, "crowd": crowd }),
        )?
    })
}

fn points(
    turns: &[WatchTurn],
    contestant: &str,
    figure: impl Fn(&WatchTurn) -> Option<f64>,
) -> Points {
    let mine = turns.iter().filter(|turn| turn.contestant == contestant);
    Points::new(mine.filter_map(|turn| Some((turn.round, figure(turn)?))))
}

fn proxy_cost(turn: &WatchTurn) -> Option<f64> {
    turn.proxy.as_ref().map(|proxy| proxy.cpu_microseconds_per_event)
}

fn most(turn: &WatchTurn) -> Option<f64> {
    turn.proxy.as_ref().map(|proxy| proxy.peak_resident_bytes as f64)
}

fn row(load: &WatchLoad, contestant: &str, turns: &[WatchTurn]) -> Vec<String> {
    let median =
        |figure: &dyn Fn(&WatchTurn) -> Option<f64>| points(turns, contestant, figure).median();
    vec![
        format!("{} on {}", load.watchers, load.connections),
        contestant.to_owned(),
        cell(median(&|turn| Some(turn.report.events_per_second)), 0),
        cell(median(&proxy_cost), 1),
        cell(median(&|turn| Some(turn.upstream.cpu_microseconds_per_event)), 1),
        cell(median(&|turn| Some(turn.report.setup_seconds)), 2),
        mebibytes(median(&|turn| Some(turn.proxy.as_ref()?.resident_bytes_idle as f64))),
        mebibytes(median(&most)),
        mebibytes(median(&|turn| Some(turn.upstream.resident_bytes_idle as f64))),
    ]
}
