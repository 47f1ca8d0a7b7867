//! Recorder and writer together, on a disk that does what a test says.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use super::chain::Beginning;
use super::event::{DecisionEvent, Path};
use super::file::tests::FakeDisk;
use super::fold::RefusalFold;
use super::folder::{Segments, Standing};
use super::log::Opened;
use super::recorder::Writer;
use super::writer::Shared;
use super::*;
use crate::chain::ChainId;
use crate::etcd::{KeyRange, KeyVerb, StoredKey, Touch, Touches};

const QUEUE_BYTES: u32 = 1 << 20;
/// How long anything that must come may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// There is no other file here.
#[derive(Debug)]
struct OneFile;

impl Segments for OneFile {
    type Disk = FakeDisk;

    fn number(&self) -> u32 {
        1
    }

    fn next(&mut self) -> std::io::Result<FakeDisk> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn standing(&self) -> Standing {
        Standing::InPlace
    }
}

struct Stage {
    disk: FakeDisk,
    recorder: CoreRecorder,
    writer: Writer,
}

/// Runs a test on a core of its own, then ends the writer; what is on the disk.
fn run<F: Future<Output = ()> + 'static>(
    mode: Mode,
    wait: Duration,
    test: impl FnOnce(FakeDisk, CoreRecorder) -> F,
) -> Vec<serde_json::Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = LocalSet::new().block_on(&runtime, async {
        let disk = FakeDisk::default();
        let config = Config {
            directory: PathBuf::new(),
            mode,
            queue_bytes: QUEUE_BYTES,
            wait,
            seal: None,
            rotate: RotateAt::default(),
            retention: Retention::default(),
            levels: Arc::default(),
            sinks: Vec::new(),
        };
        let shared = Arc::new(Shared::new(&config, None));
        let opened = Opened {
            segments: OneFile,
            disk: disk.clone(),
            path: PathBuf::new(),
            beginning: Arc::new(Beginning {
                chain: ChainId::new(1, [0; 8]),
                epoch: 1,
                key: None,
                after: Vec::new(),
            }),
            sealer: None,
            shipping: shipping::Shipping::default(),
            rotate: config.rotate,
            tidy: None,
        };
        let started = Recorder::start_on(&config, shared, opened, |_| {});
        let (recorder, writer) = started.unwrap();
        let stage = Stage { disk, recorder: recorder.on_this_core(), writer };
        test(stage.disk.clone(), stage.recorder.clone()).await;
        stage
    });
    stage.disk.release();
    stage.disk.state().full_at = None;
    stage.writer.close().unwrap();
    assert_eq!(stage.recorder.all_cores().shared.failure().unwrap(), "its writer has ended");
    let state = stage.disk.state();
    assert_eq!(state.cache, state.kept);
    let text = String::from_utf8(state.kept.clone()).unwrap();
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], position + 1, "the sequence has a hole");
    }
    records
}

fn id(call: u64) -> CallId {
    CallId::new(ConnectionId(1), call)
}

fn put(key_bytes: usize) -> Touches {
    let range = KeyRange::point(StoredKey::new(vec![b'k'; key_bytes]));
    smallvec::smallvec![Touch::Key { verb: KeyVerb::Put, range }]
}

fn decision(call: u64, touches: &Touches) -> Record<'_> {
    let event = Event::Decision(DecisionEvent {
        call: id(call),
        principal: None,
        path: Path::Known("/etcdserverpb.KV/Put"),
        verdict: Verdict::Allow(smallvec::smallvec!["rule"]),
        touches: RecordedTouches::new(touches),
        request_bytes: 1,
    });
    Record { time: Duration::from_secs(1), event }
}

fn allow(
    recorder: &CoreRecorder,
    share: &CoreShare,
    call: u64,
    key_bytes: usize,
) -> JoinHandle<Result<Recorded, Unavailable>> {
    let (recorder, share) = (recorder.clone(), share.clone());
    tokio::task::spawn_local(async move {
        let call_ends = Instant::now() + 10 * PATIENCE;
        recorder.allow(&share, id(call), &decision(call, &put(key_bytes)), Some(call_ends)).await
    })
}

