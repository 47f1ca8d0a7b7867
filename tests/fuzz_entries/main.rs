//! The fuzz targets within the gate: over their seeds, over seeds with changes at random, over bytes at
//! random. `make fuzz` runs the same functions under libFuzzer.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; helpers of tests are no #[test] themselves"
)]

mod entries;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use entries::{ENTRIES, Entry};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// All seeds together; the gate and every clone carry them.
const SEED_BYTES_MAX: usize = 64 << 10;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(ROOT).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(ROOT).join("fuzz").join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| name.trim_end_matches(".rs").to_owned()).collect()
}

#[test]
fn every_entry_has_a_target_and_seeds_and_none_is_missing() {
    let entries: BTreeSet<String> = ENTRIES.iter().map(|entry| entry.0.to_owned()).collect();
    assert_eq!(names("fuzz_targets"), entries);
    assert_eq!(names("corpus"), entries);
    let manifest = fs::read_to_string(Path::new(ROOT).join("fuzz/Cargo.toml")).unwrap();
    for entry in &entries {
        assert!(manifest.contains(&format!("name = \"{entry}\"")), "{entry}");
        let target = Path::new(ROOT).join(format!("fuzz/fuzz_targets/{entry}.rs"));
        assert!(fs::read_to_string(target).unwrap().contains(&format!("entries::{entry}(")));
    }
}

#[test]
fn every_seed_runs() {
    let mut bytes = 0;
    for (target, entry) in ENTRIES {
        let seeds = seeds(target);
        assert!(seeds.len() >= 3, "{target}");
        for seed in seeds {
            bytes += seed.len();
            entry(&seed);
        }
    }
    assert!(bytes <= SEED_BYTES_MAX, "{bytes} bytes");
}

fn entry() -> impl Strategy<Value = (&'static str, Entry)> {
    prop::sample::select(ENTRIES.to_vec())
}

/// Byte, position, and whether it replaces, comes in, or ends the text there.
type Change = (u8, prop::sample::Index, u8);

fn changed(mut seed: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for (byte, position, kind) in changes {
        let at = position.index(seed.len() + 1);
        match kind {
            0 => seed.insert(at, *byte),
            1 => seed.truncate(at),
            2 if at < seed.len() => drop(seed.remove(at)),
            _ if at < seed.len() => seed[at] = *byte,
            _ => {}
        }
    }
    seed
}

proptest! {
    // What is found becomes a seed, with a name that says what it was.
    #![proptest_config(ProptestConfig {
        cases: 2000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn bytes_at_random_break_nothing(
        entry in entry(), data in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        entry.1(&data);
    }

    #[test]
    fn seeds_with_changes_at_random_break_nothing(
        entry in entry(),
        seed in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<u8>(), any::<prop::sample::Index>(), 0..8_u8), 0..8),
    ) {
        let seeds = seeds(entry.0);
        entry.1(&changed(seed.get(&seeds).clone(), &changes));
    }
}
