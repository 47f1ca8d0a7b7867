//! The client's messages: each is read, decided, recorded and forwarded on its own.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message as _;

use super::watches::{TOO_MANY_WATCHES, WATCH_DENIED, WATCH_RANGE_EMPTY, answer_to_create, kept};
use super::{Ended, Stream, Unanswered};
use crate::audit::{CallId, Outcome, Recorded};
use crate::etcd::pb::etcdserverpb::WatchRequest;
use crate::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use crate::etcd::response::Header;
use crate::etcd::touch::InvalidRequest;
use crate::etcd::{CanonicalRequest, Malformed, Rpc, Touch, Touches};
use crate::grpc::Code;
use crate::policy::Permit;
use crate::proxy::Refusal;
use crate::proxy::authorize::{Asking, Refused, record_refusal};
use crate::proxy::call::read_request;
use crate::proxy::refuse::{audit_unavailable, forward_failed};
use crate::upstream::ForwardError;

impl Stream {
    pub(super) async fn take(&mut self, chunk: &Bytes) -> Result<(), Ended> {
        self.splitter.push(chunk);
        self.head.identified.charge_bytes(&self.core, chunk.len());
        let released = self.requests.flow_control().release_capacity(chunk.len());
        released.map_err(|_| Ended::ClientGone)?;
        let bytes_max = self.core.limits.request_bytes_per_principal;
        if self.head.share.hold_bytes(self.splitter.buffered_bytes(), bytes_max) {
            return Ok(());
        }
        Err(self.refuse(self.call, &Refusal::Share).await)
    }

