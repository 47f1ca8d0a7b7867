//! Replies that do not pass as they are: what they say is made to agree with what the client may
//! know. All others pass without a copy.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;

use super::Advertise;
use crate::etcd::pb::etcdserverpb::{
    LeaseLeasesResponse, LeaseTimeToLiveResponse, Member, MemberAddResponse, MemberListResponse,
    MemberPromoteResponse, MemberRemoveResponse, MemberUpdateResponse,
};
use crate::etcd::{KeyRange, KeyVerb, LeaseUse, Rpc, StoredKey, Touch, Touches};
use crate::grpc::{MessageReader, Status};
use crate::policy::{Asker, decide_touch};
use crate::upstream::{ForwardError, Reply};

use super::refuse::{permission_denied, unreadable_reply};

/// The most bytes of a reply that is taken in whole; those that are list members, leases, or the keys
/// of one lease.
const REPLY_BYTES_MAX: usize = 4 << 20;

/// A reply that was taken in whole.
#[derive(Debug)]
pub(super) struct Whole {
    /// Absent when etcd answered with a status alone.
    pub(super) message: Option<Bytes>,
    pub(super) trailers: HeaderMap,
}

/// Takes a reply in whole.
///
/// # Errors
/// When it is not one message within the bounds.
pub(super) async fn collect(mut reply: Reply) -> Result<Whole, ForwardError> {
    if let Some(trailers) = reply.trailers_only.take() {
        return Ok(Whole { message: None, trailers });
    }
    let mut reader = MessageReader::new(REPLY_BYTES_MAX);
    let mut bytes = 0;
    while let Some(chunk) = reply.chunk().await? {
        bytes += chunk.len();
        reply.release(chunk.len())?;
        reader.push(chunk).map_err(|_| ForwardError::Unreadable)?;
    }
    let trailers = reply.trailers().await?;
    let message = if bytes == 0 {
        None
    } else {
        Some(reader.finish().map_err(|_| ForwardError::Unreadable)?)
    };
    Ok(Whole { message, trailers })
}

/// How a reply is changed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rewrite {
    /// Members' client URLs become those that lead here: a client that learned etcd's own would go
    /// past ringfence.
    Members(Rpc),
    /// Only the principal's own leases stay.
    OwnLeases,
    /// Every key that is named must be one that the principal may read.
    ReadableKeys,
}

impl Rewrite {
    /// Whether and how replies of that RPC are changed.
    pub(super) fn of(rpc: Rpc, touches: &Touches) -> Option<Self> {
        let lists_keys =
            |touch: &Touch| matches!(touch, Touch::Lease { usage: LeaseUse::ListKeys, .. });
        match rpc {
            Rpc::MemberAdd
            | Rpc::MemberRemove
            | Rpc::MemberUpdate
            | Rpc::MemberList
            | Rpc::MemberPromote => Some(Self::Members(rpc)),
            Rpc::LeaseLeases => Some(Self::OwnLeases),
            Rpc::LeaseTimeToLive => touches.iter().any(lists_keys).then_some(Self::ReadableKeys),
            _ => None,
        }
    }

    /// The message that the client gets.
    ///
    /// # Errors
    /// The status it gets instead.
    pub(super) fn apply(
        self,
        message: Bytes,
        asker: Asker<'_>,
        advertise: &Advertise,
    ) -> Result<Bytes, Status> {
        let undecodable = |_| unreadable_reply();
        Ok(match self {
            Self::Members(rpc) => members(rpc, &message, advertise).map_err(undecodable)?,
            Self::OwnLeases => {
                let mut reply = LeaseLeasesResponse::decode(message).map_err(undecodable)?;
                let principal = &asker.identification.principal;
                reply.leases.retain(|lease| asker.leases.owns(principal, lease.id));
                reply.encode_to_vec().into()
            }
            Self::ReadableKeys => {
                let reply =
                    LeaseTimeToLiveResponse::decode(message.clone()).map_err(undecodable)?;
                let readable = |key: &Bytes| {
                    let range = KeyRange::point(StoredKey::new(key.clone()));
                    let touch = Touch::Key { verb: KeyVerb::Get, range };
                    decide_touch(&asker.identification.rights, &touch).is_ok()
                };
                if !reply.keys.iter().all(readable) {
                    return Err(permission_denied());
                }
                message
            }
        })
    }
}

fn members(rpc: Rpc, message: &[u8], advertise: &Advertise) -> Result<Bytes, prost::DecodeError> {
    let rewrite = |member: &mut Member| member.client_ur_ls = advertise.urls(&member.name);
    macro_rules! rewritten {
        ($response:ident) => {{
            let mut reply = $response::decode(message)?;
            reply.members.iter_mut().for_each(rewrite);
            reply.encode_to_vec().into()
        }};
    }
    Ok(match rpc {
        Rpc::MemberAdd => {
            let mut reply = MemberAddResponse::decode(message)?;
            reply.member.iter_mut().for_each(rewrite);
            reply.members.iter_mut().for_each(rewrite);
            reply.encode_to_vec().into()
        }
        Rpc::MemberRemove => rewritten!(MemberRemoveResponse),
        Rpc::MemberUpdate => rewritten!(MemberUpdateResponse),
        Rpc::MemberPromote => rewritten!(MemberPromoteResponse),
        _ => rewritten!(MemberListResponse),
    })
}
