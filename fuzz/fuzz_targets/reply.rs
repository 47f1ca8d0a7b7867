#![no_main]

#[path = "../../tests/fuzz_entries/entries.rs"]
#[expect(dead_code, reason = "each target is one of the entries")]
mod entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entries::reply(data));
