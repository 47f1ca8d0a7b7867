//! The file format of policies: `[[identity]]` and `[[role]]`, read with every mistake reported.
//! Names are not resolved here.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::upstream::{PasswordFiles, UpstreamSource, read_upstream};
use crate::document::{Document, Located, Location, Problems, TableReader};
use crate::etcd::{KeyVerb, StoreVerb};
use crate::identity::{CertificatePattern, Glob, Variable};

/// What one or more policy files say.
#[derive(Debug, Default)]
pub struct PolicySource {
    pub(super) identities: Vec<IdentitySource>,
    pub(super) roles: Vec<RoleSource>,
}

#[derive(Debug)]
pub(super) struct IdentitySource {
    pub(super) name: Located<String>,
    pub(super) pattern: CertificatePattern,
    pub(super) ca: Located<String>,
    pub(super) roles: Vec<Located<String>>,
    pub(super) limits: IdentityLimits,
    pub(super) upstream: Option<UpstreamSource>,
}

/// What an identity may use, where it differs from the `[limits]` of the config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityLimits {
    /// Calls that end soon, at a time, per core.
    pub calls: Option<u32>,
    /// Streams and calls that wait for others, at a time, per core.
    pub streams: Option<u32>,
    /// Watches at a time, per core.
    pub watches: Option<u32>,
    /// Over all cores; 0 is no limit.
    pub requests_per_second: Option<u32>,
    /// Bytes of requests and replies, over all cores; 0 is no limit.
    pub bytes_per_second: Option<u64>,
    /// Bytes of one reply of a call of KV; 0 is no limit.
    pub reply_bytes: Option<u64>,
}

#[derive(Debug)]
pub(super) struct RoleSource {
    pub(super) name: Located<String>,
    pub(super) rules: Vec<RuleSource>,
}

/// One rule as written.
#[derive(Clone, Debug)]
pub struct RuleSource {
    /// Where it stands.
    pub location: Location,
    pub(super) keys: KeysSource,
    pub(super) allow: Verbs,
    pub(super) deny: Verbs,
}

/// Which keys a rule speaks of.
#[derive(Clone, Debug)]
pub(super) enum KeysSource {
    Store,
    Key(Template),
    Prefix(Template),
    /// From, and to: excluded; none is "to the end".
    Range(Template, Option<Template>),
}

/// Verbs as a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verbs {
    pub(super) key: Vec<KeyVerb>,
    pub(super) store: Vec<StoreVerb>,
}

/// A key or prefix with places for facts of the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(pub(super) Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Vec<u8>),
    Variable(Variable),
}

impl PolicySource {
    /// The first rule that allows a verb of the store.
    #[must_use]
    pub fn first_rule_allowing(&self, verb: StoreVerb) -> Option<&Location> {
        let mut rules = self.roles.iter().flat_map(|role| &role.rules);
        rules.find(|rule| rule.allow.store.contains(&verb)).map(|rule| &rule.location)
    }

    /// Where the passwords of users of etcd are, as which identities reach it.
    pub fn password_files(&self) -> impl Iterator<Item = &PasswordFiles> {
        self.upstreams().filter_map(|upstream| match upstream {
            UpstreamSource::User { passwords, .. } => Some(passwords),
            UpstreamSource::Certificate { .. } | UpstreamSource::Unreadable => None,
        })
    }

    /// The certificates and keys with which identities reach etcd, in their order.
    pub fn upstream_certificates(
        &self,
    ) -> impl Iterator<Item = (&Located<String>, &Located<String>)> {
        self.upstreams().filter_map(|upstream| match upstream {
            UpstreamSource::Certificate { certificate, key } => Some((certificate, key)),
            UpstreamSource::User { .. } | UpstreamSource::Unreadable => None,
        })
    }

    /// The certificates among them, with their identities.
    pub fn named_upstream_certificates(&self) -> impl Iterator<Item = (&str, &Located<String>)> {
        self.identities.iter().filter_map(|identity| match &identity.upstream {
            Some(UpstreamSource::Certificate { certificate, .. }) => {
                Some((identity.name.value.as_str(), certificate))
            }
            Some(UpstreamSource::User { .. } | UpstreamSource::Unreadable) | None => None,
        })
    }

