//! From request bytes to a request that can be read in one way only, and back: what comes out of
//! here is what is decided on and what is sent. Nothing else makes a [`CanonicalRequest`].

mod messages;

use bytes::Bytes;
use prost::{Message, Name};

use super::catalog::Rpc;
use super::pb::etcdserverpb::{
    AuthenticateRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest,
    WatchCancelRequest, WatchRequest, watch_request::RequestUnion,
};
use super::pb::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use super::pb::v3lockpb::{LockRequest, UnlockRequest};
use super::range::{KeyRange, StoredKey};
use super::touch::{self, InvalidRequest, LeaseUse, Touch, Touches, session};
use super::verb::{KeyVerb, StoreVerb};
use super::wire::{self, WireError};

/// A request in the one encoding that every etcd reads alike, with all that it does.
#[derive(Clone, PartialEq, Eq)]
pub struct CanonicalRequest {
    rpc: Rpc,
    body: Bytes,
    touches: Touches,
    /// The lease that has to be granted before the request is sent: see [`session`].
    lease_to_grant: Option<i64>,
}

/// The body is left out: it may hold a value, or a password.
impl std::fmt::Debug for CanonicalRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rpc, body, touches, lease_to_grant } = self;
        let mut shown = formatter.debug_struct("CanonicalRequest");
        shown.field("rpc", rpc).field("body_bytes", &body.len()).field("touches", touches);
        shown.field("lease_to_grant", lease_to_grant).finish()
    }
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

/// The seconds that a lease lives which etcd makes for a lock or an election without one
/// (client/v3/concurrency, `defaultSessionTTL`).
pub const SESSION_TTL_SECONDS: i64 = 60;

/// The largest message that may be built before it is walked; it cannot hold much.
const UNWALKED_BYTES_MAX: usize = 4096;

impl CanonicalRequest {
    /// Reads one message of a request of that RPC. Where etcd would choose the ID of a new lease,
    /// `new_lease` chooses it instead (0 when it cannot), so that the lease has an owner.
    ///
    /// # Errors
    /// When the bytes could be read in two ways, or as something that etcd would not run.
    pub fn read(
        rpc: Rpc,
        bytes: &Bytes,
        new_lease: &mut dyn FnMut() -> i64,
    ) -> Result<Self, Malformed> {
        let mut touches = Touches::new();
        let mut lease_to_grant = None;
        #[expect(clippy::wildcard_enum_match_arm, reason = "messages::read names each of them")]
        let body = match rpc {
            Rpc::Range | Rpc::RangeStream => {
                read(bytes, |request: &RangeRequest| touch::range(request, &mut touches))?
            }
            Rpc::Put => read(bytes, |request: &PutRequest| touch::put(request, &mut touches))?,
            Rpc::DeleteRange => read(bytes, |request: &DeleteRangeRequest| {
                touch::delete_range(request, &mut touches)
            })?,
            Rpc::Txn => read(bytes, |request: &TxnRequest| touch::txn(request, &mut touches))?,
            Rpc::Watch => {
                read(bytes, |request: &WatchRequest| touch::watch(request, &mut touches))?
            }
            Rpc::LeaseGrant => change(bytes, |request: &mut LeaseGrantRequest| {
                if request.id == 0 {
                    request.id = new_lease();
                }
                touch::lease(LeaseUse::Grant, request.id, &mut touches)
            })?,
            Rpc::LeaseRevoke => read(bytes, |request: &LeaseRevokeRequest| {
                touch::lease(LeaseUse::Revoke, request.id, &mut touches)
            })?,
            Rpc::LeaseKeepAlive => read(bytes, |request: &LeaseKeepAliveRequest| {
                touch::lease(LeaseUse::KeepAlive, request.id, &mut touches)
            })?,
            Rpc::LeaseTimeToLive => read(bytes, |request: &LeaseTimeToLiveRequest| {
                let usage = if request.keys { LeaseUse::ListKeys } else { LeaseUse::TimeToLive };
                touch::lease(usage, request.id, &mut touches)
            })?,
            Rpc::Lock | Rpc::Campaign | Rpc::Proclaim | Rpc::Resign => {
                let mut session = session::Session::new(new_lease, &mut touches);
                let body = read_session(rpc, bytes, &mut session)?;
                lease_to_grant = session.lease_to_grant();
                body
            }
            Rpc::Unlock => {
                read(bytes, |request: &UnlockRequest| session::unlock(request, &mut touches))?
            }
            Rpc::Leader | Rpc::Observe => {
                let follow = rpc == Rpc::Observe;
                read(bytes, |request: &LeaderRequest| {
                    session::leader(request, follow, &mut touches)
                })?
            }
            other => {
                let (body, verb) = messages::read(other, bytes)?;
                touches.push(Touch::Store(verb));
                body
            }
        };
        Ok(Self { rpc, body, touches, lease_to_grant })
    }

    /// Which RPC it is.
    #[must_use]
    pub const fn rpc(&self) -> Rpc {
        self.rpc
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

    /// The lease that has to be granted first.
    #[must_use]
    pub const fn lease_to_grant(&self) -> Option<i64> {
        self.lease_to_grant
    }

    /// Adds what a use of a lease does to the keys that it holds: only ever more to decide on.
    ///
    /// # Errors
    /// When they are too many for one request.
    pub fn add_touches(&mut self, more: impl Iterator<Item = Touch>) -> Result<(), InvalidRequest> {
        more.into_iter().try_for_each(|touch| touch::push(&mut self.touches, touch))
    }
}

/// The requests of ringfence's own steps.
impl CanonicalRequest {
    /// Asks etcd which keys a lease holds.
    #[must_use]
    pub fn lease_look_up(lease: i64) -> Self {
        let body = LeaseTimeToLiveRequest { id: lease, keys: true }.encode_to_vec().into();
        let touches = [Touch::Lease { usage: LeaseUse::ListKeys, lease }].into_iter().collect();
        Self { rpc: Rpc::LeaseTimeToLive, body, touches, lease_to_grant: None }
    }

