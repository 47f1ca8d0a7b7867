//! Every way to change a log that was thought of, and what is said of it.

use std::fs;
use std::path::{Path, PathBuf};

use ringfence::chain::{ChainId, LineHash, SegmentName};

use crate::support::audit_files;
use crate::written::{Written, chain_anew, lines, name_of, ringfence, write};

/// What the auditor has.
#[derive(Clone, Copy)]
enum With {
    Nothing,
    Key,
    KeyAndWitness,
}

struct Case {
    kind: &'static str,
    with: With,
    /// Takes the files of the log: two of the first process, one of each other.
    tamper: fn(&[PathBuf]),
    expected: &'static str,
}

fn verify(written: &Written, log: &Path, with: With) -> (i32, String) {
    let (public, witness) = (written.public(), written.witness());
    let mut arguments = vec!["audit", "verify", log.to_str().unwrap()];
    if matches!(with, With::Key | With::KeyAndWitness) {
        arguments.extend(["--key", public.to_str().unwrap()]);
    }
    if matches!(with, With::KeyAndWitness) {
        arguments.extend(["--witness", witness.to_str().unwrap()]);
    }
    ringfence(&arguments)
}

fn edit(file: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut all = lines(file);
    change(&mut all);
    write(file, &all);
}

fn hash(line: &str) -> LineHash {
    LineHash::of(line.as_bytes())
}

/// Changes a line and all that is chained to it.
fn forge(file: &Path, position: usize, change: impl FnOnce(&str) -> String) {
    edit(file, |all| {
        all[position] = change(&all[position]);
        let (before, first) = (hash(&all[position - 1]), position as u64 + 1);
        chain_anew(all, position, before, first);
    });
}

fn position_of(file: &Path, kind: &str) -> usize {
    let wanted = format!("\"type\":\"{kind}\"");
    lines(file).iter().position(|line| line.contains(&wanted)).unwrap()
}

/// All of the first process's records in another's name, as one file of a chain that is not sealed.
fn unsealed_copy(files: &[PathBuf], change: impl Fn(usize, &str) -> String) -> PathBuf {
    let old = name_of(&files[0]).chain.to_string();
    let chain = ChainId::new(7, [9; 8]);
    let all: Vec<String> = lines(&files[0])
        .into_iter()
        .filter(|line| !line.contains("\"type\":\"checkpoint\""))
        .collect();
    let mut all: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(position, line)| {
            let line = line.replace(&old, &chain.to_string());
            let keyless = match (line.find(",\"key\":{\"log\""), line.find(",\"after\":")) {
                (Some(start), Some(end)) => format!("{}{}", &line[..start], &line[end..]),
                _ => line,
            };
            change(position, &keyless)
        })
        .collect();
    chain_anew(&mut all, 0, LineHash::ZERO, 1);
    let name = SegmentName { chain, number: 1, compressed: false };
    let path = files[0].with_file_name(name.to_string());
    write(&path, &all);
    path
}

