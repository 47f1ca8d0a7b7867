//! The commands of the README, run as they stand there, in a copy of what they use.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Every indented line of the section "Use it", in order, in an empty folder. The build is taken
/// from this test's own; `make` targets have tests of their own (`tests/demo.rs`) or are the gate.
#[test]
fn the_commands_of_use_it_work_one_after_another() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(repository.join("README.md")).unwrap();
    let section = readme.split("## Use it").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(commands.first(), Some(&"cargo build --release --locked"));
    assert_eq!(commands.len(), 5, "{commands:?}");

    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("target/release")).unwrap();
    let program = folder.path().join("target/release/ringfence");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ringfence"), program).unwrap();
    for shared in ["certs", "config"] {
        std::os::unix::fs::symlink(repository.join(shared), folder.path().join(shared)).unwrap();
    }
    for command in commands.get(1..).unwrap() {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (program, arguments) = words.split_first().unwrap();
        let output =
            Command::new(program).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}
