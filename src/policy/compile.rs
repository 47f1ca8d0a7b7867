//! Source -> policy: names resolved, every mistake reported, rights of a principal worked out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::candidates::Candidates;
use super::decide::Cause;
use super::intervals::Intervals;
use super::source::{IdentityLimits, KeysSource, Part, PolicySource, RuleSource, Template, Verbs};
use super::upstream::{ActsAs, UpstreamSource};
use crate::document::{Located, Location, Problems};
use crate::etcd::{KeyRange, KeyVerb, StoreVerb};
use crate::identity::{
    CaptureError, CertificateFacts, CertificatePattern, Glob, Principal, TrustDomain, Variable,
};

/// A rule's position in [`Policy::rule_name`]'s table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u32);

impl RuleId {
    /// INVARIANT: a policy holds fewer than 2^32 rules; reading stops long before (document
    /// LIST_MAX per role).
    pub(super) fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// All identities, roles and rules of one generation.
#[derive(Debug)]
pub struct Policy {
    identities: Vec<Identity>,
    candidates: Candidates,
    /// What CAs may speak for, where that is bounded, by their names.
    trust_domains: BTreeMap<String, TrustDomain>,
    /// `role/position (file:line)` per rule.
    rule_names: Vec<Arc<str>>,
}

/// A role while names are resolved.
struct Role {
    location: Location,
    rules: Vec<NumberedRule>,
}

/// Shared by all identities of its role.
type NumberedRule = (RuleId, Arc<RuleSource>);

#[derive(Debug)]
struct Identity {
    name: String,
    roles: Vec<String>,
    pattern: CertificatePattern,
    /// None are kept once the rights are ready.
    rules: Vec<NumberedRule>,
    limits: IdentityLimits,
    upstream: Option<(UpstreamSource, usize)>,
    variables: BTreeSet<Variable>,
    /// Worked out ahead when no rule depends on the certificate.
    ready: Option<Arc<Rights>>,
}

/// Who a certificate is, and what it may do.
#[derive(Clone, Debug)]
pub struct Identification {
    /// Who is asking.
    pub principal: Principal,
    /// What it may do.
    pub rights: Arc<Rights>,
    /// What it may use, where that is its own.
    pub limits: IdentityLimits,
    /// As whom it reaches etcd.
    pub acts_as: ActsAs,
}

/// Why a verified certificate is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPrincipal {
    /// No identity matches.
    #[error("no identity matches the certificate")]
    NoMatch,
    /// The CA that vouches speaks for another trust domain.
    #[error(
        "the CA `{ca}` speaks for SPIFFE IDs of `{domain}` only, and the certificate has no one such"
    )]
    TrustDomain {
        /// The named CA.
        ca: String,
        /// What it speaks for.
        domain: String,
    },
    /// More than one matches, and which is meant is in doubt.
    #[error("several identities match the certificate: {0}")]
    Ambiguous(String),
    /// A rule or match needs a fact that the certificate does not give without doubt.
    #[error("identity `{identity}`: {error}")]
    Capture {
        /// The identity that matched.
        identity: String,
        /// What is missing.
        error: CaptureError,
    },
}

/// What one principal may do.
#[derive(Debug, Default)]
pub struct Rights {
    /// Verbs that the same rules are about share what was worked out.
    by_verb: [Arc<Intervals>; KeyVerb::ALL.len()],
    store_allowed: BTreeMap<StoreVerb, RuleId>,
    store_denied: BTreeMap<StoreVerb, RuleId>,
    first_rule: Option<RuleId>,
}

