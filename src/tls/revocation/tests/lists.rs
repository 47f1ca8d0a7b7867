//! Attacks on revocation lists.

use super::*;

#[test]
fn a_revoked_leaf_is_refused_and_its_neighbour_is_not() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    world.write("a.crl", list(&ca, 7, (-1, 7), &[5]));
    let revocation = world.load_silently();
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.accepts(&revocation, &leaf(6, &ca));
    let found: Vec<_> = revocation.lists().collect();
    assert_eq!(found.len(), 1);
    assert_eq!((&*found[0].authority, found[0].number.as_deref()), ("a", Some("7")));
    assert_eq!((found[0].entries, found[0].this_update_seconds), (1, NOW - DAY));
    assert_eq!(found[0].next_update_seconds, NOW + 7 * DAY);
    let causes = revocation.causes("a", &leaf(5, &ca));
    assert_eq!(causes.len(), 1, "{causes:?}");
    assert!(
        causes[0].contains("a.crl:1 of ") && causes[0].ends_with("serial number 05"),
        "{causes:?}"
    );
}

/// The attack: the certificates that a stolen intermediate signs are on no list.
#[test]
fn what_a_revoked_intermediate_has_signed_is_refused() {
    let ca = root("a");
    let (stolen, good) = (intermediate("stolen", 5, &ca), intermediate("good", 6, &ca));
    let chain = |issuer: &Ca| [leaf(9, issuer), vec![issuer.der().clone()]].concat();
    for mode in [Mode::Hard, Mode::Soft] {
        let world = World::new(&[("a", &[&ca], Some(mode))]);
        let lists = [&ca, &stolen, &good].map(|one| {
            let revoked: &[u64] = if std::ptr::eq(one, &ca) { &[5] } else { &[] };
            list(one, 1, (-1, 7), revoked)
        });
        world.write("a.crl", lists.concat());
        let (revocation, said) = world.load(None);
        assert_eq!(said.matches("is of no root of the CA `a`").count(), 2, "{said}");
        world.refuses(&revocation, &chain(&stolen), &REVOKED);
        world.accepts(&revocation, &chain(&good));
    }
    // Hard wants a list of every issuer, soft does not.
    for mode in [Mode::Hard, Mode::Soft] {
        let world = World::new(&[("a", &[&ca], Some(mode))]);
        world.write("a.crl", list(&ca, 1, (-1, 7), &[5]));
        let revocation = world.load_silently();
        world.refuses(&revocation, &chain(&stolen), &REVOKED);
        match mode {
            Mode::Hard => world.refuses(&revocation, &chain(&good), &UNKNOWN),
            Mode::Soft => world.accepts(&revocation, &chain(&good)),
        }
    }
}

/// The attack: an empty list in the name of the CA, signed by somebody else.
#[test]
fn a_list_that_another_key_has_signed_is_invalid() {
    let (ca, forger) = (root("a"), root("a"));
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    world.write("a.crl", list(&ca, 1, (-2, 7), &[5]));
    let before = world.load_silently();
    world.write("a.crl", list(&forger, 2, (-1, 7), &[]));
    let (revocation, said) = world.load(Some(&before));
    assert!(said.contains("warning: a.crl:1: the list names `"), "{said}");
    assert!(
        said.contains("whose key has not signed it; what the file said before goes on"),
        "{said}"
    );
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    // At the start nothing of it is taken, and without a list nobody is let in.
    let (revocation, said) = world.load(None);
    assert!(said.contains("error: a.crl:1"), "{said}");
    let authorities: Vec<_> = world.authorities.iter().map(|(one, _)| one.clone()).collect();
    let error = Authorities::with_revocation(&authorities, &revocation).unwrap_err();
    assert!(error.to_string().contains("no revocation list is there"), "{error}");
}

#[test]
fn a_list_of_one_ca_does_not_revoke_the_same_number_of_another() {
    let (a, b) = (root("a"), root("b"));
    let world = World::new(&[("a", &[&a], Some(Mode::Hard)), ("b", &[&b], None)]);
    world.write("a.crl", list(&a, 1, (-1, 7), &[5]));
    let revocation = world.load_silently();
    world.refuses(&revocation, &leaf(5, &a), &REVOKED);
    world.accepts(&revocation, &leaf(5, &b));
    assert!(revocation.causes("b", &leaf(5, &b)).is_empty());
}

