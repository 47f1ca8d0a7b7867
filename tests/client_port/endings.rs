//! What is recorded, and how soon, of requests that end before etcd has answered; and what of etcd's
//! answers does not go through.

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseTimeToLiveRequest, Member, MemberAddRequest,
    MemberAddResponse, MemberListRequest, MemberListResponse, MemberRemoveRequest,
    MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse, PutRequest, WatchRequest,
};

use crate::support::{Etcd, Pki, RawClient, Ringfence, framed, silent_member, wait_for};
use crate::watch::{WATCH, create};

const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

fn of_type<'a>(records: &'a [serde_json::Value], name: &str) -> Vec<&'a serde_json::Value> {
    records.iter().filter(|record| record["type"] == name).collect()
}

/// A ringfence before a member that takes connections and says nothing.
fn start_before_silence(pki: &Pki, more: &str) -> (std::net::TcpListener, Ringfence) {
    let (silent, endpoint) = silent_member();
    let upstream = format!("endpoints = [\"{endpoint}\"]\nconnect_timeout_seconds = 60");
    (silent, Ringfence::start_before(pki, &upstream, more))
}

/// The attack: a lease that has to be looked up, asked for with a short time while etcd is silent. Each
/// look-up took a whole `call_timeout_seconds` and kept a place from the principal's other calls.
#[tokio::test]
async fn a_look_up_ends_with_the_time_of_its_call() {
    let pki = Pki::make();
    let (_silent, mut ringfence) = start_before_silence(&pki, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let foreign = LeaseTimeToLiveRequest { id: 5, keys: false }.encode_to_vec();
    let reply = acme.call(TIME_TO_LIVE, &[("grpc-timeout", "100m")], framed(&foreign)).await;
    // Not Unavailable: etcd's clients would ask a hundred times more.
    assert_eq!(reply.grpc_status, Some(4), "{reply:?}");
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let outcomes = of_type(&records, "outcome");
    assert_eq!(outcomes.len(), 1, "of the look-up");
    assert_eq!((&outcomes[0]["fault"], &outcomes[0]["step"]), (&"timeout".into(), &1.into()));
}

#[tokio::test]
async fn a_watch_whose_time_ends_while_it_connects_says_so_in_both_records() {
    let pki = Pki::make();
    let (_silent, mut ringfence) = start_before_silence(&pki, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let create = RequestUnion::CreateRequest(create("/tenants/acme/x", ""));
    let message = WatchRequest { request_union: Some(create) }.encode_to_vec();
    let reply = acme.call(WATCH, &[("grpc-timeout", "100m")], framed(&message)).await;
    assert_eq!(reply.grpc_status, Some(4), "{reply:?}");
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    for name in ["outcome", "stream.end"] {
        let found = of_type(&records, name);
        assert_eq!(found.len(), 1, "{records:?}");
        assert_eq!((&found[0]["fault"], &found[0]["status"]), (&"timeout".into(), &4.into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_a_second_signal_cuts_has_an_end_in_the_log() {
    let pki = Pki::make();
    let limits = "[limits]\ndrain_timeout_seconds = 3600\ncall_timeout_seconds = 3600\n";
    let (_silent, mut ringfence) = start_before_silence(&pki, limits);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    let create = RequestUnion::CreateRequest(create("/tenants/acme/x", ""));
    stream.send(&WatchRequest { request_union: Some(create) });
    let allowed = format!("requests_total{{rpc=\"{WATCH}\",verdict=\"allow\"}} 1");
    wait_for("the create", || ringfence.metrics().contains(&allowed));
    ringfence.signal("TERM");
    wait_for("the drain", || ringfence.log().contains("ending: no new connections"));
    ringfence.signal("TERM");
    assert_eq!(ringfence.wait().code(), Some(1));
    let records = ringfence.records();
    let ends = of_type(&records, "stream.end");
    assert_eq!(ends.len(), 1, "{records:?}");
    assert_eq!((&ends[0]["fault"], &ends[0]["requests"]), (&"aborted".into(), &1.into()));
}

/// CVE-2023-32082: a lease of one's own, with a key on it that one may write and not read.
#[tokio::test]
async fn keys_that_may_not_be_read_are_withheld_with_their_lease() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let grant = LeaseGrantRequest { ttl: 60, id: 0 };
    let lease: LeaseGrantResponse =
        acme.unary("/etcdserverpb.Lease/LeaseGrant", &grant).await.message();
    let put = PutRequest { key: "/inbox/a".into(), lease: lease.id, ..Default::default() };
    assert_eq!(acme.unary("/etcdserverpb.KV/Put", &put).await.grpc_status, Some(0));
    let ask = |keys| LeaseTimeToLiveRequest { id: lease.id, keys };
    assert_eq!(acme.unary(TIME_TO_LIVE, &ask(false)).await.grpc_status, Some(0));
    let reply = acme.unary(TIME_TO_LIVE, &ask(true)).await;
    assert_eq!(
        (reply.grpc_status, &*reply.grpc_message),
        (Some(7), "etcdserver: permission denied")
    );
    assert!(reply.data.is_empty(), "{reply:?}");
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    assert!(records.iter().any(|record| record["fault"] == "withheld"), "{records:?}");
}

/// The attack: a client that learns etcd's own address from a list of members goes past ringfence.
#[tokio::test]
async fn no_answer_about_members_shows_an_address_of_etcd() {
    const POLICY: &str = r#"
[[identity]]
name = "operator"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["members"]
[[role]]
name = "members"
rules = [{ allow = ["member.list", "member.change"] }]
"#;
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let operator = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let path = |name: &str| format!("/etcdserverpb.Cluster/{name}");
    let list = MemberListRequest::default();
    let direct: MemberListResponse = past.unary(&path("MemberList"), &list).await.message();
    assert_eq!(direct.members[0].client_ur_ls, [etcd.endpoint()], "there is something to hide");

    let advertised = format!("https://127.0.0.1:{}", ringfence.port);
    let check = |members: &[Member], count| {
        assert_eq!(members.len(), count);
        for member in members {
            let own = member.name == "test";
            let expected = if own { vec![advertised.clone()] } else { Vec::new() };
            assert_eq!(member.client_ur_ls, expected, "{member:?}");
        }
    };
    let list: MemberListResponse = operator.unary(&path("MemberList"), &list).await.message();
    check(&list.members, 1);
    let peer = |port: u16| vec![format!("http://127.0.0.1:{port}")];
    let add = MemberAddRequest { peer_ur_ls: peer(1), is_learner: true };
    let added: MemberAddResponse = operator.unary(&path("MemberAdd"), &add).await.message();
    check(&added.members, 2);
    let id = added.member.unwrap().id;
    let update = MemberUpdateRequest { id, peer_ur_ls: peer(2) };
    let updated: MemberUpdateResponse =
        operator.unary(&path("MemberUpdate"), &update).await.message();
    check(&updated.members, 2);
    let removed: MemberRemoveResponse =
        operator.unary(&path("MemberRemove"), &MemberRemoveRequest { id }).await.message();
    check(&removed.members, 1);
}