const CASES: &[Case] = &[
    Case {
        kind: "a record changed",
        with: With::Nothing,
        tamper: |files| {
            edit(&files[0], |all| all[40] = all[40].replacen("\"call\":", "\"call\":9", 1));
        },
        expected: "changed: record 41 is not the one that record 42 was written behind",
    },
    Case {
        kind: "a record taken out",
        with: With::Nothing,
        tamper: |files| edit(&files[0], |all| drop(all.remove(40))),
        expected: "missing: records 41 to 41 are not there",
    },
    Case {
        kind: "a record taken out and the others numbered anew",
        with: With::Nothing,
        tamper: |files| {
            edit(&files[0], |all| {
                all.remove(40);
                for (position, line) in all.iter_mut().enumerate().skip(40) {
                    let old = format!("\"seq\":{},", position + 2);
                    *line = line.replacen(&old, &format!("\"seq\":{},", position + 1), 1);
                }
            });
        },
        expected: "changed: record 40 is not the one that record 41 was written behind",
    },
    Case {
        kind: "two records swapped",
        with: With::Nothing,
        tamper: |files| edit(&files[0], |all| all.swap(40, 41)),
        expected: "reordered: record 41 is not in its place",
    },
    Case {
        kind: "a record put in again",
        with: With::Nothing,
        tamper: |files| {
            edit(&files[0], |all| {
                let again = all[40].clone();
                all.insert(41, again);
            });
        },
        expected: "inserted: another record 41",
    },
    Case {
        kind: "a line that is no record",
        with: With::Nothing,
        tamper: |files| edit(&files[0], |all| all.insert(41, "nothing happened".to_owned())),
        expected: "changed: this line is no record (it does not begin like one)",
    },
    Case {
        kind: "two lines made one",
        with: With::Nothing,
        tamper: |files| {
            edit(&files[0], |all| {
                let next = all.remove(41);
                all[40].push_str(&next);
            });
        },
        expected: "changed: record 40",
    },
    Case {
        kind: "the end of a process cut off, and a later one knows it",
        with: With::Nothing,
        tamper: |files| edit(&files[1], |all| all.truncate(all.len() - 5)),
        expected: "truncated: it ends with record",
    },
    Case {
        kind: "the end of the last process cut off",
        with: With::KeyAndWitness,
        tamper: |files| edit(&files[3], |all| all.truncate(all.len() - 30)),
        expected: "the witness knows record",
    },
    Case {
        kind: "a whole process taken out",
        with: With::Nothing,
        tamper: |files| fs::remove_file(&files[2]).unwrap(),
        expected: "knows this chain, and no file of it is there",
    },
    Case {
        kind: "the last process taken out",
        with: With::KeyAndWitness,
        tamper: |files| fs::remove_file(&files[3]).unwrap(),
        expected: "missing: the witness knows this chain, and no file of it is there",
    },
    Case {
        kind: "the first file of a process taken out",
        with: With::Nothing,
        tamper: |files| fs::remove_file(&files[0]).unwrap(),
        expected: "missing: files 1 to 1 of this chain are not there",
    },
    Case {
        kind: "a signature changed",
        with: With::Key,
        tamper: |files| {
            let position = position_of(&files[0], "checkpoint");
            forge(&files[0], position, |line| {
                let (head, signature) = line.split_once("\"signature\":\"").unwrap();
                let flipped = if signature.starts_with('0') { '1' } else { '0' };
                format!("{head}\"signature\":\"{flipped}{}", &signature[1..])
            });
        },
        expected: "bad signature: the checkpoint is not signed by the key that it names",
    },
    Case {
        kind: "a record changed and everything behind it chained anew",
        with: With::Nothing,
        tamper: |files| {
            forge(&files[0], 10, |line| line.replacen("\"call\":", "\"call\":9", 1));
        },
        expected: "bad signature: the checkpoint",
    },
    Case {
        kind: "a checkpoint moved from another process",
        with: With::Key,
        tamper: |files| {
            let from = lines(&files[3])[position_of(&files[3], "checkpoint")].clone();
            let position = position_of(&files[0], "checkpoint");
            forge(&files[0], position, |_| from);
        },
        expected: "bad signature: the checkpoint",
    },
    Case {
        kind: "another public key in the first record",
        with: With::Key,
        tamper: |files| {
            forge_first(&files[0], |line| {
                let (head, public) = line.split_once("\"public\":\"").unwrap();
                let flipped = if public.starts_with('0') { '1' } else { '0' };
                format!("{head}\"public\":\"{flipped}{}", &public[1..])
            });
        },
        expected: "bad signature: the first record is not signed by the key that it names",
    },
    Case {
        kind: "another long-term key named",
        with: With::Key,
        tamper: |files| {
            forge_first(&files[0], |line| {
                let (head, rest) = line.split_once("\"log\":\"").unwrap();
                format!("{head}\"log\":\"{}{}", "0".repeat(64), &rest[64..])
            });
        },
        expected: "wrong key: it is sealed with the key 0000",
    },
    Case {
        kind: "a chain without seals put in",
        with: With::Key,
        tamper: |files| {
            unsealed_copy(files, |_, line| line.to_owned());
        },
        expected: "not sealed: a key was given, and this chain has no checkpoints",
    },
    Case {
        kind: "a second chain of one epoch",
        with: With::Nothing,
        tamper: |files| {
            unsealed_copy(files, |_, line| line.to_owned());
        },
        expected: "repeated epoch 1: chain",
    },
    Case {
        kind: "a file of one process in another's name",
        with: With::Nothing,
        tamper: |files| {
            fs::copy(&files[3], &files[2]).unwrap();
        },
        expected: "changed: the chain begins with a record that says otherwise (another chain)",
    },
    Case {
        kind: "a record behind the end",
        with: With::Nothing,
        tamper: |files| {
            edit(&files[3], |all| {
                let last = all.len();
                let more = all[10].clone();
                all.push(more);
                let (before, first) = (hash(&all[last - 1]), last as u64 + 1);
                chain_anew(all, last, before, first);
            });
        },
        expected: "inserted: a record behind the end of the chain",
    },
    Case {
        kind: "a closed chain cut in the middle of a line",
        with: With::Nothing,
        tamper: |files| {
            let text = fs::read(&files[0]).unwrap();
            fs::write(&files[0], &text[..text.len() - 7]).unwrap();
        },
        expected: "torn: the last line is cut short",
    },
    Case {
        kind: "a compressed file damaged",
        with: With::Nothing,
        tamper: |files| {
            let path = compress(&files[0]);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            fs::write(&path, bytes).unwrap();
        },
        // What shows first depends on where the damage is.
        expected: "fault: ",
    },
    Case {
        kind: "a file taken away, and excused by a record behind the last checkpoint",
        with: With::Key,
        tamper: |files| {
            let all = lines(&files[0]);
            let (chain, last) = (name_of(&files[0]).chain, all.last().unwrap());
            let removed = format!(
                "{{\"v\":1,\"seq\":0,\"time\":\"2099-01-15T08:00:00.000000Z\",\"type\":\"segment.removed\",\
                 \"chain\":\"{chain}\",\"segment\":1,\"last_seq\":{},\"last_hash\":\"{}\",\"prev\":\"\"}}",
                all.len(),
                hash(last)
            );
            edit(&files[3], |all| {
                let stop = all.len() - 1;
                assert!(all[stop].contains("process.stop"));
                all.insert(stop, removed);
                let before = hash(&all[stop - 1]);
                chain_anew(all, stop, before, stop as u64 + 1);
            });
            fs::remove_file(&files[0]).unwrap();
        },
        expected: "files 1 to 1 of this chain are not there",
    },
    Case {
        kind: "a forged copy beside a file, for those who read the copy",
        with: With::Nothing,
        tamper: |files| {
            let mut all = lines(&files[0]);
            all[40] = all[40].replacen("\"call\":", "\"call\":9", 1);
            chain_anew(&mut all, 0, LineHash::ZERO, 1);
            write_copy(&files[0], &all);
        },
        expected: "not alike: this file is there more than once, and from its line 41 on",
    },
    Case {
        kind: "a copy beside a file, with more behind its end",
        with: With::Nothing,
        tamper: |files| {
            let mut all = lines(&files[0]);
            let (count, before) = (all.len(), hash(all.last().unwrap()));
            all.push(all[40].clone());
            chain_anew(&mut all, count, before, count as u64 + 1);
            write_copy(&files[0], &all);
        },
        expected: "inserted: another record ",
    },
    Case {
        kind: "a number that no log reaches",
        with: With::Nothing,
        tamper: |files| {
            let all = lines(&files[0]);
            let number = u64::MAX;
            let line = all[0].replacen("\"seq\":1,", &format!("\"seq\":{number},"), 1);
            write(
                &files[0].with_file_name(
                    SegmentName { number: 2, chain: ChainId::new(3, [1; 8]), compressed: false }
                        .to_string(),
                ),
                &[line.clone(), line],
            );
        },
        expected: "changed: this line is no record (it does not begin like one)",
    },
];

