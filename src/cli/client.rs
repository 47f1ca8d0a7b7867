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
use crate::tls::verifier::{Authorities, Doubt, doubt};

/// What becomes of it.
pub(super) enum Client {
    /// The handshake fails; what revokes the certificate, when that is why.
    Refused { error: rustls::Error, leaf: CertificateDer<'static>, causes: Vec<String> },
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
    let authorities = Authorities::with_revocation(&config.authorities, &config.revocation)
        .map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(now);
    let authority = match authorities.verify(leaf, intermediates, now) {
        Ok(authority) => authority,
        Err(error) => {
            let is_revoked = doubt(&error) == Doubt::Revoked;
            let causes = if is_revoked { causes(config, &chain, now) } else { Vec::new() };
            return Ok(Client::Refused { error, leaf: leaf.clone(), causes });
        }
    };
    Ok(match CertificateFacts::read(leaf) {
        Err(error) => Client::Unreadable(error),
        Ok(facts) => {
            let identified = Box::new(config.policy.identify(&authority, &facts));
            Client::Verified { authority, facts: Box::new(facts), identified }
        }
    })
}

/// What revokes a chain, of the CA that would vouch for it otherwise.
fn causes(config: &Config, chain: &[CertificateDer<'static>], now: UnixTime) -> Vec<String> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Vec::new() };
    let vouching = Authorities::new(&config.authorities)
        .and_then(|authorities| authorities.verify(leaf, intermediates, now));
    vouching.map(|authority| config.revocation.causes(&authority, chain)).unwrap_or_default()
}

/// A text that cannot steer a terminal; a hint stays a line of its own.
pub(super) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
