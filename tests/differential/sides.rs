//! Who is asked: ringfence's own `decide`, a real etcd with authentication, the real program.

use bytes::Bytes;
use prost::Message;
use ringfence::document::Problems;
use ringfence::etcd::pb::authpb::Permission;
use ringfence::etcd::pb::etcdserverpb as pb;
use ringfence::etcd::{CanonicalRequest, Rpc, StoredKey};
use ringfence::identity::CertificateFacts;
use ringfence::policy::{
    Asker, Decision, FoundLeases, LeaseContent, LeaseKeys, Policy, PolicySource, decide,
    lease::LEASE_KEY_BYTES,
};

use super::classes::{Ours, Theirs};
use super::rbac::{User, policy};
use super::request::{Leases, Request};
use crate::support::{Etcd, Pki, RawClient, Reply, framed};

const PASSWORD: &str = "password";
const ROOT: &str = "root";
/// How etcd refuses a request for its shape, before it looks at rights.
const REFUSALS: [&str; 7] = [
    "key is not provided",
    "duplicate key",
    "invalid sort option",
    "too many operations",
    "value is provided",
    "lease is provided",
    "authentication failed",
];

/// The decisions of the library.
pub struct Library<'a> {
    policy: Policy,
    keys: LeaseKeys,
    leases: &'a Leases,
}

impl<'a> Library<'a> {
    pub fn new(users: &[User], leases: &'a Leases) -> Self {
        let (mut source, problems) = (PolicySource::default(), Problems::default());
        source.read("policy.toml", &policy(users), &problems);
        let policy = Policy::compile(source, &["tenants", "kubernetes"], &problems);
        assert!(!problems.has_errors());
        Self { policy, keys: LeaseKeys::new(&[[3; LEASE_KEY_BYTES]]), leases }
    }

    pub fn decide(&self, user: &User, request: &Request) -> Ours {
        let (ca, cn) = &user.certificate;
        let facts = CertificateFacts { common_names: vec![cn.clone()], ..Default::default() };
        let identification = self.policy.identify(ca, &facts).unwrap();
        let asker = Asker { identification: &identification, leases: &self.keys };
        let bytes = Bytes::from(request.bytes.clone());
        let mut new_lease = || self.keys.new_lease(&identification.principal, 99);
        let read = match CanonicalRequest::read(request.rpc, &bytes, &mut new_lease) {
            Ok(read) => read,
            Err(malformed) => return Ours::Refuse(malformed.to_string()),
        };
        let mut found = FoundLeases::default();
        match decide(asker, read, &found) {
            Decision::Allow(_) => Ours::Allow,
            Decision::Deny(_) => Ours::Deny,
            Decision::LookUp(read, leases) => {
                for lease in leases {
                    let known = self.leases.iter().find(|known| known.0 == lease);
                    let key = known.and_then(|known| known.1);
                    let keys = key.into_iter().map(StoredKey::new).collect();
                    found.insert(lease, LeaseContent::Keys(keys));
                }
                match decide(asker, read, &found) {
                    Decision::Allow(_) => Ours::Allow,
                    Decision::Deny(_) => Ours::Deny,
                    Decision::LookUp(..) => panic!("a second look-up of the same leases"),
                }
            }
        }
    }
}

/// An etcd, and a connection to it as somebody without a name of its own.
pub struct Member {
    etcd: Etcd,
    client: RawClient,
}

impl Member {
    pub async fn start(line: &str, pki: &Pki) -> Self {
        let quick: &[&str] = match line {
            "3.4" => &["--bcrypt-cost", "4"],
            _ => &["--bcrypt-cost", "4", "--unsafe-no-fsync"],
        };
        let etcd = Etcd::start_with(line, pki, quick);
        let client = RawClient::connect(pki, "ringfence-client", etcd.port()).await;
        Self { etcd, client }
    }

    pub fn endpoint(&self) -> String {
        self.etcd.endpoint()
    }

    /// One connection for each who asks at the same time.
    pub async fn connect(&self, pki: &Pki) -> RawClient {
        RawClient::connect(pki, "ringfence-client", self.etcd.port()).await
    }

    async fn set_up(&self, rpc: Rpc, message: &impl Message) {
        let reply = self.client.unary(rpc.path(), message).await;
        assert_eq!(reply.grpc_status, Some(0), "{rpc:?}: {}", reply.grpc_message);
    }

    async fn log_in(&self, name: &str) -> String {
        let request = pb::AuthenticateRequest { name: name.into(), password: PASSWORD.into() };
        let reply = self.client.unary(Rpc::Authenticate.path(), &request).await;
        reply.message::<pb::AuthenticateResponse>().token
    }