/// A compressed copy beside the file, which says this.
fn write_copy(file: &Path, lines: &[String]) {
    let name = SegmentName { compressed: true, ..name_of(file) };
    let text = lines.join("\n") + "\n";
    let packed = zstd::encode_all(text.as_bytes(), 3).unwrap();
    fs::write(file.with_file_name(name.to_string()), packed).unwrap();
}

fn forge_first(file: &Path, change: impl FnOnce(&str) -> String) {
    edit(file, |all| {
        all[0] = change(&all[0]);
        chain_anew(all, 0, LineHash::ZERO, 1);
    });
}

fn compress(file: &Path) -> PathBuf {
    let name = SegmentName { compressed: true, ..name_of(file) };
    let to = file.with_file_name(name.to_string());
    fs::write(&to, zstd::encode_all(fs::File::open(file).unwrap(), 3).unwrap()).unwrap();
    fs::remove_file(file).unwrap();
    to
}

#[tokio::test]
async fn a_log_that_nobody_touched_is_whole_and_every_tampering_is_named() {
    let written = Written::new().await;
    let (code, said) = verify(&written, &written.log(), With::KeyAndWitness);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("whole and in order: "), "{said}");
    assert!(said.contains("in 3 chains"), "{said}");
    assert_eq!(audit_files(&written.log()).len(), 4);

    let mut wrong = Vec::new();
    for case in CASES {
        let copy = written.copy();
        (case.tamper)(&audit_files(copy.path()));
        let (code, said) = verify(&written, copy.path(), case.with);
        let fault = said.lines().find(|line| line.starts_with("fault: ")).unwrap_or("no fault");
        let log = copy.path().display().to_string();
        println!("{}\n    exit code {code}, {}", case.kind, fault.replace(&log, "LOG"));
        if code != 1 || !said.contains(case.expected) {
            wrong.push(format!("{}: {code}\n{said}", case.kind));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(CASES.len() >= 15);

    // Compressed, it is as whole; and so with copies from elsewhere.
    let copy = written.copy();
    let packed = compress(&audit_files(copy.path())[0]);
    let (code, said) = verify(&written, copy.path(), With::KeyAndWitness);
    assert_eq!(code, 0, "{said}");
    let log = written.log();
    let paths = [log.to_str().unwrap(), packed.to_str().unwrap(), copy.path().to_str().unwrap()];
    let (code, said) = ringfence(&[&["audit", "verify"][..], &paths].concat());
    assert!(code == 0 && said.contains("twice: this file is there more than once"), "{said}");

    // Another auditor's key.
    let other = copy.path().join("other-key");
    assert_eq!(ringfence(&["audit", "keygen", other.to_str().unwrap()]).0, 0);
    let public = copy.path().join("other-key.pub");
    let log = written.log();
    let (code, said) =
        ringfence(&["audit", "verify", log.to_str().unwrap(), "--key", public.to_str().unwrap()]);
    assert!(code == 1 && said.contains("wrong key: "), "{said}");

    // What is not proven is said: without a key, and of a clock that was set back.
    let copy = tempfile::tempdir().unwrap();
    for file in audit_files(&written.log()) {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = unsealed_copy(&audit_files(copy.path()), |position, line| {
        let (head, rest) = line.split_once("\"time\":\"").unwrap();
        let year = if position == 20 { "2001" } else { &rest[..4] };
        format!("{head}\"time\":\"{year}{}", &rest[4..])
    });
    let (code, said) = ringfence(&["audit", "verify", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    for expected in ["the clock went back by", "no --key was given", "it has no end"] {
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_witness_is_told_from_what_is_wrong_with_the_log() {
    let written = Written::new().await;
    // A line of the witness that was torn proves nothing, and takes nothing from the others.
    let whole = fs::read(written.witness()).unwrap();
    fs::write(written.witness(), [b"{\"v\":1,\"se\n", &whole[..]].concat()).unwrap();
    let (code, said) = verify(&written, &written.log(), With::KeyAndWitness);
    assert!(code == 0 && said.contains("1 lines of the witness are no records"), "{said}");
    fs::write(written.witness(), "{\"v\":1,\"se\n").unwrap();
    let (code, said) = verify(&written, &written.log(), With::KeyAndWitness);
    assert!(code == 2 && said.contains("none of its lines is a first record"), "{said}");
    // The attack: who can only append to it says of a record something else.
    let first = String::from_utf8_lossy(&whole).lines().next().unwrap().to_owned();
    let other = first.replacen("ringfence", "Ringfence", 1).replacen("\"v\":1", "\"v\":2", 1);
    assert_ne!(first, other);
    fs::write(written.witness(), [&whole[..], other.as_bytes(), b"\n"].concat()).unwrap();
    let (code, said) = verify(&written, &written.log(), With::KeyAndWitness);
    assert!(code == 1 && said.contains("twice, and not alike"), "{said}");
    // And what else the witness knows still counts.
    let copy = written.copy();
    fs::remove_file(audit_files(copy.path()).pop().unwrap()).unwrap();
    let (code, said) = verify(&written, copy.path(), With::KeyAndWitness);
    assert!(code == 1 && said.contains("the witness knows this chain"), "{said}");
    let log = written.log();
    let log = log.to_str().unwrap();
    let (code, said) = ringfence(&["audit", "verify", log, "--witness", "/no/such/file"]);
    assert!(code == 2 && said.contains("cannot read the witness `/no/such/file`"), "{said}");
    let (code, said) = ringfence(&["audit", "verify", log]);
    assert!(code == 0 && said.contains("no --witness was given"), "{said}");
    fs::write(written.witness(), "").unwrap();
    let (code, said) = verify(&written, &written.log(), With::KeyAndWitness);
    assert!(code == 0 && said.contains("the witness knows nothing of 3 of the chains"), "{said}");
    fs::write(written.witness(), whole).unwrap();
}
