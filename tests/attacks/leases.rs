//! Leases: whose they are, and what is told of those of others.

use ringfence::etcd::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest,
};
use ringfence::etcd::pb::v3electionpb::CampaignRequest;

use crate::ground::{Case, DENIED, FINE, Ground, Report, Who, bytes, heard, play};
use crate::keys::put;
use crate::support::RawClient;

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";

async fn granted(ground: &mut Ground, who: Who) -> i64 {
    // Part of case 71: a lease whose ID ringfence chooses.
    ground.expect(71, 0, None);
    let client = if matches!(who, Who::A) { &ground.a } else { &ground.b };
    let grant = LeaseGrantRequest { ttl: 600, id: 0 };
    let response: LeaseGrantResponse = client.unary(GRANT, &grant).await.message();
    ground.tap.take();
    response.id
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let mut ground = Ground::start().await;
    let own = granted(&mut ground, Who::A).await;
    let foreign = granted(&mut ground, Who::B).await;
    let empty = granted(&mut ground, Who::B).await;
    ground.expect(71, 0, None);
    let holds = PutRequest { lease: foreign, ..put("/b/held") };
    assert_eq!(ground.b.unary("/etcdserverpb.KV/Put", &holds).await.grpc_status, Some(0));
    ground.tap.take();
    uses(&mut ground, report, foreign, empty).await;
    keep_alive(&mut ground, report, own, foreign).await;
    listed(&mut ground, report, own).await;
    ground.finish(report);
    whole
}

async fn uses(ground: &mut Ground, report: &mut Report, foreign: i64, empty: i64) {
    let attach = PutRequest { lease: foreign, ..put("/a/x") };
    let chosen = LeaseGrantRequest { ttl: 600, id: foreign };
    let free = LeaseGrantRequest { ttl: 600, id: 77 };
    let ask = |keys| LeaseTimeToLiveRequest { id: foreign, keys };
    let campaign = CampaignRequest { name: "/a/e".into(), lease: foreign, value: "v".into() };
    let thief = |number, name, path, message: &[u8]| {
        Case::new(number, name, path, message).reason("foreign_lease")
    };
    for case in [
        thief(29, "a key of one's own on another's lease", "/etcdserverpb.KV/Put", &bytes(&attach))
            .reason("no_rule"),
        thief(71, "the ID of another's lease chosen for a new one", GRANT, &bytes(&chosen)),
        thief(71, "a free ID chosen: the same answer", GRANT, &bytes(&free)),
        thief(72, "another's lease revoked", REVOKE, &bytes(&LeaseRevokeRequest { id: foreign }))
            .reason("no_rule"),
        thief(
            73,
            "another's empty lease revoked",
            REVOKE,
            &bytes(&LeaseRevokeRequest { id: empty }),
        ),
        thief(75, "the keys of another's lease", TIME_TO_LIVE, &bytes(&ask(true)))
            .reason("no_rule"),
        thief(76, "the time of another's lease", TIME_TO_LIVE, &bytes(&ask(false)))
            .reason("no_rule"),
        thief(
            96,
            "an election under another's lease",
            "/v3electionpb.Election/Campaign",
            &bytes(&campaign),
        )
        .reason("no_rule"),
    ] {
        play(ground, report, case).await;
    }
    let negative = LeaseGrantRequest { ttl: -1, id: 0 };
    ground.expect(78, 0, None);
    let answer = ground.a.unary(GRANT, &negative).await;
    // etcd takes it for its smallest time, whatever it is; it stays A's and harms nobody.
    let reached = ground.reached().await;
    let chosen: LeaseGrantResponse = answer.message();
    let sent = LeaseGrantRequest { ttl: -1, id: chosen.id };
    // The ID is of ringfence's choice; else it is the client's own request.
    let fared = if reached.len() == 1 && reached[0].is(GRANT, &bytes(&sent)) {
        Ok(())
    } else {
        Err(format!("{answer:?}, {reached:?}"))
    };
    report.add(78, "a negative time to live is etcd's smallest", "etcd answers", fared);
    let endless = LeaseGrantRequest { ttl: i64::MAX, id: 0 };
    ground.expect(78, 0, None);
    let answer = heard(&ground.a.unary(GRANT, &endless).await);
    let expected = (11, "etcdserver: too large lease TTL".to_owned());
    let fared = if answer == expected { Ok(()) } else { Err(format!("{answer:?}")) };
    report.add(78, "a time to live without end", "status 11 of etcd's own", fared);
    ground.tap.take();
}

async fn keep_alive(ground: &mut Ground, report: &mut Report, own: i64, foreign: i64) {
    ground.expect(74, 0, None);
    ground.expect(74, 7, Some("no_rule"));
    let mut stream = ground.a.stream(KEEP_ALIVE).await;
    stream.send(&LeaseKeepAliveRequest { id: own });
    let renewed: LeaseKeepAliveResponse = stream.next().await;
    stream.send(&LeaseKeepAliveRequest { id: foreign });
    let end = heard(stream.expect_end().await);
    let reached = ground.reached().await;
    let once = reached.len() == 1
        && reached[0].data.len() == 5 + bytes(&LeaseKeepAliveRequest { id: own }).len();
    let fared = if renewed.ttl == 600 && (end.0, end.1.as_str()) == DENIED && once {
        Ok(())
    } else {
        Err(format!("{renewed:?}, {end:?}, {reached:?}"))
    };
    report.add(74, "another's lease kept alive behind one's own", "status 7, no_rule", fared);
    for id in [0, -1] {
        ground.expect(79, 7, Some("foreign_lease"));
        let message = bytes(&LeaseKeepAliveRequest { id });
        let end = heard(&ground.a.first_message(KEEP_ALIVE, &message, false).await);
        let fared = if (end.0, end.1.as_str()) == DENIED && ground.reached().await.is_empty() {
            Ok(())
        } else {
            Err(format!("{id}: {end:?}"))
        };
        report.add(79, "a lease of ID 0 or -1 kept alive", "status 7, foreign_lease", fared);
    }
}

async fn listed(ground: &mut Ground, report: &mut Report, own: i64) {
    ground.expect(77, 0, None);
    let reply = ground.a.unary(LEASES, &LeaseLeasesRequest {}).await;
    let leases: LeaseLeasesResponse = reply.message();
    let ids: Vec<i64> = leases.leases.iter().map(|lease| lease.id).collect();
    // Its own two: the first, and the one with the negative time while that lives.
    let fared = if ids.contains(&own) && ids.len() <= 2 { Ok(()) } else { Err(format!("{ids:?}")) };
    report.add(77, "the list of leases names one's own", "filtered", fared);
    ground.tap.take();
}
