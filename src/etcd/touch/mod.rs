//! Which keys a request reads and writes, and with which verbs: what etcd itself checks
//! (server/etcdserver/apply/auth.go) and, where etcd leaks, a little more. The table of what each
//! field demands is docs/authorization.md.

use bytes::Bytes;
use smallvec::SmallVec;

use super::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare,
    range_request, request_op,
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
    /// A key is bound to the lease of this ID. Whose lease it is cannot be told yet, so no rule
    /// grants it: see docs/authorization.md.
    AttachLease(i64),
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
    /// A sort order or sort target that etcd does not know.
    #[error("etcdserver: invalid sort option")]
    SortOption,
    /// An enum number that means different things to different releases.
    #[error("ringfence: compare has an unknown {0}")]
    UnknownCompare(&'static str),
    /// The target says one thing and the value that is given belongs to another.
    #[error("ringfence: compare target and target_union disagree")]
    CompareMismatch,
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
    push(touches, Touch::Key { verb: KeyVerb::Put, range })?;
    if request.lease != 0 {
        push(touches, Touch::AttachLease(request.lease))?;
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

/// What a Txn does: every compare is a read, and both branches count, whichever will be taken, all
/// the way down (CVE-2026-33343).
///
/// # Errors
/// As for [`range`].
pub fn txn(request: &TxnRequest, touches: &mut Touches) -> Result<(), InvalidRequest> {
    txn_within(request, TXN_OPERATIONS_MAX, touches)
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

fn push(touches: &mut Touches, touch: Touch) -> Result<(), InvalidRequest> {
    if touches.len() >= TOUCHES_MAX {
        return Err(InvalidRequest::TooManyOperations);
    }
    touches.push(touch);
    Ok(())
}

#[cfg(test)]
mod tests;
