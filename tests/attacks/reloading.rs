//! What was allowed once, and is not any more.

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, PutRequest, WatchCreateRequest,
    WatchRequest, WatchResponse,
};

use crate::certificates::gets_in;
use crate::ground::{DENIED, Ground, POLICY, Report, heard};
use crate::keys::{put, range};
use crate::support::{RawStream, wait_for};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const FAILING: &str = "ringfence_reload_failing{unit=\"revocation\"}";
const A: &str = "{ prefix = \"/a/\", allow = [\"get\", \"list\", \"watch\", \"put\", \"delete\"] }";

fn told(holds: bool, what: &impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let ground = Ground::start().await;
    let lease = held(&ground).await;
    let mut stream = ground.a.stream(WATCH).await;
    let id = watch(&mut stream, "/a/").await;
    let reply = ground.a.unary(RANGE, &range(b"/a/x", b"")).await;
    let before = heard(&reply).0;
    ground
        .ringfence
        .replace_file("policy.toml", &POLICY.replace(A, "{ prefix = \"/c/\", allow = [\"get\"] }"));
    ground.ringfence.wait_for_generation(2);

    let ended: WatchResponse = stream.next().await;
    let put = ground.etcd_put("/a/x").await;
    // What comes behind the end on the same stream is the answer to the next request, and no event.
    let again = request(&mut stream, "/a/").await;
    let holds = ended.canceled
        && ended.watch_id == id
        && put
        && again.created
        && again.canceled
        && again.events.is_empty();
    let name = "a rule taken away under an open watch";
    report.add(64, name, "canceled, and no event behind it", told(holds, &(ended, again)));

    let revoke = LeaseRevokeRequest { id: lease };
    let reply = ground.a.unary("/etcdserverpb.Lease/LeaseRevoke", &revoke).await;
    let holds = heard(&reply).0 == DENIED.0 && ground.etcd_has("/a/held").await;
    let name = "a lease revoked with keys that one may write no more";
    report.add(80, name, "denied, and the keys are there", told(holds, &reply));

    let reply = ground.a.unary(RANGE, &range(b"/a/x", b"")).await;
    let holds = before == 0 && heard(&reply).0 == DENIED.0;
    report.add(144, "a reload between two requests", "the second is denied", told(holds, &reply));
    revoked(report).await;
    whole
}

async fn revoked(report: &mut Report) {
    let ground = Ground::start().await;
    let (pki, port) = (&ground.pki, ground.ringfence.port);
    pki.command(&["crl", "--authority", "tenants-ca"]);
    let roots = format!("roots = \"{}/tenants-ca.crt\"\n", pki.path("").display());
    let lists = format!("{roots}crl_files = [{:?}]\n", pki.path("tenants-ca.crl"));
    let config = ground.ringfence.file("ringfence.toml").replace(&roots, &lists);
    ground.ringfence.replace_file("ringfence.toml", &config);
    ground.ringfence.wait_for_generation(2);
    let mut stream = ground.a.stream(WATCH).await;
    watch(&mut stream, "/a/").await;

    // Another CA's list does not speak for this one, whatever stands in it.
    pki.command(&["revoke", "foreign"]);
    let foreign = pki.pem("foreign-ca.crl");
    let own = pki.pem("tenants-ca.crl");
    std::fs::write(pki.path("tenants-ca.crl"), foreign).unwrap();
    wait_for("the failure", || ground.ringfence.metric(FAILING) == 1);
    let stays = gets_in(pki, Some("acme"), port).await;
    let name = "another issuer's list in the place of one's own";
    report.add(137, name, "the old one counts, and it is said", told(stays, &stays));
    std::fs::write(pki.path("tenants-ca.crl"), own).unwrap();

    pki.command(&["revoke", "acme"]);
    let ended: WatchResponse = stream.next().await;
    let end = heard(stream.expect_end().await).0;
    let out = !gets_in(pki, Some("acme"), port).await;
    let holds = ended.canceled && ended.events.is_empty() && end == DENIED.0 && out;
    let name = "a certificate revoked under an open connection";
    report.add(136, name, "canceled, cut, and no way back in", told(holds, &(ended, end, out)));

    pki.brief_list("tenants-ca", std::time::Duration::from_secs(2));
    let name = "a list that is stale";
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let out = !gets_in(pki, Some("acme"), port).await;
    report.add(137, name, "it takes nothing back", told(out, &out));
}

/// A key of its own on a lease of its own.
async fn held(ground: &Ground) -> i64 {
    let grant = LeaseGrantRequest { ttl: 600, id: 0 };
    let granted = ground.a.unary("/etcdserverpb.Lease/LeaseGrant", &grant).await;
    let lease = granted.message::<LeaseGrantResponse>().id;
    let held = PutRequest { lease, ..put("/a/held") };
    assert_eq!(ground.a.unary(PUT, &held).await.grpc_status, Some(0));
    lease
}

async fn watch(stream: &mut RawStream, prefix: &str) -> i64 {
    let created = request(stream, prefix).await;
    assert!(created.created && !created.canceled, "{created:?}");
    created.watch_id
}

async fn request(stream: &mut RawStream, prefix: &str) -> WatchResponse {
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().unwrap() += 1;
    let create = WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: range_end.into(),
        ..WatchCreateRequest::default()
    };
    stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
    stream.next().await
}
