//! As whom a call reaches etcd: as ringfence, with a certificate of its identity's own, or as a user of
//! etcd's, whose token ringfence fetches and puts in. It never sends a call as somebody else than its
//! identity says, and never again what may have run.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Core;
use super::authorize::{Asking, OURSELVES, record};
use super::refuse::forward_failed;
use super::reply::{Whole, collect};
use crate::audit::event::{DecisionEvent, Path};
use crate::audit::{
    CallId, CoreShare, Event, Outcome, Recorded, RecordedTouches, Unavailable, Verdict,
};
use crate::etcd::{Rpc, strict};
use crate::grpc::metadata::Metadata;
use crate::metrics::LoginResult;
use crate::policy::{self, Permit, permit_log_in, permit_probe};
use crate::upstream::{
    ForwardError, Incoming, Login, LoginFailure, Outgoing, Pool, Reply, Token, Turn, forward, open,
    refuses_token,
};

/// As whom a principal reaches etcd.
#[derive(Clone, Debug)]
pub(super) enum ActsAs {
    Ringfence,
    /// Over these connections.
    Certificate(Rc<Pool>),
    User(Arc<Login>),
    /// As a user whose password is not known: not at all.
    Nobody,
}

impl ActsAs {
    pub(super) fn new(core: &Core, named: &policy::ActsAs) -> Self {
        match named {
            policy::ActsAs::Ringfence => Self::Ringfence,
            // Who has no file hears so at each call, and its records say it. No line here: whoever has a
            // certificate could fill the log by connecting.
            policy::ActsAs::User { files, user } => {
                core.logins.of(*files, user).map_or(Self::Nobody, Self::User)
            }
            policy::ActsAs::Certificate(number) => match core.certificate_pools.get(*number) {
                Some(pool) => Self::Certificate(Rc::clone(pool)),
                None => Self::Nobody,
            },
            policy::ActsAs::Nobody => Self::Nobody,
        }
    }

    /// Whether etcd sees the same, over the same way.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ringfence, Self::Ringfence) | (Self::Nobody, Self::Nobody) => true,
            (Self::Certificate(pool), Self::Certificate(other)) => Rc::ptr_eq(pool, other),
            (Self::User(login), Self::User(other)) => Arc::ptr_eq(login, other),
            _ => false,
        }
    }

    fn pool<'a>(&'a self, core: &'a Core) -> Result<&'a Pool, ForwardError> {
        match self {
            Self::Ringfence | Self::User(_) => Ok(&core.pool),
            Self::Certificate(pool) => Ok(pool),
            Self::Nobody => Err(ForwardError::NoPassword),
        }
    }

    fn login(&self) -> Option<&Arc<Login>> {
        match self {
            Self::User(login) => Some(login),
            Self::Ringfence | Self::Certificate(_) | Self::Nobody => None,
        }
    }
}

/// The token that a stream was opened with.
pub(super) type StreamToken = Option<(Arc<Login>, Token)>;

