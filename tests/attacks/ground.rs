//! Where a case is played, and the table of how all fared.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message;
use ringfence::etcd::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use serde_json::Value;

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence, framed};
use crate::wiretap::{Wired, Wiretap};

/// A (`acme`) has everything below `/a/`; B (`globex`) everything below `/b/` and below two bytes 0xff; W
/// (`apiserver`) may write below `/a/` and read nothing.
pub const POLICY: &str = r#"
[[identity]]
name = "a"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/acme" }
roles = ["a"]
[[identity]]
name = "b"
match = { ca = "tenants", uri = "spiffe://example.org/tenant/globex" }
roles = ["b"]
[[identity]]
name = "w"
match = { ca = "kubernetes", cn = "kube-apiserver-etcd-client" }
roles = ["w"]
[[role]]
name = "a"
rules = [
  { prefix = "/a/", allow = ["get", "list", "watch", "put", "delete"] },
  { allow = ["lease", "health"] },
]
[[role]]
name = "b"
rules = [
  { prefix = "/b/", allow = ["get", "list", "watch", "put", "delete"] },
  { prefix = "ffff", encoding = "hex", allow = ["get", "list", "put", "delete"] },
  { allow = ["lease"] },
]
[[role]]
name = "w"
rules = [{ prefix = "/a/", allow = ["put", "delete"] }]
"#;

pub const DENIED: (u16, &str) = (7, "etcdserver: permission denied");
pub const FINE: (u16, &str) = (0, "");

/// What has to reach etcd.
pub enum Sent<'a> {
    Nothing,
    /// The client's own message.
    Same,
    /// This one instead.
    Message(&'a [u8]),
}

pub struct Ground {
    pub pki: Pki,
    pub etcd: Etcd,
    pub tap: Wiretap,
    pub ringfence: Ringfence,
    pub a: RawClient,
    pub b: RawClient,
    pub w: RawClient,
    /// The calls so far: case, verdict and reason that the audit log must have.
    calls: Vec<(u16, &'static str, Option<&'static str>)>,
}

/// How each case fared.
#[derive(Default)]
pub struct Report {
    cases: BTreeMap<u16, Vec<Variant>>,
    panicked: Vec<String>,
}

/// One way to try a case, and how it fared.
type Variant = (String, Result<String, String>);

impl Ground {
    pub async fn start() -> Self {
        Self::start_before("3.7").await
    }

    /// Before another release of etcd.
    pub async fn start_before(version: &str) -> Self {
        let pki = Pki::make();
        let etcd = Etcd::start_plain(version);
        let tap = Wiretap::start(etcd.port()).await;
        let ringfence = Ringfence::start_with_policy(&pki, &tap.endpoint, POLICY, "");
        let a = RawClient::connect(&pki, "acme", ringfence.port).await;
        let b = RawClient::connect(&pki, "globex", ringfence.port).await;
        let w = RawClient::connect(&pki, "apiserver", ringfence.port).await;
        Self { pki, etcd, tap, ringfence, a, b, w, calls: Vec::new() }
    }

    /// Writes a key, past ringfence.
    pub async fn etcd_put(&self, key: &str) -> bool {
        let direct = RawClient::connect_plain(self.etcd.port()).await;
        let put = PutRequest { key: key.to_owned().into(), ..PutRequest::default() };
        direct.unary("/etcdserverpb.KV/Put", &put).await.grpc_status == Some(0)
    }

    /// Whether a key is there, asked past ringfence.
    pub async fn etcd_has(&self, key: &str) -> bool {
        let direct = RawClient::connect_plain(self.etcd.port()).await;
        let range = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        direct.unary("/etcdserverpb.KV/Range", &range).await.message::<RangeResponse>().count == 1
    }

    /// Notes what the audit log must say of the call that comes next.
    pub fn expect(&mut self, number: u16, code: u16, reason: Option<&'static str>) {
        let verdict = match (code, reason) {
            (_, Some("no_rule" | "deny_rule" | "foreign_lease")) => "deny",
            (_, Some(_)) => "refuse",
            (7, None) => "deny",
            (_, None) => "allow",
        };
        self.calls.push((number, verdict, reason));
    }

    /// What reached etcd, without ringfence's own look-ups of leases.
    pub async fn reached(&self) -> Vec<Wired> {
        let own = "/etcdserverpb.Lease/LeaseTimeToLive";
        self.tap.take().into_iter().filter(|wired| wired.path != own).collect()
    }

    /// Holds the audit log to what was noted: one decision for each call, in their order.
    pub fn finish(mut self, report: &mut Report) {
        drop((self.a, self.b, self.w));
        let decisions: Vec<Value> = self.ringfence.decisions();
        let own: Vec<&Value> = decisions.iter().filter(|record| record["step"].is_null()).collect();
        assert_eq!(own.len(), self.calls.len(), "one decision for each call");
        for ((number, verdict, reason), record) in self.calls.iter().zip(own) {
            let named = reason.is_none_or(|reason| record["reason"] == reason);
            if record["verdict"] != *verdict || !named {
                let what = format!("the record says {record}");
                report.add(*number, "and its record", "", Err(what));
            }
        }
    }
}

/// What a client hears.
pub fn heard(reply: &Reply) -> (u16, String) {
    (reply.grpc_status.unwrap_or(u16::MAX), reply.grpc_message.clone())
}

