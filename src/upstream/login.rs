//! Users of etcd as which identities reach it: their passwords, their tokens, and when to log in again.
//! One log-in at a time for each user, over all cores; every token and password stays out of logs.
//!
//! It asks etcd nothing itself, and reads no clock: time comes in as an argument.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use zeroize::Zeroizing;

/// etcd's simple tokens die 300 s after their last use (server/auth/simple_token.go), its JWTs after as
/// long as it was told. From this age on a new one is fetched while the old one still serves.
const RENEW_AFTER: Duration = Duration::from_secs(180);
/// From this age on a token is not used.
const STOP_AFTER: Duration = Duration::from_secs(270);
/// How long calls fail without another try when etcd refused the user; doubled each time. etcd spends
/// tens of milliseconds of a core on every password (bcrypt).
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// The same when it could not be asked.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A password. It is shown nowhere, and overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text, for the one request that needs it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// What etcd gave for a password; the header's value is marked as sensitive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// Takes the token; `None` when it cannot be the value of a header.
    #[must_use]
    pub fn new(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(token).ok().filter(|value| !value.is_empty())?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    pub(super) const fn header(&self) -> &HeaderValue {
        &self.0
    }
}

/// The users of each identity: who has a user's name under one identity has no part in another's.
#[derive(Debug, Default)]
pub struct Logins(Vec<HashMap<Arc<str>, Arc<Login>>>);

impl Logins {
    /// Passwords by user, for each identity that has some. Nobody is logged in before the first call.
    #[must_use]
    pub fn new(passwords: Vec<HashMap<String, Secret>>) -> Self {
        let login = |(user, password): (String, Secret)| {
            let user: Arc<str> = user.into();
            (Arc::clone(&user), Arc::new(Login::new(user, password)))
        };
        let of_identity = |users: HashMap<String, Secret>| users.into_iter().map(login).collect();
        Self(passwords.into_iter().map(of_identity).collect())
    }

    /// The same users, those with the tokens and the state that they have there already, if there they have the same
    /// password.
    #[must_use]
    pub fn going_on_with(self, before: &Self) -> Self {
        let known = |login: Arc<Login>| {
            let mut all = before.0.iter().filter_map(|users| users.get(&login.user));
            all.find(|known| known.password == login.password).cloned().unwrap_or(login)
        };
        let of_identity = |users: HashMap<Arc<str>, Arc<Login>>| {
            users.into_iter().map(|(user, login)| (user, known(login))).collect()
        };
        Self(self.0.into_iter().map(of_identity).collect())
    }

    /// The log-in of that user of the identity with these files, if its password is in one of them.
    #[must_use]
    pub fn of(&self, files: usize, user: &str) -> Option<Arc<Login>> {
        self.0.get(files)?.get(user).cloned()
    }
}

/// One user.
#[derive(Debug)]
pub struct Login {
    user: Arc<str>,
    password: Secret,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    token: Option<(Token, Duration)>,
    is_logging_in: bool,
    failed: Option<LoginFailure>,
    /// Not before.
    retry_at: Duration,
    back_off: Duration,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFailure {
    /// etcd refuses the user or the password, or has authentication switched off.
    Refused,
    /// etcd could not be asked, or its answer is none.
    Unavailable,
}

/// What a call does that needs a token.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Uses this one.
    Use(Token),
    /// Uses this one, and has somebody log in for the next.
    Renew(Token),
    /// Has somebody log in, and asks again.
    LogIn,
    /// Waits for the one who logs in, and asks again.
    Wait,
    /// Fails.
    Fail(LoginFailure),
}

impl Login {
    fn new(user: Arc<str>, password: Secret) -> Self {
        Self { user, password, state: Mutex::default(), changed: Notify::new() }
    }

    /// Its name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Its password.
    #[must_use]
    pub const fn password(&self) -> &Secret {
        &self.password
    }

    /// Whose turn it is at `now`. Who is told [`Turn::LogIn`] or [`Turn::Renew`] has to
    /// [`Login::finish`].
    pub fn turn(&self, now: Duration) -> Turn {
        let mut state = self.state();
        let rests = now < state.retry_at;
        if let Some((token, obtained)) = &state.token {
            let (token, age) = (token.clone(), now.saturating_sub(*obtained));
            if age < RENEW_AFTER || (age < STOP_AFTER && (state.is_logging_in || rests)) {
                return Turn::Use(token);
            }
            if age < STOP_AFTER {
                state.is_logging_in = true;
                return Turn::Renew(token);
            }
        }
        match state.failed {
            _ if state.is_logging_in => Turn::Wait,
            Some(failure) if rests => Turn::Fail(failure),
            _ => {
                state.is_logging_in = true;
                Turn::LogIn
            }
        }
    }

