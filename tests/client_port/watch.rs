//! Watches: what passes is what etcd says, what is denied leaves the stream alive, and what a client
//! leaves behind is gone from etcd too.

use prost::Message as _;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use ringfence::etcd::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, WatchCancelRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse,
};
use ringfence::etcd::pb::mvccpb::Event;
use serde_json::Value;

use crate::support::{Etcd, Pki, RawClient, RawStream, Ringfence, wait_for};

pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
const PUT: &str = "/etcdserverpb.KV/Put";
/// What etcd's own clients look for.
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
/// A value; it must be nowhere but in etcd and in what its readers get.
const CANARY: &str = "canary-90ab1e";
const STREAMS: &str = "etcd_debugging_mvcc_watch_stream_total";
const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

pub fn request(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

pub fn create(key: &str, range_end: &str) -> WatchCreateRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    WatchCreateRequest { key, range_end, ..Default::default() }
}

fn create_request(key: &str, range_end: &str) -> WatchRequest {
    request(RequestUnion::CreateRequest(create(key, range_end)))
}

pub fn cancel(watch_id: i64) -> WatchRequest {
    request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
}

fn progress() -> WatchRequest {
    request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

pub async fn put(client: &RawClient, key: &str, value: impl Into<bytes::Bytes>) {
    let (key, value) = (key.to_owned().into(), value.into());
    let reply = client.unary(PUT, &PutRequest { key, value, ..Default::default() }).await;
    assert_eq!(reply.grpc_status, Some(0), "{reply:?}");
}

fn keys(events: &[Event]) -> Vec<String> {
    let key = |event: &Event| String::from_utf8(event.kv.as_ref().unwrap().key.to_vec()).unwrap();
    events.iter().map(key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_watch_leaves_its_stream_and_the_others_alive_with_the_newest_etcd() {
    a_denied_watch_leaves_the_stream_alive("3.7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_watch_leaves_its_stream_and_the_others_alive_with_the_oldest_etcd() {
    a_denied_watch_leaves_the_stream_alive("3.4").await;
}

/// 59, 60 and the records.
async fn a_denied_watch_leaves_the_stream_alive(version: &str) {
    let pki = Pki::make();
    let etcd = Etcd::start(version, &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    stream.send(&create_request("/tenants/acme/a", ""));
    let first: WatchResponse = stream.next().await;
    assert!(first.created && !first.canceled && first.watch_id == 0, "{first:?}");
    stream.send(&create_request("/tenants/globex/", "/tenants/globex0"));
    let denied: WatchResponse = stream.next().await;
    let expected = WatchResponse {
        header: first.header,
        watch_id: -1,
        created: true,
        canceled: true,
        cancel_reason: DENIED.to_owned(),
        ..Default::default()
    };
    assert_eq!(denied, expected);
    stream.send(&create_request("/tenants/acme/b", ""));
    let second: WatchResponse = stream.next().await;
    assert!(second.created && !second.canceled && second.watch_id == 1, "{second:?}");

    put(&acme, "/tenants/acme/b", CANARY).await;
    put(&acme, "/tenants/acme/a", CANARY).await;
    for (watch_id, key) in [(1, "/tenants/acme/b"), (0, "/tenants/acme/a")] {
        let events: WatchResponse = stream.next().await;
        assert_eq!((events.watch_id, keys(&events.events)), (watch_id, vec![key.to_owned()]));
        assert_eq!(events.events[0].kv.as_ref().unwrap().value, CANARY);
    }
    stream.send(&cancel(1));
    let canceled: WatchResponse = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == 1, "{canceled:?}");
    stream.reset();
    drop(acme);
    wait_for("the end of the stream in etcd", || etcd.metric(STREAMS) == 0);
    assert_eq!(ringfence.stop().code(), Some(0));

    let records = ringfence.records();
    let watch = |kind: &'static str, message: Option<u64>| {
        let of_stream = move |record: &&Value| {
            record["type"] == kind
                && record["call"] == 1
                && message.is_none_or(|message| record["message"] == message)
        };
        records.iter().filter(of_stream).collect::<Vec<_>>()
    };
    assert_eq!(watch("decision", None).len(), 4);
    for (message, verdict) in [(1, "allow"), (2, "deny"), (3, "allow"), (4, "allow")] {
        assert_eq!(watch("decision", Some(message))[0]["verdict"], verdict);
        let outcomes = watch("outcome", Some(message));
        assert_eq!(outcomes.len(), usize::from(verdict == "allow"), "{message}: {outcomes:?}");
        assert!(outcomes.iter().all(|outcome| outcome["status"] == 0), "{outcomes:?}");
    }
    let ends = watch("stream.end", None);
    assert_eq!(ends.len(), 1);
    assert_eq!(
        (&ends[0]["fault"], &ends[0]["requests"], &ends[0]["responses"]),
        (&"client_gone".into(), &4.into(), &5.into())
    );
    let audit = records.iter().map(Value::to_string).collect::<String>();
    assert!(!audit.contains(CANARY), "a value is in the audit log");
}

/// A watch that etcd and ringfence answer alike: the same messages, told one by one.
struct Pair {
    direct: RawStream,
    through: RawStream,
}

impl Pair {
    /// Streams that have a watch of another key each, so that ringfence has seen a header.
    async fn open(direct: &RawClient, through: &RawClient) -> Self {
        let (direct, through) = (direct.stream(WATCH).await, through.stream(WATCH).await);
        let mut pair = Self { direct, through };
        pair.check("the first watch", &[create_request("/tenants/acme/other", "")], 1).await;
        pair
    }

    fn send(&mut self, requests: &[WatchRequest]) {
        for request in requests {
            self.direct.send(request);
            self.through.send(request);
        }
    }

    /// Sends the requests; so many answers come, the same from both.
    async fn check(
        &mut self,
        what: &str,
        requests: &[WatchRequest],
        answers: usize,
    ) -> WatchResponse {
        self.send(requests);
        let mut last = WatchResponse::default();
        for position in 0..answers {
            let direct: WatchResponse = self.direct.next().await;
            last = self.through.next().await;
            assert_eq!(last, direct, "{what}: answer {position}");
        }
        last
    }
}

/// 60 to 63, 65, 70 and the empty ranges; the store stands still meanwhile.
#[tokio::test]
async fn what_etcd_says_to_odd_watches_comes_through_from_the_newest_etcd() {
    what_etcd_says_to_odd_watches_comes_through("3.7").await;
}

#[tokio::test]
async fn what_etcd_says_to_odd_watches_comes_through_from_the_oldest_etcd() {
    what_etcd_says_to_odd_watches_comes_through("3.4").await;
}

async fn what_etcd_says_to_odd_watches_comes_through(version: &str) {
    let pki = Pki::make();
    let etcd = Etcd::start(version, &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    for value in ["one", "two", "three"] {
        put(&past, "/tenants/acme/k", value).await;
    }
    let delete = DeleteRangeRequest { key: "/tenants/acme/k".into(), ..Default::default() };
    past.unary("/etcdserverpb.KV/DeleteRange", &delete).await;
    let compact = CompactionRequest { revision: 3, physical: true };
    assert_eq!(past.unary("/etcdserverpb.KV/Compact", &compact).await.grpc_status, Some(0));

    let key = "/tenants/acme/k";
    let chosen = |watch_id| {
        request(RequestUnion::CreateRequest(WatchCreateRequest { watch_id, ..create(key, "") }))
    };
    let from = |start_revision| {
        let create = WatchCreateRequest { start_revision, prev_kv: true, ..create(key, "") };
        request(RequestUnion::CreateRequest(create))
    };
    let filtered = |filters: &[i32]| {
        let filters = filters.to_vec();
        let create = WatchCreateRequest { filters, start_revision: 4, ..create(key, "") };
        request(RequestUnion::CreateRequest(create))
    };
    let mut pair = Pair::open(&past, &acme).await;
    let created = pair.check("an ID of the client's", &[chosen(5)], 1).await;
    assert_eq!(created.watch_id, 5);
    let twice = pair.check("the same ID again", &[chosen(5)], 1).await;
    assert!(twice.canceled, "{twice:?}");
    pair.check("an ID nobody has, then one to cancel", &[cancel(77), cancel(-1), cancel(5)], 1)
        .await;
    pair.check("the end of a cancelled ID", &[cancel(5), create_request("/tenants/acme/z", "")], 1)
        .await;
    let told = pair.check("progress", &[progress()], 1).await;
    assert_eq!(told.watch_id, -1);
    let negative = pair.check("a negative revision", &[from(-7)], 1).await;
    assert!(negative.created, "{negative:?}");
    let mut pair = Pair::open(&past, &acme).await;
    let compacted = pair.check("a compacted revision", &[from(2)], 2).await;
    assert!(compacted.canceled && compacted.compact_revision == 3, "{compacted:?}");
    let history = pair.check("history", &[from(3)], 2).await;
    assert_eq!(history.events.len(), 3);
    assert!(history.events[1].prev_kv.is_some());
    pair.check("a revision to come", &[from(1 << 40)], 1).await;
    let deletes = pair.check("without puts", &[filtered(&[0])], 2).await;
    assert_eq!(deletes.events.len(), 1);
    pair.check("without anything", &[filtered(&[0, 1])], 1).await;
    for (from, to) in [("/tenants/acme/b", "/tenants/acme/a"), (key, key)] {
        let empty = pair.check("an empty range", &[create_request(from, to)], 1).await;
        assert_eq!(empty.cancel_reason, "mvcc: watcher range is empty");
    }
}

/// What is answered here even before etcd has said anything has a header: Go's client reads it.
#[tokio::test]
async fn ranges_beyond_the_grant_are_cancelled_and_none_reaches_etcd() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    // 55, 56, 58, and a verb that the rule does not hold
    let beyond = [
        ("", "\0"),
        ("/tenants/acme/x", "\0"),
        ("", ""),
        ("", "x"),
        ("/tenants/acme/", "/tenants/acme1"),
        ("/inbox/x", ""),
    ];
    for (key, range_end) in beyond {
        stream.send(&create_request(key, range_end));
        let answer: WatchResponse = stream.next().await;
        assert!(answer.header.is_some());
        assert_eq!((answer.watch_id, answer.created, answer.canceled), (-1, true, true));
        assert_eq!(answer.cancel_reason, DENIED, "{key:?}..{range_end:?}");
    }
    assert_eq!(etcd.metric(STREAMS), 0);
    // 57: an end that is there and empty is a point
    let mut bytes = vec![0x0a, 19, 0x0a, 15];
    bytes.extend(b"/tenants/acme/x\x12\x00");
    stream.send_bytes(&bytes);
    let created: WatchResponse = stream.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    put(&acme, "/tenants/acme/xy", "not this").await;
    put(&acme, "/tenants/acme/x", "but this").await;
    let events: WatchResponse = stream.next().await;
    assert_eq!(keys(&events.events), ["/tenants/acme/x"]);
    drop(stream);
    let denied = ringfence.decisions().iter().filter(|record| record["verdict"] == "deny").count();
    assert_eq!(denied, beyond.len());
}

/// 66, 67, 70: requests that two etcds could read differently end the stream, recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_request_that_cannot_be_read_ends_the_stream() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let twice = [create_request("/tenants/acme/x", ""), create_request("/tenants/globex/x", "")]
        .map(|request| request.encode_to_vec())
        .concat();
    let filter = WatchCreateRequest { filters: vec![7], ..create("/tenants/acme/x", "") };
    let filter = request(RequestUnion::CreateRequest(filter)).encode_to_vec();
    for (bytes, reason) in [(vec![], "empty"), (twice, "already set"), (filter, "filters")] {
        let mut stream = acme.stream(WATCH).await;
        stream.send(&create_request("/tenants/acme/fine", ""));
        let created: WatchResponse = stream.next().await;
        assert!(created.created);
        stream.send_bytes(&bytes);
        let end = stream.expect_end().await;
        assert_eq!(end.grpc_status, Some(3), "{end:?}");
        assert!(end.grpc_message.contains(reason), "{end:?}");
    }
    wait_for("the end of the streams in etcd", || etcd.metric(STREAMS) == 0);
    let decisions = ringfence.decisions();
    assert_eq!(decisions.iter().filter(|record| record["verdict"] == "refuse").count(), 3);
}

/// 68: etcd cuts what is larger than its limit; the pieces come in order and whole.
#[tokio::test]
async fn ten_mebibytes_of_events_come_in_fragments_and_in_order() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    for round in 0..20_u8 {
        put(&past, "/tenants/acme/large", vec![round; 512 << 10]).await;
    }
    let create = WatchCreateRequest {
        start_revision: 2,
        prev_kv: true,
        fragment: true,
        ..create("/tenants/acme/large", "")
    };
    let mut stream = acme.stream(WATCH).await;
    stream.send(&request(RequestUnion::CreateRequest(create)));
    let created: WatchResponse = stream.next().await;
    assert!(created.created);
    let (mut rounds, mut fragments) = (Vec::new(), 0);
    while rounds.len() < 20 {
        let bytes = stream.next_bytes().await.unwrap();
        assert!(bytes.len() < 3 << 20, "{} bytes in one message", bytes.len());
        let response = WatchResponse::decode(bytes).unwrap();
        fragments += u32::from(response.fragment);
        for event in response.events {
            let (value, before) = (event.kv.unwrap().value, event.prev_kv.map(|kv| kv.value[0]));
            assert_eq!(value.len(), 512 << 10);
            assert_eq!(before, value[0].checked_sub(1));
            rounds.push(value[0]);
        }
    }
    assert_eq!(rounds, (0..20).collect::<Vec<_>>());
    assert!(fragments > 0, "nothing was cut");
}

/// However a client leaves, etcd holds nothing for it any more. One that only has nothing more to
/// ask still hears what it watches, as from etcd itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_streams_in_etcd_with_it() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = acme.stream(WATCH).await;
        for key in ["/tenants/acme/1", "/tenants/acme/2"] {
            stream.send(&create_request(key, ""));
            let created: WatchResponse = stream.next().await;
            assert!(created.created);
        }
        streams.push(stream);
    }
    assert_eq!((etcd.metric(STREAMS), etcd.metric(WATCHERS)), (3, 6));
    streams.pop().unwrap().reset();
    wait_for("the end of one that was reset", || etcd.metric(WATCHERS) == 4);
    let mut half = streams.pop().unwrap();
    half.finish();
    put(&acme, "/tenants/acme/1", "v").await;
    let events: WatchResponse = half.next().await;
    assert_eq!(keys(&events.events), ["/tenants/acme/1"]);
    drop(half);
    wait_for("the end of one that was half closed", || etcd.metric(WATCHERS) == 2);
    drop((streams, acme));
    wait_for("the end of one without a connection", || etcd.metric(STREAMS) == 0);
    assert_eq!(etcd.metric(WATCHERS), 0);
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let mut ends: Vec<_> = records
        .iter()
        .filter(|record| record["type"] == "stream.end")
        .map(|record| (record["fault"].as_str(), record["status"].as_u64()))
        .collect();
    ends.dedup();
    assert_eq!(ends, [(Some("client_gone"), None)]);
}