impl Report {
    pub fn add(&mut self, number: u16, name: &str, verdict: &str, fared: Result<(), String>) {
        let fared = fared.map(|()| format!("pass: {verdict}"));
        self.cases.entry(number).or_default().push((name.to_owned(), fared));
    }

    /// What a group of cases found, or that it panicked.
    pub fn add_group(&mut self, name: &str, group: Result<Self, tokio::task::JoinError>) {
        match group {
            Ok(report) => {
                for (number, variants) in report.cases {
                    self.cases.entry(number).or_default().extend(variants);
                }
            }
            Err(panicked) => self.panicked.push(format!("{name}: {panicked}")),
        }
    }

    /// A case that a later issue owns.
    pub fn later(&mut self, number: u16, name: &str, issue: u16) {
        let fared = Ok(format!("later: issue {issue}"));
        self.cases.entry(number).or_default().push((name.to_owned(), fared));
    }

    pub fn finish(self, cases: u16) {
        let mut table = String::new();
        let (mut failed, mut passed, mut later) = (Vec::new(), 0, 0);
        for (number, variants) in &self.cases {
            for (name, fared) in variants {
                let said = match fared {
                    Ok(said) => said.clone(),
                    Err(why) => format!("FAIL: {why}"),
                };
                writeln!(table, "{number:>3}  {name:<78}  {said}").unwrap();
            }
            if variants.iter().any(|(_, fared)| fared.is_err()) {
                failed.push(*number);
            } else if variants.iter().all(|(_, fared)| fared.as_ref().unwrap().starts_with("later"))
            {
                later += 1;
            } else {
                passed += 1;
            }
        }
        println!(
            "{table}\n{passed} cases hold, {later} belong to later issues, {} fail",
            failed.len()
        );
        assert!(self.panicked.is_empty(), "{:?}", self.panicked);
        let missing: Vec<u16> =
            (1..=cases).filter(|number| !self.cases.contains_key(number)).collect();
        assert!(missing.is_empty(), "no case {missing:?}");
        assert!(failed.is_empty(), "these do not hold: {failed:?}");
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub enum Who {
    A,
    B,
    W,
}

/// One unary call, and what must come of it.
pub struct Case<'a> {
    pub number: u16,
    pub name: &'a str,
    pub who: Who,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// The DATA, frame heads included.
    pub data: Bytes,
    pub verdict: (u16, &'a str),
    pub reason: Option<&'static str>,
    pub sent: Sent<'a>,
}

impl<'a> Case<'a> {
    /// A call of A with that message.
    pub fn new(number: u16, name: &'a str, path: &'a str, message: &[u8]) -> Self {
        Self {
            number,
            name,
            who: Who::A,
            path,
            headers: &[],
            data: framed(message),
            verdict: DENIED,
            reason: None,
            sent: Sent::Nothing,
        }
    }

    pub fn by(self, who: Who) -> Self {
        Self { who, ..self }
    }

    pub fn headers(self, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { headers, ..self }
    }

    /// The DATA as it is.
    pub fn data(self, data: impl Into<Bytes>) -> Self {
        Self { data: data.into(), ..self }
    }

    /// Allowed, and etcd answers this.
    pub fn fine(self) -> Self {
        Self { verdict: FINE, sent: Sent::Same, ..self }
    }

    /// Allowed, and what reaches etcd is this message instead.
    pub fn fine_as(self, message: &'a [u8]) -> Self {
        Self { verdict: FINE, sent: Sent::Message(message), ..self }
    }

    pub fn refused(self, code: u16, text: &'a str, reason: &'static str) -> Self {
        Self { verdict: (code, text), reason: Some(reason), ..self }
    }

    pub fn reason(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

/// Plays a case: what the client heard, and what reached etcd.
pub async fn play(ground: &mut Ground, report: &mut Report, case: Case<'_>) -> Reply {
    ground.expect(case.number, case.verdict.0, case.reason);
    let client = match case.who {
        Who::A => &ground.a,
        Who::B => &ground.b,
        Who::W => &ground.w,
    };
    let reply = client.call(case.path, case.headers, case.data.clone()).await;
    let heard = heard(&reply);
    let reached = ground.reached().await;
    let as_said = match &case.sent {
        Sent::Nothing => reached.is_empty(),
        Sent::Same => {
            reached.len() == 1 && reached[0].path == case.path && reached[0].data == case.data
        }
        Sent::Message(message) => reached.len() == 1 && reached[0].is(case.path, message),
    };
    let fared = if (heard.0, heard.1.as_str()) != case.verdict {
        Err(format!("the client heard {heard:?}"))
    } else if as_said {
        Ok(())
    } else {
        Err(format!("etcd got {reached:?}"))
    };
    let verdict = match case.verdict.0 {
        0 => "etcd answers".to_owned(),
        code if !matches!(case.sent, Sent::Nothing) => format!("status {code} of etcd's own"),
        code => format!("status {code}, {}", case.reason.unwrap_or("no_rule")),
    };
    report.add(case.number, case.name, &verdict, fared);
    reply
}

/// The bytes of a message.
pub fn bytes(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

impl Case<'_> {
    /// Allowed here, and refused by etcd.
    pub fn reason_of_etcd(self) -> Self {
        Self { sent: Sent::Same, ..self }
    }
}