    fn upstreams(&self) -> impl Iterator<Item = &UpstreamSource> {
        self.identities.iter().filter_map(|identity| identity.upstream.as_ref())
    }

    /// Whether nobody is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }

    /// Reads one file's text and adds what it says; false when it is not TOML.
    pub fn read(&mut self, file: &str, text: &str, problems: &Problems) -> bool {
        let document = Document::new(file, text);
        let Some(table) = document.parse(problems) else { return false };
        let root = document.root(&table, problems);
        for identity in root.tables("identity") {
            self.identities.extend(read_identity(identity));
        }
        for role in root.tables("role") {
            self.roles.extend(read_role(role));
        }
        root.finish();
        true
    }
}

fn read_identity(table: TableReader<'_>) -> Option<IdentitySource> {
    let name = table.required_text("name", "the name that audit records show");
    let roles = table.required_texts("roles", "the names of `[[role]]` entries");
    let pattern = table
        .required_table(
            "match",
            "for example match = { ca = \"kubernetes\", cn = \"kube-apiserver\" }",
        )
        .and_then(read_pattern);
    let limits = table.table("limits").map_or_else(IdentityLimits::default, read_identity_limits);
    // One that cannot be read must not become none: its principals would reach etcd as ringfence.
    let upstream = table.has("upstream").then(|| {
        table.table("upstream").and_then(read_upstream).unwrap_or(UpstreamSource::Unreadable)
    });
    table.finish();
    let (ca, pattern) = pattern?;
    Some(IdentitySource { name: name?, pattern, ca, roles, limits, upstream })
}

fn read_identity_limits(table: TableReader<'_>) -> IdentityLimits {
    // What is left out is as the config says; the hint of a mistake names the config's own default.
    let number = |key, bounds: RangeInclusive<u64>, usual| {
        let value = table.number(key, bounds, usual);
        table.has(key).then_some(value)
    };
    let small =
        |key, bounds, usual| number(key, bounds, usual).and_then(|value| u32::try_from(value).ok());
    let limits = IdentityLimits {
        calls: small("calls", 1..=100_000, 512),
        streams: small("streams", 1..=100_000, 2048),
        watches: small("watches", 1..=1_000_000, 20_000),
        requests_per_second: small("requests_per_second", 0..=1_000_000, 0),
        bytes_per_second: number("bytes_per_second", 0..=1 << 40, 0),
        reply_bytes: number("reply_bytes", 0..=1 << 40, 0),
    };
    table.finish();
    limits
}

fn read_pattern(table: TableReader<'_>) -> Option<(Located<String>, CertificatePattern)> {
    let ca = table.required_text("ca", "the name of a `[[client.ca]]` entry");
    let glob = |key, separator| -> Option<Glob> {
        let text = table.text(key)?;
        let glob = Glob::new(&text.value, separator);
        let report = |error: &dyn std::fmt::Display| {
            table.problems().error(&text.location, format!("`{}`: {error}", table.path(key)), "");
        };
        glob.map_err(|error| report(&error)).ok()
    };
    let pattern = CertificatePattern {
        ca: ca.as_ref().map(|ca| ca.value.clone()).unwrap_or_default(),
        common_name: glob("cn", None),
        organization: glob("org", None),
        organizational_unit: glob("ou", None),
        dns: glob("dns", Some('.')),
        uri: glob("uri", Some('/')),
        ip: read_network(&table),
        spki_sha256: read_spki(&table),
    };
    let named = ["cn", "org", "ou", "dns", "uri", "ip", "spki"];
    if !named.into_iter().any(|key| table.has(key)) {
        let hint = "name at least one of cn, org, ou, dns, uri, ip, spki; cn = \"*\" is any CN";
        table.problems().error(table.location(), "`match` fits every certificate of the CA", hint);
    }
    table.finish();
    Some((ca?, pattern))
}

