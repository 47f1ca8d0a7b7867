//! A stream is judged again, with its connection. What has begun and is not allowed any more ends: one watch of many
//! without the others, or all of the stream.
//!
//! It never waits before what may go no further is stopped.

use std::rc::Rc;

use tokio::time::Instant;

use super::watches::{WATCH_DENIED, cancel_of};
use super::{Ended, Stream};
use crate::audit::{Outcome, Unavailable};
use crate::etcd::response::WithoutWatches;
use crate::etcd::{Rpc, Touches};
use crate::policy::{Cause, permit_cancel_watch};
use crate::proxy::acting::record_step;
use crate::proxy::authorize::no_longer_allowed;
use crate::proxy::connection::Client;
use crate::proxy::ending::Ending;
use crate::proxy::refuse::audit_unavailable;

/// A watch that is allowed no more.
pub(super) struct CutWatch {
    pub(super) id: i64,
    pub(super) touches: Touches,
    pub(super) cause: Cause,
}

impl Stream {
    /// What holds for the connection from now on.
    pub(super) async fn judge_again(&mut self, client: Rc<Client>) -> Result<(), Ended> {
        match (client.ending, &client.identified) {
            (Some(ending), _) if ending.ends_a_right() => return Err(Ended::NoLonger(ending)),
            (Some(_), _) => {
                self.draining = true;
                return Ok(());
            }
            (None, Err(_)) => return Err(Ended::NoLonger(Ending::IdentityRemoved)),
            (None, Ok(identified)) => self.head.identified = Rc::clone(identified),
        }
        self.core = Rc::clone(&client.core);
        self.client = client;
        let identified = Rc::clone(&self.head.identified);
        let cut = self.watches.take_if(|touches| no_longer_allowed(&identified, touches));
        for watch in &cut {
            self.stop(watch.id);
            self.answers.push_back(cancel_of(self.header, watch.id, WATCH_DENIED));
        }
        for watch in cut {
            self.end_watch(&watch).await?;
        }
        Ok(())
    }

    /// No event of a watch goes any further.
    pub(super) fn stop(&mut self, id: i64) {
        self.core.metrics.count_cut_watches("rule_removed", 1);
        let position = self.position;
        let without = self.without.get_or_insert_with(|| WithoutWatches::from_here(position));
        without.add(id);
    }

    /// Records that a watch was ended, and has etcd end it; it is stopped already. Where it cannot be recorded all of the
    /// stream ends, or etcd would go on for a watch that nobody has.
    pub(super) async fn end_watch(&mut self, watch: &CutWatch) -> Result<(), Ended> {
        let call = self.call.step(self.core.next_step());
        let asking = self.asking(call, 0);
        let recorded = asking.record_end(Rpc::Watch, &watch.touches, watch.cause).await;
        recorded.map_err(unrecorded)?;
        let call = self.call.step(self.core.next_step());
        let ends = Instant::now() + self.core.limits.call_timeout;
        let permit = permit_cancel_watch(watch.id);
        let share = &self.client.queue_share;
        let recorded = record_step(&self.core, share, call, &permit, ends).await;
        let recorded = recorded.map_err(unrecorded)?;
        let Some((outgoing, _)) = &mut self.etcd else { return Ok(()) };
        // A stream that is gone has ended the watch as well.
        let sent = outgoing.send(&permit, &recorded, call).is_ok();
        let fault = (!sent).then_some("broken");
        recorded.finish(Outcome { status: sent.then_some(0), fault, ..Outcome::default() });
        Ok(())
    }
}

fn unrecorded(Unavailable: Unavailable) -> Ended {
    Ended::Told(audit_unavailable(), "audit_unavailable")
}
