//! When certificates end: those of the config, each by its setting, and those that clients show, by identity. Times
//! are absolute, so that what is shown is right however old it is.
//!
//! How many identities are told apart is bounded; the others are in the histogram with all the rest.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The most identities that are told apart.
const IDENTITIES_MAX: usize = 200;
/// What an identity has shown counts for one to two of these.
const WINDOW: Duration = Duration::from_secs(3600);
const DAY: f64 = 86_400.0;
/// The upper bounds of the buckets for what is left of a certificate, in seconds.
const LEFT_BUCKETS: [f64; 9] = [
    3600.0,
    6.0 * 3600.0,
    DAY,
    3.0 * DAY,
    7.0 * DAY,
    14.0 * DAY,
    30.0 * DAY,
    90.0 * DAY,
    365.0 * DAY,
];

type Labels = [(&'static str, String); 1];
type ListLabels = [(&'static str, String); 2];
type Time = Gauge<i64, AtomicI64>;

/// Certificates and when they end.
#[derive(Debug)]
pub struct Certificates {
    not_before: Family<Labels, Time>,
    not_after: Family<Labels, Time>,
    list_this_update: Family<ListLabels, Time>,
    list_next_update: Family<ListLabels, Time>,
    shown_not_after: Family<Labels, Time>,
    left: Histogram,
    shown: Mutex<Shown>,
}

/// The first end among the certificates that each identity has shown, in this window and in the one before.
#[derive(Debug, Default)]
struct Shown {
    now: BTreeMap<String, i64>,
    before: BTreeMap<String, i64>,
    began: Duration,
}

/// A certificate of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCertificate {
    /// The setting that names it.
    pub setting: String,
    /// In seconds since 1970.
    pub not_before_seconds: i64,
    /// Likewise.
    pub not_after_seconds: i64,
}

/// A revocation list in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    /// The named CA.
    pub authority: String,
    /// Whose list it is.
    pub issuer: String,
    /// In seconds since 1970.
    pub this_update_seconds: i64,
    /// Likewise.
    pub next_update_seconds: i64,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            not_before: Family::default(),
            not_after: Family::default(),
            list_this_update: Family::default(),
            list_next_update: Family::default(),
            shown_not_after: Family::default(),
            left: Histogram::new(LEFT_BUCKETS),
            shown: Mutex::default(),
        }
    }
}

impl Certificates {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "certificate_not_before_timestamp",
            "When the certificate of a setting begins to hold, in seconds since 1970; of several the one that ends first",
            Unit::Seconds,
            self.not_before.clone(),
        );
        registry.register_with_unit(
            "certificate_not_after_timestamp",
            "When the certificate of a setting ends, in seconds since 1970; of several the first",
            Unit::Seconds,
            self.not_after.clone(),
        );
        registry.register_with_unit(
            "crl_this_update_timestamp",
            "When a revocation list in force was signed, in seconds since 1970, by CA and issuer",
            Unit::Seconds,
            self.list_this_update.clone(),
        );
        registry.register_with_unit(
            "crl_next_update_timestamp",
            "Until when a newer one is promised, in seconds since 1970",
            Unit::Seconds,
            self.list_next_update.clone(),
        );
        registry.register_with_unit(
            "client_certificate_not_after_timestamp",
            "The first end among the certificates that an identity has shown in the last hour or two, in seconds since 1970",
            Unit::Seconds,
            self.shown_not_after.clone(),
        );
        registry.register_with_unit(
            "client_certificate_left",
            "What was left of the certificates of all clients when they connected",
            Unit::Seconds,
            self.left.clone(),
        );
    }

    /// Those of the config in force; what was there before is gone.
    pub fn note_own(&self, own: &[OwnCertificate]) {
        self.not_before.clear();
        self.not_after.clear();
        for certificate in own {
            let labels = [("setting", certificate.setting.clone())];
            self.not_before.get_or_create_owned(&labels).set(certificate.not_before_seconds);
            self.not_after.get_or_create_owned(&labels).set(certificate.not_after_seconds);
        }
    }

    /// The revocation lists in force; what was there before is gone. Of several of one issuer the first to end counts.
    pub fn note_lists(&self, lists: impl IntoIterator<Item = RevocationList>) {
        self.list_this_update.clear();
        self.list_next_update.clear();
        let mut lists: Vec<RevocationList> = lists.into_iter().collect();
        lists.sort_by_key(|list| std::cmp::Reverse(list.next_update_seconds));
        for list in lists {
            let labels = [("authority", list.authority), ("issuer", list.issuer)];
            self.list_this_update.get_or_create_owned(&labels).set(list.this_update_seconds);
            self.list_next_update.get_or_create_owned(&labels).set(list.next_update_seconds);
        }
    }

    /// One that a client of that identity has shown.
    pub fn note_shown(&self, identity: &str, not_after_seconds: i64, now: Duration) {
        let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        #[expect(clippy::cast_precision_loss, reason = "seconds, for a histogram")]
        self.left.observe(not_after_seconds.saturating_sub(now_seconds) as f64);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.turn(now);
        if let Some(first) = shown.now.get_mut(identity) {
            *first = (*first).min(not_after_seconds);
        } else if shown.now.len() < IDENTITIES_MAX {
            shown.now.insert(identity.to_owned(), not_after_seconds);
        }
    }

    /// Brings what clients have shown up to date.
    pub fn refresh(&self, now: Duration) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.turn(now);
        self.shown_not_after.clear();
        for (identity, first) in shown.first_ends() {
            self.shown_not_after.get_or_create_owned(&[("identity", identity)]).set(first);
        }
    }
}

impl Shown {
    fn turn(&mut self, now: Duration) {
        // A clock that was set back begins a new window.
        self.began = self.began.min(now);
        if now.saturating_sub(self.began) >= WINDOW {
            self.began = now;
            self.before = std::mem::take(&mut self.now);
        }
    }

    fn first_ends(&self) -> BTreeMap<String, i64> {
        let mut first_ends = self.before.clone();
        for (identity, end) in &self.now {
            let first = first_ends.entry(identity.clone()).or_insert(*end);
            *first = (*first).min(*end);
        }
        first_ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_an_identity_shows_the_first_end_counts_for_an_hour_or_two() {
        let certificates = Certificates::default();
        let at = |hours: u64| Duration::from_secs(1_800_000_000 + hours * 3600);
        let check = |expected: &[(&str, i64)]| {
            let shown = certificates.shown.lock().unwrap().first_ends();
            let shown: Vec<(&str, i64)> = shown.iter().map(|(name, end)| (&**name, *end)).collect();
            assert_eq!(shown, expected);
        };
        certificates.note_shown("kubelet", 50, at(0));
        certificates.note_shown("kubelet", 40, at(0));
        certificates.note_shown("kubelet", 60, at(0));
        check(&[("kubelet", 40)]);
        certificates.note_shown("kubelet", 90, at(1));
        certificates.note_shown("apiserver", 70, at(1));
        check(&[("apiserver", 70), ("kubelet", 40)]);
        certificates.refresh(at(2));
        check(&[("apiserver", 70), ("kubelet", 90)]);
        certificates.refresh(at(3));
        check(&[]);
    }

    #[test]
    fn a_flood_of_identities_is_bounded() {
        let certificates = Certificates::default();
        let now = Duration::from_secs(1_800_000_000);
        for number in 0..10_000 {
            certificates.note_shown(&format!("identity-{number}"), 5, now);
        }
        assert_eq!(certificates.shown.lock().unwrap().now.len(), IDENTITIES_MAX);
    }
}
