//! The watches of one stream: how many live, and what a create is told that etcd does not get to see.

use std::collections::HashSet;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message as _;

use crate::etcd::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::etcd::response::{Header, MessageFacts};
use crate::grpc::frame::framed;
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
    /// The IDs of those that etcd has made and not ended: no more than `share` counts.
    live: HashSet<i64>,
}

impl Watches {
    pub(super) fn new(share: &Rc<Share>) -> Self {
        Self { share: WatchShare::new(share), live: HashSet::new() }
    }

    /// Counts one more; false when the principal has too many.
    pub(super) fn add(&mut self, watches_max: u32) -> bool {
        self.share.add(watches_max)
    }

    /// One that was counted is not asked for after all.
    pub(super) fn take_back(&mut self) {
        self.share.remove();
    }

    /// Counts a watch that lives, and one that has ended, once: etcd says of a watch that began before the
    /// compacted revision that it is canceled, and says so again when the client cancels it.
    pub(super) fn note(&mut self, facts: &MessageFacts) {
        match (facts.created, facts.canceled) {
            (true, false) => {
                self.live.insert(facts.id);
            }
            (true, true) => self.share.remove(),
            (false, true) => {
                if self.live.remove(&facts.id) {
                    self.share.remove();
                }
            }
            (false, false) => {}
        }
    }
}

/// The answer to a create that is not forwarded. A Go client reads the header without looking whether
/// there is one, so there always is.
pub(super) fn answer_to_create(header: Header, reason: &str) -> Bytes {
    let header = ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.raft_term,
    };
    let response = WatchResponse {
        header: Some(header),
        watch_id: -1,
        created: true,
        canceled: true,
        cancel_reason: reason.to_owned(),
        ..WatchResponse::default()
    };
    framed(&response.encode_to_vec().into())
}