impl Asking<'_> {
    /// Forwards what the permit holds, as whom the identity says.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn forward(
        &self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<Reply, ForwardError> {
        let acts_as = &self.identified.acts_as;
        match acts_as.login() {
            None => {
                let pool = acts_as.pool(self.core)?;
                forward(pool, permit, recorded, call, self.metadata, None).await
            }
            // On the heap: the future of every other call stays small.
            Some(login) => Box::pin(self.forward_with_token(login, permit, recorded, call)).await,
        }
    }

    async fn forward_with_token(
        &self,
        login: &Arc<Login>,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<Reply, ForwardError> {
        let mut again = !runs_in_steps(permit.rpc());
        loop {
            let token = self.token(login, call).await?;
            let pool = &self.core.pool;
            let token_of = Some(&token);
            let mut reply = forward(pool, permit, recorded, call, self.metadata, token_of).await?;
            reply.look_ahead().await?;
            if !reply.trailers_only.as_ref().is_some_and(refuses_token) {
                return Ok(reply);
            }
            login.forget(&token);
            if !std::mem::take(&mut again) {
                return Err(ForwardError::TokenRefused);
            }
        }
    }

    /// Opens a stream, as whom the identity says.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub(super) async fn open(
        &self,
        permit: &Permit,
        recorded: &Recorded,
        call: CallId,
    ) -> Result<(Outgoing, Incoming, StreamToken), ForwardError> {
        let acts_as = &self.identified.acts_as;
        let pool = acts_as.pool(self.core)?;
        let token = match acts_as.login() {
            None => None,
            Some(login) => {
                let token = Box::pin(self.token(login, call)).await?;
                Some((Arc::clone(login), token))
            }
        };
        let header = token.as_ref().map(|(_, token)| token);
        let (outgoing, incoming) =
            open(pool, permit, recorded, call, self.metadata, header).await?;
        Ok((outgoing, incoming, token))
    }

    /// The user's token; logs in when that is due. The log-in is a task of its own, so that a call that
    /// has no time left does not end what others wait for.
    async fn token(&self, login: &Arc<Login>, call: CallId) -> Result<Token, ForwardError> {
        loop {
            let mut changed = std::pin::pin!(login.changed());
            // Before the state is looked at: what changes in between must not be missed.
            changed.as_mut().enable();
            match login.turn(self.core.started.elapsed()) {
                Turn::Use(token) => return Ok(token),
                Turn::Renew(token) => {
                    self.spawn_log_in(login, call);
                    return Ok(token);
                }
                Turn::LogIn => self.spawn_log_in(login, call),
                Turn::Wait => {}
                Turn::Fail(LoginFailure::Refused) => return Err(ForwardError::LoginRefused),
                Turn::Fail(LoginFailure::Unavailable) => return Err(ForwardError::Unreachable),
            }
            changed.await;
        }
    }

    fn spawn_log_in(&self, login: &Arc<Login>, call: CallId) {
        let log_in = LogIn {
            core: Rc::clone(self.core),
            login: Arc::clone(login),
            share: self.identified.queue_share.clone(),
            call: call.step(self.core.next_step()),
            is_finished: false,
        };
        tokio::task::spawn_local(log_in.run());
    }

    /// Whether etcd still takes the token of a stream. A watch that it does not let begin looks alike
    /// whether the token is bad or the user has no right, so etcd is asked something else with it.
    pub(super) async fn takes_token(&self, (login, token): &(Arc<Login>, Token)) -> bool {
        // A question more is a request more.
        if !self.identified.takes_request(self.core) {
            return false;
        }
        let ends = Instant::now() + self.core.limits.call_timeout;
        let call = self.call.step(self.core.next_step());
        let permit = permit_probe();
        let share = &self.identified.queue_share;
        let Ok(recorded) = record_step(self.core, share, call, &permit, ends).await else {
            return false;
        };
        let metadata = Metadata::default();
        let probing = async {
            let pool = &self.core.pool;
            let reply = forward(pool, &permit, &recorded, call, &metadata, Some(token)).await?;
            collect(reply).await
        };
        let answer = tokio::time::timeout_at(ends, probing).await;
        let answer = answer.unwrap_or(Err(ForwardError::TimedOut));
        finish_step(recorded, answer.as_ref());
        match answer {
            Ok(whole) if refuses_token(&whole.trailers) => {
                login.forget(token);
                false
            }
            Ok(_) => true,
            // What cannot be told is not told to be a denial; nor is a token thrown away for it that other
            // tenants use, too: whoever can make a question fail could have them wait for log-ins.
            Err(_) => false,
        }
    }
}

/// These etcd runs as several requests, of which some may have run when it says that it does not take the
/// token.
fn runs_in_steps(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::Lock
            | Rpc::Unlock
            | Rpc::Campaign
            | Rpc::Proclaim
            | Rpc::Leader
            | Rpc::Observe
            | Rpc::Resign
    )
}

/// One log-in under way.
struct LogIn {
    core: Rc<Core>,
    login: Arc<Login>,
    share: CoreShare,
    call: CallId,
    is_finished: bool,
}

impl LogIn {
    async fn run(mut self) {
        let outcome = self.ask().await;
        self.finish(outcome);
    }