    /// Notes what came of a log-in; true when it is news.
    pub fn finish(&self, now: Duration, outcome: Result<Token, LoginFailure>) -> bool {
        let mut state = self.state();
        state.is_logging_in = false;
        let before = state.failed;
        match outcome {
            Ok(token) => {
                state.token = Some((token, now));
                state.failed = None;
                state.back_off = Duration::ZERO;
                state.retry_at = now;
            }
            Err(failure) => {
                state.failed = Some(failure);
                let pause = match failure {
                    LoginFailure::Refused => {
                        state.back_off = (state.back_off * 2).clamp(BACK_OFF_MIN, BACK_OFF_MAX);
                        state.back_off
                    }
                    LoginFailure::Unavailable => RETRY_AFTER,
                };
                state.retry_at = now.saturating_add(pause);
            }
        }
        let is_news = before != state.failed;
        drop(state);
        self.changed.notify_waiters();
        is_news
    }

    /// etcd no longer takes this token.
    pub fn forget(&self, token: &Token) {
        let mut state = self.state();
        if state.token.as_ref().is_some_and(|(kept, _)| kept == token) {
            state.token = None;
        }
    }

    /// Ends when a log-in does; to be enabled before [`Login::turn`] is asked.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login::new("alice".into(), Secret::new(Zeroizing::new("sesame".to_owned())))
    }

    fn token(text: &str) -> Token {
        Token::new(text).unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_logs_in_and_the_others_wait() {
        let login = login();
        assert_eq!(login.turn(at(0)), Turn::LogIn);
        assert_eq!(login.turn(at(0)), Turn::Wait);
        assert!(!login.finish(at(1), Ok(token("a"))));
        assert_eq!(login.turn(at(1)), Turn::Use(token("a")));
    }

    #[test]
    fn a_token_is_renewed_while_it_serves_and_not_used_when_old() {
        let login = login();
        assert_eq!(login.turn(at(0)), Turn::LogIn);
        login.finish(at(0), Ok(token("a")));
        assert_eq!(login.turn(at(179)), Turn::Use(token("a")));
        assert_eq!(login.turn(at(180)), Turn::Renew(token("a")));
        assert_eq!(login.turn(at(181)), Turn::Use(token("a")));
        assert_eq!(login.turn(at(270)), Turn::Wait);
        login.finish(at(271), Ok(token("b")));
        assert_eq!(login.turn(at(271)), Turn::Use(token("b")));
        // A renewal that fails does not take the old one away before its time.
        assert_eq!(login.turn(at(460)), Turn::Renew(token("b")));
        assert!(login.finish(at(460), Err(LoginFailure::Unavailable)));
        assert_eq!(login.turn(at(460)), Turn::Use(token("b")));
        assert_eq!(login.turn(at(461)), Turn::Renew(token("b")));
    }

    #[test]
    fn a_refused_user_is_tried_ever_more_rarely() {
        let login = login();
        let mut now = at(0);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(login.turn(now), Turn::LogIn);
            assert_eq!(login.finish(now, Err(LoginFailure::Refused)), now == at(0));
            now += at(pause);
            let before = now - Duration::from_millis(1);
            assert_eq!(login.turn(before), Turn::Fail(LoginFailure::Refused), "{pause}");
        }
        assert_eq!(login.turn(now), Turn::LogIn);
        assert!(login.finish(now, Ok(token("a"))));
    }

    #[test]
    fn a_forgotten_token_is_forgotten_once() {
        let login = login();
        assert_eq!(login.turn(at(0)), Turn::LogIn);
        login.finish(at(0), Ok(token("a")));
        login.forget(&token("another"));
        assert_eq!(login.turn(at(1)), Turn::Use(token("a")));
        login.forget(&token("a"));
        assert_eq!(login.turn(at(1)), Turn::LogIn);
    }

    #[test]
    fn nothing_shows_a_password_or_a_token() {
        let login = login();
        login.finish(at(0), Ok(token("secret-token")));
        let shown = format!("{login:?}");
        assert!(shown.contains("alice"), "{shown}");
        assert!(!shown.contains("sesame") && !shown.contains("secret-token"), "{shown}");
    }
}
