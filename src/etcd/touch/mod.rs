//! Which keys a request reads and writes, and with which verbs: what etcd itself checks
//! (server/etcdserver/apply/auth.go) and, where etcd leaks, a little more. The table of what each
//! field demands is docs/authorization.md.

mod rewrite;
pub(super) mod session;

use bytes::Bytes;
use smallvec::SmallVec;

use super::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest, compare, range_request, request_op, watch_create_request,
    watch_request,
};
use super::range::{ClientKey, KeyRange, RangeError};
use super::verb::{KeyVerb, StoreVerb};

/// The most touches one request may have; etcd's own bound (128 operations a level) lets a nested
/// transaction multiply them, and an audit record must hold them all.
pub const TOUCHES_MAX: usize = 4096;

/// etcd's default `--max-txn-ops` (embed/config.go), along one path of nested transactions.
const TXN_OPERATIONS_MAX: usize = 128;

/// One thing a request does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// A key verb on a range.
    Key {
        /// What is done.
        verb: KeyVerb,
        /// To which keys.
        range: KeyRange,
    },
    /// A verb on the store as a whole.
    Store(StoreVerb),
    /// A lease is used; whose it is decides with the verb `lease`: docs/authorization.md.
    Lease {
        /// What for.
        usage: LeaseUse,
        /// Its ID.
        lease: i64,
    },
    /// A watch of the same stream is ended.
    CancelWatch(i64),
    /// The progress of the same stream is asked for.
    WatchProgress,
}

/// What a lease is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseUse {
    /// It is made.
    Grant,
    /// A key is bound to it.
    Attach,
    /// It is renewed.
    KeepAlive,
    /// It is ended, and with it its keys.
    Revoke,
    /// Its time is read.
    TimeToLive,
    /// Its time and its keys are read.
    ListKeys,
}

impl LeaseUse {
    /// Every use.
    pub const ALL: [Self; 6] = [
        Self::Grant,
        Self::Attach,
        Self::KeepAlive,
        Self::Revoke,
        Self::TimeToLive,
        Self::ListKeys,
    ];

    /// The name in audit records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grant => "lease.grant",
            Self::Attach => "lease.attach",
            Self::KeepAlive => "lease.keepalive",
            Self::Revoke => "lease.revoke",
            Self::TimeToLive => "lease.timetolive",
            Self::ListKeys => "lease.keys",
        }
    }
}

/// All that a request does; most requests do one thing.
pub type Touches = SmallVec<[Touch; 2]>;

/// Why a request that decodes is none that etcd would run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A key and range_end that are no range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// An operation without content (etcd answers the same).
    #[error("etcdserver: key not found")]
    EmptyOperation,
    /// More operations than etcd takes.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    /// A key that is deleted without an end and put in the same transaction: it would end etcd, or lose the key.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort order or sort target that etcd does not know.
    #[error("etcdserver: invalid sort option")]
    SortOption,
    /// An enum number that means different things to different releases.
    #[error("ringfence: compare has an unknown {0}")]
    UnknownCompare(&'static str),
    /// The target says one thing and the value that is given belongs to another.
    #[error("ringfence: compare target and target_union disagree")]
    CompareMismatch,
    /// An enum number that no release knows.
    #[error("ringfence: `{0}` has an unknown number")]
    UnknownNumber(&'static str),
    /// A message of a watch stream that asks for nothing.
    #[error("ringfence: the watch request is empty")]
    EmptyWatchRequest,
    /// etcd's own text (api/v3election).
    #[error("\"leader\" field must be provided")]
    NoLeader,
}

/// What a Range does. `keys_only` and `count_only` need what the values need: a count is content.
///
/// # Errors
/// When etcd would refuse the request or could read it otherwise.
pub fn range(request: &RangeRequest, touches: &mut Touches) -> Result<(), InvalidRequest> {
    let known = range_request::SortOrder::try_from(request.sort_order).is_ok()
        && range_request::SortTarget::try_from(request.sort_target).is_ok();
    if !known {
        return Err(InvalidRequest::SortOption);
    }
    read(&request.key, &request.range_end, touches)
}

/// What a Put does. `prev_kv` reads the key; `ignore_value` and `ignore_lease` tell whether it
/// exists, so they read it too (stricter than etcd).
///
/// # Errors
/// As for [`range`].
pub fn put(request: &PutRequest, touches: &mut Touches) -> Result<(), InvalidRequest> {
    let range = key_range(&request.key, &Bytes::new())?;
    if request.prev_kv || request.ignore_value || request.ignore_lease {
        push(touches, Touch::Key { verb: KeyVerb::Get, range: range.clone() })?;
    }
    push(touches, Touch::Key { verb: KeyVerb::Put, range: range.clone() })?;
    if request.lease != 0 {
        // A key goes when its lease ends, so binding it to a lease is a deletion that is put off.
        push(touches, Touch::Key { verb: KeyVerb::Delete, range })?;
        lease(LeaseUse::Attach, request.lease, touches)?;
    }
    Ok(())
}

/// What a DeleteRange does. `prev_kv` reads what is deleted.
///
/// # Errors
/// As for [`range`].
pub fn delete_range(
    request: &DeleteRangeRequest,
    touches: &mut Touches,
) -> Result<(), InvalidRequest> {
    let range = key_range(&request.key, &request.range_end)?;
    if request.prev_kv {
        read(&request.key, &request.range_end, touches)?;
    }
    push(touches, Touch::Key { verb: KeyVerb::Delete, range })
}

/// What one message of a watch stream does. `prev_kv` and a start revision show history of the same
/// keys, which a watch could have seen as it happened: they need no more.
///
/// # Errors
/// As for [`range`].
pub fn watch(request: &WatchRequest, touches: &mut Touches) -> Result<(), InvalidRequest> {
    use watch_request::RequestUnion;
    let touch = match &request.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            Touch::Key { verb: KeyVerb::Watch, range: watched(create)? }
        }
        Some(RequestUnion::CancelRequest(cancel)) => Touch::CancelWatch(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => Touch::WatchProgress,
        None => return Err(InvalidRequest::EmptyWatchRequest),
    };
    push(touches, touch)
}

