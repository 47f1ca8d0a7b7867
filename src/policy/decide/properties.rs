//! Rules of every shape, from their text to the decision on every shape of request, against a naive
//! model that looks at each key of a small world.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::super::{Policy, PolicySource};
use super::*;
use crate::document::Problems;
use crate::etcd::RangeEnd;
use crate::identity::CertificateFacts;

/// What is put where a rule says `${cn}`.
const COMMON_NAME: &str = "ab";

/// The keys of a rule as the documents put it, with `${cn}` filled in.
#[derive(Clone, Debug)]
enum Keys {
    Key(Vec<u8>),
    Prefix(Vec<u8>),
    Range(Vec<u8>, Option<Vec<u8>>),
}

/// One rule: as text, and as the model has it.
#[derive(Clone, Debug)]
struct Rule {
    text: String,
    keys: Option<Keys>,
    allow: Vec<&'static str>,
    deny: Vec<&'static str>,
}

impl Keys {
    fn hold(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(one) => key == one,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Range(from, to) => key >= &from[..] && to.as_ref().is_none_or(|to| key < &to[..]),
        }
    }

    fn text(&self, template: impl Fn(&[u8]) -> String) -> String {
        match self {
            Self::Key(key) => format!("key = {}", template(key)),
            Self::Prefix(prefix) => format!("prefix = {}", template(prefix)),
            Self::Range(from, None) => format!("range = {{ from = {} }}", template(from)),
            Self::Range(from, Some(to)) => {
                format!("range = {{ from = {}, to = {} }}", template(from), template(to))
            }
        }
    }
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0_u8), Just(b'/'), Just(b'a'), Just(b'b'), Just(0xff)];
    proptest::collection::vec(byte, 1..4)
}

fn keys(key: BoxedStrategy<Vec<u8>>) -> impl Strategy<Value = Keys> {
    let between = (key.clone(), key.clone()).prop_filter_map("no range", |(from, to)| {
        (from < to).then_some(Keys::Range(from, Some(to)))
    });
    prop_oneof![
        key.clone().prop_map(Keys::Key),
        key.clone().prop_map(Keys::Prefix),
        key.prop_map(|from| Keys::Range(from, None)),
        between,
        Just(Keys::Prefix(vec![])),
    ]
}

fn hex(key: &[u8]) -> String {
    let mut text = String::new();
    key.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
    format!("{text:?}")
}

/// Keys with a name of the certificate in them, written as a template.
fn templated() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec!["ab/", "/ab/", "bab/", "ab/ab/"])
        .prop_map(|text| text.as_bytes()[..text.len().min(4)].to_vec())
}

fn template(key: &[u8]) -> String {
    format!("{:?}", std::str::from_utf8(key).unwrap().replace(COMMON_NAME, "${cn}"))
}

fn verbs(names: Vec<&'static str>) -> impl Strategy<Value = Vec<&'static str>> {
    let most = names.len().min(4);
    prop::sample::subsequence(names, 0..=most)
}

fn key_verbs() -> impl Strategy<Value = Vec<&'static str>> {
    verbs(KeyVerb::ALL.iter().map(|verb| verb.name()).collect())
}

fn store_verbs() -> impl Strategy<Value = Vec<&'static str>> {
    verbs(STORE_VERBS.iter().map(|verb| verb.name()).collect())
}

/// Few enough for rules to meet.
const STORE_VERBS: [StoreVerb; 4] =
    [StoreVerb::Lease, StoreVerb::Status, StoreVerb::AlarmGet, StoreVerb::Snapshot];