    /// Ends a watch of the stream that it is sent on.
    #[must_use]
    pub fn cancel_watch(id: i64) -> Self {
        let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id });
        let body = WatchRequest { request_union: Some(cancel) }.encode_to_vec().into();
        let touches = [Touch::CancelWatch(id)].into_iter().collect();
        Self { rpc: Rpc::Watch, body, touches, lease_to_grant: None }
    }

    /// Logs in as a user of etcd; `None` when that is too long for a request.
    #[must_use]
    pub fn log_in(user: &str, password: &str) -> Option<Self> {
        let (name, password) = (user.to_owned(), password.to_owned());
        let request = AuthenticateRequest { name, password };
        let body = request.encode_to_vec();
        let touches = [Touch::Store(StoreVerb::AuthLogin)].into_iter().collect();
        let fits = body.len() <= UNWALKED_BYTES_MAX;
        fits.then(|| Self {
            rpc: Rpc::Authenticate,
            body: body.into(),
            touches,
            lease_to_grant: None,
        })
    }

    /// Counts the first key that there can be, at the member that is asked.
    #[must_use]
    pub fn probe() -> Self {
        let key = Bytes::from_static(b"\0");
        let range = KeyRange::point(StoredKey::new(key.clone()));
        let request =
            RangeRequest { key, serializable: true, count_only: true, ..RangeRequest::default() };
        let touches = [Touch::Key { verb: KeyVerb::Get, range }].into_iter().collect();
        let body = request.encode_to_vec().into();
        Self { rpc: Rpc::Range, body, touches, lease_to_grant: None }
    }

    /// Grants the lease of a session: etcd's own life span, an ID with an owner.
    #[must_use]
    pub fn session_lease(lease: i64) -> Self {
        let body = LeaseGrantRequest { ttl: SESSION_TTL_SECONDS, id: lease }.encode_to_vec().into();
        let touches = [Touch::Lease { usage: LeaseUse::Grant, lease }].into_iter().collect();
        Self { rpc: Rpc::LeaseGrant, body, touches, lease_to_grant: None }
    }
}

/// The token of an answer to a log-in.
///
/// # Errors
/// When the answer does not decode.
pub fn login_token(answer: &[u8]) -> Result<String, prost::DecodeError> {
    Ok(super::pb::etcdserverpb::AuthenticateResponse::decode(answer)?.token)
}

/// Keys of a lease as etcd answers a look-up: `None` when there is no such lease.
///
/// # Errors
/// When the answer does not decode.
pub fn lease_keys(answer: &[u8]) -> Result<Option<Vec<StoredKey>>, prost::DecodeError> {
    let answer = super::pb::etcdserverpb::LeaseTimeToLiveResponse::decode(answer)?;
    Ok((answer.ttl >= 0).then(|| answer.keys.into_iter().map(StoredKey::new).collect()))
}

fn read_session(
    rpc: Rpc,
    bytes: &Bytes,
    session: &mut session::Session<'_>,
) -> Result<Bytes, Malformed> {
    if rpc == Rpc::Lock {
        change(bytes, |request: &mut LockRequest| session.lock(request))
    } else if rpc == Rpc::Campaign {
        change(bytes, |request: &mut CampaignRequest| session.campaign(request))
    } else if rpc == Rpc::Proclaim {
        change(bytes, |request: &mut ProclaimRequest| session.proclaim(request))
    } else {
        change(bytes, |request: &mut ResignRequest| session.resign(request))
    }
}

/// Reads a message, and passes on the bytes that are its canonical encoding.
fn read<M: Message + Name + Default>(
    bytes: &Bytes,
    inspect: impl FnOnce(&M) -> Result<(), InvalidRequest>,
) -> Result<Bytes, Malformed> {
    let (message, body) = decode::<M>(bytes)?;
    inspect(&message)?;
    Ok(body)
}

/// Reads a message that ringfence completes; what is sent is the encoding of the completed one.
fn change<M: Message + Name + Default>(
    bytes: &Bytes,
    complete: impl FnOnce(&mut M) -> Result<(), InvalidRequest>,
) -> Result<Bytes, Malformed> {
    let (mut message, _) = decode::<M>(bytes)?;
    complete(&mut message)?;
    Ok(message.encode_to_vec().into())
}

/// Two tiers. Bytes that prost encodes to again are canonical: no unknown field, nothing twice,
/// nothing present but empty; they go on as received. Others are walked, and what the walk leaves
/// standing is replaced by its canonical encoding. Large ones are walked in any case, before anything
/// is built of them: the walk is bounded and builds nothing.
fn decode<M: Message + Name + Default>(bytes: &Bytes) -> Result<(M, Bytes), Malformed> {
    let is_large = bytes.len() > UNWALKED_BYTES_MAX;
    if is_large {
        wire::walk(&M::full_name(), bytes)?;
    }
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
    if !is_large {
        wire::walk(&M::full_name(), bytes)?;
    }
    let message = decoded.map_err(|_| Malformed::Undecodable)?;
    let body = Bytes::from(message.encode_to_vec());
    Ok((message, body))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
