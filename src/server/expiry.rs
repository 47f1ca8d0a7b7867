//! When the certificates of the config end: for metrics, and a warning when a third of a lifetime is left and when
//! nothing is. Each is told once, in the log and in the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::generation::Generation;
use crate::audit::Recorder;
use crate::config::CertificateFile;
use crate::metrics::{Metrics, OwnCertificate, RevocationList};
use crate::pki::lifetime::{Lifetime, State};
use crate::tls::material;
use crate::tls::revocation::List;

/// How often they are looked at: a lifetime is days long, and seldom minutes.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What was told of each setting.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// The generation that was looked at last.
    known: Option<Arc<Generation>>,
    looked: Duration,
    told: BTreeMap<String, (OwnCertificate, State)>,
}

/// The certificate of each file that ends first.
pub(super) fn own_certificates(files: &[CertificateFile]) -> Vec<OwnCertificate> {
    let first = |file: &CertificateFile| {
        let certificates = material::certificates(&file.path).ok()?;
        let lives = certificates.iter().filter_map(|der| material::validity_seconds(der));
        let (not_before_seconds, not_after_seconds) = lives.min_by_key(|(_, end)| *end)?;
        let setting = file.setting.clone();
        Some(OwnCertificate { setting, not_before_seconds, not_after_seconds })
    };
    files.iter().filter_map(first).collect()
}

impl Expiry {
    /// Looks at those of a generation, when it is time.
    pub(super) fn look(
        &mut self,
        generation: &Arc<Generation>,
        now: Duration,
        metrics: &Metrics,
        recorder: &Recorder,
    ) {
        let own = generation.own_certificates.as_slice();
        if !self.known.as_ref().is_some_and(|known| Arc::ptr_eq(known, generation)) {
            self.known = Some(Arc::clone(generation));
            metrics.certificates().note_own(own);
            metrics.certificates().note_lists(generation.revocation.lists().map(list_of));
        } else if now.saturating_sub(self.looked.min(now)) < LOOK_EVERY {
            return;
        }
        self.looked = now;
        let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for certificate in own {
            if let Some(state) = self.news_of(certificate, now_seconds) {
                tell(certificate, state, recorder);
            }
        }
        self.told.retain(|setting, _| own.iter().any(|one| one.setting == *setting));
    }

    /// What has become of a certificate, if that was not told.
    fn news_of(&mut self, certificate: &OwnCertificate, now_seconds: i64) -> Option<State> {
        let lifetime = Lifetime {
            from_seconds: certificate.not_before_seconds,
            until_seconds: certificate.not_after_seconds,
        };
        let state = lifetime.state(now_seconds);
        let told = (certificate.clone(), state);
        let before = self.told.insert(certificate.setting.clone(), told.clone());
        let is_news = before.as_ref() != Some(&told);
        (is_news && matches!(state, State::Ending | State::Expired)).then_some(state)
    }
}

fn list_of(list: &List) -> RevocationList {
    RevocationList {
        authority: list.authority.to_string(),
        issuer: list.issuer.clone(),
        this_update_seconds: list.this_update_seconds,
        next_update_seconds: list.next_update_seconds,
    }
}

fn tell(certificate: &OwnCertificate, state: State, recorder: &Recorder) {
    let OwnCertificate { setting, not_after_seconds, .. } = certificate;
    let is_over = state == State::Expired;
    recorder.record_certificate_end(setting, *not_after_seconds, is_over);
    if is_over {
        tracing::error!(
            setting,
            not_after_seconds,
            "a certificate has expired; put a new one in its place"
        );
    } else {
        tracing::warn!(
            setting,
            not_after_seconds,
            "less than a third of a certificate's time is left; renew it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_a_new_certificate_begins_anew() {
        let mut expiry = Expiry::default();
        let certificate = |until| OwnCertificate {
            setting: "client.certificate".to_owned(),
            not_before_seconds: 0,
            not_after_seconds: until,
        };
        let mut check = |until, now, expected| {
            assert_eq!(expiry.news_of(&certificate(until), now), expected, "{until} at {now}");
        };
        check(300, 100, None);
        check(300, 201, Some(State::Ending));
        check(300, 202, None);
        check(300, 301, Some(State::Expired));
        check(300, 302, None);
        check(900, 303, None);
        check(350, 304, Some(State::Ending));
    }
}