    async fn add_user(&self, name: &str, role: &str) {
        let add = pb::AuthUserAddRequest {
            name: name.into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        self.set_up(Rpc::UserAdd, &add).await;
        let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
        self.set_up(Rpc::UserGrantRole, &grant).await;
    }

    /// Empties the store and makes these leases; authentication is off.
    pub async fn reset(&self, leases: &Leases) {
        let all = pb::DeleteRangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            ..Default::default()
        };
        self.set_up(Rpc::DeleteRange, &all).await;
        for (id, key) in leases {
            self.set_up(Rpc::LeaseGrant, &pb::LeaseGrantRequest { ttl: 9000, id: *id }).await;
            if let Some(key) = key {
                let put = pb::PutRequest { key: (*key).into(), lease: *id, ..Default::default() };
                self.set_up(Rpc::Put, &put).await;
            }
        }
    }

    /// Makes the users and turns authentication on: a token for each.
    pub async fn guard(&self, users: &[User]) -> Vec<String> {
        let list = self.client.unary(Rpc::RoleList.path(), &pb::AuthRoleListRequest {}).await;
        if !list.message::<pb::AuthRoleListResponse>().roles.iter().any(|role| role == ROOT) {
            self.set_up(Rpc::RoleAdd, &pb::AuthRoleAddRequest { name: ROOT.into() }).await;
            self.add_user(ROOT, ROOT).await;
        }
        for user in users {
            self.set_up(Rpc::RoleAdd, &pb::AuthRoleAddRequest { name: user.name.clone() }).await;
            for (kind, span) in &user.grants {
                let permission = Permission {
                    perm_type: (*kind).into(),
                    key: span.key.clone().into(),
                    range_end: span.end.clone().into(),
                };
                let grant = pb::AuthRoleGrantPermissionRequest {
                    name: user.name.clone(),
                    perm: Some(permission),
                };
                self.set_up(Rpc::RoleGrantPermission, &grant).await;
            }
            self.add_user(&user.name, if user.is_root { ROOT } else { &user.name }).await;
        }
        self.set_up(Rpc::AuthEnable, &pb::AuthEnableRequest {}).await;
        let mut tokens = Vec::new();
        for user in users {
            tokens.push(self.log_in(&user.name).await);
        }
        tokens
    }

    /// Turns authentication off.
    pub async fn open(&self) {
        let token = self.log_in(ROOT).await;
        let message = framed(&pb::AuthDisableRequest {}.encode_to_vec());
        let path = Rpc::AuthDisable.path();
        let reply = self.client.call(path, &[("token", &token)], message).await;
        assert_eq!(reply.grpc_status, Some(0), "{}", reply.grpc_message);
    }
}

/// Sends a request; of a stream, what comes first.
pub async fn ask(client: &RawClient, token: Option<&str>, request: &Request) -> (u16, String) {
    let path = request.rpc.path();
    let header = token.map(|token| ("token", token));
    let headers: Vec<_> = header.into_iter().collect();
    let streams = [Rpc::Watch, Rpc::LeaseKeepAlive, Rpc::Snapshot, Rpc::RangeStream];
    let reply = if streams.contains(&request.rpc) {
        let last = !matches!(request.rpc, Rpc::Watch | Rpc::LeaseKeepAlive);
        client.first_message_with(path, &headers, &request.bytes, last).await
    } else {
        client.call(path, &headers, framed(&request.bytes)).await
    };
    said(if token.is_some() { "etcd" } else { "ringfence" }, request.rpc, &reply)
}

fn said(side: &str, rpc: Rpc, reply: &Reply) -> (u16, String) {
    if let Some(status) = reply.grpc_status {
        return (status, reply.grpc_message.clone());
    }
    assert!(reply.data.len() >= 5, "no answer of {side} to {rpc:?}: {reply:?}");
    if rpc != Rpc::Watch {
        return (0, String::new());
    }
    let answer = pb::WatchResponse::decode(&reply.data[5..]).unwrap();
    (0, answer.cancel_reason)
}

pub fn theirs((status, text): (u16, String)) -> Theirs {
    assert!(
        status != 16 && status != 14 && !text.contains("auth: revision"),
        "no verdict: {status} {text}"
    );
    if status == 7 || text.contains("permission denied") || text.contains("PermissionDenied") {
        Theirs::Deny
    } else if status == 12 || REFUSALS.iter().any(|refusal| text.contains(refusal)) {
        Theirs::Refuse
    } else {
        Theirs::Pass(text)
    }
}

/// What the program said must be what the library decides.
pub fn agrees(rpc: Rpc, ours: &Ours, (status, text): &(u16, String)) -> bool {
    let denied = *status == 7 || text.contains("permission denied");
    match ours {
        Ours::Deny => denied,
        // On a stream that lives on, it is answered in etcd's way.
        Ours::Refuse(_) if rpc == Rpc::Watch => text == "mvcc: watcher range is empty",
        Ours::Refuse(refusal) => text == refusal,
        Ours::Allow => !denied && !text.starts_with("ringfence:"),
    }
}
