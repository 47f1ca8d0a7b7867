//! Replies without an end that would fit into memory: the snapshot, and ranges in pieces.
//!
//! `RINGFENCE_SNAPSHOT_MIB` says how large the database is; the gate runs a part of what is promised.

use std::time::Instant;

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, RangeRequest, RangeStreamResponse, SnapshotRequest, SnapshotResponse,
};

use crate::support::{Etcd, Pki, RawClient, Ringfence, Settings, framed, number_from_environment};

const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const MEBIBYTES: u64 = 64;
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// One who may copy the whole database: the certificate that is nobody elsewhere.
const BACKUP: &str = r#"
[[identity]]
name = "backup"
match = { ca = "kubernetes", cn = "etcd" }
roles = ["backup"]
[[role]]
name = "backup"
rules = [ { allow = ["snapshot"] } ]
"#;

async fn fill(client: &RawClient, mebibytes: u64) {
    for number in 0..mebibytes {
        let mut value = vec![7; 1 << 20];
        value[..8].copy_from_slice(&number.to_be_bytes());
        let key = format!("/tenants/acme/{number}").into();
        let put = PutRequest { key, value: value.into(), ..Default::default() };
        let reply = client.call("/etcdserverpb.KV/Put", &[], framed(&put.encode_to_vec())).await;
        assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
    }
}

/// How many bytes the database has. etcd itself ends a snapshot with the SHA-256 of all before it,
/// so whether it came whole can be told; two snapshots are never the same, since making one writes
/// to the database. `look` sees the stream now and then.
async fn snapshot(client: &RawClient, mut look: impl FnMut()) -> u64 {
    let mut stream = client.stream(SNAPSHOT).await;
    stream.send(&SnapshotRequest {});
    stream.finish();
    let (mut bytes, mut digest, mut pieces) = (0, Context::new(&SHA256), 0_u32);
    let mut tail = Vec::new();
    while let Some(response) = stream.next_or_end::<SnapshotResponse>().await {
        tail.extend_from_slice(&response.blob);
        let certain = tail.len().saturating_sub(SHA256.output_len());
        digest.update(&tail[..certain]);
        bytes += certain as u64;
        tail.drain(..certain);
        pieces += 1;
        if pieces.is_multiple_of(64) {
            look();
        }
    }
    assert_eq!(stream.end.as_ref().unwrap().grpc_status, Some(0), "{:?}", stream.end);
    assert_eq!(tail, digest.finish().as_ref(), "not the database that etcd sent");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_has_the_digest_that_etcd_gave_it_and_is_never_in_memory() {
    let mebibytes = number_from_environment("RINGFENCE_SNAPSHOT_MIB", MEBIBYTES);
    let pki = Pki::make();
    let etcd = Etcd::start_with("3.7", &pki, &["--quota-backend-bytes=8589934592"]);
    let settings = Settings { policy: BACKUP, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let backup = RawClient::connect(&pki, "etcd-server", ringfence.port).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    fill(&past, mebibytes).await;

    // 82
    assert_eq!(acme.unary(SNAPSHOT, &SnapshotRequest {}).await.grpc_status, Some(7));
    let mut memory = 0;
    let started = Instant::now();
    let bytes = snapshot(&backup, || memory = memory.max(ringfence.memory_bytes())).await;
    println!("{bytes} bytes in {:?}; memory at most {memory} bytes", started.elapsed());
    assert!(bytes > mebibytes << 20);
    assert_eq!(snapshot(&past, || {}).await, bytes);
    assert!(memory > 0 && memory < MEMORY_BYTES_MAX, "{memory} bytes");
    drop((acme, backup));
    assert_eq!(ringfence.decisions().len(), 2);
}

/// 24, 25: a range in pieces is a range; it needs what the range needs.
#[tokio::test]
async fn a_range_in_pieces_is_the_same_as_etcds_own_and_denied_without_a_right() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    fill(&past, 32).await;
    let range = |key: &str, range_end: &str| {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        RangeRequest { key, range_end, ..Default::default() }
    };
    let own = range("/tenants/acme/", "/tenants/acme0");
    let mut replies = Vec::new();
    for client in [&past, &acme] {
        let mut stream = client.stream(RANGE_STREAM).await;
        stream.send(&own);
        stream.finish();
        let mut messages = Vec::new();
        while let Some(message) = stream.next_or_end::<RangeStreamResponse>().await {
            messages.push(message);
        }
        assert_eq!(stream.end.as_ref().unwrap().grpc_status, Some(0), "{:?}", stream.end);
        replies.push(messages);
    }
    assert!(replies[0].len() > 1, "{} pieces", replies[0].len());
    assert_eq!(replies[0], replies[1]);
    for (key, range_end) in
        [("/tenants/globex/", "/tenants/globex0"), ("/tenants/acme/", "\0"), ("/inbox/x", "")]
    {
        let reply = acme.unary(RANGE_STREAM, &range(key, range_end)).await;
        assert_eq!(reply.grpc_status, Some(7), "{key}..{range_end:?}");
        assert!(reply.data.is_empty());
    }
    let inverted = acme.unary(RANGE_STREAM, &range("/tenants/acme/b", "/tenants/acme/a")).await;
    assert_eq!(inverted.grpc_status, Some(3));

    // A release that does not know it says so.
    let old = Etcd::start("3.4", &pki);
    let ringfence = Ringfence::start(&pki, &old.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    assert_eq!(acme.unary(RANGE_STREAM, &own).await.grpc_status, Some(12));
}