impl Policy {
    /// Resolves names and reports what does not resolve; the policy is only to be used when
    /// `problems` has no errors. `authorities` are the names of the configured CAs.
    #[must_use]
    pub fn compile(source: PolicySource, authorities: &[&str], problems: &Problems) -> Self {
        let mut rule_names = Vec::new();
        let mut roles: BTreeMap<String, Role> = BTreeMap::new();
        for role in source.roles {
            let Located { value: name, location } = role.name;
            if roles.contains_key(&name) {
                let what = format!("role `{name}` is defined twice");
                problems.error(&location, what, "merge the two, or rename one");
                continue;
            }
            let mut rules = Vec::new();
            for (position, rule) in role.rules.into_iter().enumerate() {
                check_range_order(&rule, problems);
                let id = RuleId::new(rule_names.len());
                rule_names.push(format!("{name}/{} ({})", position + 1, rule.location).into());
                rules.push((id, Arc::new(rule)));
            }
            roles.insert(name, Role { location, rules });
        }
        let mut identities: Vec<Identity> = Vec::new();
        let mut names = HashSet::new();
        let mut used = BTreeSet::new();
        let (mut certificates, mut password_files) = (0, 0);
        for identity in source.identities {
            let name = identity.name.value;
            if !names.insert(name.clone()) {
                let what = format!("identity `{name}` is defined twice");
                problems.error(&identity.name.location, what, "rename one");
            }
            if !authorities.contains(&identity.ca.value.as_str()) {
                let what = format!(
                    "identity `{name}` names the CA `{}`, which is not configured",
                    identity.ca.value
                );
                let hint = format!("`[[client.ca]]` entries: {}", authorities.join(", "));
                problems.error(&identity.ca.location, what, hint);
            }
            let mut rules = Vec::new();
            let names = identity.roles.iter().map(|role| role.value.clone()).collect();
            for role in identity.roles {
                match roles.get(&role.value) {
                    Some(found) => rules.extend(found.rules.iter().cloned()),
                    None => {
                        let what = format!(
                            "identity `{name}` has the role `{}`, which is not defined",
                            role.value
                        );
                        problems.error(
                            &role.location,
                            what,
                            "define it as `[[role]]`, or mend the name",
                        );
                    }
                }
                used.insert(role.value);
            }
            let upstream = identity.upstream.map(|upstream| {
                let number = upstream.number(&mut certificates, &mut password_files);
                (upstream, number)
            });
            let (pattern, limits) = (identity.pattern, identity.limits);
            let identity = Identity::new(name, names, pattern, rules, limits, upstream);
            identities.push(identity);
        }
        for (name, role) in roles.iter().filter(|(name, _)| !used.contains(*name)) {
            let what = format!("role `{name}` belongs to no identity");
            problems.warning(&role.location, what, "name it in the `roles` of an `[[identity]]`");
        }
        let candidates = Candidates::of(identities.iter().map(|identity| &identity.pattern));
        Self { identities, candidates, trust_domains: BTreeMap::new(), rule_names }
    }

    /// The same, where CAs vouch for certificates of one trust domain each and for no other.
    #[must_use]
    pub fn with_trust_domains(self, trust_domains: BTreeMap<String, TrustDomain>) -> Self {
        Self { trust_domains, ..self }
    }

    /// Who a certificate is that verified under the CA of that name. Exactly one identity must
    /// match: two would let the more powerful one be reached by accident.
    ///
    /// # Errors
    /// When none or several match, or a fact that is needed is in doubt.
    pub fn identify(
        &self,
        ca: &str,
        facts: &CertificateFacts,
    ) -> Result<Identification, NoPrincipal> {
        if let Some(domain) = self.trust_domains.get(ca).filter(|domain| !domain.has(facts)) {
            return Err(NoPrincipal::TrustDomain { ca: ca.to_owned(), domain: domain.to_string() });
        }
        let mut candidates: Vec<usize> = self.candidates.positions(facts).collect();
        // In the order of the policy, for whoever reads the names of several.
        candidates.sort_unstable();
        let candidates = candidates.iter().filter_map(|position| self.identities.get(*position));
        let matching: Vec<&Identity> =
            candidates.filter(|identity| identity.pattern.matches(ca, facts)).collect();
        match matching.as_slice() {
            [] => Err(NoPrincipal::NoMatch),
            [identity] => identity.identification(facts),
            several => {
                let names: Vec<&str> =
                    several.iter().take(8).map(|identity| identity.name.as_str()).collect();
                Err(NoPrincipal::Ambiguous(names.join(", ")))
            }
        }
    }

    /// A rule's role, position and place in the files.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.rule_names.get(rule.index()).map_or("unknown", AsRef::as_ref)
    }

    /// The names of all identities.
    pub fn identity_names(&self) -> impl Iterator<Item = &str> {
        self.identities.iter().map(|identity| identity.name.as_str())
    }

    /// Every identity with its roles and what it asks of a certificate.
    pub(super) fn identities(
        &self,
    ) -> impl Iterator<Item = (&str, &[String], &CertificatePattern)> {
        self.identities.iter().map(|of| (of.name.as_str(), of.roles.as_slice(), &of.pattern))
    }

    /// How many identities and rules there are.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.identities.len(), self.rule_names.len())
    }
}

