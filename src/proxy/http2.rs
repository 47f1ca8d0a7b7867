//! The HTTP/2 streams of one client connection, until it ends or has to.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::connection::Client;
use super::ending::{Deadlines, Ending, Standing};
use super::guard::{Guard, Guarded};
use super::judge::{Judgements, Member};
use super::share::StreamShare;
use super::{Core, Refusal, call};
use crate::audit::CallId;
use crate::grpc::{FrameLimits, flood::FRAME_BYTES_MAX};

/// What a client may send on one stream before ringfence has taken it.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// And on all streams of a connection: what a client that never finishes a message can make us keep.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// What h2 may buffer of a reply; more waits at etcd.
const SEND_BUFFER_BYTES: usize = 16 * 1024;
/// Streams that a client opened and reset before they were served (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;
/// CONTINUATION frames beyond those that a header list of full size needs: some clients begin a new
/// frame for each large header.
const SPARE_CONTINUATIONS: u32 = 4;
/// Streams at a time of a connection that is nobody: each will be refused.
const NOBODY_STREAMS_MAX: u32 = 16;
/// How long the streams of a client whose right has ended may take to say so.
const TOLD_GRACE: Duration = Duration::from_millis(250);
/// How long a client that is cut may take to read that it is.
const CUT_GRACE: Duration = Duration::from_secs(1);
/// A timer that is not needed is set this far ahead.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Serves until the end; how many calls there were, and why it ended.
pub(super) async fn serve(member: &Member, stream: TlsStream<TcpStream>) -> (u64, Ending) {
    let mut client = member.client();
    let core = Rc::clone(&client.core);
    let guard = Rc::new(Guard::new(FrameLimits {
        control_frames_per_second: core.limits.control_frames_per_second,
        resets_per_second: core.limits.resets_per_second,
        continuations: core.limits.header_list_bytes / FRAME_BYTES_MAX + SPARE_CONTINUATIONS,
    }));
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(core.limits.streams_per_connection)
        .max_header_list_size(core.limits.header_list_bytes)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .handshake::<_, Bytes>(Guarded::new(stream, Rc::clone(&guard)));
    let connection = match tokio::time::timeout(core.limits.handshake_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return (0, Ending::of(&error)),
        Err(_) => return (0, Ending::NoPreface),
    };
    let mut session = Session::new(&core, connection, guard);
    // A connection that stays must not keep the generation that it came under.
    drop(core);
    let (share, streams_max) = match &client.identified {
        Ok(identified) => {
            let bounds = identified.bounds;
            (Rc::clone(&identified.share), bounds.calls.saturating_add(bounds.streams))
        }
        Err(_) => (Rc::default(), NOBODY_STREAMS_MAX),
    };
    let mut calls = 0;
    if let Some(ending) = client.ending {
        session.leave(ending);
    }
    // Once for all calls, and set anew only when it has brought something: to begin waiting takes locks.
    let mut judged = Box::pin(next_judgement(Judgements::after(&client)));
    loop {
        let event = tokio::select! {
            biased;
            (judgements, next) = judged.as_mut() => {
                judged.set(next_judgement(judgements));
                client = next;
                match client.ending.filter(|ending| session.may_go_politely(*ending)) {
                    Some(ending) => SessionEvent::Due(Due::Leave(ending)),
                    None => continue,
                }
            }
            event = std::future::poll_fn(|context| session.poll_event(context)) => event,
        };
        match event {
            SessionEvent::Call(request, mut respond) => {
                calls += 1;
                let call = CallId::new(client.connection, calls);
                // The head of a call waits in a task of some kilobytes. A principal with a thousand
                // streams on each of a thousand connections must not have a million of them.
                let Some(place) = share.stream(streams_max) else {
                    let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
                    let nobody = client.identified.as_ref().err().cloned();
                    let refusal = nobody.map_or(Refusal::Share, Refusal::NoPrincipal);
                    let page = super::page::is_plain_http(&request);
                    call::refuse_at_once(&client, call, path, &refusal, page, &mut respond);
                    continue;
                };
                let place = OpenStream::new(&session.activity, place);
                // On the heap: tokio moves what it is given several times before it runs, and once more when it ends.
                let serving =
                    Box::pin(call::serve(Rc::clone(&client), call, request, respond, place));
                tokio::task::spawn_local(serving);
            }
            SessionEvent::Due(Due::Leave(ending)) => session.leave(ending),
            SessionEvent::Due(Due::Gone(ending)) => return (calls, ending),
        }
    }
}

async fn next_judgement(mut judgements: Judgements) -> (Judgements, Rc<Client>) {
    let next = judgements.next().await;
    (judgements, next)
}

/// What happens on a connection.
#[expect(clippy::large_enum_variant, reason = "nearly all are calls, and none is kept")]
enum SessionEvent {
    Call(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>),
    Due(Due),
}

/// What must happen now.
enum Due {
    /// The connection must end, for that reason.
    Leave(Ending),
    /// It has ended.
    Gone(Ending),
}

/// How far the end has come.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Open,
    /// The client was told to go; its calls may end until then.
    Leaving(Ending, Option<Duration>),
    /// The client was cut off and may read why until then.
    Cut(Ending, Duration),
}

