//! What becomes of clients when certificates, revocations and policy change under load, and when ringfence ends. A
//! target of its own: it uses the whole machine. `make lifecycle` runs it at full size and shows the figures.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a test fails by panicking; it uses a part of the common support"
)]

#[path = "../support/mod.rs"]
mod support;

mod latency;
mod load;
mod reloads;
mod stop;

use support::{Etcd, Pki, Ringfence, Settings};
use tokio::sync::Mutex;

/// The tests here take turns.
static ALONE: Mutex<()> = Mutex::const_new(());

/// One who stays, two who lose something, and one whose right comes and goes.
const POLICY: &str = r#"
[[identity]]
name = "steady"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["all"]
[[identity]]
name = "acme"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/acme" }
roles = ["all"]
[[identity]]
name = "victim"
match = { ca = "tenants", cn = "globex" }
roles = ["some"]
[[role]]
name = "all"
rules = [{ prefix = "/hot/", allow = ["get", "list", "watch", "put"] }]
[[role]]
name = "some"
rules = [
  { prefix = "/own/", allow = ["get", "watch"] },
  { prefix = "/hot/", allow = ["get", "watch"] },
]
"#;
/// The rule that comes and goes.
const RULE: &str = "  { prefix = \"/hot/\", allow = [\"get\", \"watch\"] },\n";

struct Scene {
    pki: Pki,
    etcd: Etcd,
    ringfence: Ringfence,
}

impl Scene {
    fn start(config: &str) -> Self {
        let pki = Pki::make();
        let etcd = Etcd::start_plain("3.7");
        let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), POLICY, config);
        Self { pki, etcd, ringfence }
    }

    /// The same, and it says only what is wrong.
    fn start_quiet() -> Self {
        let pki = Pki::make();
        let etcd = Etcd::start_plain("3.7");
        let environment = [("RUST_LOG", std::path::Path::new("error"))];
        let settings =
            Settings { only_policy: POLICY, environment: &environment, ..Settings::default() };
        let ringfence = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
        Self { pki, etcd, ringfence }
    }

    /// Has it use a certificate and a CA in its own folder, where they can be replaced.
    fn own_files(&self) {
        let text = |file: &str| String::from_utf8(self.pki.pem(file)).unwrap();
        let folder = self.pki.path("");
        let folder = folder.display();
        self.ringfence.replace_file("tls.crt", &text("ringfence-server.crt"));
        self.ringfence.replace_file("tls.key", &text("ringfence-server.key"));
        self.ringfence.replace_file("ca.crt", &text("tenants-ca.crt"));
        let config = self.ringfence.file("ringfence.toml");
        let config = config
            .replace(&format!("{folder}/ringfence-server.crt"), "tls.crt")
            .replace(&format!("{folder}/ringfence-server.key"), "tls.key")
            .replace(&format!("{folder}/tenants-ca.crt\""), &format!("ca.crt\"\n{}", self.list()));
        self.ringfence.replace_file("ringfence.toml", &config);
    }

    /// The lines of a CA that say where its list is; the first list is made here.
    fn list(&self) -> String {
        self.pki.command(&["crl", "--authority", "tenants-ca"]);
        format!("crl_files = [{:?}]", self.pki.path("tenants-ca.crl"))
    }

    /// Gives the victim its rule, or takes it away.
    fn set_rule(&self, is_there: bool) {
        let policy = if is_there { POLICY.to_owned() } else { POLICY.replace(RULE, "") };
        self.ringfence.replace_file("policy.toml", &policy);
    }
}
