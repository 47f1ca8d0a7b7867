//! The sections that drive unary calls: the proxy alone, etcd behind it, one at a time, handshakes, growing work, soak.

use super::section::{
    CALL_COLUMNS, Claim, Section, Table, call_cells, cell, mebibytes, p50, p99, points, proxy_cost,
    throughput,
};
use super::{Plan, section};
use crate::Outcome;
use crate::contestant::Contestant;
use crate::figures::Points;
use crate::load::Mix;
use crate::report::Turn;
use crate::series::{Behind, Bench, Shape};

/// The proxy alone: a stand-in that answers at once, 4 connections of 16 streams.
pub fn proxy(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{
        Direct, Envoy, Haproxy, Nginx, Passthrough, Ringfence, RingfenceBlocking,
        RingfenceUnrecorded,
    };
    let contestants = [
        Direct,
        Passthrough,
        Haproxy,
        Nginx,
        Envoy,
        RingfenceUnrecorded,
        Ringfence,
        RingfenceBlocking,
    ];
    let shape = Shape::four_by_sixteen(Mix::Range, plan.seconds(5));
    let turns = bench.calls(&contestants, &[shape], plan.rounds(5), Behind::StandIn)?;
    let cost = |contestant: &str| points(&turns, contestant, "range", proxy_cost);
    let claim = |over: &str, bound: f64| {
        let what = format!("CPU per request, ringfence / {over}");
        Claim::at_most(what, bound, &cost("ringfence").over(&cost(over)))
    };
    let claims = [claim("haproxy", 0.70), claim("envoy", 0.28), claim("passthrough", 1.35)];
    Ok(Section {
        claims: claims.into_iter().flatten().collect(),
        table: by_contestant(&turns, &contestants, "range"),
        ..section(
            "The proxy alone",
            "A stand-in upstream that answers at once, 4 connections of 16 streams, Range with values of 128 \
             bytes, 1,000 rules in 100 roles. HAProxy logs nothing; nginx, Envoy and ringfence log every request, \
             ringfence as `buffered` unless its name says otherwise; `passthrough` does nothing but h2 in, h2 \
             out.",
            &turns,
        )?
    })
}

/// etcd behind, reached the fast way and the plain way, beside etcd's own port.
pub fn etcd(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{
        EtcdOwnPort, EtcdSplit, GrpcProxy, Ringfence, RingfenceBlocking, RingfencePlainUpstream,
    };
    let contestants =
        [EtcdOwnPort, EtcdSplit, Ringfence, RingfenceBlocking, RingfencePlainUpstream, GrpcProxy];
    let mixes = [Mix::Range, Mix::Put, Mix::Txn];
    let shapes = mixes.map(|mix| Shape::four_by_sixteen(mix, plan.seconds(4)));
    let behind = Behind::Etcd { keys: 10_000 };
    let turns = bench.calls(&contestants, &shapes, plan.rounds(4), behind)?;
    let mut table = Table::new(&["calls", "reached through"]);
    table.head.extend(CALL_COLUMNS.map(str::to_owned));
    let mut claims = Vec::new();
    for shape in &shapes {
        let label = shape.label.as_str();
        for contestant in contestants {
            let mut row = vec![label.to_owned(), contestant.name().to_owned()];
            row.extend(call_cells(&turns, contestant.name(), label));
            table.rows.push(row);
        }
        let of = |contestant: &str, figure: fn(&Turn) -> Option<f64>| {
            points(&turns, contestant, label, figure)
        };
        let ratio = |figure, over: &str| of("ringfence", figure).over(&of(over, figure));
        let against = |what: &str, over: &str| format!("{label}: {what}, ringfence / {over}");
        claims.extend([
            Claim::at_least(
                against("throughput", "etcd-own-port"),
                1.7,
                &ratio(throughput, "etcd-own-port"),
            ),
            Claim::at_most(against("p50", "etcd-own-port"), 1.0, &ratio(p50, "etcd-own-port")),
            Claim::at_most(against("p99", "etcd-own-port"), 1.0, &ratio(p99, "etcd-own-port")),
            Claim::at_least(
                against("throughput", "etcd-split"),
                0.7,
                &ratio(throughput, "etcd-split"),
            ),
            Claim::shown(against("p50", "etcd-split"), &ratio(p50, "etcd-split")),
            Claim::shown(against("p99", "etcd-split"), &ratio(p99, "etcd-split")),
            Claim::shown(
                format!("{label}: throughput, etcd-split / etcd-own-port"),
                &of("etcd-split", throughput).over(&of("etcd-own-port", throughput)),
            ),
            Claim::shown(
                format!("{label}: throughput, ringfence-blocking / etcd-own-port"),
                &of("ringfence-blocking", throughput).over(&of("etcd-own-port", throughput)),
            ),
        ]);
    }
    Ok(Section {
        claims: claims.into_iter().flatten().collect(),
        table,
        ..section(
            "etcd behind",
            "A fresh etcd with 10,000 keys for each turn, its write-ahead log on disk; 4 connections of 16 \
             streams, values of 128 bytes; a Txn is one comparison that holds and one Put. `etcd-own-port` is \
             etcd as it is run by default, gRPC and HTTP on one listener with mutual TLS; `etcd-split` is etcd \
             with a listener for HTTP alone (`--listen-client-http-urls`). Neither has a proxy, and what that \
             flag gains is etcd's own doing: the last two ratios of each kind tell it apart. `ringfence` (audit \
             `buffered`), `ringfence-blocking` and `grpc-proxy` stand before the split listener with mutual TLS. \
             `ringfence-plain-upstream` reaches etcd over plain loopback, where any process of the machine could \
             reach that etcd, too.",
            &turns,
        )?
    })
}

