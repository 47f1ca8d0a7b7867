//! Replies without an end: neither a client that has gone nor the end of ringfence waits for etcd to
//! say something.

use prost::Message as _;
use ringfence::etcd::Rpc;
use ringfence::etcd::pb::grpc_health_v1::HealthCheckRequest;
use ringfence::etcd::pb::v3electionpb::{CampaignRequest, LeaderRequest};

use crate::every_rpc::POLICY;
use crate::support::{Etcd, Pki, RawClient, Ringfence, wait_for};

/// How many forwarded calls have ended.
fn ended_calls(ringfence: &Ringfence) -> u64 {
    let metrics = ringfence.metrics();
    let name = "ringfence_forward_duration_seconds_count ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    count.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_goes_is_noticed_while_etcd_is_silent() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let client = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let name = bytes::Bytes::from("/election");
    let campaign = CampaignRequest { name: name.clone(), lease: 0, value: "v".into() };
    assert_eq!(client.unary(Rpc::Campaign.path(), &campaign).await.grpc_status, Some(0));
    let follow = LeaderRequest { name }.encode_to_vec();
    let health = HealthCheckRequest::default().encode_to_vec();
    for (rpc, request) in [(Rpc::Observe, follow), (Rpc::HealthWatch, health)] {
        let before = ended_calls(&ringfence);
        let first = client.first_message(rpc.path(), &request, true).await;
        assert_eq!((first.grpc_status, first.data.is_empty()), (None, false), "{rpc:?}");
        wait_for("the end of the call", || ended_calls(&ringfence) > before);
    }
    drop(client);
    assert_eq!(ringfence.stop().code(), Some(0));
    let gone = |record: &&serde_json::Value| record["fault"] == "client_gone";
    assert_eq!(ringfence.records().iter().filter(gone).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_told_that_ringfence_ends() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, "");
    let client = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let following = tokio::spawn(async move {
        client.unary(Rpc::HealthWatch.path(), &HealthCheckRequest::default()).await
    });
    let allowed =
        r#"ringfence_requests_total{rpc="/grpc.health.v1.Health/Watch",verdict="allow"} 1"#;
    wait_for("a follower", || ringfence.metrics().contains(allowed));
    assert_eq!(ringfence.stop().code(), Some(0));
    let reply = following.await.unwrap();
    assert_eq!(reply.grpc_status, Some(14), "{reply:?}");
    assert_eq!(reply.grpc_message, "ringfence: shutting down");
}
