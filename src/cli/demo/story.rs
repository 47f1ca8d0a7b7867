//! The story: who does what, and what is to come of it. Data only.

/// Steps under one headline.
pub(super) struct Chapter {
    pub(super) title: &'static str,
    pub(super) steps: &'static [Step],
}

/// One thing that somebody does.
pub(super) struct Step {
    pub(super) who: &'static str,
    pub(super) what: &'static str,
    /// The certificate's name in the PKI.
    pub(super) certificate: Option<&'static str>,
    pub(super) action: Action,
    pub(super) expected: Verdict,
    /// What etcdctl prints on one line, or the reason.
    pub(super) detail: &'static str,
}

/// How it is done.
pub(super) enum Action {
    /// etcdctl through ringfence, with these arguments and this input.
    Etcdctl(&'static [&'static str], &'static str),
    /// etcdctl at etcd's own port, which the operator of the cluster has.
    EtcdctlBehind(&'static [&'static str]),
    /// A read of that key with forged headers.
    Forged(&'static str),
    /// etcdctl, and then a bare handshake that tells the reason.
    Handshake,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    Denied,
    Refused,
    /// None of these; never expected.
    Unclear,
}

impl Verdict {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Unclear => "unclear",
        }
    }
}

/// The detail of every denial; etcd's clients know the text.
pub(super) const PERMISSION_DENIED: &str = "permission denied";

const fn allowed(
    who: &'static str,
    what: &'static str,
    arguments: &'static [&'static str],
    detail: &'static str,
) -> Step {
    Step {
        who,
        what,
        certificate: Some(who),
        action: Action::Etcdctl(arguments, ""),
        expected: Verdict::Allowed,
        detail,
    }
}

const fn denied(who: &'static str, what: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { expected: Verdict::Denied, ..allowed(who, what, arguments, PERMISSION_DENIED) }
}

const fn with_input(step: Step, input: &'static str) -> Step {
    Step { action: Action::Etcdctl(&["txn"], input), ..step }
}

const fn operator(
    what: &'static str,
    arguments: &'static [&'static str],
    detail: &'static str,
) -> Step {
    Step {
        who: "operator",
        what,
        certificate: Some("etcd-server"),
        action: Action::EtcdctlBehind(arguments),
        expected: Verdict::Allowed,
        detail,
    }
}

const fn refused(
    what: &'static str,
    certificate: Option<&'static str>,
    detail: &'static str,
) -> Step {
    Step {
        who: "stranger",
        what,
        certificate,
        action: Action::Handshake,
        expected: Verdict::Refused,
        detail,
    }
}

const fn forged(
    what: &'static str,
    key: &'static str,
    expected: Verdict,
    detail: &'static str,
) -> Step {
    Step {
        who: "acme",
        what,
        certificate: Some("acme"),
        action: Action::Forged(key),
        expected,
        detail,
    }
}

/// The whole of it.
pub(super) const STORY: &[Chapter] = &[
    Chapter { title: "Each works with its own keys", steps: OWN },
    Chapter { title: "Nobody gets at anybody else's", steps: OTHERS },
    Chapter { title: "A forged `token` and `authorization` header change nothing", steps: FORGED },
    Chapter { title: "Without a good certificate there is no handshake", steps: STRANGERS },
    Chapter {
        title: "What etcd holds after all that, asked behind ringfence's back",
        steps: AFTER,
    },
];