/// One client with one request at a time: what a proxy adds.
pub fn latency(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{Direct, Envoy, Haproxy, Nginx, Passthrough, Ringfence};
    let contestants = [Direct, Passthrough, Haproxy, Nginx, Envoy, Ringfence];
    let shape =
        Shape { connections: 1, streams: 1, ..Shape::four_by_sixteen(Mix::Range, plan.seconds(4)) };
    let turns = bench.calls(&contestants, &[shape], plan.rounds(5), Behind::StandIn)?;
    let added = |contestant: &str, figure: fn(&Turn) -> Option<f64>| {
        points(&turns, contestant, "range", figure).less(&points(&turns, "direct", "range", figure))
    };
    let mut table = by_contestant(&turns, &contestants, "range");
    table.head.extend(["added p50 us".to_owned(), "added p99 us".to_owned()]);
    for (contestant, row) in contestants.iter().zip(&mut table.rows) {
        row.push(cell(added(contestant.name(), p50).median(), 0));
        row.push(cell(added(contestant.name(), p99).median(), 0));
    }
    let claim = |over: &str, bound: f64| {
        let what = format!("added p50, ringfence / {over}");
        Claim::at_most(what, bound, &added("ringfence", p50).over(&added(over, p50)))
    };
    let claims = [claim("haproxy", 0.75), claim("envoy", 0.45)];
    Ok(Section {
        claims: claims.into_iter().flatten().collect(),
        table,
        ..section(
            "One request at a time",
            "One connection, one stream, the stand-in behind, audit `buffered`. What a proxy adds is its latency \
             less that of `direct` in the same round.",
            &turns,
        )?
    })
}

/// A full mutual handshake, the start of h2 and one call, over and over.
pub fn handshakes(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{Envoy, Haproxy, Nginx, Passthrough, Ringfence};
    let contestants = [Passthrough, Haproxy, Nginx, Envoy, Ringfence];
    let shape = Shape {
        connections: 8,
        streams: 1,
        reconnect: true,
        ..Shape::four_by_sixteen(Mix::Range, plan.seconds(4))
    };
    let turns = bench.calls(&contestants, &[shape], plan.rounds(5), Behind::StandIn)?;
    let cost = |contestant: &str| points(&turns, contestant, "range", proxy_cost);
    let against = |over: &str, bound: f64| {
        let what = format!("CPU per connection, ringfence / {over}");
        Claim::at_most(what, bound, &cost("ringfence").over(&cost(over)))
    };
    Ok(Section {
        claims: against("envoy", 0.75).into_iter().collect(),
        table: by_contestant(&turns, &contestants, "range"),
        ..section(
            "Handshakes",
            "8 clients; each connects with a full mutual handshake (ECDSA P-256, no resumption), makes one call \
             and connects again, so a request here is a connection. The connection to the upstream stays. Audit \
             `buffered`.",
            &turns,
        )?
    })
}

/// How cost grows with the work.
pub fn growth(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    use Contestant::{Direct, Haproxy, Ringfence};
    let contestants = [Direct, Haproxy, Ringfence];
    let shapes = growing(plan.seconds(2));
    let turns = bench.calls(&contestants, &shapes, plan.rounds(2), Behind::StandIn)?;
    let mut table = Table::new(&[
        "load",
        "direct requests/s",
        "haproxy requests/s",
        "ringfence requests/s",
        "haproxy CPU us/request",
        "ringfence CPU us/request",
        "haproxy MiB",
        "ringfence MiB",
        "haproxy p99 us",
        "ringfence p99 us",
    ]);
    for shape in &shapes {
        let median = |contestant: &str, figure: fn(&Turn) -> Option<f64>| {
            points(&turns, contestant, &shape.label, figure).median()
        };
        let peak = |turn: &Turn| Some(turn.proxy.as_ref()?.peak_resident_bytes as f64);
        table.rows.push(vec![
            shape.label.clone(),
            cell(median("direct", throughput), 0),
            cell(median("haproxy", throughput), 0),
            cell(median("ringfence", throughput), 0),
            cell(median("haproxy", proxy_cost), 1),
            cell(median("ringfence", proxy_cost), 1),
            mebibytes(median("haproxy", peak)),
            mebibytes(median("ringfence", peak)),
            cell(median("haproxy", p99), 0),
            cell(median("ringfence", p99), 0),
        ]);
    }
    Ok(Section {
        table,
        ..section(
            "Growing work",
            "One thing grows at a time, as each row says; where it says nothing, there are 4 connections of 16 \
             streams (of 1 stream from 100,000 keys on), Range, one key with 128 bytes (16 bytes in ranges of \
             keys). MiB is the most the proxy ever held so far in its turn, so it never falls down a column. The \
             stand-in answers with as many keys and bytes as are asked for. Audit `buffered`.",
            &turns,
        )?
    })
}

