//! The interval index against a naive look at every key.

use proptest::prelude::*;

use super::*;
use crate::etcd::StoredKey;

/// Keys over a small alphabet, so that rules and requests meet at every boundary.
fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xff)], 1..4)
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(|key| KeyRange::point(StoredKey::new(key))),
        key().prop_map(|key| KeyRange::prefix(&key)),
        Just(KeyRange::prefix(b"")),
        (key(), proptest::option::of(key()))
            .prop_filter_map("an end before its start", |(start, end)| {
                KeyRange::between(&start, end.as_deref())
            }),
    ]
}

fn rules() -> impl Strategy<Value = Vec<(KeyRange, RuleId)>> {
    proptest::collection::vec(key_range(), 0..6).prop_map(|ranges| {
        ranges.into_iter().enumerate().map(|(index, range)| (range, RuleId::new(index))).collect()
    })
}

/// Every key that a naive look needs: those of the alphabet, and a longer one behind each, so that
/// a gap between two neighbours shows.
fn all_keys() -> Vec<Vec<u8>> {
    // A gap begins at a start or an end of some rule, and each of those is one of these keys.
    let alphabet = [0_u8, 1, b'a', b'b', b'c', 0xff];
    let mut keys: Vec<Vec<u8>> = vec![vec![]];
    let mut all = keys.clone();
    for _ in 0..4 {
        keys = keys
            .iter()
            .flat_map(|key| alphabet.iter().map(move |byte| [&key[..], &[*byte]].concat()))
            .collect();
        all.extend(keys.clone());
    }
    all
}

/// Key by key, as the sentence in the documentation says it.
fn naive(allowed: &[(KeyRange, RuleId)], denied: &[(KeyRange, RuleId)], range: &KeyRange) -> bool {
    let any =
        |rules: &[(KeyRange, RuleId)], key: &[u8]| rules.iter().any(|(rule, _)| rule.contains(key));
    all_keys()
        .iter()
        .filter(|key| range.contains(key))
        .all(|key| any(allowed, key) && !any(denied, key))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_index_agrees_with_a_naive_look_at_every_key(
        allowed in rules(), denied in rules(), range in key_range(),
    ) {
        let intervals = Intervals::build(&allowed, &denied);
        let granted = intervals.granting(&range);
        prop_assert_eq!(granted.is_some(), naive(&allowed, &denied, &range));
        if let Some(rule) = granted {
            let holds = allowed.iter().any(|(keys, id)| *id == rule && keys.contains(range.start().as_bytes()));
            prop_assert!(holds, "the named rule does not hold the first key");
        }
        if intervals.denying(&range).is_some() {
            prop_assert!(granted.is_none(), "deny beats allow");
        }
    }
}

fn check(allowed: &[&[u8]], denied: &[&[u8]], range: KeyRange, expected: bool) {
    let rules = |prefixes: &[&[u8]]| -> Vec<(KeyRange, RuleId)> {
        let numbered = prefixes.iter().enumerate();
        numbered.map(|(index, prefix)| (KeyRange::prefix(prefix), RuleId::new(index))).collect()
    };
    let intervals = Intervals::build(&rules(allowed), &rules(denied));
    assert_eq!(intervals.granting(&range).is_some(), expected, "{range:?}");
}

#[test]
fn a_range_one_byte_too_wide_is_not_inside() {
    let between = |start: &[u8], end: &[u8]| KeyRange::between(start, Some(end)).unwrap();
    check(&[b"/a/"], &[], between(b"/a/", b"/a0"), true);
    check(&[b"/a/"], &[], between(b"/a/", b"/a/\xff"), true);
    check(&[b"/a/"], &[], between(b"/a/", b"/a1"), false);
    check(&[b"/a/"], &[], between(b"/a", b"/a0"), false);
    check(&[b"/a/"], &[], KeyRange::between(b"/a/x", None).unwrap(), false);
    check(&[b"\xff\xff"], &[], KeyRange::between(b"\xff\xff", None).unwrap(), true);
    check(&[b"/a/", b"/a0"], &[], between(b"/a/", b"/a1"), true);
    check(&[b"/a/"], &[b"/a/secret/"], between(b"/a/", b"/a0"), false);
    check(&[b"/a/"], &[b"/a/secret/"], between(b"/a/t", b"/a0"), true);
    check(&[], &[], KeyRange::point(StoredKey::new("/a/")), false);
}