fn rule() -> impl Strategy<Value = Rule> {
    let written = |keys: &str, allow: &[&str], deny: &[&str]| {
        format!("{{ {keys}allow = {allow:?}, deny = {deny:?} }}")
    };
    let in_hex = (keys(key().boxed()), key_verbs(), key_verbs()).prop_map(move |parts| {
        let (keys, allow, deny) = parts;
        let text = written(&format!("{}, encoding = \"hex\", ", keys.text(hex)), &allow, &deny);
        Rule { text, keys: Some(keys), allow, deny }
    });
    let in_text = (keys(templated().boxed()), key_verbs(), key_verbs()).prop_map(move |parts| {
        let (keys, allow, deny) = parts;
        let text = written(&format!("{}, ", keys.text(template)), &allow, &deny);
        Rule { text, keys: Some(keys), allow, deny }
    });
    let of_store = (store_verbs(), store_verbs()).prop_map(move |(allow, deny)| Rule {
        text: written("", &allow, &deny),
        keys: None,
        allow,
        deny,
    });
    prop_oneof![3 => in_hex, 2 => in_text, 1 => of_store]
}

/// Every range that a request can name.
fn range() -> impl Strategy<Value = KeyRange> {
    let key = || prop_oneof![3 => key(), 1 => templated()];
    let between = (key(), proptest::option::of(key()));
    prop_oneof![
        key().prop_map(|key| KeyRange::point(StoredKey::new(key))),
        key().prop_map(|key| KeyRange::prefix(&key)),
        between.prop_filter_map("no range", |(start, end)| {
            KeyRange::between(&start, end.as_deref())
        }),
        Just(KeyRange::between(b"\0", None).unwrap()),
    ]
}

fn touch() -> impl Strategy<Value = Touch> {
    let of_keys = (prop::sample::select(KeyVerb::ALL.to_vec()), range())
        .prop_map(|(verb, range)| Touch::Key { verb, range });
    let of_store = prop::sample::select(STORE_VERBS.to_vec()).prop_map(Touch::Store);
    let of_stream = prop_oneof![Just(Touch::WatchProgress), Just(Touch::CancelWatch(1))];
    prop_oneof![12 => of_keys, 2 => of_store, 1 => of_stream]
}

/// Every key that a gap between rules could begin with: an end of some rule, or what follows a key.
fn world() -> Vec<Vec<u8>> {
    let alphabet = [0_u8, 1, b'/', b'0', b'a', b'b', b'c', 0xff];
    let mut longest: Vec<Vec<u8>> = vec![vec![]];
    let mut all = Vec::new();
    for _ in 0..4 {
        let longer = |key: &Vec<u8>| alphabet.map(|byte| [&key[..], &[byte]].concat());
        longest = longest.iter().flat_map(longer).collect();
        all.extend(longest.clone());
    }
    // What follows a key of four bytes, and the end of a prefix of them.
    let behind = |text: &[u8]| [text, b"\0"].concat();
    all.extend([&b"/ab/"[..], b"bab/", b"ab/a", b"/ab0", b"bab0", b"ab/b"].map(behind));
    all
}

fn rights(rules: &[Vec<Rule>]) -> (Policy, Identification) {
    let names: Vec<String> = (0..rules.len()).map(|role| format!("r{role}")).collect();
    let mut text = format!(
        "[[identity]]\nname = \"x\"\nmatch = {{ ca = \"ca\", cn = \"*\" }}\nroles = {names:?}\n"
    );
    for (name, rules) in names.iter().zip(rules) {
        let rules: Vec<&str> = rules.iter().map(|rule| rule.text.as_str()).collect();
        write!(text, "[[role]]\nname = {name:?}\nrules = [{}]\n", rules.join(", ")).unwrap();
    }
    let (mut source, problems) = (PolicySource::default(), Problems::default());
    source.read("policy.toml", &text, &problems);
    let policy = Policy::compile(source, &["ca"], &problems);
    assert!(!problems.has_errors(), "{text}\n{:?}", problems.into_sorted());
    let facts = CertificateFacts {
        common_names: vec![COMMON_NAME.to_owned()],
        ..CertificateFacts::default()
    };
    let identification = policy.identify("ca", &facts).unwrap();
    (policy, identification)
}

