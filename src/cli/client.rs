//! What ringfence makes of a client that presents a certificate: the verification of the handshake and the
//! match of the policy, by the code that serves, without a server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::config::Config;
use crate::evidence::record::printable;
use crate::identity::CertificateFacts;
use crate::identity::certificate::CertificateError;
use crate::policy::{Identification, NoPrincipal};
use crate::tls::material;
use crate::tls::verifier::Authorities;

/// What becomes of it.
pub(super) enum Client {
    /// The handshake fails.
    Refused { error: rustls::Error, leaf: CertificateDer<'static> },
    /// The handshake succeeds; its calls are nobody's, because not all of it can be read without doubt.
    Unreadable(CertificateError),
    /// The handshake succeeds under this CA; whose its calls are.
    Verified {
        authority: Arc<str>,
        facts: Box<CertificateFacts>,
        identified: Box<Result<Identification, NoPrincipal>>,
    },
}

/// Judges the chain in a file, the leaf first.
///
/// # Errors
/// When the file holds no chain.
pub(super) fn judge(config: &Config, path: &Path, now: Duration) -> Result<Client, String> {
    let chain = material::certificates(path).map_err(|error| {
        let hint = error.hint();
        let hint = if hint.is_empty() { String::new() } else { format!("\n  hint: {hint}") };
        format!("{error}{hint}")
    })?;
    let (leaf, intermediates) =
        chain.split_first().ok_or_else(|| format!("`{}` holds no certificate", path.display()))?;
    let authorities = Authorities::new(&config.authorities).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(now);
    let authority = match authorities.verify(leaf, intermediates, now) {
        Ok(authority) => authority,
        Err(error) => return Ok(Client::Refused { error, leaf: leaf.clone() }),
    };
    Ok(match CertificateFacts::read(leaf) {
        Err(error) => Client::Unreadable(error),
        Ok(facts) => {
            let identified = Box::new(config.policy.identify(&authority, &facts));
            Client::Verified { authority, facts: Box::new(facts), identified }
        }
    })
}

/// A text that cannot steer a terminal; a hint stays a line of its own.
pub(super) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
