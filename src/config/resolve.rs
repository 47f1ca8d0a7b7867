//! Raw -> resolved: files are opened, names are looked up, and every mistake is reported. Paths in
//! a config are relative to the folder it lies in.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use super::certificates::{CertificateFile, certificates_of_policy};
use super::files::{self, Matching};
use super::lease_keys::LeaseKeyFile;
use super::named::Named;
use super::numbers::{cores, limits, reload};
use super::raw::{ADMIN_LISTEN, Raw, RawClient};
use super::{Config, raw, users};
use crate::document::{Document, Located, Location, Problem, Problems, Severity};
use crate::etcd::StoreVerb;
use crate::identity::TrustDomain;
use crate::policy::{Policy, PolicySource};
use crate::proxy::Advertise;
use crate::tls::material::{MaterialError, Purpose};
use crate::tls::{Authority, Connector, KeyPair, Revocation, material};
use crate::upstream::Logins;

/// Reads the config, its policies, certificates and keys. `now` is the time since 1970, for what
/// certificates say.
///
/// # Errors
/// Every mistake that was found, by file and line.
pub fn load(path: &Path, now: Duration) -> Result<Config, Vec<Problem>> {
    load_again(path, now, None).config
}

/// What came of reading a config.
#[derive(Debug)]
pub struct Loaded {
    /// The config, or every mistake that was found.
    pub config: Result<Config, Vec<Problem>>,
    /// The files that it is made of, as far as they are known.
    pub named: Named,
    /// All that is wrong is that certificates and keys do not belong together: perhaps one half is yet to come.
    pub lacks_a_half: bool,
}

/// The same as [`load`], with what is needed to notice that it has to be done again. What was revoked before goes on
/// counting where a file of it is gone or broken.
#[must_use]
pub fn load_again(path: &Path, now: Duration, revoked: Option<&Revocation>) -> Loaded {
    let problems = Problems::default();
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut loader = Loader::new(folder, &problems, now);
    loader.previous = revoked;
    loader.note(path);
    let config = loader.read(path, |raw| loader.resolve(raw)).flatten();
    let (mut named, unpaired) = (loader.named.take(), loader.unpaired.get());
    let lists = loader.lists.take();
    let mut problems = problems.into_sorted();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let config = match config {
        Some(mut config) if errors == 0 => {
            config.warnings = problems;
            Ok(config)
        }
        Some(_) | None => {
            named.extend(lists);
            problems.sort_by_key(|problem| problem.severity != Severity::Error);
            Err(problems)
        }
    };
    Loaded { config, named, lacks_a_half: errors > 0 && errors == unpaired }
}

/// Where the one that runs with this config has metrics and health.
///
/// # Errors
/// What is wrong with the config, as far as it is looked at.
pub fn admin_address(path: &Path) -> Result<SocketAddr, Vec<Problem>> {
    let problems = Problems::default();
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let loader = Loader::new(folder, &problems, Duration::ZERO);
    let address = loader.read(path, |raw| loader.addresses(raw).1).flatten();
    address.ok_or_else(|| problems.into_sorted())
}

/// What the policy files say, with what they name.
struct LoadedPolicy {
    policy: Policy,
    identity_connectors: Vec<Connector>,
    logins: Logins,
    certificate_files: Vec<CertificateFile>,
}

pub(super) struct Loader<'a> {
    pub(super) folder: &'a Path,
    pub(super) problems: &'a Problems,
    pub(super) now: Duration,
    /// What was revoked before, when this is not the start.
    pub(super) previous: Option<&'a Revocation>,
    named: RefCell<Named>,
    /// Where it says what is revoked: looked at apart, unless the config is not in force.
    pub(super) lists: RefCell<Named>,
    /// Certificates and keys that do not belong together.
    unpaired: Cell<usize>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(folder: &'a Path, problems: &'a Problems, now: Duration) -> Self {
        let (named, lists, unpaired) = (RefCell::default(), RefCell::default(), Cell::new(0));
        Self { folder, problems, now, previous: None, named, lists, unpaired }
    }
}

