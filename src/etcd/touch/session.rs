//! What Lock and Election do: the member runs them as a client of its own (api/v3lock,
//! api/v3election), so they are decided on the keys and leases that this client uses, whatever the
//! request's names suggest.
//!
//! Each needs a lease. Where the request brings none, etcd would grant one that nobody owns; here an
//! owned one takes its place, and is granted first.

use bytes::Bytes;

use super::{InvalidRequest, LeaseUse, Touch, Touches, lease, push};
use crate::etcd::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use crate::etcd::pb::v3lockpb::{LockRequest, UnlockRequest};
use crate::etcd::range::{ClientKey, KeyRange, StoredKey};
use crate::etcd::verb::KeyVerb;

/// The requests that run under a lease.
pub(in crate::etcd) struct Session<'a> {
    new_lease: &'a mut dyn FnMut() -> i64,
    touches: &'a mut Touches,
    lease_to_grant: Option<i64>,
}

impl<'a> Session<'a> {
    pub(in crate::etcd) fn new(
        new_lease: &'a mut dyn FnMut() -> i64,
        touches: &'a mut Touches,
    ) -> Self {
        Self { new_lease, touches, lease_to_grant: None }
    }

    pub(in crate::etcd) fn lease_to_grant(&self) -> Option<i64> {
        self.lease_to_grant
    }

    pub(in crate::etcd) fn lock(
        &mut self,
        request: &mut LockRequest,
    ) -> Result<(), InvalidRequest> {
        request.lease = self.lease(request.lease)?;
        self.queue_up(&request.name, request.lease)
    }

    pub(in crate::etcd) fn campaign(
        &mut self,
        request: &mut CampaignRequest,
    ) -> Result<(), InvalidRequest> {
        request.lease = self.lease(request.lease)?;
        self.queue_up(&request.name, request.lease)
    }

    /// Writes `leader.key`, whatever it is: nothing ties it to an election.
    pub(in crate::etcd) fn proclaim(
        &mut self,
        request: &mut ProclaimRequest,
    ) -> Result<(), InvalidRequest> {
        let leader = request.leader.as_mut().ok_or(InvalidRequest::NoLeader)?;
        leader.lease = self.lease(leader.lease)?;
        let range = leader_key(leader)?;
        // It compares the key's create revision first; and a key that is bound to a lease dies with it.
        for verb in [KeyVerb::Get, KeyVerb::Put, KeyVerb::Delete] {
            push(self.touches, Touch::Key { verb, range: range.clone() })?;
        }
        Ok(())
    }

    /// Deletes `leader.key`, whatever it is.
    pub(in crate::etcd) fn resign(
        &mut self,
        request: &mut ResignRequest,
    ) -> Result<(), InvalidRequest> {
        let leader = request.leader.as_mut().ok_or(InvalidRequest::NoLeader)?;
        leader.lease = self.lease(leader.lease)?;
        let range = leader_key(leader)?;
        for verb in [KeyVerb::Get, KeyVerb::Delete] {
            push(self.touches, Touch::Key { verb, range: range.clone() })?;
        }
        Ok(())
    }

    /// The lease that the request runs under. Every session renews it, and binds its key to it.
    fn lease(&mut self, given: i64) -> Result<i64, InvalidRequest> {
        if given != 0 {
            lease(LeaseUse::Attach, given, self.touches)?;
            return Ok(given);
        }
        let new = (self.new_lease)();
        self.lease_to_grant = Some(new);
        lease(LeaseUse::Grant, new, self.touches)?;
        Ok(new)
    }

    /// Puts `NAME/LEASE`, looks at all keys below `NAME/`, waits for those before its own to go, and
    /// deletes its own when the caller goes away or the lease ends.
    fn queue_up(&mut self, name: &[u8], lease: i64) -> Result<(), InvalidRequest> {
        let key = [name, b"/", format!("{lease:x}").as_bytes()].concat();
        let range = KeyRange::point(StoredKey::new(key));
        push(self.touches, Touch::Key { verb: KeyVerb::List, range: below(name) })?;
        for verb in [KeyVerb::Put, KeyVerb::Delete] {
            push(self.touches, Touch::Key { verb, range: range.clone() })?;
        }
        Ok(())
    }
}

/// Deletes `key`, whatever it is.
pub(in crate::etcd) fn unlock(
    request: &UnlockRequest,
    touches: &mut Touches,
) -> Result<(), InvalidRequest> {
    let range = KeyRange::from_request(key(&request.key), key(&Bytes::new()))?;
    push(touches, Touch::Key { verb: KeyVerb::Delete, range })
}

/// Reads the oldest key below `NAME/`, and follows it.
pub(in crate::etcd) fn leader(
    request: &LeaderRequest,
    follow: bool,
    touches: &mut Touches,
) -> Result<(), InvalidRequest> {
    let range = below(&request.name);
    push(touches, Touch::Key { verb: KeyVerb::List, range: range.clone() })?;
    if follow {
        push(touches, Touch::Key { verb: KeyVerb::Watch, range })?;
    }
    Ok(())
}

fn leader_key(leader: &LeaderKey) -> Result<KeyRange, InvalidRequest> {
    Ok(KeyRange::from_request(key(&leader.key), key(&Bytes::new()))?)
}

fn key(bytes: &Bytes) -> ClientKey {
    ClientKey::new(bytes.clone())
}

fn below(name: &[u8]) -> KeyRange {
    KeyRange::prefix(&[name, b"/"].concat())
}