const OWN: &[Step] = &[
    operator(
        "put /tenants/acme/quota 100 (at etcd itself)",
        &["put", "/tenants/acme/quota", "100"],
        "OK",
    ),
    allowed(
        "apiserver",
        "put /registry/pods/web running",
        &["put", "/registry/pods/web", "running"],
        "OK",
    ),
    with_input(
        allowed("apiserver", "txn: put /registry/pods/db if it is new", &[], "SUCCESS OK"),
        "create(\"/registry/pods/db\") = \"0\"\n\nput /registry/pods/db pending\n\nget /registry/pods/db\n\n",
    ),
    allowed(
        "apiserver",
        "get --prefix /registry/ --keys-only",
        &["get", "--prefix", "/registry/", "--keys-only"],
        "/registry/pods/db /registry/pods/web",
    ),
    allowed(
        "acme",
        "put /tenants/acme/colour blue",
        &["put", "/tenants/acme/colour", "blue"],
        "OK",
    ),
    allowed(
        "globex",
        "put /tenants/globex/plan secret",
        &["put", "/tenants/globex/plan", "secret"],
        "OK",
    ),
    allowed(
        "acme",
        "get /tenants/acme/colour",
        &["get", "/tenants/acme/colour"],
        "/tenants/acme/colour blue",
    ),
    allowed(
        "acme",
        "get /tenants/acme/ /tenants/acme0 --keys-only",
        &["get", "/tenants/acme/", "/tenants/acme0", "--keys-only"],
        "/tenants/acme/colour /tenants/acme/quota",
    ),
    with_input(
        allowed("acme", "txn: if colour is blue put green, else get it", &[], "SUCCESS OK"),
        "value(\"/tenants/acme/colour\") = \"blue\"\n\nput /tenants/acme/colour green\n\nget /tenants/acme/colour\n\n",
    ),
    with_input(
        allowed(
            "acme",
            "the same again, now that it is green",
            &[],
            "FAILURE /tenants/acme/colour green",
        ),
        "value(\"/tenants/acme/colour\") = \"blue\"\n\nput /tenants/acme/colour green\n\nget /tenants/acme/colour\n\n",
    ),
    allowed("acme", "put /tenants/acme/note hello", &["put", "/tenants/acme/note", "hello"], "OK"),
    allowed("acme", "del /tenants/acme/note", &["del", "/tenants/acme/note"], "1"),
];

const OTHERS: &[Step] = &[
    denied("acme", "get /tenants/globex/plan", &["get", "/tenants/globex/plan"]),
    denied("acme", "put /tenants/globex/plan stolen", &["put", "/tenants/globex/plan", "stolen"]),
    denied("globex", "get --prefix /tenants/acme/", &["get", "--prefix", "/tenants/acme/"]),
    denied(
        "acme",
        "get /tenants/acme/ /tenants/acme1 (too wide)",
        &["get", "/tenants/acme/", "/tenants/acme1"],
    ),
    denied("acme", "get --prefix /tenants/", &["get", "--prefix", "/tenants/"]),
    denied("acme", "get --prefix \"\"", &["get", "--prefix", ""]),
    allowed(
        "acme",
        "get /tenants/acme/quota",
        &["get", "/tenants/acme/quota"],
        "/tenants/acme/quota 100",
    ),
    denied(
        "acme",
        "put /tenants/acme/quota 1000 (protected)",
        &["put", "/tenants/acme/quota", "1000"],
    ),
    denied(
        "acme",
        "del --prefix /tenants/acme/ (has the quota)",
        &["del", "--prefix", "/tenants/acme/"],
    ),
    with_input(
        denied("acme", "txn: own keys, else get /tenants/globex/plan", &[]),
        "value(\"/tenants/acme/colour\") = \"green\"\n\nput /tenants/acme/colour red\n\nget /tenants/globex/plan\n\n",
    ),
    denied("acme", "get /registry/pods/web", &["get", "/registry/pods/web"]),
    denied("apiserver", "get /tenants/acme/colour", &["get", "/tenants/acme/colour"]),
];

const FORGED: &[Step] = &[
    forged(
        "Range /tenants/acme/colour as `root`",
        "/tenants/acme/colour",
        Verdict::Allowed,
        "green",
    ),
    forged(
        "Range /tenants/globex/plan as `root`",
        "/tenants/globex/plan",
        Verdict::Denied,
        PERMISSION_DENIED,
    ),
];

const STRANGERS: &[Step] = &[
    refused("no certificate", None, "CertificateRequired"),
    refused("acme's name from a foreign CA", Some("foreign"), "UnknownCA"),
    refused("acme's certificate, expired", Some("expired"), "CertificateExpired"),
];

const AFTER: &[Step] = &[
    operator(
        "get --prefix \"\" --keys-only",
        &["get", "--prefix", "", "--keys-only"],
        "/registry/pods/db /registry/pods/web /tenants/acme/colour /tenants/acme/quota /tenants/globex/plan",
    ),
    operator(
        "get --prefix /tenants/ --print-value-only",
        &["get", "--prefix", "/tenants/", "--print-value-only"],
        "green 100 secret",
    ),
];
