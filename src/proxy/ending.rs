//! Why and when a client connection ends. No I/O and no clock: times are counted from the moment the
//! connection began and come in as arguments.

use std::time::Duration;

use h2::Reason;

use super::Limits;
use crate::grpc::Flood;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client closed it, or is gone.
    Client,
    /// It spoke HTTP/1.1; how it ended is not told apart.
    Http1,
    /// ringfence was told to end.
    Drained,
    /// Its certificate, or one on the way to the CA, was revoked.
    CertificateRevoked,
    /// Its certificate, or one on the way to the CA, has expired.
    CertificateExpired,
    /// No configured CA vouches for its certificate any more.
    CertificateUntrusted,
    /// No identity matches its certificate any more.
    IdentityRemoved,
    /// Its certificate is somebody else's now, or reaches etcd as somebody else.
    IdentityChanged,
    /// No call for too long.
    Idle,
    /// It got as old as a connection may.
    Lifetime,
    /// A certificate was shown, and then nothing.
    NoPreface,
    /// HTTP/2 was greeted, and then nothing was asked.
    NoRequest,
    /// A frame or a header block was begun and not finished.
    HalfSent,
    /// It does not read what waits for it.
    Stalled,
    /// h2 cannot read it.
    ProtocolError,
    /// h2's own guards: streams reset before they were served, and the like.
    OtherFlood,
    /// Our guard.
    Flood(Flood),
}

impl Ending {
    /// The name in records and metrics: short, from a fixed set.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client_closed",
            Self::Http1 => "http1",
            Self::Drained => "drained",
            Self::CertificateRevoked => "certificate_revoked",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::IdentityRemoved => "identity_removed",
            Self::IdentityChanged => "identity_changed",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::NoPreface => "no_preface",
            Self::NoRequest => "no_request",
            Self::HalfSent => "half_sent",
            Self::Stalled => "stalled",
            Self::ProtocolError => "protocol_error",
            Self::OtherFlood => "other_flood",
            Self::Flood(Flood::Control) => "control_flood",
            Self::Flood(Flood::Resets) => "reset_flood",
            Self::Flood(Flood::Continuations) => "continuation_flood",
            Self::Flood(Flood::FrameSize) => "frame_size",
        }
    }

    /// Whether the client did nothing wrong: it is told to go, and its open calls may end.
    pub(super) const fn is_polite(self) -> bool {
        matches!(self, Self::Drained | Self::Idle | Self::Lifetime | Self::NoRequest)
            || self.ends_a_right()
    }

    /// Whether what the connection was let in by holds no longer: its calls end now.
    pub(super) const fn ends_a_right(self) -> bool {
        matches!(
            self,
            Self::CertificateRevoked
                | Self::CertificateExpired
                | Self::CertificateUntrusted
                | Self::IdentityRemoved
                | Self::IdentityChanged
        )
    }

    /// What the client is told when it is cut.
    pub(super) const fn http2_reason(self) -> Reason {
        match self {
            Self::Flood(Flood::FrameSize) => Reason::FRAME_SIZE_ERROR,
            Self::Flood(_) | Self::OtherFlood | Self::HalfSent => Reason::ENHANCE_YOUR_CALM,
            _ => Reason::NO_ERROR,
        }
    }

    /// What an error of h2 says about the end.
    pub(super) fn of(error: &h2::Error) -> Self {
        if error.is_io() || error.is_remote() {
            Self::Client
        } else if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
            Self::OtherFlood
        } else {
            Self::ProtocolError
        }
    }
}

/// How long a connection may be what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) first_request: Duration,
    pub(super) header: Duration,
    pub(super) stalled: Duration,
    pub(super) idle: Option<Duration>,
    pub(super) lifetime: Option<Duration>,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) has_seen_header_block: bool,
    pub(super) unfinished_since: Option<Duration>,
    /// Since when nothing can be written to it, although something waits.
    pub(super) stalled_since: Option<Duration>,
    /// When the last call ended; `None` while one is open.
    pub(super) idle_since: Option<Duration>,
}

impl Deadlines {
    pub(super) const fn of(limits: &Limits) -> Self {
        Self {
            first_request: limits.first_request_timeout,
            header: limits.header_timeout,
            stalled: limits.call_timeout,
            idle: limits.idle_timeout,
            lifetime: limits.lifetime,
        }
    }

    /// When to look again at the latest, if nothing but time passes.
    ///
    /// # Errors
    /// The ending whose time has come.
    pub(super) fn check(&self, standing: &Standing, now: Duration) -> Result<Duration, Ending> {
        let after = |since: Duration, wait: Duration| since.saturating_add(wait);
        let first = (!standing.has_seen_header_block).then_some(self.first_request);
        let half_sent = standing.unfinished_since.map(|since| after(since, self.header));
        // A call that is open now ends later, so this much later is early enough to look.
        let idle = self.idle.map(|idle| after(standing.idle_since.unwrap_or(now), idle));
        let stalled = standing.stalled_since.map(|since| after(since, self.stalled));
        let all = [
            (half_sent, Ending::HalfSent),
            (stalled, Ending::Stalled),
            (first, Ending::NoRequest),
            (idle, Ending::Idle),
            (self.lifetime, Ending::Lifetime),
        ];
        let mut look_again = Duration::MAX;
        for (deadline, ending) in all {
            match deadline {
                Some(deadline) if deadline <= now => return Err(ending),
                Some(deadline) => look_again = look_again.min(deadline),
                None => {}
            }
        }
        Ok(look_again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINES: Deadlines = Deadlines {
        first_request: Duration::from_secs(30),
        header: Duration::from_secs(10),
        stalled: Duration::from_secs(60),
        idle: Some(Duration::from_secs(100)),
        lifetime: Some(Duration::from_secs(1000)),
    };

    #[test]
    fn the_earliest_deadline_counts() {
        let seconds = Duration::from_secs;
        let check = |seen, unfinished: Option<u64>, idle: Option<u64>, now, expected| {
            let standing = Standing {
                has_seen_header_block: seen,
                unfinished_since: unfinished.map(seconds),
                stalled_since: None,
                idle_since: idle.map(seconds),
            };
            let found = DEADLINES.check(&standing, seconds(now));
            assert_eq!(found.map(|time| time.as_secs()), expected, "{standing:?} at {now}");
        };
        check(false, None, Some(0), 0, Ok(30));
        check(false, Some(5), Some(0), 14, Ok(15));
        check(false, Some(5), Some(0), 15, Err(Ending::HalfSent));
        check(false, None, Some(0), 30, Err(Ending::NoRequest));
        check(true, None, Some(20), 119, Ok(120));
        check(true, None, Some(20), 120, Err(Ending::Idle));
        // Open calls are not idle, however long they take; the lifetime counts for them too.
        check(true, None, None, 500, Ok(600));
        check(true, None, None, 950, Ok(1000));
        check(true, None, None, 1000, Err(Ending::Lifetime));
        let never = Deadlines { idle: None, lifetime: None, ..DEADLINES };
        let quiet = Standing {
            has_seen_header_block: true,
            unfinished_since: None,
            stalled_since: None,
            idle_since: Some(seconds(0)),
        };
        assert_eq!(never.check(&quiet, seconds(1 << 40)), Ok(Duration::MAX));
        let stalled = Standing { stalled_since: Some(seconds(5)), ..quiet };
        assert_eq!(never.check(&stalled, seconds(64)), Ok(seconds(65)));
        assert_eq!(never.check(&stalled, seconds(65)), Err(Ending::Stalled));
    }
}