/// The attack: new lists are kept away until the old one has lapsed.
#[test]
fn past_its_next_update_hard_refuses_and_soft_goes_on_counting() {
    let ca = root("a");
    for mode in [Mode::Hard, Mode::Soft] {
        let world = World::new(&[("a", &[&ca], Some(mode))]);
        world.write("a.crl", list(&ca, 1, (-9, -1), &[5]));
        let (revocation, said) = world.load(None);
        assert!(said.contains("warning: a.crl:1: the list of `"), "{said}");
        assert!(said.contains("is past its next update"), "{said}");
        let now = Duration::from_secs(u64::try_from(NOW).unwrap());
        assert!(revocation.lists().all(|list| list.is_stale(now)));
        match mode {
            Mode::Hard => {
                world.refuses(&revocation, &leaf(5, &ca), &EXPIRED);
                world.refuses(&revocation, &leaf(6, &ca), &EXPIRED);
            }
            Mode::Soft => {
                world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
                world.accepts(&revocation, &leaf(6, &ca));
            }
        }
    }
}

/// The attack: yesterday's list is put back, as it was signed.
#[test]
fn an_older_list_takes_nothing_back() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    world.write("a.crl", list(&ca, 2, (-2, 7), &[5]));
    let before = world.load_silently();
    for older in [list(&ca, 1, (-1, 7), &[]), list(&ca, 3, (-3, 7), &[])] {
        world.write("a.crl", older);
        let (revocation, said) = world.load(Some(&before));
        assert!(said.starts_with("warning: a.crl:1: the list of `"), "{said}");
        assert!(
            said.contains("is not newer than the one that goes on counting, number 2"),
            "{said}"
        );
        world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    }
    world.write("a.crl", list(&ca, 3, (-1, 7), &[6]));
    let (revocation, said) = world.load(Some(&before));
    assert!(!said.contains("a.crl"), "{said}");
    world.accepts(&revocation, &leaf(5, &ca));
    world.refuses(&revocation, &leaf(6, &ca), &REVOKED);
    // Side by side the newer one counts, whatever the names are.
    for (first, second) in [(1, 2), (2, 1)] {
        let one = |number: u64| list(&ca, number, (-5, 7), if number == 2 { &[5] } else { &[] });
        world.write("a.crl", one(first));
        world.write("a2.crl", one(second));
        let (revocation, said) = world.load(None);
        assert_eq!(said.matches("warning: a").count(), 1, "{said}");
        assert!(!said.contains("error"), "{said}");
        world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    }
}

/// The attack, or the mishap: the file is deleted, so that nothing is revoked any more.
#[test]
fn a_list_whose_file_is_gone_goes_on_revoking() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], Some(Mode::Soft))]);
    world.write("a1.crl", list(&ca, 1, (-2, 7), &[5]));
    let mut revocation = world.load_silently();
    world.remove("a1.crl");
    // However often it is looked for.
    for _ in 0..3 {
        let said;
        (revocation, said) = world.load(Some(&revocation));
        assert!(said.contains("warning: a1.crl: `a1.crl` is gone with the list of `"), "{said}");
        world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    }
    // A newer list under another name takes its place without a word.
    world.write("a2.crl", list(&ca, 2, (-1, 7), &[5, 6]));
    let (after, said) = world.load(Some(&revocation));
    assert!(!said.contains(".crl"), "{said}");
    world.refuses(&after, &leaf(6, &ca), &REVOKED);
    // When neither the file nor its pattern is named any more, it is let go.
    let problems = Problems::default();
    let location = Location { file: "config".into(), line: 1 };
    let elsewhere =
        [Named { pattern: "b.crl".into(), location, paths: Vec::new(), is_unknown: false }];
    let authority = (&world.authorities[0].0, Mode::Soft);
    let lists = Lists::load(authority, &elsewhere, Some(&revocation), Duration::MAX, &problems);
    assert_eq!(lists.in_force().count(), 0);
}