impl Identity {
    fn new(
        name: String,
        roles: Vec<String>,
        pattern: CertificatePattern,
        mut rules: Vec<NumberedRule>,
        limits: IdentityLimits,
        upstream: Option<(UpstreamSource, usize)>,
    ) -> Self {
        let mut variables = BTreeSet::new();
        for (_, rule) in &rules {
            for template in templates(&rule.keys) {
                variables.extend(template.variables());
            }
        }
        let ready =
            variables.is_empty().then(|| Rights::build(&rules, &BTreeMap::new())).map(Arc::new);
        if ready.is_some() {
            rules = Vec::new();
        }
        // Two users of etcd are two principals.
        variables.extend(upstream.iter().flat_map(|(upstream, _)| upstream.variables()));
        Self { name, roles, pattern, rules, limits, upstream, variables, ready }
    }

    fn identification(&self, facts: &CertificateFacts) -> Result<Identification, NoPrincipal> {
        let capture = |variable: Variable| {
            let value = variable.value(facts).map(str::to_owned);
            value.map_err(|error| NoPrincipal::Capture { identity: self.name.clone(), error })
        };
        let mut values = BTreeMap::new();
        for variable in &self.variables {
            values.insert(*variable, capture(*variable)?);
        }
        let mut captures: Vec<(String, String)> =
            values.iter().map(|(variable, value)| (variable.to_string(), value.clone())).collect();
        captures.extend(
            self.starred(facts)
                .map_err(|error| NoPrincipal::Capture { identity: self.name.clone(), error })?,
        );
        let rights = match &self.ready {
            Some(rights) => Arc::clone(rights),
            None => Arc::new(Rights::build(&self.rules, &values)),
        };
        let principal = Principal::new(&self.name, captures);
        let acts_as = self
            .upstream
            .as_ref()
            .map_or(ActsAs::Ringfence, |(upstream, number)| upstream.acts_as(&values, *number));
        Ok(Identification { principal, rights, limits: self.limits, acts_as })
    }

    /// A field whose pattern has a star tells principals apart, so its one value is captured.
    fn starred(&self, facts: &CertificateFacts) -> Result<Vec<(String, String)>, CaptureError> {
        let pattern = &self.pattern;
        let fields = [
            (Variable::CommonName, &pattern.common_name),
            (Variable::Organization, &pattern.organization),
            (Variable::OrganizationalUnit, &pattern.organizational_unit),
            (Variable::Dns, &pattern.dns),
        ];
        let mut captures = Vec::new();
        for (variable, glob) in fields {
            if glob.as_ref().is_some_and(Glob::has_star) {
                captures.push((variable.to_string(), variable.value(facts)?.to_owned()));
            }
        }
        if pattern.uri.as_ref().is_some_and(Glob::has_star) {
            // The match has seen to it that there is exactly one.
            let uri = facts.uris.first().cloned().unwrap_or_default();
            captures.push(("uri".to_owned(), uri));
        }
        if let Some(ip) = pattern.ip
            && ip.hosts().nth(1).is_some()
        {
            let ips: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
            captures.push(("ip".to_owned(), ips.join("+")));
        }
        Ok(captures)
    }
}

impl Rights {
    fn build(rules: &[NumberedRule], values: &BTreeMap<Variable, String>) -> Self {
        let mut rights = Self { first_rule: first_granting(rules), ..Self::default() };
        let mut keyed: Vec<(KeyRange, RuleId, &RuleSource)> = Vec::new();
        for (id, rule) in rules {
            for verb in &rule.allow.store {
                rights.store_allowed.entry(*verb).or_insert(*id);
            }
            for verb in &rule.deny.store {
                rights.store_denied.entry(*verb).or_insert(*id);
            }
            if let Some(range) = key_range(&rule.keys, values) {
                keyed.push((range, *id, rule));
            }
        }
        let mut built: Vec<(Vec<[bool; 2]>, Arc<Intervals>)> = Vec::new();
        rights.by_verb = KeyVerb::ALL.map(|verb| {
            // Whether each rule allows it and whether it denies it: all that the intervals depend on.
            let about = keyed
                .iter()
                .map(|(_, _, rule)| [rule.allow.key.contains(&verb), rule.deny.key.contains(&verb)])
                .collect::<Vec<_>>();
            if let Some((_, same)) = built.iter().find(|(other, _)| *other == about) {
                return Arc::clone(same);
            }
            let chosen = |which: fn(&[bool; 2]) -> bool| -> Vec<(KeyRange, RuleId)> {
                let having = keyed.iter().zip(&about).filter(|(_, about)| which(about));
                having.map(|((range, id, _), _)| (range.clone(), *id)).collect()
            };
            let intervals =
                Intervals::build(&chosen(|[allows, _]| *allows), &chosen(|[_, denies]| *denies));
            let intervals = Arc::new(intervals);
            built.push((about, Arc::clone(&intervals)));
            intervals
        });
        rights
    }