fn growing(seconds: u64) -> Vec<Shape> {
    let base = Shape { label: String::new(), ..Shape::four_by_sixteen(Mix::Range, seconds) };
    let mut shapes = Vec::new();
    for connections in [1, 10, 100, 1000] {
        let label = format!("{connections} connections of 1 stream");
        shapes.push(Shape { label, connections, streams: 1, ..base.clone() });
    }
    for (connections, streams) in [(1, 10), (1, 100), (10, 100), (100, 100)] {
        let label = format!("{} streams on {connections} connections", connections * streams);
        shapes.push(Shape { label, connections, streams, ..base.clone() });
    }
    for value_bytes in [16, 1024, 16_384, 131_072, 1_048_576] {
        let range = format!("Range of {value_bytes} bytes");
        shapes.push(Shape { label: range, value_bytes, ..base.clone() });
        let put = format!("Put of {value_bytes} bytes");
        shapes.push(Shape { label: put, value_bytes, mix: Mix::Put, ..base.clone() });
    }
    for answer_keys in [1, 100, 10_000, 100_000, 1_000_000] {
        let label = format!("{answer_keys} keys in a range");
        // 64 answers of a million keys under way would be 3 GB of canned bytes in flight.
        let streams = if answer_keys > 10_000 { 1 } else { 16 };
        shapes.push(Shape { label, answer_keys, value_bytes: 16, streams, ..base.clone() });
    }
    shapes
}

/// Full load for long: does memory stay, is every call recorded?
pub fn soak(bench: &Bench, plan: &Plan) -> Outcome<Section> {
    let contestants = [Contestant::RingfenceRotating];
    // Ten minutes, briefly too: what it is about shows with time.
    let seconds = if matches!(plan, Plan::Smoke) { 1 } else { 600 };
    let shape = Shape { warmup_seconds: 5, ..Shape::four_by_sixteen(Mix::Mixed, seconds) };
    let turns = bench.calls(&contestants, std::slice::from_ref(&shape), 1, Behind::StandIn)?;
    let turn = turns.first().ok_or("nothing ran")?;
    let memory = &turn.load.resident_bytes_over_time;
    // Samples are taken at the end of each part.
    let quarter = (memory.len() / 4).saturating_sub(1);
    let early = memory.get(quarter).copied().unwrap_or_default() as f64;
    let late = memory.last().copied().unwrap_or_default() as f64;
    let mut table = by_contestant(&turns, &contestants, &shape.label);
    table.head.extend(
        ["calls in all", "errors", "MiB after a quarter", "MiB at the end"].map(str::to_owned),
    );
    if let Some(row) = table.rows.first_mut() {
        row.extend([
            turn.load.requests_in_all.to_string(),
            turn.load.errors.to_string(),
            mebibytes(Some(early)),
            mebibytes(Some(late)),
        ]);
    }
    let found = Points::new([(1, late / early)]);
    let claim = Claim::at_most("memory at the end / after a quarter", 1.05, &found);
    let about = format!(
        "{} seconds of Range and Put in turns at 4 connections of 16 streams, the stand-in behind, audit `buffered`, files \
         rotated at 256 MiB and compressed as by default, which the CPU per request includes. An error ends the run. \
         Afterwards each call has exactly one decision and one outcome in the log, or the run fails.",
        shape.seconds
    );
    Ok(Section {
        claims: claim.into_iter().collect(),
        table,
        ..section("Full load for long", &about, &turns)?
    })
}

fn by_contestant(turns: &[Turn], contestants: &[Contestant], shape: &str) -> Table {
    let mut table = Table::new(&[""]);
    table.head.extend(CALL_COLUMNS.map(str::to_owned));
    for contestant in contestants {
        let mut row = vec![contestant.name().to_owned()];
        row.extend(call_cells(turns, contestant.name(), shape));
        table.rows.push(row);
    }
    table
}