#[test]
fn a_broken_file_keeps_what_it_said_and_the_others_apply() {
    let (a, b) = (root("a"), root("b"));
    let world = World::new(&[("a", &[&a], Some(Mode::Hard)), ("b", &[&b], Some(Mode::Hard))]);
    world.write("a.crl", list(&a, 1, (-2, 7), &[5]));
    world.write("b.crl", list(&b, 1, (-2, 7), &[]));
    let before = world.load_silently();
    let cut = list(&a, 2, (-1, 7), &[]).split("-----END").next().unwrap().to_owned();
    for broken in [cut, String::new(), "words\n".to_owned()] {
        world.write("a.crl", broken);
        world.write("b.crl", list(&b, 2, (-1, 7), &[5]));
        let (revocation, said) = world.load(Some(&before));
        assert!(said.starts_with("warning: a.crl"), "{said}");
        assert!(said.contains("; what the file said before goes on counting"), "{said}");
        world.refuses(&revocation, &leaf(5, &a), &REVOKED);
        world.refuses(&revocation, &leaf(5, &b), &REVOKED);
    }
}

#[test]
fn a_list_that_left_its_file_goes_on_counting() {
    let (one, two) = (root("a"), root("second a"));
    let world = World::new(&[("a", &[&one, &two], Some(Mode::Hard))]);
    world.write("a.crl", list(&one, 1, (-2, 7), &[5]) + &list(&two, 1, (-2, 7), &[]));
    let before = world.load_silently();
    world.write("a.crl", list(&two, 2, (-1, 7), &[]));
    let (revocation, said) = world.load(Some(&before));
    assert!(said.contains("warning: a.crl: `a.crl` no longer holds the list of `"), "{said}");
    world.refuses(&revocation, &leaf(5, &one), &REVOKED);
}

/// The attack: the list of the one CA has lapsed, and another CA trusts the same root without lists.
#[test]
fn no_other_ca_vouches_for_what_one_cannot_judge() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard)), ("b", &[&ca], None)]);
    world.write("a.crl", list(&ca, 1, (-9, -1), &[5]));
    let (revocation, _) = world.load(None);
    world.refuses(&revocation, &leaf(5, &ca), &EXPIRED);
    world.refuses(&revocation, &leaf(6, &ca), &EXPIRED);
    world.write("a.crl", list(&ca, 1, (-9, 1), &[5]));
    world.refuses(&world.load_silently(), &leaf(5, &ca), &REVOKED);
}

#[test]
fn a_ca_with_a_new_key_under_its_old_name_has_two_lists() {
    let (old, new) = (root("a"), root("a"));
    let world = World::new(&[("a", &[&old, &new], Some(Mode::Hard))]);
    world.write("a1.crl", list(&old, 9, (-2, 7), &[5]));
    world.write("a2.crl", list(&new, 1, (-1, 7), &[6]));
    let revocation = world.load_silently();
    assert_eq!(revocation.lists().count(), 2);
    world.refuses(&revocation, &leaf(5, &old), &REVOKED);
    world.accepts(&revocation, &leaf(6, &old));
    world.refuses(&revocation, &leaf(6, &new), &REVOKED);
    world.accepts(&revocation, &leaf(5, &new));
    // With the list of one key alone, hard refuses what the other has signed.
    let world = World::new(&[("a", &[&old, &new], Some(Mode::Hard))]);
    world.write("a1.crl", list(&old, 9, (-2, 7), &[5]));
    let revocation = world.load_silently();
    world.accepts(&revocation, &leaf(6, &old));
    assert!(world.verify(&revocation, &leaf(6, &new)).is_err());
    // Without the old root its list is let go, and does not stand in the way.
    let only_new = World::new(&[("a", &[&new], Some(Mode::Hard))]);
    only_new.write("a2.crl", list(&new, 1, (-1, 7), &[6]));
    let (revocation, said) = only_new.load(Some(&revocation));
    assert!(!said.contains("error"), "{said}");
    only_new.accepts(&revocation, &leaf(5, &new));
}

