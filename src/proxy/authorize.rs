//! Decide and record: one request in, a permit with the proof of its record out, or the status that
//! the client hears. Unary calls and the messages of streams both come through here.

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::time::Instant;

use super::acting::{record_step, status_of};
use super::connection::{Client, Identified};
use super::refuse::{
    audit_unavailable, forward_failed, permission_denied, timed_out, too_many_requests,
};
use super::reply::collect;
use super::{Core, Refusal};
use crate::audit::event::{DecisionEvent, PATH_CHARS_MAX, Path};
use crate::audit::{
    CallId, CoreShare, Event, Outcome, Record, Recorded, RecordedTouches, Shown, Unavailable,
    Verdict,
};
use crate::clock;
use crate::etcd::{CanonicalRequest, Rpc, Touch, Touches, strict, written_values};
use crate::grpc::metadata::Metadata;
use crate::grpc::{Code, Status};
use crate::metrics;
use crate::policy::{
    Asker, Cause, Decision, Denial, FoundLeases, LeaseContent, Permit, decide, decide_touch,
    permit_look_up,
};
use crate::upstream::ForwardError;

/// Who asks for ringfence's own steps. No identity can have this name.
pub(super) const OURSELVES: &str = "(ringfence)";

/// One request of a principal.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) core: &'a Rc<Core>,
    pub(super) client: &'a Rc<Client>,
    pub(super) identified: &'a Identified,
    pub(super) metadata: &'a Metadata,
    pub(super) call: CallId,
    pub(super) request_bytes: usize,
    /// When the call is cut off.
    pub(super) ends: Option<Instant>,
}

/// A request that is not forwarded.
#[derive(Debug)]
pub(super) struct Refused {
    /// What the client hears.
    pub(super) status: Status,
    /// Why, as the end of a stream is recorded: a short, fixed name.
    pub(super) fault: &'static str,
}

