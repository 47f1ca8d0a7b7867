//! Attacks on deny lists.

use super::*;

fn hex_of(bytes: &[u8]) -> String {
    to_hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

#[test]
fn what_is_denied_by_key_fingerprint_or_number_is_refused_wherever_it_stands_in_the_chain() {
    let (a, b) = (root("a"), root("b"));
    let middle = intermediate("middle", 0xabc, &a);
    let chain = [leaf(5, &middle), vec![middle.der().clone()]].concat();
    let key = |der: &CertificateDer<'_>| {
        hex_of(X509Certificate::from_der(der).unwrap().1.public_key().raw)
    };
    let world = World::new(&[("a", &[&a], None), ("b b", &[&b], None)]);
    for (line, how) in [
        (format!("spki-sha256 {}", key(&chain[0])), "by its key"),
        (format!("  spki-sha256\t {}  # stolen", key(&chain[1]).to_uppercase()), "by its key"),
        (format!("fingerprint-sha256 {}\r", hex_of(&chain[0])), "by its fingerprint"),
        (format!("fingerprint-sha256 {}", hex_of(&chain[1])), "by its fingerprint"),
        ("serial a 05".to_owned(), "by its serial number"),
        ("serial  a  00:0A:BC".to_owned(), "by its serial number"),
    ] {
        world.write("deny.txt", format!("# a comment\n\n{line}\n"));
        let (revocation, said) = world.load(None);
        assert_eq!((said.as_str(), revocation.denied().len()), ("", 1));
        world.refuses(&revocation, &chain, &REVOKED);
        let causes = revocation.causes("a", &chain);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert!(causes[0].ends_with(&format!("/deny.txt:3, {how}")), "{causes:?}");
        world.accepts(&revocation, &leaf(6, &a));
        // The number belongs to the one CA.
        world.accepts(&revocation, &leaf(5, &b));
    }
    world.write("deny.txt", "serial b b 5\n");
    let (revocation, _) = world.load(None);
    world.accepts(&revocation, &chain);
    world.refuses(&revocation, &leaf(5, &b), &REVOKED);
}

#[test]
fn every_wrong_line_of_a_deny_list_is_told_and_nothing_of_the_file_is_taken() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], None)]);
    world.write("deny1.txt", "serial a 5\n");
    world.write("deny2.txt", "");
    let (before, _) = world.load(None);
    let short = "a".repeat(63);
    let text = format!(
        "serial a 6\nserail a 7\nserial b 7\nserial a xyz\nserial 7\nserial a 00\n\
         spki-sha256 {short}\nfingerprint-sha256 {short}aa\nserial a {}\n",
        "f".repeat(41)
    );
    world.write("deny1.txt", text);
    world.write("deny2.txt", "serial a 8\n");
    let (revocation, said) = world.load(Some(&before));
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    let expected = [
        "warning: deny1.txt:2: `serail` begins no entry",
        "warning: deny1.txt:3: `b` is no CA of the config",
        "warning: deny1.txt:4: `xyz` is no serial number",
        "warning: deny1.txt:5: `serial 7` lacks a CA or a number",
        "warning: deny1.txt:6: `00` is no serial number",
        "warning: deny1.txt:7: `aaaa",
        "warning: deny1.txt:8: `aaaa",
        "warning: deny1.txt:9: `ffff",
    ];
    assert_eq!(lines.len(), expected.len(), "{said}");
    assert!(lines.iter().zip(expected).all(|(line, start)| line.starts_with(start)), "{said}");
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.accepts(&revocation, &leaf(6, &ca));
    world.refuses(&revocation, &leaf(8, &ca), &REVOKED);
}

/// The attack, or a write that is under way: the file is gone, or empty for a moment.
#[test]
fn a_deny_list_that_is_gone_or_emptied_goes_on_denying() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], None)]);
    world.write("deny.txt", "serial a 5\n");
    let (before, _) = world.load(None);
    world.write("deny.txt", "\n");
    let (revocation, said) = world.load(Some(&before));
    assert!(said.starts_with("warning: deny.txt: `"), "{said}");
    assert!(said.contains("is empty all of a sudden"), "{said}");
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.remove("deny.txt");
    let (revocation, said) = world.load(Some(&revocation));
    assert!(said.starts_with("warning: deny.txt: `deny.txt` is gone"), "{said}");
    world.refuses(&revocation, &leaf(5, &ca), &REVOKED);
    world.write("deny.txt", "# nothing\n");
    let (revocation, said) = world.load(Some(&revocation));
    assert_eq!(said, "");
    world.accepts(&revocation, &leaf(5, &ca));
}

#[test]
fn more_entries_than_the_bound_are_an_error_and_none_is_cut() {
    let ca = root("a");
    let world = World::new(&[("a", &[&ca], None)]);
    let lines = |count: u32| (1..=count).map(|n| format!("serial a {n:x}\n")).collect::<String>();
    world.write("deny.txt", lines(100_000));
    let (revocation, said) = world.load(None);
    assert_eq!((revocation.denied().len(), said.as_str()), (100_000, ""));
    world.write("deny.txt", lines(100_001));
    let (revocation, said) = world.load(None);
    assert_eq!(revocation.denied().len(), 0);
    assert!(
        said.starts_with("error: deny.txt:100001: all deny lists together have more"),
        "{said}"
    );
}

/// The attack: the signature of one's own certificate, written in its other way. It verifies, and nobody has seen that
/// fingerprint before.
#[test]
fn a_fingerprint_is_not_evaded_by_the_other_form_of_the_signature() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let ca = CertifiedIssuer::self_signed(ca_params("a", 1), key).unwrap();
        let world = World::new(&[("a", &[&ca], None)]);
        let own = leaf(5, &ca);
        let twins = twin::twins(&own[0], &X509Certificate::from_der(&own[0]).unwrap().1);
        let twins: Vec<Chain> = twins.into_iter().map(|der| vec![der.into()]).collect();
        let revocation = Revocation::none();
        let verifies = |twin: &&Chain| world.verify(&revocation, twin).is_ok();
        let twin = twins.iter().find(verifies).unwrap();
        assert_ne!(hex_of(&twin[0]), hex_of(&own[0]));
        world.write("deny.txt", format!("fingerprint-sha256 {}\n", hex_of(&own[0])));
        let (revocation, _) = world.load(None);
        world.refuses(&revocation, &own, &REVOKED);
        world.refuses(&revocation, twin, &REVOKED);
        world.accepts(&revocation, &leaf(5, &ca));
        let causes = revocation.causes("a", twin);
        assert!(causes[0].ends_with("but for the form of its signature"), "{causes:?}");
    }
}