/// etcd reads an empty key as `"\0"` here, and only here (api/v3rpc/watch.go).
fn watched(create: &WatchCreateRequest) -> Result<KeyRange, InvalidRequest> {
    let known = |filter: &i32| watch_create_request::FilterType::try_from(*filter).is_ok();
    if !create.filters.iter().all(known) {
        return Err(InvalidRequest::UnknownNumber("filters"));
    }
    let first = Bytes::from_static(b"\0");
    let key = if create.key.is_empty() { &first } else { &create.key };
    Ok(key_range(key, &create.range_end)?)
}

/// What a use of a lease does.
///
/// # Errors
/// When the request does too much.
pub fn lease(usage: LeaseUse, lease: i64, touches: &mut Touches) -> Result<(), InvalidRequest> {
    push(touches, Touch::Lease { usage, lease })
}

/// What a Txn does: every compare is a read, and both branches count, whichever will be taken, all
/// the way down (CVE-2026-33343).
///
/// # Errors
/// As for [`range`].
pub fn txn(request: &TxnRequest, touches: &mut Touches) -> Result<(), InvalidRequest> {
    txn_within(request, TXN_OPERATIONS_MAX, touches)?;
    rewrite::check(request)
}

/// The recursion is bounded: each level spends at least one operation of the budget, and the
/// decoder stops at 100 levels of messages.
fn txn_within(
    request: &TxnRequest,
    budget: usize,
    touches: &mut Touches,
) -> Result<(), InvalidRequest> {
    let width = request.compare.len().max(request.success.len()).max(request.failure.len());
    let rest = budget.checked_sub(width).ok_or(InvalidRequest::TooManyOperations)?;
    for compare in &request.compare {
        check_compare(compare)?;
        read(&compare.key, &compare.range_end, touches)?;
    }
    for operation in request.success.iter().chain(&request.failure) {
        self::operation(operation, rest, touches)?;
    }
    Ok(())
}

/// One function per operation, for a plain call and inside a transaction alike: the difference was
/// CVE-2026-44283.
fn operation(
    operation: &RequestOp,
    budget: usize,
    touches: &mut Touches,
) -> Result<(), InvalidRequest> {
    match &operation.request {
        Some(request_op::Request::RequestRange(request)) => range(request, touches),
        Some(request_op::Request::RequestPut(request)) => put(request, touches),
        Some(request_op::Request::RequestDeleteRange(request)) => delete_range(request, touches),
        Some(request_op::Request::RequestTxn(request)) => txn_within(request, budget, touches),
        None => Err(InvalidRequest::EmptyOperation),
    }
}

/// An unknown result makes etcd's compare true, an unknown target compares nothing, and a union
/// member that does not belong to the target counts as zero (server/etcdserver/txn): all refused.
fn check_compare(compare: &Compare) -> Result<(), InvalidRequest> {
    use compare::{CompareResult, CompareTarget, TargetUnion};
    if CompareResult::try_from(compare.result).is_err() {
        return Err(InvalidRequest::UnknownCompare("result"));
    }
    let Ok(target) = CompareTarget::try_from(compare.target) else {
        return Err(InvalidRequest::UnknownCompare("target"));
    };
    let agrees = match (target, &compare.target_union) {
        // No union member: etcd compares with zero or with the empty value, whatever the target.
        (_, None)
        | (CompareTarget::Version, Some(TargetUnion::Version(_)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(_)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(_)))
        | (CompareTarget::Value, Some(TargetUnion::Value(_)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(_))) => true,
        (_, Some(_)) => false,
    };
    if agrees { Ok(()) } else { Err(InvalidRequest::CompareMismatch) }
}

fn key_range(key: &Bytes, range_end: &Bytes) -> Result<KeyRange, RangeError> {
    KeyRange::from_request(ClientKey::new(key.clone()), ClientKey::new(range_end.clone()))
}

fn read(key: &Bytes, range_end: &Bytes, touches: &mut Touches) -> Result<(), InvalidRequest> {
    let range = key_range(key, range_end)?;
    let verb = if range.is_point() { KeyVerb::Get } else { KeyVerb::List };
    push(touches, Touch::Key { verb, range })
}

pub(super) fn push(touches: &mut Touches, touch: Touch) -> Result<(), InvalidRequest> {
    if touches.len() >= TOUCHES_MAX {
        return Err(InvalidRequest::TooManyOperations);
    }
    touches.push(touch);
    Ok(())
}

#[cfg(test)]
mod tests;
