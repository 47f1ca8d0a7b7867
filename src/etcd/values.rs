//! What a request writes, in the order in which its touches say that it puts: for keyed hashes of values. Nothing
//! else looks at a value, and nothing keeps one.

use bytes::Bytes;
use prost::Message;

use super::catalog::Rpc;
use super::pb::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};
use super::pb::v3electionpb::{CampaignRequest, ProclaimRequest};

/// The value of each put of a canonical request; `None` for one that keeps the value that is there.
#[must_use]
pub fn written_values(rpc: Rpc, body: &Bytes) -> Vec<Option<Bytes>> {
    let mut values = Vec::new();
    // INVARIANT: the body was encoded by ringfence, so it decodes.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a new RPC that puts has no hash until named here"
    )]
    match rpc {
        Rpc::Put => values.extend(PutRequest::decode(body.clone()).ok().map(of_put)),
        Rpc::Txn => {
            if let Ok(request) = TxnRequest::decode(body.clone()) {
                of_txn(request, &mut values);
            }
        }
        // It puts an empty value of its own.
        Rpc::Lock => values.push(Some(Bytes::new())),
        Rpc::Campaign => {
            values.extend(CampaignRequest::decode(body.clone()).ok().map(|it| Some(it.value)));
        }
        Rpc::Proclaim => {
            values.extend(ProclaimRequest::decode(body.clone()).ok().map(|it| Some(it.value)));
        }
        _ => {}
    }
    values
}

fn of_put(request: PutRequest) -> Option<Bytes> {
    (!request.ignore_value).then_some(request.value)
}

/// As deep as the decoder lets a message be.
fn of_txn(request: TxnRequest, values: &mut Vec<Option<Bytes>>) {
    for RequestOp { request } in request.success.into_iter().chain(request.failure) {
        match request {
            Some(request_op::Request::RequestPut(put)) => values.push(of_put(put)),
            Some(request_op::Request::RequestTxn(txn)) => of_txn(txn, values),
            Some(
                request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_),
            )
            | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::{CanonicalRequest, KeyVerb, Touch};

    fn put(value: &str, ignore_value: bool) -> PutRequest {
        PutRequest {
            key: "k".into(),
            value: if ignore_value { Bytes::new() } else { value.to_owned().into() },
            ignore_value,
            ..PutRequest::default()
        }
    }

    fn operation(request: request_op::Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    #[test]
    fn there_is_one_value_for_each_put_in_its_order() {
        use request_op::Request::{RequestPut, RequestTxn};
        let nested = TxnRequest {
            success: vec![operation(RequestPut(put("b", false)))],
            failure: vec![operation(RequestPut(put("c", true)))],
            ..TxnRequest::default()
        };
        let txn = TxnRequest {
            success: vec![operation(RequestPut(put("a", false))), operation(RequestTxn(nested))],
            failure: vec![operation(RequestPut(put("d", false)))],
            ..TxnRequest::default()
        };
        for (rpc, bytes, expected) in [
            (Rpc::Put, put("x", false).encode_to_vec(), &[Some("x")][..]),
            (Rpc::Put, put("", true).encode_to_vec(), &[None]),
            (Rpc::Txn, txn.encode_to_vec(), &[Some("a"), Some("b"), None, Some("d")]),
            (
                Rpc::Campaign,
                CampaignRequest { name: "n".into(), lease: 1, value: "v".into() }.encode_to_vec(),
                &[Some("v")],
            ),
        ] {
            let request = CanonicalRequest::read(rpc, &bytes.into(), &mut || 7).unwrap();
            let expected = expected.iter().map(|value| value.map(|text: &str| text.into()));
            let values = written_values(rpc, request.body());
            assert_eq!(values, expected.collect::<Vec<Option<Bytes>>>(), "{rpc:?}");
            let puts = request
                .touches()
                .iter()
                .filter(|touch| matches!(touch, Touch::Key { verb: KeyVerb::Put, .. }));
            assert_eq!(puts.count(), values.len());
        }
    }
}