    /// Asks etcd for a token, recorded like every request.
    async fn ask(&self) -> Result<Token, (LoginFailure, String)> {
        let unavailable = |why: &dyn ToString| (LoginFailure::Unavailable, why.to_string());
        let refused = |why: &str| (LoginFailure::Refused, why.to_owned());
        let (core, login) = (&self.core, &self.login);
        let ends = Instant::now() + core.limits.call_timeout;
        let permit = permit_log_in(login.user(), login.password().text());
        let permit = permit.ok_or_else(|| refused("user and password are too long"))?;
        let recorded = record_step(core, &self.share, self.call, &permit, ends).await;
        let recorded =
            recorded.map_err(|Unavailable| unavailable(&"the audit log takes no records"))?;
        let metadata = Metadata::default();
        let asking = async {
            let (pool, call) = (&core.pool, self.call);
            collect(forward(pool, &permit, &recorded, call, &metadata, None).await?).await
        };
        let answer = tokio::time::timeout_at(ends, asking).await;
        let answer = answer.unwrap_or(Err(ForwardError::TimedOut));
        finish_step(recorded, answer.as_ref());
        let Whole { message, trailers } = answer.map_err(|error| unavailable(&error))?;
        match status_of(&trailers) {
            Some(0) => {
                let message = message.unwrap_or_default();
                let token = strict::login_token(&message).ok();
                token
                    .and_then(|token| Token::new(&token))
                    .ok_or_else(|| unavailable(&"the answer holds no token"))
            }
            // What etcd says when it cannot ask its peers; anything else is about the user.
            Some(4 | 8 | 13 | 14) | None => Err(unavailable(&message_of(&trailers))),
            Some(_) => Err(refused(&message_of(&trailers))),
        }
    }

    fn finish(&mut self, outcome: Result<Token, (LoginFailure, String)>) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let result = match &outcome {
            Ok(_) => LoginResult::Ok,
            Err((LoginFailure::Refused, _)) => LoginResult::Refused,
            Err((LoginFailure::Unavailable, _)) => LoginResult::Unavailable,
        };
        self.core.metrics.count_login(result);
        let now = self.core.started.elapsed();
        let why = outcome.as_ref().err().cloned();
        let is_news = self.login.finish(now, outcome.map_err(|(failure, _)| failure));
        let user = self.login.user();
        match why {
            Some((LoginFailure::Refused, why)) if is_news => tracing::warn!(
                user,
                why,
                "etcd does not let this user in, and calls of its identity fail; mended in etcd it is let in \
                 by itself, another `password_file` or `upstream` counts when its file changes"
            ),
            Some((LoginFailure::Unavailable, why)) if is_news => tracing::warn!(
                user,
                why,
                "this user cannot be logged in at etcd now, and calls of its identity fail; the next call tries again"
            ),
            None if is_news => tracing::info!(user, "etcd lets this user in again"),
            Some(_) | None => {}
        }
    }
}

/// A core that ends must not leave the calls of other cores waiting.
impl Drop for LogIn {
    fn drop(&mut self) {
        self.finish(Err((LoginFailure::Unavailable, "given up".to_owned())));
    }
}

/// Records a request of ringfence's own, before it is forwarded.
pub(super) async fn record_step(
    core: &Core,
    share: &CoreShare,
    call: CallId,
    permit: &Permit,
    ends: Instant,
) -> Result<Recorded, Unavailable> {
    let event = Event::Decision(DecisionEvent {
        call,
        principal: Some(OURSELVES),
        path: Path::Known(permit.rpc().path()),
        verdict: Verdict::Allow(SmallVec::new()),
        touches: RecordedTouches::new(permit.touches()),
        request_bytes: permit.body().len(),
    });
    core.recorder.allow(share, call, &record(event), Some(ends)).await
}

fn finish_step(recorded: Recorded, answer: Result<&Whole, &ForwardError>) {
    let (status, fault) = match answer {
        Ok(whole) => (status_of(&whole.trailers), None),
        Err(error) => {
            let (status, fault) = forward_failed(error);
            (Some(status.code as u16), Some(fault))
        }
    };
    recorded.finish(Outcome { status, fault, ..Outcome::default() });
}

pub(super) fn status_of(trailers: &http::HeaderMap) -> Option<u16> {
    trailers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// etcd's text, bounded.
fn message_of(trailers: &http::HeaderMap) -> String {
    let message = trailers.get("grpc-message").map(http::HeaderValue::as_bytes).unwrap_or_default();
    String::from_utf8_lossy(message).chars().take(200).collect()
}
