//! What changes while ringfence runs: config, policy and certificates, and what becomes of calls that are open then.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

mod certificates;
mod generation;
mod revocation;
mod streams;

use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};

use support::{RawClient, RawStream};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// What etcd's own clients look for.
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

async fn may_read(client: &RawClient, key: &str) -> bool {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let reply = client.unary("/etcdserverpb.KV/Range", &request).await;
    match reply.grpc_status {
        Some(0) => true,
        Some(7) => false,
        _ => panic!("{reply:?}"),
    }
}

async fn put(client: &RawClient, key: &str, value: &str) -> i64 {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let reply = client.unary("/etcdserverpb.KV/Put", &request).await;
    let reply: ringfence::etcd::pb::etcdserverpb::PutResponse = reply.message();
    reply.header.unwrap().revision
}

/// A watch on a prefix, which has begun; its ID.
async fn watch(stream: &mut RawStream, prefix: &str) -> i64 {
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().unwrap() += 1;
    let create = WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: range_end.into(),
        ..WatchCreateRequest::default()
    };
    stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
    let created: WatchResponse = stream.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    created.watch_id
}

/// The revision of the one event that comes next on that watch.
async fn event(stream: &mut RawStream, watch_id: i64) -> i64 {
    let response: WatchResponse = stream.next().await;
    assert_eq!((response.watch_id, response.events.len()), (watch_id, 1), "{response:?}");
    response.events[0].kv.as_ref().unwrap().mod_revision
}
