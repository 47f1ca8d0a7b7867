//! Streams whose client has stopped reading: what waits for them is theirs alone.

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{PutRequest, WatchRequest, WatchResponse};

use crate::support::{Etcd, Pki, RawClient, Ringfence};
use crate::watch::{WATCH, create, request};

const STOPPED: usize = 40;
const EVENTS: usize = 4_000;
const WRITERS: usize = 16;
/// A window of 128 KiB for each, in few large pieces, and what the program needs anyhow.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The attack: watches that are not read, of a key that is written often. Each event is a DATA frame of
/// its own, and the HTTP/2 library ends a connection on which small frames pile up: the connection to
/// etcd, with the watches of everybody else on it.
#[tokio::test]
async fn small_events_that_nobody_reads_end_nobody_elses_watch() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let mut watched = globex.stream(WATCH).await;
    watched.send(&request(RequestUnion::CreateRequest(create("/tenants/globex/x", ""))));
    let created: WatchResponse = watched.next().await;
    assert!(created.created && !created.canceled, "{created:?}");

    // It has room for the answer to its create, and for little else.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1024).data_frame_budget(64 << 20);
    let acme = RawClient::connect_with(&pki, "acme", ringfence.port, builder).await;
    let mut stopped = Vec::new();
    for _ in 0..STOPPED {
        let watch: WatchRequest =
            request(RequestUnion::CreateRequest(create("/tenants/acme/x", "")));
        let mut stream = acme.stream(WATCH).await;
        stream.send(&watch);
        let created: WatchResponse = stream.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        stopped.push(stream);
    }
    let direct = RawClient::connect_plain(etcd.port()).await;
    let put = |key: &str| PutRequest { key: key.to_owned().into(), ..PutRequest::default() };
    let writers = (0..WRITERS).map(|_| {
        let (direct, put) = (direct.clone(), put("/tenants/acme/x").encode_to_vec());
        tokio::spawn(async move {
            for _ in 0..EVENTS / WRITERS {
                let reply = direct.unary_bytes("/etcdserverpb.KV/Put", &put).await;
                assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let reply = direct.unary("/etcdserverpb.KV/Put", &put("/tenants/globex/x")).await;
    assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
    let event: WatchResponse = watched.next().await;
    assert_eq!(event.events.len(), 1, "{event:?}");
    let log = ringfence.log();
    assert!(!log.contains("a connection to etcd ended"), "{log}");
    let memory = ringfence.memory_bytes();
    assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes");

    // They were stopped, not cut: one that begins to read gets every event, in order.
    let mut late = stopped.pop().unwrap();
    let (mut seen, mut version) = (0, 0);
    while seen < EVENTS {
        let response: WatchResponse = late.next().await;
        for event in response.events {
            let now = event.kv.unwrap().version;
            assert_eq!(now, version + 1, "an event is lost or comes twice");
            version = now;
            seen += 1;
        }
    }
}