    fn intervals(&self, verb: KeyVerb) -> &Intervals {
        let [get, list, watch, put, delete] = &self.by_verb;
        match verb {
            KeyVerb::Get => get,
            KeyVerb::List => list,
            KeyVerb::Watch => watch,
            KeyVerb::Put => put,
            KeyVerb::Delete => delete,
        }
    }

    pub(super) fn granting(&self, verb: KeyVerb, range: &KeyRange) -> Option<RuleId> {
        self.intervals(verb).granting(range)
    }

    pub(super) fn denying(&self, verb: KeyVerb, range: &KeyRange) -> Option<RuleId> {
        self.intervals(verb).denying(range)
    }

    pub(super) fn granting_store(&self, verb: StoreVerb) -> Result<RuleId, Cause> {
        if let Some(rule) = self.store_denied.get(&verb) {
            return Err(Cause::DenyRule(*rule));
        }
        self.store_allowed.get(&verb).copied().ok_or(Cause::NoRule)
    }

    /// Whether there is anything that it may do.
    #[must_use]
    pub const fn grants_anything(&self) -> bool {
        self.first_rule.is_some()
    }

    pub(super) const fn any_rule(&self) -> Option<RuleId> {
        self.first_rule
    }
}

/// A rule that only denies lets nobody in, not even with a request that touches nothing.
fn first_granting(rules: &[NumberedRule]) -> Option<RuleId> {
    let grants = |rule: &RuleSource| rule.allow != Verbs::default();
    rules.iter().find(|(_, rule)| grants(rule)).map(|(id, _)| *id)
}

fn templates(keys: &KeysSource) -> Vec<&Template> {
    match keys {
        KeysSource::Store => vec![],
        KeysSource::Key(template) | KeysSource::Prefix(template) => vec![template],
        KeysSource::Range(from, to) => std::iter::once(from).chain(to).collect(),
    }
}

/// The keys of a rule for one principal; `None` for a rule about the store, and for a range that
/// is empty with this principal's values.
fn key_range(keys: &KeysSource, values: &BTreeMap<Variable, String>) -> Option<KeyRange> {
    match keys {
        KeysSource::Store => None,
        KeysSource::Key(key) => {
            let key = crate::etcd::StoredKey::new(key.filled(values)?);
            Some(KeyRange::point(key))
        }
        KeysSource::Prefix(prefix) => Some(KeyRange::prefix(&prefix.filled(values)?)),
        KeysSource::Range(from, None) => KeyRange::between(&from.filled(values)?, None),
        KeysSource::Range(from, Some(to)) => {
            KeyRange::between(&from.filled(values)?, Some(&to.filled(values)?))
        }
    }
}

/// A range between two texts without variables is checked when the policy is read.
fn check_range_order(rule: &RuleSource, problems: &Problems) {
    let fixed = templates(&rule.keys).iter().all(|template| template.variables().is_empty());
    let about_keys = !matches!(rule.keys, KeysSource::Store);
    if fixed && about_keys && key_range(&rule.keys, &BTreeMap::new()).is_none() {
        let what = "a range whose `to` is not after its `from`";
        problems.error(
            &rule.location,
            what,
            "`to` is the first key that is no longer in the range",
        );
    }
}

impl Template {
    pub(super) fn variables(&self) -> Vec<Variable> {
        let variable = |part: &Part| match part {
            Part::Variable(variable) => Some(*variable),
            Part::Literal(_) => None,
        };
        self.0.iter().filter_map(variable).collect()
    }

    pub(super) fn filled(&self, values: &BTreeMap<Variable, String>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => bytes.extend(literal),
                Part::Variable(variable) => bytes.extend(values.get(variable)?.as_bytes()),
            }
        }
        Some(bytes)
    }
}