struct Session {
    connection: Connection<Guarded<TlsStream<TcpStream>>, Bytes>,
    guard: Rc<Guard>,
    activity: Rc<Activity>,
    deadlines: Deadlines,
    drain_timeout: Duration,
    phase: Phase,
    /// Never later than the next deadline. Deadlines that move away leave it where it is, so that a
    /// call costs no timer.
    alarm: Pin<Box<Sleep>>,
}

impl Session {
    fn new(
        core: &Core,
        connection: Connection<Guarded<TlsStream<TcpStream>>, Bytes>,
        guard: Rc<Guard>,
    ) -> Self {
        let activity = Activity {
            opened: guard.opened(),
            open: Cell::new(0),
            idle_since: Cell::new(guard.now()),
        };
        Self {
            connection,
            activity: Rc::new(activity),
            deadlines: Deadlines::of(&core.limits),
            drain_timeout: core.limits.drain_timeout,
            phase: Phase::Open,
            alarm: Box::pin(tokio::time::sleep_until(guard.opened())),
            guard,
        }
    }

    /// Whether it is told to go, and not cut off: at first, and when what it leaves for is another thing than a right
    /// that ends meanwhile.
    const fn may_go_politely(&self, ending: Ending) -> bool {
        match self.phase {
            Phase::Open => ending.is_polite(),
            Phase::Leaving(before, _) => ending.ends_a_right() && !before.ends_a_right(),
            Phase::Cut(..) => false,
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<SessionEvent> {
        match self.connection.poll_accept(context) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                return Poll::Ready(SessionEvent::Call(request, respond));
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "a client connection ended");
                return Poll::Ready(self.gone(Ending::of(&error)));
            }
            Poll::Ready(None) => {
                return Poll::Ready(self.gone(Ending::Client));
            }
            Poll::Pending => {}
        }
        loop {
            let look_again = match self.check() {
                Ok(look_again) => self.guard.opened() + look_again.min(FAR + self.guard.now()),
                Err(due) => return Poll::Ready(SessionEvent::Due(due)),
            };
            if look_again < self.alarm.deadline() || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(look_again);
            }
            ready!(self.alarm.as_mut().poll(context));
        }
    }

    /// When to look again at the latest; what must happen now comes as an error.
    fn check(&self) -> Result<Duration, Due> {
        let now = self.guard.now();
        if let Phase::Cut(ending, until) = self.phase {
            return if until <= now { Err(Due::Gone(ending)) } else { Ok(until) };
        }
        if let Some(flood) = self.guard.flood() {
            return Err(Due::Leave(Ending::Flood(flood)));
        }
        match self.phase {
            Phase::Leaving(ending, Some(until)) if until <= now => Err(Due::Leave(ending)),
            Phase::Leaving(_, until) => Ok(until.unwrap_or(Duration::MAX)),
            Phase::Open | Phase::Cut(..) => {
                let standing = Standing {
                    has_seen_header_block: self.guard.has_seen_header_block(),
                    unfinished_since: self.guard.unfinished_since(),
                    stalled_since: self.guard.stalled_since(),
                    idle_since: self.activity.idle_since(),
                };
                self.deadlines.check(&standing, now).map_err(Due::Leave)
            }
        }
    }

    /// Tells the client to go, or, when it had its time or misbehaves, cuts it off with GOAWAY.
    fn leave(&mut self, ending: Ending) {
        let now = self.guard.now();
        if self.may_go_politely(ending) {
            tracing::debug!(reason = ending.name(), "a client is told to go");
            let wait = if ending.ends_a_right() { TOLD_GRACE } else { self.drain_timeout };
            // At the end of the process the core knows when to stop waiting.
            let until = (ending != Ending::Drained).then(|| now.saturating_add(wait));
            self.phase = Phase::Leaving(ending, until);
            self.connection.graceful_shutdown();
        } else {
            tracing::debug!(reason = ending.name(), "a client is cut off");
            self.phase = Phase::Cut(ending, now.saturating_add(CUT_GRACE));
            self.connection.abrupt_shutdown(ending.http2_reason());
        }
    }

    /// The end, for what began it, not for what came of that.
    const fn gone(&self, last: Ending) -> SessionEvent {
        SessionEvent::Due(Due::Gone(match self.phase {
            Phase::Open => last,
            Phase::Leaving(ending, _) | Phase::Cut(ending, _) => ending,
        }))
    }
}

/// Whether calls are open, and since when none is.
#[derive(Debug)]
struct Activity {
    opened: Instant,
    open: Cell<usize>,
    idle_since: Cell<Duration>,
}

impl Activity {
    fn idle_since(&self) -> Option<Duration> {
        (self.open.get() == 0).then(|| self.idle_since.get())
    }
}

/// One open stream; dropped when its call has ended.
struct OpenStream {
    activity: Rc<Activity>,
    _place: StreamShare,
}

impl OpenStream {
    fn new(activity: &Rc<Activity>, place: StreamShare) -> Self {
        activity.open.set(activity.open.get() + 1);
        Self { activity: Rc::clone(activity), _place: place }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let open = self.activity.open.get().saturating_sub(1);
        self.activity.open.set(open);
        if open == 0 {
            self.activity.idle_since.set(self.activity.opened.elapsed());
        }
    }
}
