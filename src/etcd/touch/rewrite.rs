//! Transactions that delete a key and put it again: etcd refuses them (api/v3rpc/key.go,
//! `checkIntervals`), but not those that delete without an end, because it takes the end `"\0"` for
//! a key there. Sent on, such a Put with `ignore_value` or `ignore_lease` ends every member, and
//! again at each start (seen with 3.4.23, 3.5.1, 3.6.14 and 3.7.1); without them, a compaction loses
//! the new value (etcd issue 22376).

use crate::etcd::pb::etcdserverpb::{RequestOp, TxnRequest, request_op::Request};

use super::InvalidRequest;

/// What counts of one or more operations that run together.
#[derive(Clone, Copy, Default)]
struct Extent<'a> {
    /// The lowest key from which on everything is deleted.
    deleted_from: Option<&'a [u8]>,
    /// The highest key that is put.
    put_up_to: Option<&'a [u8]>,
}

impl<'a> Extent<'a> {
    /// Whether one of the two deletes what the other puts, in whatever order.
    fn rewrites(self, other: Self) -> bool {
        let meet = |deleted: Option<&[u8]>, put| deleted.is_some() && put >= deleted;
        meet(self.deleted_from, other.put_up_to) || meet(other.deleted_from, self.put_up_to)
    }

    fn with(self, other: Self) -> Self {
        let lowest = self.deleted_from.into_iter().chain(other.deleted_from).min();
        Self { deleted_from: lowest, put_up_to: self.put_up_to.max(other.put_up_to) }
    }

    /// Both branches of a transaction; only one of them runs, so they are not held against each
    /// other. The recursion is as deep as the one that went through the request before.
    fn of_txn(request: &'a TxnRequest) -> Result<Self, InvalidRequest> {
        Ok(Self::of_branch(&request.success)?.with(Self::of_branch(&request.failure)?))
    }

    fn of_branch(operations: &'a [RequestOp]) -> Result<Self, InvalidRequest> {
        let mut whole = Self::default();
        for operation in operations {
            let one = Self::of_operation(operation)?;
            if whole.rewrites(one) {
                return Err(InvalidRequest::DuplicateKey);
            }
            whole = whole.with(one);
        }
        Ok(whole)
    }

    fn of_operation(operation: &'a RequestOp) -> Result<Self, InvalidRequest> {
        Ok(match &operation.request {
            Some(Request::RequestPut(put)) => Self { put_up_to: Some(&put.key), ..Self::default() },
            Some(Request::RequestDeleteRange(delete)) if delete.range_end.as_ref() == b"\0" => {
                Self { deleted_from: Some(&delete.key), ..Self::default() }
            }
            Some(Request::RequestTxn(txn)) => Self::of_txn(txn)?,
            Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => {
                Self::default()
            }
        })
    }
}

/// Refuses what etcd would refuse if it read the end `"\0"` as it does everywhere else.
///
/// # Errors
/// When a key is deleted and put.
pub(super) fn check(request: &TxnRequest) -> Result<(), InvalidRequest> {
    Extent::of_txn(request).map(|_| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::etcd::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete(key: &'static str, end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), end.into());
        let delete = DeleteRangeRequest { key, range_end, prev_kv: false };
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        let txn = TxnRequest { compare: vec![], success, failure };
        RequestOp { request: Some(Request::RequestTxn(txn)) }
    }

    fn refused(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> bool {
        check(&TxnRequest { compare: vec![], success, failure }).is_err()
    }

    #[test]
    fn a_key_below_an_endless_deletion_is_not_put_beside_it() {
        assert!(refused(vec![delete("k", "\0"), put("k")], vec![]));
        assert!(refused(vec![], vec![put("l"), delete("k", "\0")]));
        assert!(refused(vec![txn(vec![delete("k", "\0")], vec![]), put("k")], vec![]));
        assert!(refused(
            vec![delete("k", "\0"), txn(vec![], vec![txn(vec![put("k")], vec![])])],
            vec![]
        ));
        assert!(refused(
            vec![txn(vec![put("k")], vec![]), txn(vec![], vec![delete("a", "\0")])],
            vec![]
        ));
        assert!(refused(vec![txn(vec![delete("k", "\0"), put("k")], vec![])], vec![]));
    }

    #[test]
    fn what_etcd_takes_or_refuses_itself_is_left_to_it() {
        assert!(!refused(vec![delete("k", "\0"), put("j")], vec![]));
        assert!(!refused(vec![delete("k", "\0")], vec![put("k")]));
        assert!(!refused(vec![txn(vec![delete("k", "\0")], vec![put("k")])], vec![]));
        assert!(!refused(vec![delete("k", "l"), put("k"), delete("k", ""), put("k")], vec![]));
        assert!(!refused(vec![delete("k", "\0"), delete("a", "\0")], vec![]));
    }

    /// Operations over few keys, nested.
    fn operations() -> impl Strategy<Value = Vec<RequestOp>> {
        let key = prop::sample::select(vec!["a", "b", "c"]);
        let leaf = prop_oneof![
            key.clone().prop_map(put),
            (key, prop::sample::select(vec!["", "\0", "d"]))
                .prop_map(|(key, end)| delete(key, end)),
        ];
        let one = leaf.prop_recursive(3, 12, 3, |inner| {
            let branch = prop::collection::vec(inner, 0..3);
            (branch.clone(), branch).prop_map(|(success, failure)| txn(success, failure))
        });
        prop::collection::vec(one, 0..4)
    }

    /// Every way through the branches, as the plain operations that run.
    fn paths(operations: &[RequestOp]) -> Vec<Vec<RequestOp>> {
        operations.iter().fold(vec![vec![]], |before, operation| {
            let after = match &operation.request {
                Some(Request::RequestTxn(txn)) => {
                    [paths(&txn.success), paths(&txn.failure)].concat()
                }
                _ => vec![vec![operation.clone()]],
            };
            let join = |first: &Vec<RequestOp>| {
                let first = first.clone();
                after.iter().map(move |next| [&first[..], next].concat()).collect::<Vec<_>>()
            };
            before.iter().flat_map(join).collect()
        })
    }

    proptest! {
        /// The naive model: some way through the branches deletes a key without an end and puts it.
        #[test]
        fn as_the_model_that_tries_every_path(operations in operations()) {
            let expected = paths(&operations).iter().any(|path| {
                path.iter().any(|one| match &one.request {
                    Some(Request::RequestDeleteRange(delete)) if delete.range_end == "\0" => {
                        path.iter().any(|other| matches!(
                            &other.request,
                            Some(Request::RequestPut(put)) if put.key >= delete.key
                        ))
                    }
                    _ => false,
                })
            });
            prop_assert_eq!(refused(operations, vec![]), expected);
        }
    }
}
