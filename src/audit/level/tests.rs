//! What rules leave out, hide and sample, and what they cannot.

use std::cmp::Reverse;

use super::*;
use crate::audit::event::{RecordedEnd, RecordedKey};
use crate::etcd::{StoredKey, touch_verbs};

fn rule(level: Level, verbs: &[&str], prefixes: &[&str]) -> LevelRule {
    LevelRule {
        level,
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        prefixes: prefixes.iter().map(|prefix| Prefix::new(prefix.as_bytes())).collect(),
        identities: Vec::new(),
        one_in: NonZeroU32::MIN,
        keys: KeyForm::Plain,
        text: String::new(),
    }
}

fn levels(rules: Vec<LevelRule>) -> Levels {
    let hash = KeyedHash::from_text(&"0b".repeat(32)).ok();
    Levels { rules, hash, value_hashes: false }
}

fn point(verb: KeyVerb, key: &str) -> Touch {
    Touch::Key { verb, range: KeyRange::point(StoredKey::new(key.to_owned())) }
}

fn list(start: &str, end: Option<&str>) -> Touch {
    let range = KeyRange::between(start.as_bytes(), end.map(str::as_bytes)).unwrap();
    Touch::Key { verb: KeyVerb::List, range }
}

/// `None` when it is left out, otherwise its level, how many it stands for, and a letter for each touch: `k` with its
/// key, `p` with parts, `h` hashed, `v` only its verb.
fn shown(levels: &Levels, identity: &str, touches: &[Touch]) -> Option<(Level, u32, String)> {
    drawn(levels, identity, touches, 0)
}

fn drawn(
    levels: &Levels,
    identity: &str,
    touches: &[Touch],
    draw: u32,
) -> Option<(Level, u32, String)> {
    let touches = touches.iter().cloned().collect();
    match levels.of_allowed(identity, &touches, || draw, Vec::new) {
        Shown::LeftOut(_) => None,
        Shown::Recorded(recorded) => {
            Some((recorded.level, recorded.one_in.get(), letters(&recorded)))
        }
    }
}

fn letters(recorded: &RecordedTouches<'_>) -> String {
    let letter = |touch: &RecordedTouch<'_>| match touch {
        RecordedTouch::Key { start: RecordedKey::Plain { .. }, .. } | RecordedTouch::Other(_) => {
            'k'
        }
        RecordedTouch::Key { start: RecordedKey::Parts(_), .. } => 'p',
        RecordedTouch::Key { start: RecordedKey::Hashed { .. }, .. } => 'h',
        RecordedTouch::Verb(_) => 'v',
    };
    recorded.touches.iter().map(letter).collect()
}

fn check(rules: Vec<LevelRule>, touches: &[Touch], expected: Option<(Level, &str)>) {
    let found = shown(&levels(rules), "tenant", touches);
    let expected = expected.map(|(level, letters)| (level, 1, letters.to_owned()));
    assert_eq!(found, expected, "{touches:?}");
}

#[test]
fn without_rules_everything_is_recorded() {
    check(vec![], &[point(KeyVerb::Get, "/a")], Some((Level::Request, "k")));
    check(vec![], &[], Some((Level::Request, "")));
}

#[test]
fn the_first_rule_that_fits_counts() {
    let rules = || {
        vec![
            rule(Level::Metadata, &["get"], &["/a/"]),
            rule(Level::None, &["get", "list"], &["/a/", "/b/"]),
        ]
    };
    check(rules(), &[point(KeyVerb::Get, "/a/x")], Some((Level::Metadata, "v")));
    check(rules(), &[point(KeyVerb::Get, "/b/x")], None);
    check(rules(), &[list("/a/", Some("/a0"))], None);
    check(rules(), &[point(KeyVerb::Get, "/c")], Some((Level::Request, "k")));
    check(rules(), &[point(KeyVerb::Put, "/a/x")], Some((Level::Request, "k")));
    // What has no key fits no rule with prefixes.
    check(rules(), &[Touch::WatchProgress], Some((Level::Request, "k")));
}

#[test]
fn a_transaction_is_recorded_as_its_most_detailed_part_asks() {
    let rules = || {
        vec![
            rule(Level::None, &["get"], &["/quiet/"]),
            rule(Level::Metadata, &["get"], &["/names/"]),
        ]
    };
    let quiet = point(KeyVerb::Get, "/quiet/x");
    let names = point(KeyVerb::Get, "/names/x");
    let secret = point(KeyVerb::Put, "/secret/x");
    check(rules(), &[quiet.clone(), quiet.clone()], None);
    check(rules(), &[quiet.clone(), names.clone()], Some((Level::Metadata, "vv")));
    // Keys of it are left out, so it does not say that everything is there.
    check(rules(), &[quiet, secret.clone(), names], Some((Level::Metadata, "vkv")));
    check(rules(), &[secret], Some((Level::Request, "k")));
}

