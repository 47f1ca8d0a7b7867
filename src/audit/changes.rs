//! What changes while ringfence runs: the records of it, and how they are written. There is always room for them, and
//! there are few.

use super::event::{Event, Record};
use super::line::{Line, timestamp_of_seconds};
use super::recorder::{Recorder, record_now};

impl Recorder {
    /// Records that another generation is in force; there is always room for it.
    pub fn record_generation(&self, generation: u64, identities: usize, rules: usize) {
        let event = Event::GenerationStart { generation, identities, rules };
        self.shared.push(&record_now(event), None, false);
    }

    /// Records that another set of revocations is in force; there is always room for it.
    pub fn record_revocation(&self, lists: usize, revoked: usize, denied: usize) {
        let event = Event::RevocationStart { lists, revoked, denied };
        self.shared.push(&record_now(event), None, false);
    }

    /// Records that a certificate of the config ends or has ended; there is always room for it.
    pub fn record_certificate_end(&self, setting: &str, not_after_seconds: i64, is_over: bool) {
        let setting = setting.to_owned();
        let event = Event::CertificateEnds { setting, not_after_seconds, is_over };
        self.shared.push(&record_now(event), None, false);
    }
}

/// What has changed while ringfence runs.
pub(super) fn change(line: &mut Line<'_>, record: &Record<'_>) {
    if let Event::GenerationStart { generation, identities, rules } = &record.event {
        line.text("type", "generation.start");
        line.number("generation", generation);
        line.number("identities", identities);
        line.number("rules", rules);
    }
    if let Event::RevocationStart { lists, revoked, denied } = &record.event {
        line.text("type", "revocation.start");
        line.number("lists", lists);
        line.number("revoked", revoked);
        line.number("denied", denied);
    }
    if let Event::CertificateEnds { setting, not_after_seconds, is_over } = &record.event {
        line.text("type", "certificate.ends");
        line.text("setting", setting);
        line.text("not_after", &timestamp_of_seconds(*not_after_seconds));
        line.text("state", if *is_over { "expired" } else { "ending" });
    }
}