fn read_network(table: &TableReader<'_>) -> Option<IpNet> {
    let text = table.text("ip")?;
    let network = text.value.parse().ok();
    let network = network.or_else(|| text.value.parse().ok().map(|ip: std::net::IpAddr| ip.into()));
    if network.is_none() {
        let what = format!("`{}` is neither an IP address nor a network", text.value);
        table.problems().error(&text.location, what, "for example 10.0.0.7 or 10.0.0.0/24");
    }
    network
}

fn read_spki(table: &TableReader<'_>) -> Option<String> {
    let text = table.text("spki")?;
    let hash = text.value.to_ascii_lowercase();
    let fits = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !fits {
        let hint = "SHA-256 of the SubjectPublicKeyInfo, 64 hex digits";
        table.problems().error(&text.location, format!("`{}` is no SPKI hash", text.value), hint);
    }
    fits.then_some(hash)
}

fn read_role(table: TableReader<'_>) -> Option<RoleSource> {
    let name = table.required_text("name", "the name that identities list in `roles`");
    let rules = table.tables("rules").into_iter().filter_map(read_rule).collect();
    if !table.has("rules") || table.is_empty_list("rules") {
        let hint = "for example rules = [{ prefix = \"/app/\", allow = [\"get\"] }]";
        let location = name.as_ref().map_or_else(|| table.location(), |name| &name.location);
        table.problems().warning(location, "a role without `rules` allows nothing", hint);
    }
    table.finish();
    Some(RoleSource { name: name?, rules })
}

fn read_rule(table: TableReader<'_>) -> Option<RuleSource> {
    let keys = read_keys(&table);
    let about_keys = !matches!(keys, Some(KeysSource::Store));
    let allow = read_verbs(&table, "allow", about_keys);
    let deny = read_verbs(&table, "deny", about_keys);
    if !table.has("allow") && !table.has("deny") {
        let hint = "for example allow = [\"get\", \"list\"]";
        table.problems().error(table.location(), "a rule with neither `allow` nor `deny`", hint);
    }
    let location = table.location().clone();
    table.finish();
    Some(RuleSource { location, keys: keys?, allow, deny })
}

fn read_keys(table: &TableReader<'_>) -> Option<KeysSource> {
    let key = table.text("key");
    let prefix = table.text("prefix");
    let range = table.table("range");
    let hex = match table.text("encoding") {
        None => false,
        Some(text) if text.value == "text" => false,
        Some(text) if text.value == "hex" => true,
        Some(text) => {
            let what = format!("`{}` is no encoding", text.value);
            table.problems().error(&text.location, what, "`text` (the default) or `hex`");
            return None;
        }
    };
    if [key.is_some(), prefix.is_some(), range.is_some()].into_iter().filter(|set| *set).count() > 1
    {
        let what = "a rule with more than one of `key`, `prefix` and `range`";
        table.problems().error(table.location(), what, "make a rule of each");
        return None;
    }
    let template = |text: &Located<String>| read_template(text, hex, table.problems());
    if let Some(key) = key {
        if key.value.is_empty() {
            table.problems().error(&key.location, "`key` is empty", "etcd has no empty key");
            return None;
        }
        return Some(KeysSource::Key(template(&key)?));
    }
    if let Some(prefix) = prefix {
        if !prefix.value.is_empty() && !hex && !prefix.value.ends_with('/') {
            let what = format!("prefix `{0}` also holds keys such as `{0}x`", prefix.value);
            table.problems().warning(
                &prefix.location,
                what,
                "end it with `/` if that is not meant",
            );
        }
        let template = template(&prefix)?;
        check_prefix_end(&template, &prefix, table.problems())?;
        return Some(KeysSource::Prefix(template));
    }
    let Some(range) = range else {
        let broken = ["key", "prefix", "range"].into_iter().any(|name| table.has(name));
        return (!broken).then_some(KeysSource::Store);
    };
    let from = range.required_text("from", "the first key of the range");
    let to = range.text("to");
    range.finish();
    let to = match to {
        Some(to) => Some(template(&to)?),
        None => None,
    };
    Some(KeysSource::Range(template(&from?)?, to))
}