impl Loader<'_> {
    /// Remembers a file of which the config is made.
    pub(super) fn note(&self, path: &Path) {
        self.named.borrow_mut().note(path);
    }

    /// Roots of a file.
    pub(super) fn roots(&self, path: &Path) -> Result<Arc<RootCertStore>, MaterialError> {
        self.note(path);
        material::roots(path)
    }

    /// Reads the file as it is written.
    pub(super) fn read<T>(&self, path: &Path, resolve: impl FnOnce(&Raw) -> T) -> Option<T> {
        let file = path.display().to_string();
        let text = match files::read_text(path) {
            Ok(text) => text,
            Err(error) => {
                let hint = if error.not_found { "--config FILE says where it is" } else { "" };
                self.problems.error(&error.location, error.what, hint);
                return None;
            }
        };
        let document = Document::new(&file, &text);
        let table = document.parse(self.problems)?;
        let raw = raw::read(document.root(&table, self.problems));
        Some(resolve(&raw))
    }

    /// Everything is tried before anything is given up, so that one run tells all.
    fn resolve(&self, raw: &Raw) -> Option<Config> {
        let client = &raw.client;
        let (certificate, key) = (client.certificate.as_ref(), client.key.as_ref());
        let certificate = self.key_pair(certificate, key, Purpose::Server);
        let authorities = self.authorities(&raw.client);
        let (revocation_files, revocation) = self.revocation(raw, &authorities);
        let names: Vec<&str> = raw
            .client
            .authorities
            .iter()
            .filter_map(|ca| ca.name.as_ref().map(|name| name.value.as_str()))
            .collect();
        let policy = self.policy(raw, &names);
        let lease_keys = self.lease_keys(raw.lease_keys.as_ref());
        let upstream = self.upstream(&raw.upstream);
        let (listen, admin_listen) = self.addresses(raw);
        let identities =
            policy.as_ref().map(|loaded| loaded.policy.identity_names().collect::<Vec<_>>());
        let audit = self.audit(&raw.audit, &identities.unwrap_or_default());
        self.witness_apart(raw);
        let limits = limits(&raw.limits);
        let upgrade_socket = self.upgrade_socket(raw);
        let advertise = self.advertise(raw);
        let policy = policy?;
        let mut certificate_files = self.certificates_of_config(raw);
        certificate_files.extend(policy.certificate_files);
        Some(Config {
            listen,
            certificate: certificate?,
            authorities,
            revocation_files,
            revocation,
            upstream: upstream?,
            audit: audit?,
            admin_listen: admin_listen?,
            policy: policy.policy,
            identity_connectors: policy.identity_connectors,
            logins: policy.logins,
            lease_keys: lease_keys?,
            advertise,
            limits,
            cores: cores(raw.cores),
            reload: reload(&raw.reload),
            upgrade_socket,
            fixed: raw.fixed.clone(),
            certificate_files,
            warnings: Vec::new(),
        })
    }

    /// Where clients connect, and where metrics and health are; no address serves twice.
    fn addresses(&self, raw: &Raw) -> (Vec<SocketAddr>, Option<SocketAddr>) {
        let address = |text: &Located<String>| Some((self.address(text)?, text.location.clone()));
        let default = || Some((ADMIN_LISTEN.parse().ok()?, client_listen_location(raw)?));
        let admin = raw.admin_listen.as_ref().map_or_else(default, address);
        let listen: Vec<(SocketAddr, Location)> =
            raw.client.listen.iter().filter_map(address).collect();
        let mut taken: Vec<SocketAddr> = Vec::new();
        for (address, location) in listen.iter().chain(&admin) {
            if taken.iter().any(|other| collide(*other, *address)) {
                let what = format!("`{address}` is taken by another address of `client.listen`");
                self.problems.error(location, what, "each address, and `admin.listen`, once");
            }
            taken.push(*address);
        }
        let listen = listen.into_iter().map(|(address, _)| address).collect();
        (listen, admin.map(|(address, _)| address))
    }

    fn address(&self, text: &Located<String>) -> Option<SocketAddr> {
        let address = text.value.parse().ok();
        if address.is_none() {
            let what = format!("`{}` is no IP address with a port", text.value);
            self.problems.error(&text.location, what, "for example 0.0.0.0:2379 or [::]:2379");
        }
        address
    }

    pub(super) fn key_pair(
        &self,
        certificate: Option<&Located<String>>,
        key: Option<&Located<String>>,
        purpose: Purpose,
    ) -> Option<KeyPair> {
        let (certificate, key) = (certificate?, key?);
        let paths = (self.folder.join(&certificate.value), self.folder.join(&key.value));
        self.key_pair_in((certificate, key), &paths, purpose)
    }

    pub(super) fn key_pair_in(
        &self,
        (certificate, key): (&Located<String>, &Located<String>),
        paths: &(PathBuf, PathBuf),
        purpose: Purpose,
    ) -> Option<KeyPair> {
        self.note(&paths.0);
        self.note(&paths.1);
        let report = |place: &Located<String>, error: MaterialError| {
            self.problems.error(&place.location, error.to_string(), error.hint());
        };
        let chain = material::certificates(&paths.0).map_err(|error| report(certificate, error));
        let signing = material::signing_key(&paths.1).map_err(|error| report(key, error));
        let pair = material::pair(chain.ok()?, signing.ok()?, (&paths.0, &paths.1));
        let unpaired = |error| {
            self.unpaired.set(self.unpaired.get() + 1);
            report(key, error);
        };
        let pair = pair.map_err(unpaired).ok()?;
        for doubt in material::doubts(&pair, purpose, self.now) {
            let what = format!("the certificate `{}` {doubt}", certificate.value);
            self.problems.warning(&certificate.location, what, "the other side will refuse it");
        }
        Some(pair)
    }

    /// What CAs may speak for, by their names.
    fn trust_domains(&self, raw: &Raw) -> BTreeMap<String, TrustDomain> {
        let mut domains = BTreeMap::new();
        for ca in &raw.client.authorities {
            let Some(text) = &ca.trust_domain else { continue };
            match TrustDomain::parse(&text.value) {
                Ok(domain) => drop(domains.insert(ca.shown_name().to_owned(), domain)),
                Err(error) => {
                    let what = format!("`{}` {error}", text.value);
                    self.problems.error(
                        &text.location,
                        what,
                        "for example trust_domain = \"example.org\"",
                    );
                }
            }
        }
        domains
    }

    fn authorities(&self, client: &RawClient) -> Vec<Authority> {
        let mut authorities: Vec<Authority> = Vec::new();
        let mut names = BTreeSet::new();
        for raw in &client.authorities {
            let (Some(name), Some(roots)) = (&raw.name, &raw.roots) else {
                continue;
            };
            if !names.insert(&name.value) {
                let what = format!("the CA `{}` is there twice", name.value);
                self.problems.error(
                    &name.location,
                    what,
                    "rename one, or put both roots into one file",
                );
            }
            match self.roots(&self.folder.join(&roots.value)) {
                Ok(roots) => {
                    authorities.push(Authority { name: name.value.as_str().into(), roots })
                }
                Err(error) => {
                    self.problems.error(&roots.location, error.to_string(), error.hint());
                }
            }
        }
        authorities
    }

    fn lease_keys(&self, file: Option<&Located<String>>) -> Option<LeaseKeyFile> {
        let Some(file) = file else { return Some(LeaseKeyFile::None) };
        match LeaseKeyFile::load(&self.folder.join(&file.value)) {
            Ok(keys) => Some(keys),
            Err(error) => {
                self.problems.error(&file.location, error.what, error.hint);
                None
            }
        }
    }

    /// A URL that is etcd's own would lead clients past ringfence.
    fn advertise(&self, raw: &Raw) -> Advertise {
        let mut advertise = Advertise::default();
        let upstream: Vec<&str> =
            raw.upstream.endpoints.iter().map(|endpoint| authority(&endpoint.value)).collect();
        for (member, urls) in &raw.client.advertise {
            for url in urls {
                if !url.value.starts_with("https://") || url.value.contains(['?', '#', '@']) {
                    let what = format!("`{}` is no https://HOST:PORT", url.value);
                    let hint = "the address of the ringfence in front of this member";
                    self.problems.error(&url.location, what, hint);
                } else if upstream.contains(&authority(&url.value)) {
                    let what = format!("`{}` is etcd's own address", url.value);
                    let hint = "clients that learn it go past ringfence; give ringfence's address";
                    self.problems.error(&url.location, what, hint);
                }
            }
            let urls = urls.iter().map(|url| url.value.clone()).collect();
            advertise.0.insert(member.value.clone(), urls);
        }
        advertise
    }

    /// Verbs that need a setting of the config which is not there.
    fn check_settings(&self, source: &PolicySource, raw: &Raw) {
        let needs = |verb: StoreVerb, there: bool, setting: &str, hint: &str| {
            if !there && let Some(location) = source.first_rule_allowing(verb) {
                let what = format!("`{verb}` is allowed, but `{setting}` is not set");
                self.problems.error(location, what, hint);
            }
        };
        let hint = "without keys no lease has an owner: [leases] keys = \"FILE\"";
        needs(StoreVerb::Lease, raw.lease_keys.is_some(), "leases.keys", hint);
        let hint = "members are shown with URLs of ringfence, by member name: \
            [client.advertise] infra0 = [\"https://HOST:2379\"]";
        let advertised = !raw.client.advertise.is_empty();
        needs(StoreVerb::MemberList, advertised, "client.advertise", hint);
        needs(StoreVerb::MemberChange, advertised, "client.advertise", hint);
    }

    /// Reads every policy file; false when one went unread.
    pub(super) fn read_policies(&self, raw: &Raw, source: &mut PolicySource) -> bool {
        let mut complete = true;
        let mut read = BTreeSet::new();
        for pattern in &raw.policy_files {
            self.named.borrow_mut().note_pattern(self.folder, &pattern.value);
            let Some(found) = self.matching(pattern) else {
                complete = false;
                continue;
            };
            for path in found {
                // Two patterns, or two names, may mean the same file.
                self.note(&path);
                if !read.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                    continue;
                }
                match files::read_text(&path) {
                    Ok(text) => {
                        complete &= source.read(&path.display().to_string(), &text, self.problems);
                    }
                    Err(error) => {
                        self.problems.error(&error.location, error.what, "");
                        complete = false;
                    }
                }
            }
        }
        complete
    }

    /// What no file says can only be told when every file was read.
    fn policy(&self, raw: &Raw, authorities: &[&str]) -> Option<LoadedPolicy> {
        let mut source = PolicySource::default();
        if !self.read_policies(raw, &mut source) {
            return None;
        }
        if source.is_empty()
            && let Some(first) = raw.policy_files.first()
        {
            let what = "no policy file has an `[[identity]]`";
            self.problems.warning(&first.location, what, "every certificate is nobody's");
        }
        self.check_settings(&source, raw);
        let identity_connectors = self.identity_connectors(&source, raw);
        let logins = users::load(&source, self);
        let certificate_files = certificates_of_policy(&source).collect();
        let policy = Policy::compile(source, authorities, self.problems)
            .with_trust_domains(self.trust_domains(raw));
        Some(LoadedPolicy { policy, identity_connectors, logins, certificate_files })
    }

    fn matching(&self, pattern: &Located<String>) -> Option<BTreeSet<PathBuf>> {
        let error = |what: String, hint: &str| self.problems.error(&pattern.location, what, hint);
        match files::matching(self.folder, &pattern.value) {
            Matching::Files(files) if files.is_empty() => {
                let hint = "a policy file, or a pattern such as policy.d/*.toml";
                error(format!("`{}` matches no file", pattern.value), hint);
            }
            Matching::Files(files) => return Some(files),
            Matching::NoPattern(why) => {
                error(format!("`{}` is no file pattern: {why}", pattern.value), "");
            }
            Matching::Unreadable(faults) => {
                let hint = "a policy file that goes unread may be the one that denies";
                faults.into_iter().for_each(|fault| error(fault, hint));
            }
        }
        None
    }
}

fn client_listen_location(raw: &Raw) -> Option<Location> {
    raw.client.listen.first().map(|text| text.location.clone())
}

/// Whether the second listener would find the port taken; port 0 is any that is free.
fn collide(first: SocketAddr, second: SocketAddr) -> bool {
    let (one, other) = (first.ip(), second.ip());
    let all = one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified());
    first.port() == second.port() && first.port() != 0 && (one == other || all)
}

/// `HOST:PORT` of a URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}
