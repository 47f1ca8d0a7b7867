//! Plain HTTP on the client port: etcd's pages, with the phases of a call: read, decide, record,
//! forward, relay. Everything that is no page is answered 404 and recorded.
//!
//! It never sends client bytes, targets or headers on.

pub(super) mod http2;
mod refuse;
mod relay;

pub(super) use relay::{Cut, PageBody};

use http::header::{CONTENT_TYPE, HOST, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use smallvec::smallvec;
use tokio::time::Instant;

use super::Core;
use super::authorize::draw;
use super::connection::{Client, Identified};
use super::share::CallShare;
use crate::audit::event::{DecisionEvent, PATH_CHARS_MAX, Path};
use crate::audit::{CallId, Event, Record, Recorded, RecordedTouches, Shown, Unavailable, Verdict};
use crate::clock;
use crate::etcd::{Page, PageRequest, Rpc, StoreVerb};
use crate::metrics;
use crate::policy::{Cause, HttpDecision, HttpDenial, HttpPermit, decide_http};
use refuse::{HttpRefusal, audit_unavailable, text};
use relay::Relay;

/// Pages of one principal under way at a time, per core: fewer than there may be in all, so that
/// one that does not read what it asked for keeps nobody else from asking.
const PAGES_PER_PRINCIPAL: u32 = 4;

/// A request of plain HTTP, of either version. Nothing of a body is ever read.
#[derive(Debug)]
pub(super) struct HttpRequest<'a> {
    pub(super) call: CallId,
    pub(super) head: &'a Parts,
    pub(super) has_body: bool,
    pub(super) started: Instant,
}

/// Whether a stream of HTTP/2 is none of gRPC: etcd tells by the content type too. What has the path
/// of an RPC stays a call, so that its client hears of a wrong content type in the words of gRPC.
pub(super) fn is_plain_http<B>(request: &Request<B>) -> bool {
    let grpc = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    !request.headers().get(CONTENT_TYPE).is_some_and(grpc) && Rpc::from_path(path).is_none()
}

/// Answers one request. The JSON gateway (`/v3/`) would branch off before this, with the body.
pub(super) async fn answer(
    client: &Client,
    request: HttpRequest<'_>,
    cut: &Cut,
) -> Response<PageBody> {
    let core = &client.core;
    let open = core.open_calls.open();
    let (identified, page, share) = match read(core, client, &request) {
        Ok(read) => read,
        Err(refusal) => return refuse(core, client, &request, &refusal).await,
    };
    match decide_http(&identified.identification.rights, page) {
        HttpDecision::Deny(denial) => deny(core, identified, request.call, &denial).await,
        HttpDecision::Allow(permit) => match allow(
            core,
            identified,
            request.call,
            &permit,
            request.started + core.limits.call_timeout,
        )
        .await
        {
            Err(Unavailable) => audit_unavailable(),
            Ok(recorded) => {
                let relay = Relay::new(core, recorded, request.started, cut, share, open);
                relay.start(&permit, request.call).await
            }
        },
    }
}

/// Nothing of the request is believed before it is exactly one that etcd's pages take.
fn read<'c>(
    core: &Core,
    client: &'c Client,
    request: &HttpRequest<'_>,
) -> Result<(&'c Identified, PageRequest, CallShare), HttpRefusal> {
    let identified =
        client.identified.as_ref().map_err(|nobody| HttpRefusal::NoPrincipal(nobody.clone()))?;
    let page = read_page(request);
    // First of all, so that no mistake is free; but a probe must not fail for a busy program.
    let is_probe = page.as_ref().is_ok_and(|page| page.page().verb() == StoreVerb::Health);
    if !is_probe && !identified.takes_request(core) {
        return Err(HttpRefusal::Rate);
    }
    let page = page?;
    let mut share = identified.share.call(identified.bounds.calls).ok_or(HttpRefusal::Share)?;
    if !share.add_page(PAGES_PER_PRINCIPAL) {
        return Err(HttpRefusal::Share);
    }
    Ok((identified, page, share))
}

