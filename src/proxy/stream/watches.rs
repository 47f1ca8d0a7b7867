//! The watches of one stream: how many live, and what a create is told that etcd does not get to see.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;
use prost::Message as _;

use super::judge::CutWatch;
use crate::etcd::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::etcd::response::Header;
use crate::etcd::{Touch, Touches};
use crate::grpc::frame::framed;
use crate::policy::Cause;
use crate::proxy::share::{Share, WatchShare};

/// What etcd's clients read out of a watch that was denied (api/v3rpc/rpctypes).
pub(super) const WATCH_DENIED: &str =
    "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
/// What they read out of one that is one too many.
pub(super) const TOO_MANY_WATCHES: &str =
    "rpc error: code = ResourceExhausted desc = etcdserver: too many requests";
/// etcd's own text (storage/mvcc).
pub(super) const WATCH_RANGE_EMPTY: &str = "mvcc: watcher range is empty";

/// The watches of one stream, which are the principal's, too.
pub(super) struct Watches {
    /// Those that etcd was asked for and has not ended.
    share: WatchShare,
    /// What those touch that etcd has made and not ended, by ID: no more than `share` counts.
    live: HashMap<i64, Touches>,
    /// The IDs that the client named for watches that are over.
    over: HashSet<i64>,
    /// The highest that etcd has picked itself: it never picks one twice.
    highest_picked: i64,
}

/// The most IDs of a client's own that are remembered; with more it is to open another stream.
const OVER_MAX: usize = 10_000;

/// The ID was in use before on this stream. etcd sends news of an ended watch over another channel than answers, in no
/// order: they could be taken for news of the one that has its ID now.
#[derive(Debug)]
pub(super) struct UsedBefore;

impl Watches {
    pub(super) fn new(share: &Rc<Share>) -> Self {
        let (live, over) = (HashMap::new(), HashSet::new());
        Self { share: WatchShare::new(share), live, over, highest_picked: -1 }
    }

    /// Counts one more; false when the principal has too many, or too much of their keys would have to be kept.
    pub(super) fn add(&mut self, touches: &Touches, watches_max: u32, bytes_max: usize) -> bool {
        self.share.add(key_bytes(touches), watches_max, bytes_max)
    }

    /// One that was counted is not asked for after all, or etcd did not let it begin.
    pub(super) fn take_back(&mut self, touches: &Touches) {
        self.share.remove(key_bytes(touches));
    }

    /// etcd has made one; the client may have named its ID.
    pub(super) fn began(
        &mut self,
        id: i64,
        touches: Touches,
        is_named: bool,
    ) -> Result<(), UsedBefore> {
        let is_used = self.over.contains(&id) || (is_named && self.was_picked(id));
        if is_used || self.over.len() >= OVER_MAX || self.live.contains_key(&id) {
            self.take_back(&touches);
            return Err(UsedBefore);
        }
        if !is_named {
            self.highest_picked = self.highest_picked.max(id);
        }
        self.live.insert(id, touches);
        Ok(())
    }

    /// etcd has ended one; it counts once: of a watch that began before the compacted revision etcd says that it is
    /// canceled, and says so again when the client cancels it.
    pub(super) fn ended(&mut self, id: i64) {
        if let Some(touches) = self.live.remove(&id) {
            self.take_back(&touches);
            if !self.was_picked(id) {
                self.over.insert(id);
            }
        }
    }

    /// Whether etcd may have picked it; it counts from 0, and a client may name less.
    fn was_picked(&self, id: i64) -> bool {
        (0..=self.highest_picked).contains(&id)
    }

    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    pub(super) fn ids(&self) -> Vec<i64> {
        self.live.keys().copied().collect()
    }

    /// Takes those out that are denied now.
    pub(super) fn take_if(&mut self, denies: impl Fn(&Touches) -> Option<Cause>) -> Vec<CutWatch> {
        let mut cut = Vec::new();
        for (id, touches) in &self.live {
            if let Some(cause) = denies(touches) {
                cut.push(CutWatch { id: *id, touches: touches.clone(), cause });
            }
        }
        for watch in &cut {
            self.ended(watch.id);
        }
        cut
    }
}

/// What is kept of a watch for later judgements, apart from the request that it came with.
pub(super) fn kept(touches: &Touches) -> Touches {
    let kept = |touch: &Touch| match touch {
        Touch::Key { verb, range } => Touch::Key { verb: *verb, range: range.detached() },
        other => other.clone(),
    };
    touches.iter().map(kept).collect()
}

fn key_bytes(touches: &Touches) -> usize {
    let bytes = |touch: &Touch| match touch {
        Touch::Key { range, .. } => range.key_bytes(),
        _ => 0,
    };
    touches.iter().map(bytes).sum()
}

/// What a client hears of a watch that ends here.
pub(super) fn cancel_of(header: Header, id: i64, reason: &str) -> Bytes {
    response(header, WatchResponse { watch_id: id, ..canceled(reason) })
}

/// The answer to a create that is not forwarded. A Go client reads the header without looking whether
/// there is one, so there always is.
pub(super) fn answer_to_create(header: Header, reason: &str) -> Bytes {
    response(header, WatchResponse { watch_id: -1, created: true, ..canceled(reason) })
}

fn canceled(reason: &str) -> WatchResponse {
    WatchResponse { canceled: true, cancel_reason: reason.to_owned(), ..WatchResponse::default() }
}

fn response(header: Header, response: WatchResponse) -> Bytes {
    let header = ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.raft_term,
    };
    framed(&WatchResponse { header: Some(header), ..response }.encode_to_vec().into())
}