/// 62: one client's streams are nobody else's: neither events nor progress cross.
#[tokio::test]
async fn progress_is_told_to_those_who_asked_for_it() {
    let pki = Pki::make();
    let etcd = Etcd::start_with("3.7", &pki, &["--watch-progress-notify-interval=100ms"]);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let (mut asks, mut does_not) = (acme.stream(WATCH).await, globex.stream(WATCH).await);
    let notify =
        WatchCreateRequest { progress_notify: true, watch_id: 42, ..create("/tenants/acme/x", "") };
    asks.send(&request(RequestUnion::CreateRequest(notify)));
    does_not.send(&create_request("/tenants/globex/x", ""));
    let created: WatchResponse = does_not.next().await;
    assert!(created.created);
    let created: WatchResponse = asks.next().await;
    assert!(created.created);
    for _ in 0..3 {
        let told: WatchResponse = asks.next().await;
        assert_eq!((told.watch_id, told.events.len()), (42, 0), "{told:?}");
    }
    put(&globex, "/tenants/globex/x", "v").await;
    let next: WatchResponse = does_not.next().await;
    assert_eq!(next.events.len(), 1, "nothing came before the event: {next:?}");
}

/// A reader that stops, stops etcd; it costs its window and no more, and loses nothing.
#[tokio::test]
async fn a_stopped_reader_of_a_watch_costs_bounded_memory_and_loses_nothing() {
    const ROUNDS: u16 = 400;
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    stream.send(&create_request("/tenants/acme/large", ""));
    let created: WatchResponse = stream.next().await;
    assert!(created.created);
    for round in 0..ROUNDS {
        let mut value = vec![7; 256 << 10];
        value[..2].copy_from_slice(&round.to_be_bytes());
        put(&past, "/tenants/acme/large", value).await;
    }
    let memory = ringfence.memory_bytes();
    println!("memory with 100 MiB of events unread: {memory} bytes");
    assert!(memory < 64 << 20, "{memory} bytes");
    let mut next = 0;
    while next < ROUNDS {
        let response: WatchResponse = stream.next().await;
        for event in response.events {
            assert_eq!(event.kv.unwrap().value[..2], next.to_be_bytes());
            next += 1;
        }
    }
    assert!(ringfence.memory_bytes() < 64 << 20);
}