/// As docs/authorization.md says it: every key of the request needs a rule that allows, and none that
/// denies.
fn naive(rules: &[&Rule], touch: &Touch, world: &[Vec<u8>]) -> bool {
    let any = |of: fn(&Rule) -> &[&'static str], verb: &str, key: Option<&[u8]>| {
        rules.iter().any(|rule| {
            let holds = match (&rule.keys, key) {
                (Some(keys), Some(key)) => keys.hold(key),
                (None, None) => true,
                _ => false,
            };
            holds && of(rule).contains(&verb)
        })
    };
    let granted = |verb: &str, key: Option<&[u8]>| {
        any(|rule| &rule.allow, verb, key) && !any(|rule| &rule.deny, verb, key)
    };
    match touch {
        Touch::Key { verb, range } => {
            let mut keys = world.iter().filter(|key| range.contains(key)).peekable();
            assert!(keys.peek().is_some(), "the world is too small for {range:?}");
            keys.all(|key| granted(verb.name(), Some(key)))
        }
        Touch::Store(verb) => granted(verb.name(), None),
        Touch::WatchProgress | Touch::CancelWatch(_) => {
            rules.iter().any(|rule| !rule.allow.is_empty())
        }
        Touch::Lease { .. } => false,
    }
}

/// The rule of that ID, by the name that the audit log shows: `role/position (place)`.
fn named<'a>(rules: &'a [Vec<Rule>], policy: &Policy, rule: RuleId) -> &'a Rule {
    let name = policy.rule_name(rule);
    let (role, position) = name.strip_prefix('r').unwrap().split_once('/').unwrap();
    let position: usize = position.split(' ').next().unwrap().parse().unwrap();
    &rules[role.parse::<usize>().unwrap()][position - 1]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_policy_decides_what_a_look_at_every_key_decides(
        rules in proptest::collection::vec(proptest::collection::vec(rule(), 0..4), 1..4),
        touches in proptest::collection::vec(touch(), 1..8),
    ) {
        let (policy, who) = rights(&rules);
        let all: Vec<&Rule> = rules.iter().flatten().collect();
        let world = world();
        for touch in &touches {
            let decided = decide_touch(&who.rights, touch);
            prop_assert_eq!(decided.is_ok(), naive(&all, touch, &world), "{:?}", touch);
            let (verb, range) = match touch {
                Touch::Key { verb, range } => (verb.name(), Some(range)),
                Touch::Store(verb) => (verb.name(), None),
                Touch::Lease { .. } | Touch::CancelWatch(_) | Touch::WatchProgress => continue,
            };
            match decided {
                Ok(rule) => {
                    let rule = named(&rules, &policy, rule);
                    prop_assert!(rule.allow.contains(&verb), "{:?} for {:?}", rule, touch);
                    let first = range.map(|range| range.start().as_bytes());
                    let holds = first.zip(rule.keys.as_ref()).map(|(key, keys)| keys.hold(key));
                    prop_assert_ne!(holds, Some(false), "{:?} for {:?}", rule, touch);
                }
                Err(Cause::DenyRule(rule)) => {
                    let rule = named(&rules, &policy, rule);
                    prop_assert!(rule.deny.contains(&verb), "{:?} for {:?}", rule, touch);
                    let hits = |range: &KeyRange| world.iter().any(|key| {
                        range.contains(key) && rule.keys.as_ref().unwrap().hold(key)
                    });
                    prop_assert!(range.is_none_or(hits), "{:?} for {:?}", rule, touch);
                }
                Err(_) => {}
            }
        }
    }
}

#[test]
fn the_world_of_the_model_holds_every_end_of_a_range() {
    let world: std::collections::BTreeSet<Vec<u8>> = world().into_iter().collect();
    for prefix in [&b"a"[..], b"/ab/", b"ab/", b"bab/", b"\0\0\0", b"b\xff\xff"] {
        let range = KeyRange::prefix(prefix);
        if let RangeEnd::Before(end) = range.end() {
            assert!(world.contains(end.as_bytes()), "{end:?}");
        }
    }
}
