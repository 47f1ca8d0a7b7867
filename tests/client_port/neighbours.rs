//! One principal that misbehaves beside another that does not.

use std::time::{Duration, Instant};

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

use crate::support::{Etcd, Pki, RawClient, Ringfence, framed};

const READERS: usize = 100;
const CALLS: usize = 2000;
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// A hundred readers of one tenant ask for much and read nothing; another tenant goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_stopped_readers_stop_nobody_else() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    // A connection window for all, so that each reader takes the 64 KiB of its own stream.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 << 20);
    let acme = RawClient::connect_with(&pki, "acme", ringfence.port, builder).await;
    for number in 0..8 {
        let key = format!("/tenants/acme/large-{number}");
        let put =
            PutRequest { key: key.into(), value: vec![7; 1 << 20].into(), ..Default::default() };
        let reply = acme.call("/etcdserverpb.KV/Put", &[], framed(&put.encode_to_vec())).await;
        assert_eq!(reply.grpc_status, Some(0));
    }
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    quick_calls(&globex).await;
    let quiet = quick_calls(&globex).await;

    // Every reader asks for 8 MiB and takes none of it.
    let all = RangeRequest {
        key: "/tenants/acme/large-".into(),
        range_end: "/tenants/acme/large.".into(),
        ..Default::default()
    };
    let mut stopped = Vec::new();
    for _ in 0..READERS {
        stopped.push(acme.send_and_stop_reading("/etcdserverpb.KV/Range", &all).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let beside = quick_calls(&globex).await;
    let memory = ringfence.memory_bytes();
    let ratio = beside.as_secs_f64() / quiet.as_secs_f64();
    println!(
        "p99 quiet {quiet:?}, beside stopped readers {beside:?}: {ratio:.2}; memory {memory} bytes"
    );
    assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes");

    // The readers were stopped, not refused: one that begins to read gets all of it.
    let (response, _stream) = stopped.pop().unwrap();
    let response = response.await.unwrap();
    let mut body = response.into_body();
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        data.extend_from_slice(&chunk);
    }
    let found = RangeResponse::decode(&data[5..]).unwrap();
    assert_eq!((found.count, found.kvs.len()), (8, 8));
    drop(stopped);
}

/// The p99 of small reads, one at a time.
async fn quick_calls(client: &RawClient) -> Duration {
    let range = RangeRequest { key: "/tenants/globex/x".into(), ..Default::default() };
    let mut latencies = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let reply = client.unary("/etcdserverpb.KV/Range", &range).await;
        latencies.push(started.elapsed());
        assert_eq!(reply.grpc_status, Some(0));
    }
    latencies.sort();
    latencies[CALLS * 99 / 100]
}