/// SIGTERM: every stream hears Unavailable behind a whole message, while events still flow.
#[tokio::test]
async fn sigterm_ends_watches_as_unavailable_behind_a_whole_message() {
    let pki = Pki::make();
    let etcd = Etcd::start("3.7", &pki);
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let past = RawClient::connect(&pki, "apiserver", etcd.port()).await;
    let mut watching = tokio::task::JoinSet::new();
    let (ready, mut created) = tokio::sync::mpsc::channel(4);
    for _ in 0..4 {
        let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
        let mut stream = acme.stream(WATCH).await;
        let ready = ready.clone();
        watching.spawn(async move {
            stream.send(&create_request("/tenants/acme/", "/tenants/acme0"));
            let created: WatchResponse = stream.next().await;
            assert!(created.created);
            let mut events = 0;
            while let Some(response) = stream.next_or_end::<WatchResponse>().await {
                events += response.events.len();
                if events == 1 {
                    ready.send(()).await.unwrap();
                }
            }
            (events, stream.end.take().unwrap())
        });
    }
    let writing = tokio::spawn(async move {
        loop {
            put(&past, "/tenants/acme/large", vec![1; 100 << 10]).await;
        }
    });
    for _ in 0..4 {
        created.recv().await.unwrap();
    }
    let stopping = tokio::task::spawn_blocking(move || (ringfence.stop(), ringfence));
    let (status, ringfence) = stopping.await.unwrap();
    assert_eq!(status.code(), Some(0));
    writing.abort();
    for (events, end) in watching.join_all().await {
        assert!(events > 0);
        assert_eq!(end.grpc_status, Some(14), "{end:?}");
        assert!(end.data.is_empty(), "{} bytes of half a message", end.data.len());
    }
    let records = ringfence.records();
    let ends: Vec<_> = records.iter().filter(|record| record["type"] == "stream.end").collect();
    assert_eq!(ends.len(), 4);
    assert!(ends.iter().all(|end| end["fault"] == "shutting_down" && end["status"] == 14));
}
