//! One decision record per request, whole and in order, and no value anywhere.

use std::collections::HashSet;

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::{PutRequest, PutResponse, RangeRequest};

use crate::support::{Etcd, Pki, RawClient, Ringfence, audit_files, framed};

const CONNECTIONS: usize = 8;
const STREAMS: usize = 16;
const CALLS: usize = 100_000;
const PUT: &str = "/etcdserverpb.KV/Put";
/// A value; it must be nowhere but in etcd.
const CANARY: &str = "canary-6f1d2c";

/// A hundred thousand requests on eight connections: three in four are allowed, one is denied.
#[tokio::test]
async fn every_request_has_one_decision_record_and_no_value_is_in_any() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = RawClient::connect(&pki, "acme", ringfence.port).await;
        for _ in 0..STREAMS {
            let client = client.clone();
            streams.spawn(async move {
                for call in 0..CALLS / (CONNECTIONS * STREAMS) {
                    let (path, data, expected) = request(call);
                    let reply = client.call(path, &[], data).await;
                    assert_eq!(reply.grpc_status, Some(expected), "{reply:?}");
                }
                CALLS / (CONNECTIONS * STREAMS)
            });
        }
    }
    let done: usize = streams.join_all().await.into_iter().sum();
    let metrics = ringfence.metrics();
    assert_eq!(ringfence.stop().code(), Some(0));

    let records = ringfence.records();
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], position + 1, "the sequence has a hole");
    }
    let of_type =
        |wanted: &'static str| records.iter().filter(move |record| record["type"] == wanted);
    let decisions = of_type("decision").map(|record| (&record["connection"], &record["call"]));
    let ids: HashSet<String> = decisions.map(|id| format!("{id:?}")).collect();
    assert_eq!(of_type("decision").count(), done, "one decision record per request");
    assert_eq!(ids.len(), done, "each for a request of its own");
    let allowed = of_type("decision").filter(|record| record["verdict"] == "allow").count();
    assert_eq!(of_type("outcome").count(), allowed, "one outcome per allowed request");
    assert!(of_type("outcome").all(|record| record["status"] == 0 && record["revision"].is_u64()));

    let files = audit_files(ringfence.audit_folder());
    let audit: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for (name, text) in [("audit", audit), ("log", ringfence.log()), ("metrics", metrics)] {
        assert!(!text.is_empty());
        assert!(!text.contains(CANARY), "a value is in the {name}");
    }
}

/// Reads, now and then a write; every fourth goes to a neighbour.
fn request(call: usize) -> (&'static str, bytes::Bytes, u16) {
    let tenant = if call % 4 == 3 { "globex" } else { "acme" };
    let key = format!("/tenants/{tenant}/key-{}", call % 100);
    let expected = if tenant == "acme" { 0 } else { 7 };
    if call.is_multiple_of(50) {
        let put = PutRequest { key: key.into(), value: CANARY.into(), ..Default::default() };
        ("/etcdserverpb.KV/Put", framed(&put.encode_to_vec()), expected)
    } else {
        let range = RangeRequest { key: key.into(), ..Default::default() };
        ("/etcdserverpb.KV/Range", framed(&range.encode_to_vec()), expected)
    }
}

/// The attack: a writer that gives the call no time, so that its record never says what was written.
#[tokio::test]
async fn a_writer_that_does_not_wait_for_the_answer_hides_no_write() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let put = |value: &str| {
        let (key, value) = ("/tenants/acme/x".into(), value.to_owned().into());
        framed(&PutRequest { key, value, ..Default::default() }.encode_to_vec())
    };
    let mut hurried = 0;
    for timeout in ["1n", "300u", "2m"] {
        for number in 0..50 {
            let put = put(&number.to_string());
            let reply = acme.call(PUT, &[("grpc-timeout", timeout)], put).await;
            hurried += u64::from(reply.grpc_status == Some(4));
        }
    }
    assert!(hurried > 0, "no call ran out of time");
    let last: PutResponse = acme.call(PUT, &[], put("last")).await.message();
    let revision = last.header.unwrap().revision;
    drop(acme);
    assert_eq!(ringfence.stop().code(), Some(0));
    let told: std::collections::BTreeSet<i64> =
        ringfence.records().iter().filter_map(|record| record["revision"].as_i64()).collect();
    // Revision 1 is the empty store.
    assert_eq!(told, (2..=revision).collect());
}