/// Lets the other tasks of this core and the writer go on until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no {what}"));
}

fn faults(records: &[serde_json::Value]) -> Vec<(u64, Option<&str>, Option<u64>)> {
    let outcomes = records.iter().filter(|record| record["type"] == "outcome");
    let mut faults: Vec<_> = outcomes
        .map(|record| {
            let call = record["call"].as_u64().unwrap();
            (call, record["fault"].as_str(), record["status"].as_u64())
        })
        .collect();
    faults.sort_unstable();
    faults
}

#[test]
fn calls_that_wait_together_are_let_go_by_one_sync_and_none_before() {
    const CALLS: u64 = 100;
    let records = run(Mode::Blocking, PATIENCE, |disk, recorder| async move {
        disk.state().held = true;
        let share = recorder.share_of(None);
        let mut calls = vec![allow(&recorder, &share, 1, 10)];
        until("sync", || disk.state().syncs_begun == 1).await;
        calls.extend((2..=CALLS).map(|call| allow(&recorder, &share, call, 10)));
        until("queue", || recorder.all_cores().shared.queued() == CALLS).await;
        // The first record is in the file, and the others are queued; none is on disk.
        tokio::task::yield_now().await;
        assert!(calls.iter().all(|call| !call.is_finished()), "let go before the sync");
        disk.release();
        for (number, call) in (1_u64..).zip(calls) {
            let recorded = call.await.unwrap().unwrap();
            let kept = String::from_utf8(disk.state().kept.clone()).unwrap();
            assert!(kept.contains(&format!("\"call\":{number},")), "{number} is not on disk");
            recorded.finish(Outcome { status: Some(0), ..Outcome::default() });
        }
        assert_eq!(disk.state().syncs_begun, 2, "one for the first, one for all others");
    });
    assert_eq!(faults(&records).len(), 100);
    assert!(faults(&records).iter().all(|(_, fault, status)| (*fault, *status) == (None, Some(0))));
}

#[test]
fn in_buffered_nobody_waits_for_the_disk() {
    let records = run(Mode::Buffered, PATIENCE, |disk, recorder| async move {
        disk.state().held = true;
        let share = recorder.share_of(None);
        for call in 1..=10 {
            drop(allow(&recorder, &share, call, 10).await.unwrap().unwrap());
        }
    });
    let aborted = |call| (call, Some("aborted"), None);
    assert_eq!(faults(&records), (1..=10).map(aborted).collect::<Vec<_>>());
}

#[test]
fn a_call_whose_decision_is_not_kept_in_time_is_refused_and_its_record_says_so() {
    let wait = Duration::from_millis(50);
    let records = run(Mode::Blocking, wait, |disk, recorder| async move {
        disk.state().syncs_that_fail = usize::MAX;
        let share = recorder.share_of(None);
        let refused = allow(&recorder, &share, 1, 10).await.unwrap();
        assert_eq!(refused.unwrap_err(), Unavailable);
        until("reason", || recorder.all_cores().shared.failure().is_some_and(|why| why == "lost"))
            .await;
        // One that is cut off while it waits was not forwarded either.
        let cut = allow(&recorder, &share, 2, 10);
        until("queue", || recorder.all_cores().shared.queued() == 3).await;
        cut.abort();
        drop(cut.await.unwrap_err());
        assert_eq!(recorder.all_cores().refused(), 1);
        disk.state().syncs_that_fail = 0;
        until("recovery", || recorder.all_cores().failure().is_none()).await;
        drop(allow(&recorder, &share, 3, 10).await.unwrap());
    });
    let unavailable = |call| (call, Some("audit_unavailable"), Some(14));
    assert_eq!(faults(&records), [unavailable(1), unavailable(2), (3, Some("aborted"), None)]);
    let decisions = records.iter().filter(|record| record["type"] == "decision");
    assert_eq!(decisions.count(), 3, "refused calls are recorded too");
}

