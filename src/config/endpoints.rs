//! How etcd is reached: endpoints, and the certificates that are shown there.

use std::time::Duration;

use super::numbers::number;
use super::raw::{Raw, RawUpstream};
use super::resolve::Loader;
use super::users;
use crate::document::Located;
use crate::policy::PolicySource;
use crate::tls::material::Purpose;
use crate::tls::{Connector, material};
use crate::upstream;
use crate::upstream::Endpoint;

/// Identities that reach etcd with a certificate of their own.
const IDENTITY_CERTIFICATES_MAX: usize = 16;

impl Loader<'_> {
    pub(super) fn upstream(&self, raw: &RawUpstream) -> Option<upstream::Config> {
        let endpoints = self.endpoints(&raw.endpoints);
        let http_endpoints = raw
            .http_endpoints
            .as_ref()
            .map_or_else(|| endpoints.clone(), |texts| self.endpoints(texts));
        let mut all = endpoints.iter().chain(&http_endpoints);
        let https = all.any(|endpoint| matches!(endpoint, Endpoint::Https { .. }));
        let connector = self.connector(raw);
        let usable = !endpoints.is_empty() && (!https || connector.is_some());
        usable.then(|| upstream::Config {
            endpoints,
            http_endpoints,
            connector,
            connect_timeout: Duration::from_secs(raw.connect_timeout_seconds),
            connections: number(raw.connections_per_core),
            calls_per_connection: u32::try_from(raw.calls_per_connection).unwrap_or(u32::MAX),
        })
    }

    fn endpoints(&self, texts: &[Located<String>]) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for text in texts {
            match Endpoint::parse(&text.value) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    let what = format!("`{}` {error}", text.value);
                    self.problems.error(&text.location, what, "");
                }
            }
        }
        endpoints
    }

    /// Every file that is named is opened, needed or not.
    fn connector(&self, raw: &RawUpstream) -> Option<Connector> {
        let mut texts = raw.endpoints.iter().chain(raw.http_endpoints.iter().flatten());
        let https = texts.find(|endpoint| endpoint.value.starts_with("https:"));
        let pair = match (&raw.certificate, &raw.key) {
            (None, None) => Some(None),
            (Some(certificate), Some(key)) => {
                self.key_pair(Some(certificate), Some(key), Purpose::Client).map(Some)
            }
            (Some(one), None) | (None, Some(one)) => {
                let what = "`upstream.certificate` and `upstream.key` belong together";
                self.problems.error(&one.location, what, "give both, or neither");
                None
            }
        };
        let Some(ca) = &raw.ca else {
            if let Some(https) = https {
                let what = "`upstream.ca` is missing, and an endpoint is https";
                let hint = "ca = \"FILE\": without it nobody could tell etcd from an impostor";
                self.problems.error(&https.location, what, hint);
            }
            return None;
        };
        let roots = self.roots(&self.folder.join(&ca.value));
        let roots = roots
            .map_err(|error| self.problems.error(&ca.location, error.to_string(), error.hint()))
            .ok();
        let (roots, pair, https) = (roots?, pair?, https?);
        let connector = Connector::new(roots, pair.as_ref());
        connector.map_err(|error| self.problems.error(&https.location, error.to_string(), "")).ok()
    }

    /// The ways to etcd that identities have for themselves, in the order of the policy.
    pub(super) fn identity_connectors(&self, source: &PolicySource, raw: &Raw) -> Vec<Connector> {
        let mut connectors = Vec::new();
        for (number, (certificate, key)) in source.upstream_certificates().enumerate() {
            let error =
                |what: String, hint: &str| self.problems.error(&certificate.location, what, hint);
            if number == IDENTITY_CERTIFICATES_MAX {
                let what = format!(
                    "more than {IDENTITY_CERTIFICATES_MAX} identities have a certificate towards etcd"
                );
                error(
                    what,
                    "each takes connections of its own on every core; users with passwords do not",
                );
                break;
            }
            if !raw.upstream.endpoints.iter().all(|text| text.value.starts_with("https:")) {
                let what =
                    "`upstream.certificate` of an identity, and an endpoint that is not https";
                error(what.to_owned(), "without TLS etcd sees no certificate");
                continue;
            }
            let paths = [certificate, key].map(|text| users::beside(&text.location, &text.value));
            let pair = self.key_pair_in((certificate, key), &paths.into(), Purpose::Client);
            // What is wrong with the CA is said once.
            let roots = raw.upstream.ca.as_ref();
            let roots = roots.and_then(|ca| material::roots(&self.folder.join(&ca.value)).ok());
            let Some((pair, roots)) = pair.zip(roots) else { continue };
            match Connector::new(roots, Some(&pair)) {
                Ok(connector) => connectors.push(connector),
                Err(fault) => self.problems.error(&certificate.location, fault.to_string(), ""),
            }
        }
        connectors
    }
}
