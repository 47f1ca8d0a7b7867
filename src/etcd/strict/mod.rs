//! From request bytes to a request that can be read in one way only, and back: what comes out of
//! here is what is decided on and what is sent. Nothing else makes a [`CanonicalRequest`].

use bytes::Bytes;
use prost::Message;

use super::catalog::Rpc;
use super::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};
use super::touch::{self, InvalidRequest, Touch, Touches};
use super::verb::StoreVerb;
use super::wire::{self, WireError};

/// A request in the one encoding that every etcd reads alike, with all that it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalRequest {
    readable: ReadableRpc,
    body: Bytes,
    touches: Touches,
}

/// Why the bytes of a request are refused; the text goes to the client, so it holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A shape that two decoders could read differently.
    #[error("ringfence: {0}")]
    Wire(#[from] WireError),
    /// A request that etcd would not run, or not every etcd alike.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// Bytes that do not decode although the walk found nothing; kept apart so that it shows.
    #[error("ringfence: the request does not decode")]
    Undecodable,
}

/// The RPCs whose requests this module reads. Each is forwarded; every other one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadableRpc {
    /// `KV/Range`.
    Range,
    /// `KV/Put`.
    Put,
    /// `KV/DeleteRange`.
    DeleteRange,
    /// `KV/Txn`.
    Txn,
    /// `KV/Compact`.
    Compact,
}

impl ReadableRpc {
    /// Whether and how requests of this RPC are read. An exhaustive match, so that a new RPC in
    /// the catalog has to be decided here.
    #[must_use]
    pub const fn of(rpc: Rpc) -> Option<Self> {
        match rpc {
            Rpc::Range => Some(Self::Range),
            Rpc::Put => Some(Self::Put),
            Rpc::DeleteRange => Some(Self::DeleteRange),
            Rpc::Txn => Some(Self::Txn),
            Rpc::Compact => Some(Self::Compact),
            Rpc::RangeStream | Rpc::Watch => None,
            Rpc::LeaseGrant
            | Rpc::LeaseRevoke
            | Rpc::LeaseKeepAlive
            | Rpc::LeaseTimeToLive
            | Rpc::LeaseLeases => None,
            Rpc::MemberAdd
            | Rpc::MemberRemove
            | Rpc::MemberUpdate
            | Rpc::MemberList
            | Rpc::MemberPromote => None,
            Rpc::Alarm
            | Rpc::Status
            | Rpc::Defragment
            | Rpc::Hash
            | Rpc::HashKv
            | Rpc::Snapshot
            | Rpc::MoveLeader
            | Rpc::Downgrade => None,
            Rpc::AuthEnable
            | Rpc::AuthDisable
            | Rpc::AuthStatus
            | Rpc::Authenticate
            | Rpc::UserAdd
            | Rpc::UserGet
            | Rpc::UserList
            | Rpc::UserDelete
            | Rpc::UserChangePassword
            | Rpc::UserGrantRole
            | Rpc::UserRevokeRole
            | Rpc::RoleAdd
            | Rpc::RoleGet
            | Rpc::RoleList
            | Rpc::RoleDelete
            | Rpc::RoleGrantPermission
            | Rpc::RoleRevokePermission => None,
            Rpc::Lock | Rpc::Unlock => None,
            Rpc::Campaign | Rpc::Proclaim | Rpc::Leader | Rpc::Observe | Rpc::Resign => None,
            Rpc::HealthCheck | Rpc::HealthList | Rpc::HealthWatch => None,
        }
    }

    /// Its entry in the catalog.
    #[must_use]
    pub const fn rpc(self) -> Rpc {
        match self {
            Self::Range => Rpc::Range,
            Self::Put => Rpc::Put,
            Self::DeleteRange => Rpc::DeleteRange,
            Self::Txn => Rpc::Txn,
            Self::Compact => Rpc::Compact,
        }
    }
}

impl CanonicalRequest {
    /// Reads the message of a unary request.
    ///
    /// # Errors
    /// When the bytes could be read in two ways, or as something that etcd would not run.
    pub fn read(readable: ReadableRpc, bytes: &Bytes) -> Result<Self, Malformed> {
        let mut touches = Touches::new();
        let body = match readable {
            ReadableRpc::Range => {
                let (request, body) = decode::<RangeRequest>("etcdserverpb.RangeRequest", bytes)?;
                touch::range(&request, &mut touches)?;
                body
            }
            ReadableRpc::Put => {
                let (request, body) = decode::<PutRequest>("etcdserverpb.PutRequest", bytes)?;
                touch::put(&request, &mut touches)?;
                body
            }
            ReadableRpc::DeleteRange => {
                let name = "etcdserverpb.DeleteRangeRequest";
                let (request, body) = decode::<DeleteRangeRequest>(name, bytes)?;
                touch::delete_range(&request, &mut touches)?;
                body
            }
            ReadableRpc::Txn => {
                let (request, body) = decode::<TxnRequest>("etcdserverpb.TxnRequest", bytes)?;
                touch::txn(&request, &mut touches)?;
                body
            }
            ReadableRpc::Compact => {
                let name = "etcdserverpb.CompactionRequest";
                let (_, body) = decode::<CompactionRequest>(name, bytes)?;
                touches.push(Touch::Store(StoreVerb::Compact));
                body
            }
        };
        Ok(Self { readable, body, touches })
    }

    /// Which RPC it is.
    #[must_use]
    pub const fn readable(&self) -> ReadableRpc {
        self.readable
    }

    /// The canonical encoding: the bytes that are sent.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// All that it does.
    #[must_use]
    pub const fn touches(&self) -> &Touches {
        &self.touches
    }
}

/// Two tiers. Bytes that prost encodes to again are canonical: no unknown field, nothing twice,
/// nothing present but empty; they go on as received. Others are walked, and what the walk leaves
/// standing is replaced by its canonical encoding.
fn decode<M: Message + Default>(
    name: &'static str,
    bytes: &Bytes,
) -> Result<(M, Bytes), Malformed> {
    let decoded = M::decode(bytes.clone());
    if let Ok(message) = &decoded
        && message.encoded_len() == bytes.len()
    {
        let encoded = message.encode_to_vec();
        if encoded == *bytes {
            return decoded
                .map(|message| (message, bytes.clone()))
                .map_err(|_| Malformed::Undecodable);
        }
    }
    wire::walk(name, bytes)?;
    let message = decoded.map_err(|_| Malformed::Undecodable)?;
    let body = Bytes::from(message.encode_to_vec());
    Ok((message, body))
}

#[cfg(test)]
mod tests;
