//! The same calls that others are denied, by one who has the right: what comes back, and what is hidden.

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    MemberListRequest, MemberListResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

use crate::ground::{Report, heard};
use crate::support::{Etcd, Pki, RawClient, Ringfence};

const POLICY: &str = r#"
[[identity]]
name = "operator"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["operator"]
[[identity]]
name = "reader"
match = { ca = "tenants", cn = "acme" }
roles = ["reader"]
[[identity]]
name = "nobody"
match = { ca = "tenants", cn = "globex" }
roles = ["nothing"]
[[role]]
name = "operator"
rules = [{ allow = ["member.list", "auth.read", "health"] }]
[[role]]
name = "reader"
rules = [{ prefix = "/a/", allow = ["watch"] }]
[[role]]
name = "nothing"
rules = []
"#;
/// More connections than ringfence has cores, so that each core has one.
const CONNECTIONS: usize = 4;

fn told(holds: bool, what: &impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

pub async fn run() -> Report {
    let mut whole = Report::default();
    let report = &mut whole;
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let operator = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let list = MemberListRequest::default();
    let reply = operator.unary("/etcdserverpb.Cluster/MemberList", &list).await;
    let members: MemberListResponse = reply.message();
    let own = format!("https://127.0.0.1:{}", ringfence.port);
    let urls: Vec<String> =
        members.members.iter().flat_map(|member| member.client_ur_ls.clone()).collect();
    let fared = told(members.members.len() == 1 && urls == [own], &urls);
    report.add(87, "the list of members, with the right", "ringfence's addresses", fared);
    for (number, name, path) in [
        (89, "whether authentication is on, with the right", "/etcdserverpb.Auth/AuthStatus"),
        (90, "health, by one with nothing else", "/grpc.health.v1.Health/Check"),
    ] {
        let reply = heard(&operator.unary_bytes(path, b"").await);
        report.add(number, name, "etcd answers", told(reply.0 == 0, &reply));
    }
    let mut health = operator.stream("/grpc.health.v1.Health/Watch").await;
    health.send_bytes(b"");
    health.finish();
    let first = health.next_bytes().await;
    report.add(90, "health watched, with the right", "etcd answers", told(first.is_some(), &first));
    drop((health, operator));
    denied_headers(report, &pki, ringfence.port).await;
    let allowed =
        ringfence.decisions().iter().filter(|record| record["verdict"] == "allow").count();
    let expected = 4 + CONNECTIONS;
    let fared = told(allowed == expected, &allowed);
    report.add(90, "and the records of these calls", "one for each", fared);
    whole
}

/// A denied watch is answered with a header, as etcd answers it. Who may do nothing at all does not learn the
/// store's revision from it.
async fn denied_headers(report: &mut Report, pki: &Pki, port: u16) {
    let watch = "/etcdserverpb.Watch/Watch";
    let create = WatchCreateRequest { key: "/a/x".into(), ..WatchCreateRequest::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut revisions = Vec::new();
    for name in ["acme", "globex"] {
        for _ in 0..CONNECTIONS {
            let client = RawClient::connect(pki, name, port).await;
            let mut stream = client.stream(watch).await;
            stream.send(&create);
            let answer: WatchResponse = stream.next().await;
            revisions.push(answer.header.unwrap().revision);
        }
    }
    let (known, denied) = revisions.split_at(CONNECTIONS);
    let hidden = known.iter().all(|revision| *revision == 1) && denied == [0; CONNECTIONS];
    let fared = told(hidden, &revisions);
    report.add(55, "a watch by one who may do nothing", "no revision in its header", fared);
}
