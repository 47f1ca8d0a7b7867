//! Allowed calls come through as from etcd itself; others are denied, and etcd never sees them.

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use ringfence::etcd::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, compare, request_op,
};

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn range(key: &str, range_end: &str) -> RangeRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    RangeRequest { key, range_end, ..Default::default() }
}

fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    DeleteRangeRequest { key, range_end, ..Default::default() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn assert_denied(reply: &Reply) {
    assert_eq!(reply.grpc_status, Some(7), "{reply:?}");
    assert_eq!(reply.grpc_message, "etcdserver: permission denied");
    assert!(reply.data.is_empty());
}

#[tokio::test]
async fn a_key_goes_through_the_etcd_client_crate() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let tls = TlsOptions::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(pki.pem("kubernetes-ca.crt")))
        .identity(Identity::from_pem(pki.pem("acme.crt"), pki.pem("acme.key")));
    let options = ConnectOptions::new().with_tls(tls);
    let endpoint = format!("https://localhost:{}", ringfence.port);
    let mut client = Client::connect([endpoint], Some(options)).await.unwrap();
    client.put("/tenants/acme/greeting", "hello", None).await.unwrap();
    let found = client.get("/tenants/acme/greeting", None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"hello");
    let denied = client.get("/tenants/globex/greeting", None).await.unwrap_err();
    assert!(denied.to_string().contains("etcdserver: permission denied"), "{denied}");
    drop(client);
    assert_eq!(ringfence.decisions().len(), 3);
}

/// The newest and the oldest release that is supported.
#[tokio::test]
async fn every_forwarded_call_works_with_the_newest_etcd() {
    every_forwarded_call_works("3.7").await;
}

#[tokio::test]
async fn every_forwarded_call_works_with_the_oldest_etcd() {
    every_forwarded_call_works("3.4").await;
}

async fn every_forwarded_call_works(version: &str) {
    let pki = Pki::make();
    let etcd = Etcd::start(version, &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;

    for number in 0..5 {
        let put = put(&format!("/tenants/acme/{number}"), "v");
        acme.unary(PUT, &put).await.message::<PutResponse>();
    }
    let all = range("/tenants/acme/", "/tenants/acme0");
    assert_eq!(acme.unary(RANGE, &all).await.message::<RangeResponse>().count, 5);
    let previous = PutRequest { prev_kv: true, ..put("/tenants/acme/0", "w") };
    let replaced: PutResponse = acme.unary(PUT, &previous).await.message();
    assert_eq!(&replaced.prev_kv.unwrap().value[..], b"v");

    let compare = Compare {
        key: "/tenants/acme/0".into(),
        target: compare::CompareTarget::Value as i32,
        target_union: Some(compare::TargetUnion::Value("w".into())),
        ..Default::default()
    };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![op(request_op::Request::RequestPut(put("/tenants/acme/9", "t")))],
        failure: vec![op(request_op::Request::RequestRange(range("/tenants/acme/1", "")))],
    };
    assert!(acme.unary(TXN, &txn).await.message::<TxnResponse>().succeeded);
    let deleted: DeleteRangeResponse =
        acme.unary(DELETE, &delete("/tenants/acme/1", "/tenants/acme/4")).await.message();
    assert_eq!(deleted.deleted, 3);

    // etcd's own errors come through with its words.
    let future = RangeRequest { revision: 1 << 40, ..range("/tenants/acme/0", "") };
    let reply = acme.unary(RANGE, &future).await;
    assert_eq!(reply.grpc_status, Some(11), "{reply:?}");
    assert_eq!(reply.grpc_message, "etcdserver: mvcc: required revision is a future revision");

    let apiserver = RawClient::connect(&pki, "apiserver", ringfence.port).await;
    let compact = CompactionRequest { revision: 3, physical: false };
    assert_eq!(apiserver.unary(COMPACT, &compact).await.grpc_status, Some(0));
    assert_denied(&acme.unary(COMPACT, &compact).await);

    drop((acme, apiserver));
    let decisions = ringfence.decisions();
    let allowed = decisions.iter().filter(|record| record["verdict"] == "allow").count();
    assert_eq!((decisions.len(), allowed), (12, 11));
}

#[tokio::test]
async fn what_is_denied_never_reaches_etcd() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let before: PutResponse =
        globex.unary(PUT, &put("/tenants/globex/x", "secret")).await.message();
    let revision = before.header.unwrap().revision;

    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    for denied in [
        range("/tenants/globex/x", ""),
        range("/tenants/acme/", "/tenants/acme1"),
        range("/tenants/acme", "/tenants/acme0"),
        range("/tenants/acme/x", "\0"),
        range("\0", "\0"),
        range("/tenants/acme", ""),
        RangeRequest { count_only: true, ..range("/tenants/globex/x", "") },
        RangeRequest { keys_only: true, ..range("/tenants/globex/x", "") },
    ] {
        assert_denied(&acme.unary(RANGE, &denied).await);
    }
    for denied in [
        put("/tenants/globex/x", "mine"),
        put("/tenants/acme/quota", "more"),
        PutRequest { lease: 7, ..put("/tenants/acme/x", "v") },
        PutRequest { lease: -1, ..put("/tenants/acme/x", "v") },
        // It may write there, but not read: what was there, and whether anything was.
        PutRequest { prev_kv: true, ..put("/inbox/x", "v") },
        PutRequest { ignore_value: true, ..put("/inbox/x", "") },
        PutRequest { ignore_lease: true, ..put("/inbox/x", "v") },
    ] {
        assert_denied(&acme.unary(PUT, &denied).await);
    }
    for denied in [
        delete("\0", "\0"),
        delete("/tenants/", "/tenants0"),
        // The quota key lies in the range, and a deny beats an allow.
        delete("/tenants/acme/", "/tenants/acme0"),
        DeleteRangeRequest { prev_kv: true, ..delete("/inbox/x", "") },
    ] {
        assert_denied(&acme.unary(DELETE, &denied).await);
    }
    for denied in denied_transactions() {
        assert_denied(&acme.unary(TXN, &denied).await);
    }

    let after: PutResponse = globex.unary(PUT, &put("/tenants/globex/x", "secret")).await.message();
    assert_eq!(after.header.unwrap().revision, revision + 1, "nothing else was written");
    drop((acme, globex));
    let decisions = ringfence.decisions();
    assert_eq!(decisions.iter().filter(|record| record["verdict"] == "deny").count(), 24);
    assert_eq!(decisions.len(), 26);
}

fn denied_transactions() -> Vec<TxnRequest> {
    let neighbour = || op(request_op::Request::RequestPut(put("/tenants/globex/x", "mine")));
    let own = || op(request_op::Request::RequestPut(put("/tenants/acme/x", "v")));
    let compare = Compare { key: "/tenants/globex/x".into(), ..Default::default() };
    let nested = TxnRequest { failure: vec![neighbour()], ..Default::default() };
    let leased = PutRequest { lease: 7, ..put("/tenants/acme/x", "v") };
    let reading = PutRequest { prev_kv: true, ..put("/inbox/x", "v") };
    vec![
        TxnRequest { compare: vec![compare], ..Default::default() },
        TxnRequest { success: vec![own()], failure: vec![neighbour()], ..Default::default() },
        TxnRequest {
            success: vec![op(request_op::Request::RequestTxn(nested))],
            ..Default::default()
        },
        TxnRequest {
            success: vec![op(request_op::Request::RequestPut(leased))],
            ..Default::default()
        },
        TxnRequest {
            success: vec![op(request_op::Request::RequestPut(reading))],
            ..Default::default()
        },
    ]
}
