//! Hides what differs between two etcds that hold the same: IDs, addresses, terms, measurements.

/// Hides IDs and addresses; `numbers` hides every number, for commands that tell times and sizes.
pub fn masked(text: &str, numbers: bool) -> String {
    let mut masked = String::new();
    let mut after = String::new();
    for word in words(text) {
        let shown = match word {
            _ if is_id(word) && !numbers => "ID",
            _ if (is_id(word) || is_number(word)) && (numbers || is_hidden_after(&after)) => "N",
            _ => word,
        };
        if shown == "ID" && masked.ends_with("  ") {
            // A short ID is filled up.
            masked.truncate(masked.trim_end_matches(' ').len() + 1);
        }
        masked.push_str(shown);
        if word.chars().all(char::is_alphanumeric) || word == "_" {
            after = format!("{after}{word}");
        } else if !matches!(word, "\"" | ":" | " " | ".") {
            after.clear();
        }
    }
    masked
}

/// Runs of letters and digits, and single characters of any other kind.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let other = |character: char| !character.is_ascii_alphanumeric();
        let end =
            if other(first) { first.len_utf8() } else { rest.find(other).unwrap_or(rest.len()) };
        let (word, tail) = rest.split_at(end);
        rest = tail;
        Some(word)
    })
}

/// Hex digits or decimals as long as only an ID is.
fn is_id(word: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    word.len() >= 10 && word.bytes().all(hex)
}

fn is_number(word: &str) -> bool {
    word.starts_with(|character: char| character.is_ascii_digit())
}

/// Ports, and the raft term in the header of a reply.
fn is_hidden_after(text: &str) -> bool {
    text.ends_with("raft_term") || text.ends_with("RaftTerm") || text.ends_with("127001")
}

#[test]
fn what_may_differ_is_hidden_and_the_rest_is_not() {
    let check = |text: &str, numbers: bool, expected: &str| {
        assert_eq!(masked(text, numbers), expected);
    };
    check("lease 694d93a1b2c3d4e5 granted with TTL(60s)", false, "lease ID granted with TTL(60s)");
    check("cluster   9687ca7cd946b4", false, "cluster ID");
    check("at http://127.0.0.1:2379, 7 members", false, "at http://127.0.0.1:N, 7 members");
    check(
        r#"{"member_id":16154324371489418041,"raft_term":3}"#,
        false,
        r#"{"member_id":ID,"raft_term":N}"#,
    );
    check("\"RaftTerm\" : 12\n\"Count\" : 12", false, "\"RaftTerm\" : N\n\"Count\" : 12");
    check("took 12.5ms of 20 kB", true, "took N.N of N kB");
    check("hashes 45483052, 2405530942", true, "hashes N, N");
    check("compacted revision 12", false, "compacted revision 12");
}