#[test]
fn a_wide_read_cannot_hide_behind_a_rule_for_a_part_of_it() {
    let rules =
        || vec![rule(Level::Request, &[], &["/secrets/"]), rule(Level::None, &["list"], &[])];
    check(rules(), &[list("/other/", Some("/other0"))], None);
    check(rules(), &[list("/secrets/a", Some("/secrets/b"))], Some((Level::Request, "k")));
    for (start, end) in
        [("/", Some("0")), ("/a", None), ("/secrets/x", None), ("/s", Some("/secrets/b"))]
    {
        check(rules(), &[list(start, end)], Some((Level::Request, "k")));
    }
    // And the other way around: what a rule leaves out of a prefix does not leave a wider range out.
    let rules = || vec![rule(Level::None, &["list"], &["/quiet/"])];
    check(rules(), &[list("/quiet/", Some("/quiet0"))], None);
    check(rules(), &[list("/", Some("0"))], Some((Level::Request, "k")));
    check(rules(), &[list("/quiet/x", None)], Some((Level::Request, "k")));
}

#[test]
fn a_rule_is_for_its_identities() {
    let mut one = rule(Level::None, &["health"], &[]);
    one.identities = vec!["probe".to_owned()];
    let levels = levels(vec![one]);
    let health = [Touch::Store(StoreVerb::Health)];
    assert_eq!(shown(&levels, "probe", &health), None);
    assert!(shown(&levels, "tenant", &health).is_some());
}

#[test]
fn one_in_so_many_is_recorded_and_says_so() {
    let mut one = rule(Level::Metadata, &["health"], &[]);
    one.one_in = NonZeroU32::new(10).unwrap();
    let levels = levels(vec![one]);
    let health = [Touch::Store(StoreVerb::Health)];
    let found: Vec<_> =
        (0..100).filter_map(|draw| drawn(&levels, "probe", &health, draw)).collect();
    assert_eq!(found, vec![(Level::Metadata, 10, "v".to_owned()); 10]);
    // Together with something that is recorded in any case it stands for itself.
    let both = [Touch::Store(StoreVerb::Health), point(KeyVerb::Put, "/a")];
    for draw in 0..20 {
        assert_eq!(drawn(&levels, "probe", &both, draw).unwrap().1, 1);
    }
}

/// The attack: of many reads in one transaction a harmless one is the one that is shown.
#[test]
fn a_decoy_cannot_stand_for_what_is_read_beside_it() {
    let mut one = rule(Level::Request, &["get"], &[]);
    one.one_in = NonZeroU32::new(10).unwrap();
    let levels = levels(vec![one]);
    let reads: Vec<Touch> = (0..10).map(|n| point(KeyVerb::Get, &format!("/{n}"))).collect();
    for draw in 0..100 {
        let expected = (draw % 10 == 0).then(|| (Level::Request, 10, "k".repeat(10)));
        assert_eq!(drawn(&levels, "tenant", &reads, draw), expected);
    }
}

#[test]
fn keys_are_shown_as_their_rule_says_denied_ones_too() {
    let mut hashed = rule(Level::Request, &[], &["/secret/"]);
    hashed.keys = KeyForm::Hashed;
    let mut parts = rule(Level::None, &[], &["/registry/"]);
    parts.keys = KeyForm::Parts(Reverse(2));
    let levels = levels(vec![hashed, parts]);
    let secret = point(KeyVerb::Get, "/secret/x");
    assert_eq!(shown(&levels, "tenant", std::slice::from_ref(&secret)).unwrap().2, "h");
    let named = point(KeyVerb::Get, "/registry/secrets/ns/name");
    assert_eq!(shown(&levels, "tenant", std::slice::from_ref(&named)), None);
    let touches = [named, secret].into_iter().collect();
    let denied = levels.of_denied("tenant", &touches);
    assert_eq!((denied.level, letters(&denied).as_str()), (Level::Request, "ph"));
}

