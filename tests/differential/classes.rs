//! Why two decisions differ: the reasons that there may be, and the sorting. A difference without one
//! of them fails the test.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rbac::User;
use super::request::Request;

/// A known fault of some release: it demands less than etcd's own rights say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    Nested,
    TxnPut,
    WatchFromKey,
    Unguarded,
    LeaseKeys,
    Maintenance,
}

impl Bug {
    const fn name(self) -> &'static str {
        match self {
            Self::Nested => "CVE-2026-33343: operations of nested transactions are not checked",
            Self::TxnPut => "CVE-2026-44283: prev_kv and lease of a Put in a Txn are not checked",
            Self::WatchFromKey => "GHSA-xg4h-6gfc-h4m8: a watch from a key on is judged as the key",
            Self::Unguarded => "CVE-2026-33413: Alarm, Compact and leases are not guarded",
            Self::LeaseKeys => "CVE-2023-32082: the keys of a lease are shown to everybody",
            Self::Maintenance => "etcd pull request 14663: MoveLeader is not guarded",
        }
    }

    /// All of them are mended in the 3.6 and 3.7 that are tested, and in neither of the older two.
    fn is_in(self, line: &str) -> bool {
        ["3.4", "3.5"].contains(&line)
    }
}

/// A row of the table in docs/authorization.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stricter {
    Ignore,
    Binding,
    LeaseId,
    LeaseTime,
    LeaseWithoutKeys,
    OwnUser,
    Inverted,
    Compare,
    Rewrite,
}

impl Stricter {
    pub const ALL: [Self; 9] = [
        Self::Ignore,
        Self::Binding,
        Self::LeaseId,
        Self::LeaseTime,
        Self::LeaseWithoutKeys,
        Self::OwnUser,
        Self::Inverted,
        Self::Compare,
        Self::Rewrite,
    ];

    /// The first cell of the row.
    pub const fn row(self) -> &'static str {
        match self {
            Self::Ignore => "`ignore_value`, `ignore_lease`",
            Self::Binding => "binding a key to a lease",
            Self::LeaseId => "an ID of a lease that the client chooses",
            Self::LeaseTime => "the time of a lease",
            Self::LeaseWithoutKeys => "renewing or ending a lease without keys",
            Self::OwnUser => "the state of authentication, one's own user and roles",
            Self::Inverted => "inverted range",
            Self::Compare => {
                "unknown sort order, compare target or result; a compare value of another target"
            }
            Self::Rewrite => "a key deleted by an endless range and put, in one transaction",
        }
    }

    fn of_refusal(text: &str) -> Option<Self> {
        match text {
            "ringfence: range_end is not after key" => Some(Self::Inverted),
            "ringfence: compare has an unknown target"
            | "ringfence: compare has an unknown result"
            | "ringfence: compare target and target_union disagree"
            | "etcdserver: invalid sort option" => Some(Self::Compare),
            "etcdserver: duplicate key given in txn request" => Some(Self::Rewrite),
            _ => None,
        }
    }
}

/// Who demands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Every etcd.
    Plain,
    /// Every etcd without this fault.
    Bug(Bug),
    /// ringfence alone.
    Stricter(Stricter),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ours {
    Allow,
    Deny,
    Refuse(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Theirs {
    /// It went past the check of rights, whatever came of it.
    Pass(String),
    Deny,
    /// It was refused for its shape.
    Refuse,
}

/// The class of a decision, or what is wrong with it.
pub fn class(
    line: &str,
    request: &Request,
    user: &User,
    ours: &Ours,
    theirs: &Theirs,
) -> Result<String, &'static str> {
    let unmet = request.unmet(user);
    let bugs = unmet.iter().filter_map(|origin| match origin {
        Origin::Bug(bug) => Some(*bug),
        Origin::Plain | Origin::Stricter(_) => None,
    });
    let mut bugs = bugs.peekable();
    let mut stricter = unmet.iter().filter_map(|origin| match origin {
        Origin::Stricter(stricter) => Some(*stricter),
        Origin::Plain | Origin::Bug(_) => None,
    });
    match (ours, theirs) {
        (Ours::Allow, _) if !unmet.is_empty() => Err("ringfence allows what lacks a right"),
        (Ours::Deny, _) if unmet.is_empty() => Err("ringfence denies what lacks no right"),
        (Ours::Allow, Theirs::Pass(_)) => Ok("same: allowed".into()),
        (Ours::Allow, Theirs::Refuse) => Ok("same: allowed, and refused by etcd".into()),
        (Ours::Deny | Ours::Refuse(_), Theirs::Deny) => Ok("same: denied".into()),
        (Ours::Deny | Ours::Refuse(_), Theirs::Refuse) => Ok("same: refused".into()),
        (Ours::Allow, Theirs::Deny) if request.rpc == ringfence::etcd::Rpc::LeaseLeases => {
            Ok("answer narrowed: etcd denies the list of leases, ringfence shows one's own".into())
        }
        (Ours::Allow, Theirs::Deny) => Err("ringfence allows what etcd denies"),
        (Ours::Refuse(text), Theirs::Pass(_)) => Stricter::of_refusal(text)
            .map(|row| format!("stricter: {}", row.row()))
            .ok_or("ringfence refuses what etcd takes, without a reason"),
        (Ours::Deny, Theirs::Pass(_)) if unmet.contains(&Origin::Plain) => {
            Err("etcd passes what lacks a right, and it is no fault that is known")
        }
        (Ours::Deny, Theirs::Pass(_)) if bugs.peek().is_some() => bugs
            .find(|bug| bug.is_in(line))
            .map(|bug| format!("fault of etcd: {}", bug.name()))
            .ok_or("etcd passes what lacks a right, and the fault is mended there"),
        (Ours::Deny, Theirs::Pass(_)) => stricter
            .next()
            .map(|row| format!("stricter: {}", row.row()))
            .ok_or("ringfence denies without a reason"),
    }
}

/// How often a class came, with the shortest request of it.
#[derive(Default)]
pub struct Table(BTreeMap<(String, String), (usize, usize, String)>);

impl Table {
    pub fn add(&mut self, line: &str, class: String, request: &Request, user: &User) {
        let row = self.0.entry((class, line.to_owned())).or_insert((0, usize::MAX, String::new()));
        row.0 += 1;
        let size = request.bytes.len() + 8 * user.grants.len();
        if size < row.1 {
            row.1 = size;
            row.2 = shown(request, user);
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn count(&self) -> usize {
        self.0.values().map(|row| row.0).sum()
    }

    /// How many decisions of a class whose name begins so.
    pub fn count_of(&self, class: &str) -> usize {
        self.0.iter().filter(|row| row.0.0.starts_with(class)).map(|row| row.1.0).sum()
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for ((class, line), (count, _, example)) in &self.0 {
            writeln!(text, "{line}  {count:>7}  {class}").unwrap();
            if !class.starts_with("same") {
                writeln!(text, "              e.g. {example}").unwrap();
            }
        }
        text
    }
}

/// A request and the rights of who asks, for people.
pub fn shown(request: &Request, user: &User) -> String {
    let mut rights = String::from(if user.is_root { "root; " } else { "" });
    for (kind, span) in &user.grants {
        let (key, end) = (span.key.escape_ascii(), span.end.escape_ascii());
        write!(rights, "{kind:?} `{key}` `{end}`; ").unwrap();
    }
    format!("{:?} {} by [{}]", request.rpc, request.text, rights.trim_end_matches("; "))
}
