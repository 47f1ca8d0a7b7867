//! The commands, and who may run them.

use std::fmt;

/// In a value and in a password: no log may hold them.
pub const CANARIES: [&str; 2] = ["canary-value-8c1e", "canary-password-51d0"];

/// A policy, and the words to put into the cases.
pub struct Policy {
    pub name: &'static str,
    pub text: &'static str,
    pub certificate: &'static str,
    /// What the principal may use: `{p}`.
    pub prefix: &'static str,
    /// What it may not: `{n}`.
    pub neighbour: &'static str,
    pub expected: fn(&Case) -> Lines,
}

pub const POLICIES: [Policy; 2] = [
    Policy {
        name: "kubernetes",
        text: r#"
[[identity]]
name = "apiserver"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["kubernetes"]
[[role]]
name = "kubernetes"
rules = [
  { prefix = "/registry/", allow = ["get", "list", "watch", "put", "delete"] },
  { range = { from = "~" }, allow = ["get", "list", "watch", "put", "delete"] },
  { allow = ["lease", "compact", "status", "member.list", "member.change", "alarm.get", "alarm.set"] },
  { allow = ["hash", "snapshot", "defragment", "move-leader", "downgrade", "auth.login", "auth.read"] },
  { allow = ["auth.change", "health"] },
]
"#,
        certificate: "apiserver",
        prefix: "/registry/",
        neighbour: "/other/",
        expected: |case| case.kubernetes,
    },
    Policy {
        name: "tenant",
        text: r#"
[[identity]]
name = "tenant"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/*" }
roles = ["tenant"]
[[role]]
name = "tenant"
rules = [
  { prefix = "/tenants/${uri.path.2}/", allow = ["get", "list", "watch", "put", "delete"] },
  { allow = ["lease"] },
]
"#,
        certificate: "acme",
        prefix: "/tenants/acme/",
        neighbour: "/tenants/globex/",
        expected: |case| case.tenant,
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Same,
    Denied,
}

/// What is expected with 3.4, and with the later lines.
#[derive(Clone, Copy)]
pub struct Lines(Expected, Expected);

const SAME: Lines = Lines(Expected::Same, Expected::Same);
const DENIED: Lines = Lines(Expected::Denied, Expected::Denied);

impl Lines {
    pub fn for_line(self, line: &str) -> Expected {
        if line == "3.4" { self.0 } else { self.1 }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Same => "same",
            Self::Denied => "denied",
        })
    }
}

/// One command.
pub struct Case {
    pub command: &'static str,
    /// What happens while it runs: `>` writes a line, `?` waits for a text, `!` runs another etcdctl, `^` interrupts.
    pub script: &'static [&'static str],
    /// What the command alone does not say.
    pub note: &'static str,
    /// Keep the ID after this text under this name.
    pub keep: Option<(&'static str, &'static str)>,
    /// What etcd itself complains of.
    pub error: Option<&'static str>,
    /// Every number may differ.
    pub numbers: bool,
    /// What stands between these may come in any order.
    pub unordered: &'static [char],
    since: &'static str,
    kubernetes: Lines,
    tenant: Lines,
}

impl Case {
    fn new(command: &'static str, kubernetes: Lines, tenant: Lines) -> Self {
        Self {
            command,
            script: &[],
            note: "",
            keep: None,
            error: None,
            numbers: false,
            unordered: &[],
            since: "3.4",
            kubernetes,
            tenant,
        }
    }

    fn script(self, script: &'static [&'static str]) -> Self {
        Self { script, ..self }
    }

    fn keep(self, name: &'static str, after: &'static str) -> Self {
        Self { keep: Some((name, after)), ..self }
    }

    fn called(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    fn since(self, since: &'static str) -> Self {
        Self { since, ..self }
    }

    fn failing(self, error: &'static str) -> Self {
        Self { error: Some(error), ..self }
    }

    fn with_numbers(self) -> Self {
        Self { numbers: true, ..self }
    }

    fn in_any_order(self) -> Self {
        Self { unordered: &['\n'], ..self }
    }

    pub fn runs_with(&self, line: &str) -> bool {
        self.since <= line
    }

    pub fn shown(&self, policy: &Policy) -> String {
        let command = self.command.replace("{p}", policy.prefix).replace("{n}", policy.neighbour);
        if self.note.is_empty() { command } else { format!("{command} ({})", self.note) }
    }
}

/// Everybody may.
fn both(command: &'static str) -> Case {
    Case::new(command, SAME, SAME)
}

/// Only who has the verb on the store.
fn admin(command: &'static str) -> Case {
    Case::new(command, SAME, DENIED)
}

fn nobody(command: &'static str) -> Case {
    Case::new(command, DENIED, DENIED)
}

/// In this order; later ones build on what earlier ones have left.
pub fn cases() -> Vec<Case> {
    let groups =
        [keys(), transactions(), leases(), watches(), sessions(), store(), auth(), members()];
    groups.into_iter().flatten().collect()
}

fn keys() -> Vec<Case> {
    vec![
        both("put {p}a canary-value-8c1e"),
        both("put {p}b 2 --prev-kv"),
        both("put {p}b 3 --prev-kv"),
        both("put {p}c/d 4"),
        nobody("put {n}a 1"),
        nobody("put {p} 1 --lease=1234"),
        both("get {p}a"),
        both("get {p}missing"),
        both("get {p}a --write-out=json"),
        both("get {p}a --write-out=fields"),
        both("get {p}b --rev=3"),
        both("get {p}b --rev=99999").failing("required revision is a future revision"),
        both("get {p} --prefix"),
        both("get {p} --prefix --keys-only"),
        both("get {p} --prefix --count-only --write-out=fields").since("3.5"),
        both("get {p} --prefix --limit=1 --sort-by=MODIFY --order=DESCEND"),
        both("get {p}a {p}c --consistency=s --print-value-only"),
        nobody("get {n}a"),
        nobody("get {n} --prefix"),
        nobody("get \"\" --prefix"),
        nobody("get {p}a --from-key"),
        nobody("get {p} 0"),
        admin("put ~last 1"),
        admin("get ~ --from-key"),
        admin("get ~ --from-key --keys-only"),
        both("del {p}missing"),
        both("del {p}b --prev-kv"),
        both("del {p}c --prefix"),
        nobody("del {n}a"),
        nobody("del {p}a --from-key"),
        admin("del ~ --from-key"),
        admin("get {p}a --user=alice:canary-password-51d0"),
    ]
}

fn transactions() -> Vec<Case> {
    const ALLOWED: &[&str] = &[
        ">value(\"{p}a\") = \"canary-value-8c1e\"",
        ">mod(\"{p}a\") > \"0\"",
        ">",
        ">put {p}txn 1",
        ">get {p}a",
        ">",
        ">del {p}a",
        ">",
    ];
    const FAILING: &[&str] =
        &[">create(\"{p}a\") = \"0\"", ">", ">del {p}a", ">", ">get {p} --prefix", ">"];
    const COMPARED: &[&str] = &[">value(\"{n}a\") = \"1\"", ">", ">put {p}txn 2", ">", ">"];
    const BRANCH: &[&str] =
        &[">create(\"{p}a\") > \"0\"", ">", ">put {p}txn 2", ">", ">put {n}a 2", ">"];
    vec![
        both("txn").script(ALLOWED).called("compares hold"),
        both("txn --write-out=json").script(FAILING).called("compare fails"),
        nobody("txn").script(COMPARED).called("compares a neighbour's key"),
        nobody("txn").script(BRANCH).called("neighbour's key in the branch not taken"),
    ]
}

fn leases() -> Vec<Case> {
    vec![
        both("lease list"),
        both("lease grant 600").keep("lease", "lease "),
        both("lease grant 700").keep("empty", "lease "),
        both("put {p}leased 1 --lease={lease}"),
        both("put {p}leased 2 --ignore-lease"),
        both("put {p}leased --ignore-value --lease={lease}"),
        nobody("put {n}leased 1 --lease={lease}"),
        both("lease keep-alive --once {lease}"),
        both("lease keep-alive {lease}").script(&["?keepalived with TTL", "^"]),
        both("lease timetolive {lease}").with_numbers(),
        both("lease timetolive {lease} --keys").with_numbers(),
        both("lease list").in_any_order(),
        both("lease revoke {empty}"),
        both("lease revoke {lease}"),
        both("get {p}leased"),
        // Without an owner it is nobody's, whether there is one or not.
        nobody("lease revoke 1234"),
        nobody("lease timetolive 1234"),
        nobody("lease keep-alive --once 1234"),
    ]
}

fn watches() -> Vec<Case> {
    const SEVERAL: &[&str] = &[
        ">watch --rev=1 {p}a",
        ">watch --prefix --prev-kv --rev=1 {p}c",
        ">watch --rev=2 {p}w {p}x",
        "?{p}a",
        "?{p}c/d",
        "!put {p}w 1",
        "?{p}w",
        "!put {p}w2 2",
        "?{p}w2",
        ">progress",
        "?progress notify",
    ];
    const OTHER_GOES_ON: &[&str] = &[">watch {n}a", ">watch --rev=1 {p}a", "?{p}a"];
    vec![
        both("watch --rev=1 {p}a").script(&["?canary", "^"]),
        both("watch --rev=1 --prefix {p} --prev-kv").script(&["?{p}leased\n2", "^"]),
        both("watch --rev=1 {p}a -- echo seen").script(&["?seen", "^"]),
        both("watch -i")
            .script(SEVERAL)
            .called("several at once, then progress")
            .failing("EOF")
            .in_any_order(),
        nobody("watch {n}a"),
        nobody("watch {n} --prefix"),
        nobody("watch \"\" --prefix"),
        nobody("watch {p}a 0 --rev=1"),
        both("watch -i --rev=1")
            .script(OTHER_GOES_ON)
            .called("a neighbour's key, then an own one")
            .failing("EOF"),
    ]
}

fn sessions() -> Vec<Case> {
    const HELD: &[&str] = &["?{p}lock/", "!get {p}lock --prefix --keys-only", "^"];
    const ELECTED: &[&str] = &["?first", "!get {p}election --prefix --print-value-only", "^"];
    vec![
        both("lock {p}lock -- echo held"),
        both("lock {p}lock").script(HELD).called("held until interrupted"),
        both("lock {p}lock --ttl=100 -- echo again"),
        nobody("lock {n}lock -- echo held"),
        both("elect {p}election first").script(ELECTED).called("until interrupted"),
        nobody("elect {n}election first"),
        both("get {p}lock --prefix"),
        both("get {p}election --prefix"),
    ]
}

fn store() -> Vec<Case> {
    vec![
        admin("member list").keep("member", ""),
        admin("member list --write-out=json"),
        admin("move-leader {member}"),
        admin("endpoint status").with_numbers(),
        admin("endpoint status --cluster").with_numbers(),
        admin("endpoint status --write-out=fields").with_numbers(),
        // It asks for a key, and takes a denial for health; from 3.5 on it also asks for alarms.
        Case::new("endpoint health", SAME, Lines(Expected::Same, Expected::Denied)).with_numbers(),
        admin("endpoint health --cluster").with_numbers(),
        admin("endpoint hashkv").with_numbers(),
        admin("alarm list"),
        admin("alarm disarm"),
        admin("snapshot save snapshot.db").with_numbers(),
        admin("defrag").with_numbers(),
        admin("compaction 5"),
        admin("compaction 5").failing("required revision has been compacted"),
        admin("compaction 7 --physical"),
        admin("get ~ --from-key --rev=2").failing("required revision has been compacted"),
        admin("downgrade validate 3.6").since("3.7"),
    ]
}

fn auth() -> Vec<Case> {
    vec![
        admin("auth status").since("3.5"),
        admin("auth enable").failing("root user does not exist"),
        admin("auth disable"),
        admin("user list"),
        admin("user add alice:canary-password-51d0"),
        admin("user add bob --no-password"),
        admin("user add alice:canary-password-51d0").failing("user name already exists"),
        admin("user passwd alice --interactive=false").script(&[">canary-password-51d0"]),
        admin("role add reader"),
        admin("role grant-permission reader read /registry/ --prefix"),
        admin("role grant-permission reader readwrite /a /b"),
        admin("role get reader"),
        admin("role list"),
        admin("user grant-role alice reader"),
        admin("user get alice"),
        admin("user get alice --detail"),
        admin("user get nobody").failing("user name not found"),
        admin("user list"),
        admin("user revoke-role alice reader"),
        admin("role revoke-permission reader /a /b"),
        admin("role delete reader"),
        admin("user delete alice"),
        admin("user delete bob"),
        admin("user list"),
    ]
}

fn members() -> Vec<Case> {
    const ADD: &str = "member add new --learner --peer-urls=http://127.0.0.1:1";
    vec![
        admin("member list --write-out=fields"),
        // Members come in the order of their IDs.
        Case { unordered: &['\n', '"', ','], ..admin(ADD).keep("learner", "Member ") },
        admin("member list").in_any_order(),
        admin("member update {learner} --peer-urls=http://127.0.0.1:2"),
        admin("member promote {learner}").failing("in sync with leader"),
        admin("member remove {learner}"),
        admin("member list"),
        // The same revision on both sides: what was denied has changed nothing.
        both("get {p} --prefix --write-out=json"),
    ]
}