/// The attack: a range that only brushes a hashed prefix is hidden as a whole, and so can be told of no key.
#[test]
fn only_the_end_of_a_range_that_lies_in_a_hashed_prefix_is_hidden() {
    let mut hashed = rule(Level::Request, &[], &["/shared/secrets/", "/shared/"]);
    hashed.keys = KeyForm::Hashed;
    hashed.prefixes.pop();
    let levels = levels(vec![hashed]);
    let of = |start: &str, end: &str| {
        let touches = [list(start, Some(end))].into_iter().collect();
        let Shown::Recorded(recorded) = levels.of_allowed("t", &touches, || 0, Vec::new) else {
            panic!()
        };
        let [RecordedTouch::Key { start, end: RecordedEnd::Before(end), .. }] = &*recorded.touches
        else {
            panic!()
        };
        let shown = |key: &RecordedKey<'_>| match key {
            RecordedKey::Plain { bytes, .. } => String::from_utf8(bytes.to_vec()).unwrap(),
            RecordedKey::Hashed { prefix, .. } => {
                format!("{}#", String::from_utf8(prefix.to_vec()).unwrap())
            }
            RecordedKey::Parts(_) => panic!(),
        };
        [shown(start), shown(end)]
    };
    assert_eq!(of("/shared/a", "/shared/secrets/zz"), ["/shared/a", "/shared/secrets/#"]);
    assert_eq!(of("/shared/secrets/a", "/z"), ["/shared/secrets/#", "/z"]);
    assert_eq!(of("/shared/secrets/a", "/shared/secrets/b"), ["/shared/secrets/#"; 2]);
    assert_eq!(of("/a", "/z"), ["/a", "/z"]);
}

#[test]
fn a_key_is_cut_behind_its_parts() {
    let check = |key: &str, parts: u8, expected: &str| {
        let form = KeyForm::Parts(Reverse(parts));
        match RecordedKey::new(&StoredKey::new(key.to_owned()), form, b"", None) {
            RecordedKey::Parts(kept) => assert_eq!(kept, expected.as_bytes(), "{key}"),
            RecordedKey::Plain { bytes, whole } => {
                assert_eq!((bytes, whole), (key.as_bytes(), None));
                assert_eq!(key, expected);
            }
            RecordedKey::Hashed { .. } => panic!("{key}"),
        }
    };
    check("/registry/secrets/ns/name", 1, "/registry/");
    check("/registry/secrets/ns/name", 2, "/registry/secrets/");
    check("/registry/secrets/ns/name", 3, "/registry/secrets/ns/");
    check("/registry/secrets/ns/name", 4, "/registry/secrets/ns/name");
    check("/registry/secrets/", 2, "/registry/secrets/");
    check("a/b/c", 1, "a/");
    check("plain", 1, "plain");
    check("/", 1, "/");
    check("//a", 1, "//");
}

#[test]
fn a_value_is_hashed_at_its_own_put() {
    let mut levels = levels(vec![rule(Level::Metadata, &["put"], &["/quiet/"])]);
    levels.value_hashes = true;
    let touches: Touches = [
        point(KeyVerb::Get, "/a"),
        point(KeyVerb::Put, "/a"),
        point(KeyVerb::Put, "/quiet/b"),
        point(KeyVerb::Put, "/keeps"),
        point(KeyVerb::Put, "/c"),
    ]
    .into_iter()
    .collect();
    let values = || vec![Some("one".into()), Some("two".into()), None, Some("three".into())];
    let Shown::Recorded(recorded) = levels.of_allowed("tenant", &touches, || 0, values) else {
        panic!()
    };
    let hash = levels.hash.as_ref().unwrap();
    let of = |value: &str| Some(hash.of_value(value.as_bytes()));
    let found = recorded.touches.iter().map(|touch| match touch {
        RecordedTouch::Key { value, .. } => value.as_deref().cloned(),
        RecordedTouch::Other(_) | RecordedTouch::Verb(_) => None,
    });
    let expected = [None, of("one"), None, None, of("three")];
    assert_eq!(found.collect::<Vec<_>>(), expected);
    // At the level of metadata nothing of a value is kept.
    let touches: Touches = [point(KeyVerb::Put, "/quiet/b")].into_iter().collect();
    let Shown::Recorded(recorded) = levels.of_allowed("tenant", &touches, || 0, || panic!()) else {
        panic!()
    };
    assert_eq!(letters(&recorded), "v");
}

#[test]
fn every_verb_of_a_record_is_known_to_rules() {
    for verb in touch_verbs() {
        assert!(changes(verb).is_some(), "{verb}");
    }
    assert_eq!(touch_verbs().count(), 5 + LeaseUse::ALL.len() + StoreVerb::ALL.len() - 1 + 2);
    assert_eq!(changes("lease"), None, "records say which use it is");
    assert_eq!(
        (changes("health"), changes("delete"), changes("fly")),
        (Some(false), Some(true), None)
    );
}