fn read_page(request: &HttpRequest<'_>) -> Result<PageRequest, HttpRefusal> {
    let head = request.head;
    let page = page_of(head).ok_or(HttpRefusal::UnknownPath)?;
    if head.method != Method::GET {
        return Err(HttpRefusal::Method);
    }
    if head.version == Version::HTTP_10 {
        return Err(HttpRefusal::Version);
    }
    if head.version == Version::HTTP_11 && head.headers.get_all(HOST).iter().count() != 1 {
        return Err(HttpRefusal::Host);
    }
    if head.headers.contains_key(UPGRADE) {
        return Err(HttpRefusal::Upgrade);
    }
    if request.has_body {
        return Err(HttpRefusal::Body);
    }
    Ok(PageRequest::read(page, head.uri.query())?)
}

/// HTTP/1.1 names the host in its target only towards a forward proxy, which this is not.
fn page_of(head: &Parts) -> Option<Page> {
    let for_a_proxy = head.version != Version::HTTP_2 && head.uri.authority().is_some();
    if for_a_proxy { None } else { Page::from_path(head.uri.path()) }
}

async fn refuse(
    core: &Core,
    client: &Client,
    request: &HttpRequest<'_>,
    refusal: &HttpRefusal,
) -> Response<PageBody> {
    core.metrics.count_page(page_of(request.head), metrics::Verdict::Refuse);
    let uri = &request.head.uri;
    let target = match request.head.version {
        Version::HTTP_2 => uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        _ => uri.to_string(),
    };
    let event = Event::Decision(DecisionEvent {
        call: request.call,
        principal: client.identified.as_ref().ok().map(|identified| identified.name.as_ref()),
        path: Path::Unknown(target.chars().take(PATH_CHARS_MAX).collect()),
        verdict: Verdict::Refuse { reason: refusal.reason(), detail: refusal.to_string() },
        touches: RecordedTouches::default(),
        request_bytes: 0,
    });
    let recorded = core.recorder.record(&client.queue_share, &record(event)).await;
    recorded.map_or_else(|Unavailable| audit_unavailable(), |()| refusal.response())
}

async fn deny(
    core: &Core,
    identified: &Identified,
    call: CallId,
    denial: &HttpDenial,
) -> Response<PageBody> {
    core.metrics.count_page(Some(denial.request.page()), metrics::Verdict::Deny);
    let (reason, rule) = match denial.cause {
        Cause::DenyRule(rule) => ("deny_rule", Some(core.policy.rule_name(rule))),
        // A page has nothing to do with leases.
        Cause::NoRule | Cause::ForeignLease | Cause::TooMany => ("no_rule", None),
    };
    let touches = smallvec![denial.request.touch()];
    let touches = core.recorder.levels().of_denied(identity_of(identified), &touches);
    let verdict = Verdict::Deny { reason, rule, touch: 0 };
    let event = decision(identified, call, &denial.request, verdict, touches);
    let recorded = core.recorder.record(&identified.queue_share, &record(event)).await;
    recorded.map_or_else(
        |Unavailable| audit_unavailable(),
        |()| text(StatusCode::FORBIDDEN, "permission denied"),
    )
}

async fn allow(
    core: &Core,
    identified: &Identified,
    call: CallId,
    permit: &HttpPermit,
    ends: Instant,
) -> Result<Recorded, Unavailable> {
    core.metrics.count_page(Some(permit.request().page()), metrics::Verdict::Allow);
    let touches = smallvec![permit.request().touch()];
    let levels = core.recorder.levels();
    let touches = match levels.of_allowed(identity_of(identified), &touches, draw, Vec::new) {
        Shown::LeftOut(by_rule) => return Ok(core.recorder.leave_out(call, by_rule)),
        Shown::Recorded(touches) => touches,
    };
    let verdict = Verdict::Allow(smallvec![core.policy.rule_name(permit.rule())]);
    let event = decision(identified, call, permit.request(), verdict, touches);
    core.recorder.allow(&identified.queue_share, call, &record(event), Some(ends)).await
}

fn identity_of(identified: &Identified) -> &str {
    identified.identification.principal.identity()
}

fn decision<'a>(
    identified: &'a Identified,
    call: CallId,
    page: &PageRequest,
    verdict: Verdict<'a>,
    touches: RecordedTouches<'a>,
) -> Event<'a> {
    Event::Decision(DecisionEvent {
        call,
        principal: Some(&identified.name),
        path: Path::Page(page.target()),
        verdict,
        touches,
        request_bytes: 0,
    })
}

fn record(event: Event<'_>) -> Record<'_> {
    Record { time: clock::since_epoch(), event }
}
