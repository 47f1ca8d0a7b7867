//! The commands of the README, run as they stand there, in a copy of what they use.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

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
    // Keys of CAs are among what was made.
    let ignored = fs::read_to_string(repository.join(".gitignore")).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let shared = ["certs", "config"].contains(&&*name);
        assert!(shared || ignored.lines().any(|line| line == format!("/{name}")), "{name}");
    }
    check_etcd_command(repository, folder.path());
}

#[test]
fn the_program_of_use_it_is_the_one_that_was_built() {
    let readme = include_str!("../README.md");
    let section = readme.split("## Use it").nth(1).unwrap().split("\n## ").next().unwrap();
    let inline: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    let serve = inline.iter().find(|code| code.contains("ringfence serve")).unwrap();
    assert_eq!(*serve, "target/release/ringfence serve --config run/minimal.toml");
}

/// The etcd of docs/operations.md has the certificates that were made and listens where the config
/// says that it does. It is not started: its ports are those of everybody's etcd.
fn check_etcd_command(repository: &Path, folder: &Path) {
    let operations = fs::read_to_string(repository.join("docs/operations.md")).unwrap();
    let command = operations.split("\n    etcd --name infra0 ").nth(1).unwrap();
    let command = command.split("\n\n").next().unwrap().replace('\\', " ");
    let words: Vec<&str> = command.split_whitespace().collect();
    let value = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
    for flag in ["--cert-file", "--key-file", "--trusted-ca-file"] {
        assert!(folder.join(value(flag)).is_file(), "{flag}");
    }
    let config = fs::read_to_string(folder.join("run/minimal.toml")).unwrap();
    let endpoints = format!("endpoints = [\"{}\"]", value("--listen-client-urls"));
    assert!(config.contains(&endpoints) && config.contains("\ninfra0 = ["), "{config}");
}