#[test]
fn what_cannot_be_judged_by_is_refused_with_its_reason() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    let check = |bytes: &[u8], expected: &str| {
        world.write("a.crl", bytes);
        let (revocation, said) = world.load(None);
        assert!(said.contains(&format!("error: a.crl{expected}")), "{expected}: {said}");
        assert_eq!(revocation.lists().count(), 0, "{expected}");
    };
    let whole = params(1, (-1, 7), &[5]).signed_by(&ca).unwrap();
    let der = whole.der().to_vec();
    // The object identifier of the number made that of a delta.
    let number = der.windows(3).position(|window| window == [0x55, 0x1d, 0x14]).unwrap();
    let mut delta = der.clone();
    delta[number + 2] = 0x1b;
    check(&delta, ": the list is a delta");
    let mut indirect = params(1, (-1, 7), &[5]);
    indirect.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec!["http://a.example/".to_owned()] },
        scope: Some(CrlScope::UserCertsOnly),
    });
    let mut indirect = indirect.signed_by(&ca).unwrap().der().to_vec();
    // "only user certificates", [1], made "indirect", [4].
    let only = indirect.windows(3).rposition(|window| window == [0x81, 0x01, 0xff]).unwrap();
    indirect[only] = 0x84;
    check(&indirect, ": the list is indirect");
    check(list(&ca, 1, (1, 7), &[]).as_bytes(), ":1: the list of `");
    check(&[der.clone(), vec![0]].concat(), ": something stands behind the revocation list");
    check(ca.pem().as_bytes(), ":1: what begins here is no revocation list");
    check(&vec![b'a'; (16 << 20) + 1], ": cannot read `a.crl`: it is larger than 16777216 bytes");
    // DER is as good as PEM.
    world.write("a.crl", &der);
    world.refuses(&world.load_silently(), &leaf(5, &ca), &REVOKED);
}

#[test]
fn a_ca_of_which_no_file_is_there_is_an_error_when_it_is_hard() {
    let ca = root("a");
    let (_, said) = World::new(&[("a", &[&ca], Some(Mode::Hard))]).load(None);
    assert!(said.contains("error: config:1: `a*.crl` matches no file"), "{said}");
    assert!(said.contains("warning: config:1: `deny*.txt` matches no file"), "{said}");
    let world = World::new(&[("a", &[&ca], Some(Mode::Soft))]);
    let (revocation, said) = world.load(None);
    assert!(said.contains("warning: config:1: `a*.crl` matches no file"), "{said}");
    world.accepts(&revocation, &leaf(5, &ca));
}

#[test]
fn a_list_of_a_part_of_the_certificates_counts_for_that_part() {
    let ca = root("a");
    let middle = intermediate("middle", 7, &ca);
    let part = |number: u64, scope: CrlScope, serials: &[u64]| {
        let mut params = params(number, (-1, 7), serials);
        let uris = vec!["http://a.example/".to_owned()];
        let distribution_point = CrlDistributionPoint { uris };
        params.issuing_distribution_point =
            Some(CrlIssuingDistributionPoint { distribution_point, scope: Some(scope) });
        params.signed_by(&ca).unwrap().pem().unwrap()
    };
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    // A lower number of another part is no older list.
    world.write("a1.crl", part(9, CrlScope::UserCertsOnly, &[5]) + &list(&middle, 1, (-1, 7), &[]));
    let chain = [leaf(5, &middle), vec![middle.der().clone()]].concat();
    let (revocation, _) = world.load(None);
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.accepts(&revocation, &leaf(7, &ca));
    world.refuses(&revocation, &chain, &UNKNOWN);
    world.write("a2.crl", part(1, CrlScope::CaCertsOnly, &[]));
    let (revocation, said) = world.load(Some(&revocation));
    assert!(!said.contains("a2.crl"), "{said}");
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.accepts(&revocation, &chain);
    world.write("a2.crl", part(2, CrlScope::CaCertsOnly, &[7]));
    let (revocation, _) = world.load(Some(&revocation));
    world.refuses(&revocation, &chain, &REVOKED);
}

/// The attack: a newer list of another part, or a whole one that lacks the entry, was asked instead.
#[test]
fn what_one_list_revokes_no_other_lets_in() {
    let ca = root("a");
    let part = |number: u64, uri: &str, serials: &[u64]| {
        let mut params = params(number, (-1, 7), serials);
        let distribution_point = CrlDistributionPoint { uris: vec![uri.to_owned()] };
        params.issuing_distribution_point =
            Some(CrlIssuingDistributionPoint { distribution_point, scope: None });
        params.signed_by(&ca).unwrap().pem().unwrap()
    };
    let world = World::new(&[("a", &[&ca], Some(Mode::Hard))]);
    world.write("a1.crl", part(1, "http://a.example/1", &[5]));
    let (revocation, _) = world.load(None);
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.write("a2.crl", part(9, "http://a.example/2", &[6]));
    let (revocation, _) = world.load(Some(&revocation));
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.refuses(&revocation, &leaf(6, &ca), &REVOKED);
    world.write("a3.crl", list(&ca, 99, (0, 7), &[]));
    let (revocation, _) = world.load(Some(&revocation));
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.accepts(&revocation, &leaf(7, &ca));
}