#[test]
fn a_call_that_ends_before_its_decision_is_kept_is_no_fault_of_the_log() {
    let records = run(Mode::Blocking, PATIENCE, |disk, recorder| async move {
        disk.state().held = true;
        let share = recorder.share_of(None);
        let ends = Instant::now() + Duration::from_millis(5);
        assert!(recorder.allow(&share, id(1), &decision(1, &put(10)), Some(ends)).await.is_err());
        assert_eq!(recorder.all_cores().refused(), 0);
        assert_eq!(recorder.all_cores().failure(), None);
    });
    assert_eq!(faults(&records), [(1, Some("audit_unavailable"), Some(14))]);
}

#[test]
fn a_disk_that_does_not_answer_is_a_reason() {
    run(Mode::Blocking, Duration::from_millis(1), |disk, recorder| async move {
        disk.state().held = true;
        let share = recorder.share_of(None);
        assert!(allow(&recorder, &share, 1, 10).await.unwrap().is_err());
        let stuck = "the disk has not answered for";
        until(stuck, || {
            recorder.all_cores().shared.failure().is_some_and(|why| why.starts_with(stuck))
        })
        .await;
    });
}

#[test]
fn one_principal_with_large_records_leaves_room_for_another() {
    let wait = Duration::from_millis(50);
    for mode in [Mode::Blocking, Mode::Buffered] {
        let records = run(mode, wait, |disk, recorder| async move {
            // Nothing is written until the end of the test.
            disk.state().full_at = Some(0);
            let all = recorder.all_cores().clone();
            let greedy = recorder.share_of(Some(&Arc::from("greedy")));
            // Large ones first, then small ones into what they leave.
            let sizes = [20_000; 100].into_iter().chain([10; 2000]);
            let calls: Vec<_> = (1..)
                .zip(sizes)
                .map(|(call, size)| allow(&recorder, &greedy, call, size))
                .collect();
            until("greed", || all.refused() > 1000).await;
            let modest = recorder.share_of(Some(&Arc::from("modest")));
            for call in 10_001..=10_010 {
                let allowed = allow(&recorder, &modest, call, 50).await.unwrap();
                assert_eq!(allowed.is_ok(), mode == Mode::Buffered);
            }
            disk.state().full_at = None;
            for call in calls {
                drop(call.await.unwrap());
            }
        });
        let modest = records.iter().filter(|record| {
            record["type"] == "decision" && record["call"].as_u64().unwrap() > 10_000
        });
        assert_eq!(modest.count(), 10, "{mode:?}: a neighbour finds no room");
    }
}

#[test]
fn refused_connections_take_no_room_and_ends_of_connections_need_none() {
    let wait = Duration::from_millis(50);
    let records = run(Mode::Blocking, wait, |disk, recorder| async move {
        let all = recorder.all_cores().clone();
        let share = recorder.share_of(None);
        let event = || Record { time: Duration::ZERO, event: Event::ProcessStop { left_out: 0 } };
        let open = recorder.open(&share, ConnectionId(7), &event()).await.unwrap();
        let cut = recorder.open(&share, ConnectionId(8), &event()).await.unwrap();
        until("room", || share.room().free() == 4096).await;
        disk.state().full_at = Some(0);
        let fold = Mutex::new(RefusalFold::default());
        for number in 0..100_000_u32 {
            let source = std::net::Ipv4Addr::from_bits(number).into();
            all.record_refusal(&fold, source, "tls_error", "why");
            if number % 1000 == 0 {
                fold.lock().unwrap().flush(Duration::from_secs(u64::from(number)));
            }
        }
        assert_eq!(share.room().free(), 4096, "refused connections took room");
        while recorder.record(&share, &event()).await.is_ok() {}
        open.close(3, "drained");
        drop(cut);
    });
    let closes = records.iter().filter(|record| record["type"] == "connection.close");
    let closes: Vec<_> =
        closes.map(|record| (record["connection"].as_u64(), record["calls"].as_u64())).collect();
    assert_eq!(closes, [(Some(7), Some(3)), (Some(8), None)]);
    let refused = records.iter().filter(|record| record["type"] == "connection.refused").count();
    assert!((1..=512).contains(&refused), "{refused}");
}
