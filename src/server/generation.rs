//! What may change while ringfence runs, made ready once for all cores: a generation of it is in force as a whole or
//! not at all.

use std::rc::Rc;
use std::sync::Arc;

use super::expiry::own_certificates;
use crate::config::{Config, RevocationFiles};
use crate::metrics::{Metrics, OwnCertificate};
use crate::policy::Policy;
use crate::proxy::{Advertise, Core, Limits};
use crate::tls::verifier::Authorities;
use crate::tls::{Acceptor, Authority, KeyPair, Revocation};
use crate::upstream::{self, HttpClient, Logins, Pool, Reachability};

/// One generation.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) policy: Arc<Policy>,
    certificate: KeyPair,
    authorities: Vec<Authority>,
    pub(super) acceptor: Arc<Acceptor>,
    /// What of certificates counts no more; it may change while the rest stays.
    pub(super) revocation: Arc<Revocation>,
    pub(super) revocation_files: RevocationFiles,
    pub(super) upstream: Way,
    /// Those of identities with a certificate of their own; whether etcd can be reached so is no matter of the others.
    pub(super) as_identities: Vec<Way>,
    pub(super) logins: Arc<Logins>,
    pub(super) limits: Limits,
    pub(super) advertise: Arc<Advertise>,
    /// When the certificates end that it is made of.
    pub(super) own_certificates: Vec<OwnCertificate>,
}

/// A way to etcd. It is the same way in the next generation when nothing about it has changed, and its connections stay.
#[derive(Clone, Debug)]
pub(super) struct Way {
    config: upstream::Config,
    reachability: Arc<Reachability>,
}

impl Generation {
    /// Takes what may change out of a config.
    ///
    /// # Errors
    /// When the CAs make no verifier.
    pub(super) fn new(config: Config, before: Option<&Self>) -> Result<Self, rustls::Error> {
        let revocation = config.revocation;
        let authorities = Authorities::with_revocation(&config.authorities, &revocation)?;
        let handshake_timeout = config.limits.handshake_timeout;
        let acceptor = Acceptor::with_authorities(
            &config.certificate,
            Arc::new(authorities),
            handshake_timeout,
        );
        let known: Vec<&Way> = before.iter().flat_map(|before| before.ways()).collect();
        let as_identities = config.identity_connectors.into_iter().map(|connector| {
            let upstream = config.upstream.clone();
            Way::of(upstream::Config { connector: Some(connector), ..upstream }, &known)
        });
        let as_identities = as_identities.collect();
        let logins = match before {
            Some(before) => config.logins.going_on_with(&before.logins),
            None => config.logins,
        };
        Ok(Self {
            number: before.map_or(1, |before| before.number + 1),
            policy: Arc::new(config.policy),
            certificate: config.certificate,
            authorities: config.authorities,
            revocation,
            revocation_files: config.revocation_files,
            acceptor: Arc::new(acceptor),
            upstream: Way::of(config.upstream, &known),
            as_identities,
            logins: Arc::new(logins),
            limits: config.limits,
            advertise: Arc::new(config.advertise),
            own_certificates: own_certificates(&config.certificate_files),
        })
    }

    /// The same with other revocations.
    ///
    /// # Errors
    /// When the CAs and lists make no verifier.
    pub(super) fn with_revocation(
        &self,
        revocation: Arc<Revocation>,
    ) -> Result<Self, rustls::Error> {
        let authorities = Authorities::with_revocation(&self.authorities, &revocation)?;
        let handshake_timeout = self.limits.handshake_timeout;
        let acceptor =
            Acceptor::with_authorities(&self.certificate, Arc::new(authorities), handshake_timeout);
        Ok(Self { acceptor: Arc::new(acceptor), revocation, ..self.clone() })
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        std::iter::once(&self.upstream).chain(&self.as_identities)
    }

    /// The same core with this generation.
    pub(super) fn core(&self, before: &Core) -> Core {
        let pools: Vec<&Rc<Pool>> =
            std::iter::once(&before.pool).chain(&before.certificate_pools).collect();
        let pool = self.upstream.pool(&pools, &before.metrics);
        let http = if Rc::ptr_eq(&pool, &before.pool) {
            Rc::clone(&before.http)
        } else {
            self.upstream.http(&before.metrics)
        };
        let certificate_pools = self.as_identities.iter();
        Core {
            policy: Arc::clone(&self.policy),
            acceptor: Arc::clone(&self.acceptor),
            revocation: Arc::clone(&self.revocation),
            http,
            certificate_pools: certificate_pools
                .map(|way| way.pool(&pools, &before.metrics))
                .collect(),
            pool,
            logins: Arc::clone(&self.logins),
            limits: self.limits.clone(),
            advertise: Arc::clone(&self.advertise),
            ..before.clone()
        }
    }
}

impl Way {
    fn of(config: upstream::Config, known: &[&Self]) -> Self {
        if let Some(same) = known.iter().find(|way| way.config == config) {
            return Self::clone(same);
        }
        let reachability = Arc::new(Reachability::new(&config));
        Self { config, reachability }
    }

    /// A pool of this way: one of those, if one is.
    pub(super) fn pool(&self, known: &[&Rc<Pool>], metrics: &Arc<Metrics>) -> Rc<Pool> {
        if let Some(same) = known.iter().find(|pool| pool.is_of(&self.reachability)) {
            return Rc::clone(same);
        }
        let reachability = Arc::clone(&self.reachability);
        Rc::new(Pool::new(self.config.clone(), Arc::clone(metrics), reachability))
    }

    pub(super) fn http(&self, metrics: &Arc<Metrics>) -> Rc<HttpClient> {
        Rc::new(HttpClient::new(&self.config, Arc::clone(metrics)))
    }
}