impl From<(Status, &'static str)> for Refused {
    fn from((status, fault): (Status, &'static str)) -> Self {
        Self { status, fault }
    }
}

impl From<Unavailable> for Refused {
    fn from(Unavailable: Unavailable) -> Self {
        (audit_unavailable(), "audit_unavailable").into()
    }
}

impl<'a> Asking<'a> {
    pub(super) fn asker(&self) -> Asker<'a> {
        Asker { identification: &self.identified.identification, leases: &self.core.leases }
    }

    fn identity(&self) -> &'a str {
        self.identified.identification.principal.identity()
    }

    fn share(&self) -> &'a CoreShare {
        &self.identified.queue_share
    }

    /// Decides and records.
    ///
    /// # Errors
    /// What the client hears instead: it is denied, or the decision cannot be made or recorded.
    pub(super) async fn authorize(
        &self,
        request: CanonicalRequest,
    ) -> Result<(Permit, Recorded), Refused> {
        let mut decision = decide(self.asker(), request, &FoundLeases::default());
        if let Decision::LookUp(request, leases) = decision {
            let rpc = request.rpc();
            // On the heap: a rare step must not make the future of every call larger.
            let looked_up = Box::pin(self.look_up(&leases)).await;
            let found = match looked_up {
                Ok(found) => found,
                Err(refused) => return Err(self.refuse_unknown(rpc, refused).await),
            };
            decision = decide(self.asker(), request, &found);
        }
        match decision {
            Decision::Allow(permit) => {
                let recorded = self.allow(&permit).await?;
                Ok((permit, recorded))
            }
            Decision::Deny(denial) => Err(self.deny(&denial).await),
            Decision::LookUp(request, _) => {
                let status = Status::new(Code::Internal, "ringfence: internal error");
                Err(self.refuse_unknown(request.rpc(), (status, "internal").into()).await)
            }
        }
    }

    async fn allow(&self, permit: &Permit) -> Result<Recorded, Refused> {
        self.core.counts.count_allowed(permit.rpc());
        let rules = permit.rules().iter().map(|rule| self.core.policy.rule_name(*rule)).collect();
        let values = || written_values(permit.rpc(), permit.body());
        let shown =
            self.core.recorder.levels().of_allowed(self.identity(), permit.touches(), draw, values);
        Ok(match shown {
            Shown::LeftOut(by_rule) => self.core.recorder.leave_out(self.call, by_rule),
            Shown::Recorded(touches) => {
                let event = self.event(permit.rpc(), Verdict::Allow(rules), touches);
                let recorder = &self.core.recorder;
                recorder.allow(self.share(), self.call, &record(event), self.ends).await?
            }
        })
    }

    /// The name and the rule of a cause in records.
    fn why(&self, cause: Cause) -> (&'static str, Option<&'a str>) {
        match cause {
            Cause::NoRule => ("no_rule", None),
            Cause::DenyRule(rule) => ("deny_rule", Some(self.core.policy.rule_name(rule))),
            Cause::ForeignLease => ("foreign_lease", None),
            Cause::TooMany => ("too_many", None),
        }
    }

    /// Records that what was allowed is denied from now on.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub(super) async fn record_end(
        &self,
        rpc: Rpc,
        touches: &Touches,
        cause: Cause,
    ) -> Result<(), Unavailable> {
        let (reason, rule) = self.why(cause);
        self.core.metrics.count_request(Some(rpc), metrics::Verdict::Deny);
        let touches = self.core.recorder.levels().of_denied(self.identity(), touches);
        let event = self.event(rpc, Verdict::Deny { reason, rule, touch: 0 }, touches);
        self.core.recorder.record(self.share(), &record(event)).await
    }

    async fn deny(&self, denial: &Denial) -> Refused {
        let (reason, rule) = self.why(denial.cause);
        let rpc = denial.request.rpc();
        if rpc == Rpc::Authenticate {
            tracing::warn!(
                principal = %self.identified.name,
                "a client logs in with a password; take user and password out of its settings: \
                 behind ringfence its certificate says who it is, and a token counts for nothing"
            );
        }
        self.core.metrics.count_request(Some(rpc), metrics::Verdict::Deny);
        let verdict = Verdict::Deny { reason, rule, touch: denial.touch };
        let levels = self.core.recorder.levels();
        let touches = levels.of_denied(self.identity(), denial.request.touches());
        let event = self.event(rpc, verdict, touches);
        let recorded = self.core.recorder.record(self.share(), &record(event)).await;
        recorded.map_or_else(Refused::from, |()| (permission_denied(), "refused").into())
    }

    /// Records that a request ended undecided, because a look-up failed.
    async fn refuse_unknown(&self, rpc: Rpc, refused: Refused) -> Refused {
        self.core.metrics.count_request(Some(rpc), metrics::Verdict::Refuse);
        let verdict = Verdict::Refuse { reason: "look_up", detail: refused.status.message.clone() };
        let event = self.event(rpc, verdict, RecordedTouches::default());
        let recorded = self.core.recorder.record(self.share(), &record(event)).await;
        recorded.map_or_else(Refused::from, |()| refused)
    }

    fn event<'e>(&self, rpc: Rpc, verdict: Verdict<'e>, touches: RecordedTouches<'e>) -> Event<'e>
    where
        'a: 'e,
    {
        Event::Decision(DecisionEvent {
            call: self.call,
            principal: Some(&self.identified.name),
            path: Path::Known(rpc.path()),
            verdict,
            touches,
            request_bytes: self.request_bytes,
        })
    }

    /// Asks etcd which keys these leases hold, in ringfence's own name.
    async fn look_up(&self, leases: &[i64]) -> Result<FoundLeases, Refused> {
        // One time for all of it: with a silent etcd each look-up would take a whole one, and keep
        // its place from the principal's other calls.
        let ours = Instant::now() + self.core.limits.call_timeout;
        let ends = self.ends.map_or(ours, |ends| ends.min(ours));
        let place = self.identified.share.whole_reply();
        let _place = tokio::time::timeout_at(ends, place).await.map_err(|_| timed_out())?;
        let mut found = BTreeMap::new();
        for (position, lease) in leases.iter().enumerate() {
            // The first is in the request's own price; a request for many leases is as many.
            if position > 0 && !self.identified.takes_request(self.core) {
                return Err(too_many_requests().into());
            }
            let call = self.call.step(u32::try_from(position + 1).unwrap_or(u32::MAX));
            let permit = permit_look_up(*lease);
            let recorded = record_step(self.core, self.share(), call, &permit, ends).await?;
            let answer = self.lease_keys(&permit, &recorded, call, ends).await;
            let (fault, status) = match &answer {
                Ok(LeaseContent::Keys(_)) => (None, Some(0)),
                Ok(LeaseContent::Hidden) => (None, Some(Code::PermissionDenied as u16)),
                Err(error) => {
                    let (status, fault) = forward_failed(error);
                    (Some(fault), Some(status.code as u16))
                }
            };
            recorded.finish(Outcome { status, fault, ..Outcome::default() });
            found.insert(*lease, answer.map_err(|error| forward_failed(&error))?);
        }
        let mut leases = FoundLeases::default();
        found.into_iter().for_each(|(lease, keys)| leases.insert(lease, keys));
        Ok(leases)
    }

    async fn lease_keys(
        &self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
        ends: Instant,
    ) -> Result<LeaseContent, ForwardError> {
        let forwarding = self.forward(permit, recorded, call);
        let answering = async { collect(forwarding.await?).await };
        let bounded = tokio::time::timeout_at(ends, answering).await;
        let answer = bounded.unwrap_or(Err(ForwardError::TimedOut))?;
        if status_of(&answer.trailers) == Some(Code::PermissionDenied as u16) {
            return Ok(LeaseContent::Hidden);
        }
        let message = answer.message.ok_or(ForwardError::Unreadable)?;
        let keys = strict::lease_keys(&message).map_err(|_| ForwardError::Unreadable)?;
        Ok(LeaseContent::Keys(keys.unwrap_or_default()))
    }
}

