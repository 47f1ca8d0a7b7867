//! From when until when something holds, and what that means now.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Less than this part of the lifetime left is worth a warning.
const WARN_PART: i64 = 3;

/// First and last second, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The first second.
    pub from_seconds: i64,
    /// The last second.
    pub until_seconds: i64,
}

/// What a lifetime means at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is over.
    Expired,
    /// It has not begun.
    NotYetValid,
    /// Less than a third of it is left.
    Ending,
    /// More is left.
    Valid,
}

impl Lifetime {
    /// What it means now.
    #[must_use]
    pub const fn state(&self, now_seconds: i64) -> State {
        if now_seconds > self.until_seconds {
            State::Expired
        } else if now_seconds < self.from_seconds {
            State::NotYetValid
        } else if self.left_seconds(now_seconds).saturating_mul(WARN_PART) < self.seconds() {
            State::Ending
        } else {
            State::Valid
        }
    }

    /// How long it lasts from beginning to end.
    #[must_use]
    pub const fn seconds(&self) -> i64 {
        self.until_seconds.saturating_sub(self.from_seconds)
    }

    /// How much of it is left; negative when it is over.
    #[must_use]
    pub const fn left_seconds(&self, now_seconds: i64) -> i64 {
        self.until_seconds.saturating_sub(now_seconds)
    }

    /// That in words.
    #[must_use]
    pub fn in_words(&self, now_seconds: i64) -> String {
        let left = self.left_seconds(now_seconds);
        match self.state(now_seconds) {
            State::Expired => format!("EXPIRED {} ago", span(left.saturating_neg())),
            State::NotYetValid => {
                let until = self.from_seconds.saturating_sub(now_seconds);
                format!("NOT YET VALID: begins in {}", span(until))
            }
            State::Ending | State::Valid => {
                format!("{} left of {}", span(left), span(self.seconds()))
            }
        }
    }
}

/// A span in its two or so largest digits.
#[must_use]
pub fn span(seconds: i64) -> String {
    let (count, unit) = match seconds {
        seconds if seconds >= 2 * DAY => (seconds / DAY, "days"),
        seconds if seconds >= 2 * HOUR => (seconds / HOUR, "hours"),
        seconds if seconds >= 2 * MINUTE => (seconds / MINUTE, "minutes"),
        seconds => (seconds, "seconds"),
    };
    format!("{count} {unit}")
}

/// A second in RFC 3339, UTC.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now_days: i64, expected: State, words: &str) {
        let lifetime = Lifetime { from_seconds: 10 * DAY, until_seconds: 100 * DAY };
        assert_eq!(lifetime.state(now_days * DAY), expected, "{now_days}");
        assert_eq!(lifetime.in_words(now_days * DAY), words);
    }

    #[test]
    fn less_than_a_third_left_is_worth_a_warning() {
        check(10, State::Valid, "90 days left of 90 days");
        check(70, State::Valid, "30 days left of 90 days");
        check(71, State::Ending, "29 days left of 90 days");
        check(100, State::Ending, "0 seconds left of 90 days");
    }

    #[test]
    fn what_is_over_or_has_not_begun_is_said_plainly() {
        check(9, State::NotYetValid, "NOT YET VALID: begins in 24 hours");
        check(101, State::Expired, "EXPIRED 24 hours ago");
        let endless = Lifetime { from_seconds: i64::MIN, until_seconds: i64::MAX };
        assert_eq!(endless.state(0), State::Valid);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(i64::MAX), "unknown");
    }
}