    /// True when the stream is over with it.
    pub(super) async fn end_of_requests(&mut self) -> Result<bool, Ended> {
        self.requests_ended = true;
        if self.splitter.buffered_bytes() > 0 {
            let refusal = Refusal::Frame(crate::grpc::FrameError::Incomplete);
            return Err(self.refuse(self.call, &refusal).await);
        }
        if let Some((outgoing, _)) = &mut self.etcd {
            outgoing.finish().map_err(Ended::by_etcd)?;
            return Ok(false);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        self.finish(&trailers).map(|()| true)
    }

    /// One message of the client: read, decide, record, forward.
    pub(super) async fn request(&mut self, message: &Bytes) -> Result<(), Ended> {
        self.end.requests += 1;
        let call = self.call.message(self.end.requests);
        self.head.share.hold_bytes(self.splitter.buffered_bytes(), usize::MAX);
        let rpc = self.head.rpc;
        let mut throttled =
            rpc != Rpc::LeaseKeepAlive && !self.head.identified.takes_request(&self.core);
        let request = match read_request(&self.core, &self.head.identified, rpc, message) {
            Ok(request) => request,
            Err(error @ Malformed::Request(InvalidRequest::Range(_))) if rpc == Rpc::Watch => {
                let (refusal, text) = if throttled {
                    (Refusal::Rate, TOO_MANY_WATCHES)
                } else {
                    (error.into(), WATCH_RANGE_EMPTY)
                };
                self.record_refusal(call, &refusal).await?;
                self.answer_watch(text);
                return Ok(());
            }
            Err(error) => return Err(self.refuse(call, &error.into()).await),
        };
        if self.renews_a_foreign_lease(&request) {
            throttled = !self.head.identified.takes_request(&self.core);
        }
        let creates = matches!(request.touches().first(), Some(Touch::Key { .. }));
        // A cancel makes room, and to refuse it would end all watches of the stream.
        let cancels = matches!(request.touches().first(), Some(Touch::CancelWatch(_)));
        if throttled && !creates && !cancels {
            return Err(self.refuse(call, &Refusal::Rate).await);
        }
        let watch = creates.then(|| kept(request.touches()));
        if let Some(touches) = &watch
            && (throttled || !self.takes_watch(touches))
        {
            let refusal = if throttled { Refusal::Rate } else { Refusal::Share };
            self.record_refusal(call, &refusal).await?;
            self.answer_watch(TOO_MANY_WATCHES);
            return Ok(());
        }
        let asking = self.asking(call, message.len());
        match asking.authorize(request).await {
            Ok((permit, recorded)) => {
                let forwarded = self.forward_in_time(&permit, &recorded, call).await;
                if let Err(error) = forwarded {
                    let (status, fault) = forward_failed(&error);
                    let code = Some(status.code as u16);
                    let fault = Some(fault);
                    recorded.finish(Outcome { status: code, fault, ..Outcome::default() });
                    return Err(Ended::by_etcd(error));
                }
                if creates || rpc == Rpc::LeaseKeepAlive {
                    let is_named = creates && names_its_id(permit.body());
                    let watch = watch.map(|touches| (touches, is_named));
                    self.unanswered.push_back(Unanswered { recorded, watch });
                } else {
                    // etcd need not answer a cancel or a progress request: it was sent.
                    recorded.finish(Outcome { status: Some(0), ..Outcome::default() });
                }
                Ok(())
            }
            Err(refused) if rpc == Rpc::Watch && refused.status.code == Code::PermissionDenied => {
                if let Some(touches) = watch {
                    self.watches.take_back(&touches);
                    self.answer_watch(WATCH_DENIED);
                }
                Ok(())
            }
            Err(Refused { status, fault }) => Err(Ended::Told(status, fault)),
        }
    }

    fn takes_watch(&mut self, touches: &Touches) -> bool {
        let bytes_max = self.core.limits.request_bytes_per_principal;
        self.watches.add(touches, self.head.identified.bounds.watches, bytes_max)
    }

    /// The stream's own time may end meanwhile: the record of this message then says so.
    pub(super) async fn forward_in_time(
        &mut self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(), ForwardError> {
        match self.ends {
            None => self.forward(permit, recorded, call).await,
            Some(ends) => {
                let forwarding = self.forward(permit, recorded, call);
                let forwarded = tokio::time::timeout_at(ends, forwarding).await;
                forwarded.unwrap_or(Err(ForwardError::TimedOut))
            }
        }
    }

    pub(super) async fn forward(
        &mut self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(), ForwardError> {
        if let Some((outgoing, _)) = &mut self.etcd {
            return outgoing.send(permit, recorded, call);
        }
        let opening = self.asking(call, 0);
        let (outgoing, incoming, token) = opening.open(permit, recorded, call).await?;
        self.etcd = Some((outgoing, incoming));
        self.token = token;
        Ok(())
    }

    pub(super) fn asking(&self, call: CallId, request_bytes: usize) -> Asking<'_> {
        Asking {
            core: &self.core,
            client: &self.client,
            identified: &self.head.identified,
            metadata: &self.head.metadata,
            call,
            request_bytes,
            ends: self.ends,
        }
    }

    /// A lease that is not the principal's own has to be looked up: that was free at any rate.
    pub(super) fn renews_a_foreign_lease(&self, request: &CanonicalRequest) -> bool {
        let principal = &self.head.identified.identification.principal;
        let foreign = |touch: &Touch| match touch {
            Touch::Lease { lease, .. } => !self.core.leases.owns(principal, *lease),
            _ => false,
        };
        request.touches().iter().any(foreign)
    }

    pub(super) fn answer_watch(&mut self, reason: &str) {
        // Who may do nothing at all does not learn the store's revision from a denial.
        let grants = self.head.identified.identification.rights.grants_anything();
        let header = if grants { self.header } else { Header::default() };
        self.answers.push_back(answer_to_create(header, reason));
    }

    pub(super) async fn record_refusal(
        &self,
        call: CallId,
        refusal: &Refusal,
    ) -> Result<(), Ended> {
        let path = self.head.rpc.path();
        let recorded = record_refusal(&self.client, call, path, refusal).await;
        recorded.map_err(|_| Ended::Told(audit_unavailable(), "audit_unavailable"))
    }

    /// Records a request that cannot be read; the stream ends with it.
    pub(super) async fn refuse(&self, call: CallId, refusal: &Refusal) -> Ended {
        match self.record_refusal(call, refusal).await {
            Err(ended) => ended,
            Ok(()) => refusal
                .status()
                .map_or(Ended::ClientGone, |status| Ended::Told(status, refusal.reason())),
        }
    }
}

/// Whether a create brings the ID of its watch; without one etcd picks it. What cannot be read may have one.
fn names_its_id(body: &[u8]) -> bool {
    let request = WatchRequest::decode(body).ok().and_then(|request| request.request_union);
    !matches!(request, Some(RequestUnion::CreateRequest(create)) if create.watch_id == 0)
}
