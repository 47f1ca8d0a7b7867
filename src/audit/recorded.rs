//! The proof that a call may be forwarded, and what is owed for it: an outcome. Only `recorder` makes these.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::event::{CallId, ConnectionId, Event, Outcome, Record};
use super::level::LeftOut;
use super::room::{QueueShare, Taken};
use super::writer::Shared;
use crate::clock;

/// Proof that a decision is as safe as the mode asks for: in `blocking` on disk; or that a rule of
/// the config leaves it out. It also holds the room for the outcome, so that an outcome never waits
/// and is never lost.
#[derive(Debug)]
pub struct Recorded {
    call: CallId,
    /// None when a rule leaves the call out of the log.
    decided: Option<Decided>,
}

/// A decision in the queue, whose outcome is owed; dropped without one, the outcome is the fault.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) share: CoreShare,
    pub(super) call: CallId,
    pub(super) time: Duration,
    /// What the outcome takes of the room.
    pub(super) units: usize,
    pub(super) otherwise: Outcome,
}

/// The part of the room that a principal, or those who are nobody, use from one core. Calls clone it without touching
/// a counter that other cores change, too.
#[derive(Clone, Debug)]
pub struct CoreShare(Rc<(Arc<Shared>, Arc<QueueShare>)>);

/// A connection whose opening was recorded. Its end is recorded whatever happens: it takes no room,
/// and there are no more of them than connections.
#[derive(Debug)]
pub struct OpenConnection {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: ConnectionId,
    calls: Option<u64>,
    reason: Option<&'static str>,
}

impl CoreShare {
    pub(super) fn new(shared: &Arc<Shared>, room: Arc<QueueShare>) -> Self {
        Self(Rc::new((Arc::clone(shared), room)))
    }

    pub(super) fn room(&self) -> &Arc<QueueShare> {
        &self.0.1
    }
}

impl Recorded {
    /// INVARIANT: the decision is as safe as the mode asks for. Called in `recorder` alone.
    pub(super) const fn of(decided: Decided) -> Self {
        Self { call: decided.call, decided: Some(decided) }
    }

    /// INVARIANT: a rule said so. Called in `recorder` alone.
    pub(super) const fn left_out(call: CallId, _by_rule: LeftOut) -> Self {
        Self { call, decided: None }
    }

    /// Which call this is the proof for.
    #[must_use]
    pub const fn call(&self) -> CallId {
        self.call
    }

    /// Records what became of the call.
    pub fn finish(mut self, outcome: Outcome) {
        if let Some(decided) = &mut self.decided {
            decided.otherwise = outcome;
        }
    }
}

impl Drop for Decided {
    fn drop(&mut self) {
        let now = clock::since_epoch();
        let mut outcome = std::mem::take(&mut self.otherwise);
        outcome.latency = now.saturating_sub(self.time);
        let event = Event::Outcome { call: self.call, outcome };
        let CoreShare(share) = &self.share;
        let (shared, room) = &**share;
        let place = Taken::again(room, self.units);
        shared.push(&Record { time: now, event }, Some(place), false);
    }
}

impl OpenConnection {
    pub(super) const fn new(shared: Arc<Shared>, connection: ConnectionId) -> Self {
        Self { shared, connection, calls: None, reason: None }
    }

    /// Records the end, after so many calls, and why. Dropped instead, it is recorded without either.
    pub fn close(mut self, calls: u64, reason: &'static str) {
        self.calls = Some(calls);
        self.reason = Some(reason);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Self { connection, calls, reason, .. } = *self;
        let event = Event::ConnectionClose { connection, calls, reason };
        self.shared.push(&Record { time: clock::since_epoch(), event }, None, false);
    }
}