fn read_verbs(table: &TableReader<'_>, key: &'static str, about_keys: bool) -> Verbs {
    let mut verbs = Verbs::default();
    if table.is_empty_list(key) {
        let what = format!("`{}` is empty", table.path(key));
        table.problems().warning(&table.location_of_key(key), what, "name verbs, or leave it out");
    }
    for name in table.texts(key) {
        match (KeyVerb::from_name(&name.value), StoreVerb::from_name(&name.value)) {
            (Some(verb), _) if about_keys => verbs.key.push(verb),
            (_, Some(verb)) if !about_keys => verbs.store.push(verb),
            (Some(_), _) => {
                let what = format!("`{}` needs keys", name.value);
                table.problems().error(&name.location, what, "add `key`, `prefix` or `range`");
            }
            (_, Some(_)) => {
                let what = format!("`{}` is about the whole store, not about keys", name.value);
                table.problems().error(&name.location, what, "put it into a rule without a key");
            }
            (None, None) => {
                let what = format!("`{}` is no verb", name.value);
                table.problems().error(&name.location, what, known_verbs(about_keys));
            }
        }
    }
    verbs
}

fn known_verbs(about_keys: bool) -> String {
    let names: Vec<&str> = if about_keys {
        KeyVerb::ALL.iter().map(|verb| verb.name()).collect()
    } else {
        StoreVerb::ALL.iter().map(|verb| verb.name()).collect()
    };
    format!("known here: {}", names.join(", "))
}

pub(super) fn read_template(
    text: &Located<String>,
    hex: bool,
    problems: &Problems,
) -> Option<Template> {
    if hex {
        let bytes = decode_hex(&text.value);
        if bytes.is_none() {
            let what = format!("`{}` is not hex", text.value);
            problems.error(&text.location, what, "an even number of hex digits");
        }
        return bytes.map(|bytes| Template(vec![Part::Literal(bytes)]));
    }
    let mut parts = Vec::new();
    let mut rest = text.value.as_str();
    while let Some((literal, behind)) = rest.split_once("${") {
        let variable = behind.split_once('}').and_then(|(name, behind)| {
            rest = behind;
            Variable::from_name(name)
        });
        let Some(variable) = variable else {
            let what = format!("`{}` has a `${{` without a known name and `}}`", text.value);
            let hint =
                "known: ${cn}, ${org}, ${ou}, ${dns}, ${uri.host}, ${uri.path.N} with N from 1";
            problems.error(&text.location, what, hint);
            return None;
        };
        parts.push(Part::Literal(literal.as_bytes().to_vec()));
        parts.push(Part::Variable(variable));
    }
    parts.push(Part::Literal(rest.as_bytes().to_vec()));
    check_separated(&parts, text, problems)?;
    Some(Template(parts))
}

/// Between two variables something must stand that no value can hold, or two certificates fill the
/// template alike: `a-b` and `c` like `a` and `b-c`.
fn check_separated(parts: &[Part], text: &Located<String>, problems: &Problems) -> Option<()> {
    let separates = |byte: &u8| !(byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    let between = parts.iter().skip(2).filter_map(|part| match part {
        Part::Literal(literal) => Some(literal),
        Part::Variable(_) => None,
    });
    // The last literal has no variable behind it.
    let variables = parts.iter().filter(|part| matches!(part, Part::Variable(_))).count();
    let mut between = between.take(variables.saturating_sub(1));
    if between.all(|literal| literal.iter().any(separates)) {
        return Some(());
    }
    let what = format!("`{}` has two variables with nothing between that parts them", text.value);
    problems.error(&text.location, what, "put a / between, or anything that no value can hold");
    None
}

/// `/tenants/${cn}` as a prefix would give the keys of `ab` to `a`.
fn check_prefix_end(
    template: &Template,
    text: &Located<String>,
    problems: &Problems,
) -> Option<()> {
    let open = match template.0.as_slice() {
        [.., Part::Variable(_), Part::Literal(last)] => last.is_empty(),
        _ => false,
    };
    if !open {
        return Some(());
    }
    let what = format!("the prefix `{}` ends with a variable", text.value);
    let hint = "it would cover every value that begins so: end it with a /";
    problems.error(&text.location, what, hint);
    None
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok()))
        .collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