/// Why what was allowed once is not allowed any more, with the rights of now, if it is not. A lease was judged by the
/// keys that it held.
pub(super) fn no_longer_allowed(identified: &Identified, touches: &Touches) -> Option<Cause> {
    let rights = &identified.identification.rights;
    if !rights.grants_anything() {
        return Some(Cause::NoRule);
    }
    let about_rights = touches.iter().filter(|touch| !matches!(touch, Touch::Lease { .. }));
    about_rights.map(|touch| decide_touch(rights, touch)).find_map(Result::err)
}

/// Records a call that is refused before policy is asked.
pub(super) async fn record_refusal(
    client: &Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
) -> Result<(), Unavailable> {
    let record = refusal_record(client, call, path, refusal);
    client.core.recorder.record(&client.queue_share, &record).await
}

pub(super) fn refusal_record<'a>(
    client: &'a Client,
    call: CallId,
    path: &str,
    refusal: &Refusal,
) -> Record<'a> {
    let known = Rpc::from_path(path);
    client.core.metrics.count_request(known, metrics::Verdict::Refuse);
    let path = known.map_or_else(
        || Path::Unknown(path.chars().take(PATH_CHARS_MAX).collect()),
        |rpc| Path::Known(rpc.path()),
    );
    record(Event::Decision(DecisionEvent {
        call,
        principal: client.identified.as_ref().ok().map(|identified| identified.name.as_ref()),
        path,
        verdict: Verdict::Refuse { reason: refusal.reason(), detail: refusal.to_string() },
        touches: RecordedTouches::default(),
        request_bytes: 0,
    }))
}

pub(super) fn record(event: Event<'_>) -> Record<'_> {
    Record { time: clock::since_epoch(), event }
}

/// A number that no client can tell ahead; without randomness everything is recorded.
pub(super) fn draw() -> u32 {
    let mut drawn = [0; 4];
    let filled = aws_lc_rs::rand::fill(&mut drawn);
    filled.map_or(0, |()| u32::from_ne_bytes(drawn))
}
