//! The second wall: identities that reach etcd as users of its own, so that its own rights stand behind
//! ringfence's. Here ringfence allows far more than etcd does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use ringfence::etcd::pb::authpb::Permission;
use ringfence::etcd::pb::etcdserverpb as pb;
use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;

use crate::support::{Etcd, Pki, RawClient, Reply, Ringfence, wait_for};
use crate::watch::{WATCH, create, request};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const LOCK: &str = "/v3lockpb.Lock/Lock";
const READ_WRITE: i32 = 2;
const TENANTS: [&str; 2] = ["acme", "globex"];
const QUICK: [&str; 2] = ["--bcrypt-cost", "4"];

/// An etcd with authentication, a user for each tenant with rights on its own keys, and ringfence
/// before it, which lets each tenant do everything.
struct Wall {
    pki: Pki,
    etcd: Etcd,
    /// To etcd, past ringfence.
    root: RawClient,
    token: String,
    _passwords: tempfile::TempDir,
    ringfence: Ringfence,
}

impl Wall {
    async fn start(version: &str, flags: &[&str]) -> Self {
        let flags = [&QUICK, flags].concat();
        let pki = Pki::make_with(TENANT_NAMED_ROOT);
        let etcd = Etcd::start_with(version, &pki, &flags);
        let root = RawClient::connect(&pki, "ringfence-client", etcd.port()).await;
        let passwords = tempfile::tempdir().unwrap();
        for tenant in TENANTS {
            add_user(&root, tenant, &format!("/tenants/{tenant}/")).await;
            write_password(passwords.path(), tenant, &password(tenant));
        }
        set_up(&root, "UserAdd", &user("root")).await;
        let to_root =
            pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
        set_up(&root, "UserGrantRole", &to_root).await;
        set_up(&root, "AuthEnable", &pb::AuthEnableRequest {}).await;
        let token = log_in(&root).await;
        let of_operator = passwords.path().join("operator");
        fs::create_dir(&of_operator).unwrap();
        write_password(&of_operator, "root", &password("root"));
        let policy = policy(passwords.path()) + &operator(&of_operator);
        let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
        Self { pki, etcd, root, token, _passwords: passwords, ringfence }
    }

    async fn client(&self, name: &str) -> RawClient {
        RawClient::connect(&self.pki, name, self.ringfence.port).await
    }

    /// As root, past ringfence.
    async fn administer(&self, method: &str, message: &impl Message) {
        let data = crate::support::framed(&message.encode_to_vec());
        let path = format!("/etcdserverpb.Auth/{method}");
        let token = log_in(&self.root).await;
        let reply = self.root.call(&path, &[("token", &token)], data).await;
        assert_eq!(reply.grpc_status, Some(0), "{method}: {reply:?}");
    }

    /// Also when it stays the same, etcd forgets the user's tokens.
    async fn change_password(&self, name: &str, password: &str) {
        let change = pb::AuthUserChangePasswordRequest {
            name: name.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        self.administer("UserChangePassword", &change).await;
    }

    /// Stops ringfence; every record, and no secret in any of them nor in the log.
    fn records(&mut self) -> Vec<serde_json::Value> {
        assert_eq!(self.ringfence.stop().code(), Some(0));
        let (log, records) = (self.ringfence.log(), self.ringfence.audit_text());
        for tenant in TENANTS {
            assert!(!log.contains(&password(tenant)), "a password is in the log");
            assert!(!records.contains(&password(tenant)), "a password is in a record");
        }
        self.ringfence.records()
    }

    fn log_ins(&self, result: &str) -> u64 {
        let metrics = self.ringfence.metrics();
        let name = format!("ringfence_upstream_logins_total{{result=\"{result}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

fn password(name: &str) -> String {
    format!("a secret of {name}'s, with $pecial characters")
}

fn user(name: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.to_owned(), password: password(name), ..Default::default() }
}

async fn set_up(client: &RawClient, method: &str, message: &impl Message) {
    let reply = client.unary(&format!("/etcdserverpb.Auth/{method}"), message).await;
    assert_eq!(reply.grpc_status, Some(0), "{method}: {reply:?}");
}

/// A user whose role of the same name may read and write that prefix.
async fn add_user(client: &RawClient, name: &str, prefix: &str) {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    set_up(client, "UserAdd", &user(name)).await;
    set_up(client, "RoleAdd", &pb::AuthRoleAddRequest { name: name.to_owned() }).await;
    let perm =
        Permission { perm_type: READ_WRITE, key: prefix.to_owned().into(), range_end: end.into() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: name.to_owned(), perm: Some(perm) };
    set_up(client, "RoleGrantPermission", &grant).await;
    let to_user = pb::AuthUserGrantRoleRequest { user: name.to_owned(), role: name.to_owned() };
    set_up(client, "UserGrantRole", &to_user).await;
}

async fn log_in(client: &RawClient) -> String {
    let request = pb::AuthenticateRequest { name: "root".to_owned(), password: password("root") };
    let reply = client.unary("/etcdserverpb.Auth/Authenticate", &request).await;
    reply.message::<pb::AuthenticateResponse>().token
}

fn write_password(folder: &Path, name: &str, password: &str) {
    let file = folder.join(format!("{name}.password"));
    fs::write(&file, format!("{password}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn policy(passwords: &Path) -> String {
    let passwords = passwords.display();
    format!(
        r#"
[[identity]]
name = "tenant"
match = {{ ca = "tenants", uri = "spiffe://example.org/tenant/*" }}
roles = ["everything"]
upstream = {{ user = "${{uri.path.2}}", password_file = "{passwords}/${{uri.path.2}}.password" }}
[[role]]
name = "everything"
rules = [
  {{ prefix = "", allow = ["get", "list", "watch", "put", "delete"] }},
  {{ allow = ["lease", "health"] }},
]
"#
    )
}

/// One who reaches etcd as root.
fn operator(passwords: &Path) -> String {
    let file = passwords.join("root.password");
    format!(
        r#"
[[identity]]
name = "operator"
match = {{ ca = "kubernetes", cn = "kube-apiserver-etcd-client" }}
roles = ["everything"]
upstream = {{ user = "root", password_file = {file:?} }}
"#
    )
}

/// A tenant whose name is that of a user of etcd's, but of another identity.
const TENANT_NAMED_ROOT: &str = r#"
[[certificate]]
name = "tenant-named-root"
authority = "tenants-ca"
common_name = "root"
uri = ["spiffe://example.org/tenant/root"]
use = ["client"]
"#;

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn check(reply: &Reply, status: u16, text: &str) {
    assert_eq!(reply.grpc_status, Some(status), "{reply:?}");
    assert!(reply.grpc_message.contains(text), "{reply:?}");
}

const DENIED: &str = "etcdserver: permission denied";
const REFUSED: &str = "etcd refuses the user";
const NO_PASSWORD: &str = "no password is known for the user";

async fn check_two_users(version: &str) {
    let mut wall = Wall::start(version, &[]).await;
    let acme = wall.client("acme").await;
    check(&acme.unary(PUT, &put("/tenants/acme/a")).await, 0, "");
    // Ringfence allows it, etcd does not.
    check(&acme.unary(PUT, &put("/tenants/globex/a")).await, 7, DENIED);
    check(&acme.unary(RANGE, &range("/tenants/globex/a")).await, 7, DENIED);
    // A token of the client's own does not ride on, not even root's.
    let data = crate::support::framed(&range("/tenants/globex/a").encode_to_vec());
    for header in ["token", "authorization"] {
        let reply = acme.call(RANGE, &[(header, &wall.token)], data.clone()).await;
        check(&reply, 7, DENIED);
    }
    let globex = wall.client("globex").await;
    check(&globex.unary(PUT, &put("/tenants/globex/a")).await, 0, "");
    check(&globex.unary(RANGE, &range("/tenants/acme/a")).await, 7, DENIED);
    // So do streams, and locks with the lease that ringfence grants for them.
    let mut stream = acme.stream(WATCH).await;
    stream.send(&request(RequestUnion::CreateRequest(create("/tenants/acme/a", ""))));
    let made: pb::WatchResponse = stream.next().await;
    assert!(made.created && !made.canceled, "{made:?}");
    stream.send(&request(RequestUnion::CreateRequest(create("/tenants/globex/a", ""))));
    let denied: pb::WatchResponse = stream.next().await;
    assert!(denied.created && denied.canceled, "{denied:?}");
    assert!(denied.cancel_reason.contains("permission denied"), "{denied:?}");
    let lock = ringfence::etcd::pb::v3lockpb::LockRequest {
        name: "/tenants/acme/lock".into(),
        ..Default::default()
    };
    check(&acme.unary(LOCK, &lock).await, 0, "");
    assert_eq!((wall.log_ins("ok"), wall.log_ins("refused")), (2, 0), "{version}");
    drop(stream);
    let records = wall.records();
    let outcomes = |status: u64| {
        let of =
            |record: &&serde_json::Value| record["type"] == "outcome" && record["status"] == status;
        records.iter().filter(of).count()
    };
    // Five that etcd denied, and the probe of the denied watch.
    assert_eq!(outcomes(7), 6, "{records:#?}");
    let steps = records.iter().filter(|record| {
        record["rpc"] == "/etcdserverpb.Auth/Authenticate" && record["principal"] == "(ringfence)"
    });
    assert_eq!(steps.count(), 2, "each log-in has its record");
}

#[tokio::test]
async fn two_tenants_reach_the_oldest_etcd_as_two_users() {
    check_two_users("3.4").await;
}

#[tokio::test]
async fn two_tenants_reach_a_middle_etcd_as_two_users() {
    check_two_users("3.5").await;
}

#[tokio::test]
async fn two_tenants_reach_the_newest_etcd_as_two_users() {
    check_two_users("3.7").await;
}

/// Nothing is ever forwarded without the token, whatever is wrong with it.
#[tokio::test]
async fn a_wrong_password_fails_closed_and_a_mended_one_works_again() {
    let mut wall = Wall::start("3.7", &[]).await;
    let (acme, globex) = (wall.client("acme").await, wall.client("globex").await);
    check(&acme.unary(PUT, &put("/tenants/acme/a")).await, 0, "");
    wall.change_password("acme", "another").await;
    check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 9, REFUSED);
    // Many calls are one try.
    for _ in 0..20 {
        check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 9, REFUSED);
    }
    assert_eq!(wall.log_ins("refused"), 1);
    check(&globex.unary(PUT, &put("/tenants/globex/a")).await, 0, "");
    wall.change_password("acme", &password("acme")).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 0, "");
    wall.administer("UserDelete", &pb::AuthUserDeleteRequest { name: "acme".to_owned() }).await;
    check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 9, REFUSED);
    assert!(
        wall.ringfence.log().contains("mended in etcd it is let in"),
        "{}",
        wall.ringfence.log()
    );
    let faults = wall.records();
    let refused = faults.iter().filter(|record| record["fault"] == "login_refused").count();
    assert_eq!(refused, 22);
}

/// Tokens end by time, by a change of the password, and with etcd; no client notices.
#[tokio::test]
async fn a_token_that_etcd_forgot_is_fetched_again_and_the_call_made_again() {
    let mut wall = Wall::start("3.7", &["--auth-token-ttl", "1"]).await;
    let acme = wall.client("acme").await;
    check(&acme.unary(PUT, &put("/tenants/acme/a")).await, 0, "");
    tokio::time::sleep(Duration::from_secs(3)).await;
    check(&acme.unary(PUT, &put("/tenants/acme/b")).await, 0, "");
    wall.change_password("acme", &password("acme")).await;
    check(&acme.unary(PUT, &put("/tenants/acme/c")).await, 0, "");
    check(&acme.unary(RANGE, &range("/tenants/globex/a")).await, 7, DENIED);
    wall.etcd.restart();
    // The connection ended with etcd: the first call may have been under way.
    let mut reply = acme.unary(PUT, &put("/tenants/acme/d")).await;
    for _ in 0..100 {
        if reply.grpc_status != Some(14) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        reply = acme.unary(PUT, &put("/tenants/acme/d")).await;
    }
    check(&reply, 0, "");
    check(&acme.unary(RANGE, &range("/tenants/globex/a")).await, 7, DENIED);
    wall.records();
}

/// A lock runs in steps: it is not made again, but told to its client as something to try again.
#[tokio::test]
async fn a_lock_with_a_forgotten_token_is_not_made_again() {
    let wall = Wall::start("3.7", &[]).await;
    let acme = wall.client("acme").await;
    check(&acme.unary(PUT, &put("/tenants/acme/a")).await, 0, "");
    wall.change_password("acme", &password("acme")).await;
    let lock =
        ringfence::etcd::pb::v3lockpb::LockRequest { name: "/tenants/acme/lock".into(), lease: 0 };
    // The grant of its lease asks for the token first, and is made again.
    check(&acme.unary(LOCK, &lock).await, 0, "");
    let range = ringfence::etcd::pb::v3electionpb::LeaderRequest { name: "/tenants/acme/e".into() };
    wall.change_password("acme", &password("acme")).await;
    let leader = "/v3electionpb.Election/Leader";
    check(&acme.unary(leader, &range).await, 14, "token");
    check(&acme.unary(leader, &range).await, 2, "no leader");
}

async fn check_watch(version: &str) {
    let mut wall = Wall::start(version, &[]).await;
    let acme = wall.client("acme").await;
    let own = || request(RequestUnion::CreateRequest(create("/tenants/acme/a", "")));
    let mut stream = acme.stream(WATCH).await;
    stream.send(&own());
    let made: pb::WatchResponse = stream.next().await;
    assert!(made.created && !made.canceled, "{version}: {made:?}");
    wall.change_password("acme", &password("acme")).await;
    stream.send(&own());
    let end = stream.expect_end().await;
    assert_eq!(end.grpc_status, Some(14), "{version}: {end:?}");
    let mut again = acme.stream(WATCH).await;
    again.send(&own());
    let made: pb::WatchResponse = again.next().await;
    assert!(made.created && !made.canceled, "{version}: {made:?}");
    drop(again);
    let records = wall.records();
    let ended = |record: &&serde_json::Value| {
        record["type"] == "stream.end" && record["fault"] == "token_refused"
    };
    assert_eq!(records.iter().filter(ended).count(), 1, "{version}: {records:#?}");
}

/// etcd tells a watch with a bad token like one without a right: that must not be told to its client as a
/// denial, after which it would never ask again.
#[tokio::test]
async fn a_watch_with_a_forgotten_token_is_opened_again_by_its_client() {
    check_watch("3.7").await;
    check_watch("3.4").await;
}

#[tokio::test]
async fn authentication_that_is_off_fails_closed_until_it_is_on() {
    let pki = Pki::make();
    let etcd = Etcd::start_with("3.7", &pki, &QUICK);
    let passwords = tempfile::tempdir().unwrap();
    write_password(passwords.path(), "acme", &password("acme"));
    let policy = policy(passwords.path());
    let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 9, REFUSED);
    wait_for("what to mend", || ringfence.log().contains("authentication is not enabled"));
    // No file, no user: globex is let in by nobody's leave.
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    check(&globex.unary(RANGE, &range("/tenants/globex/a")).await, 9, NO_PASSWORD);
}

#[tokio::test]
async fn an_etcd_that_is_away_is_told_apart_from_one_that_refuses() {
    let mut wall = Wall::start("3.7", &[]).await;
    let acme = wall.client("acme").await;
    wall.etcd.kill();
    check(&acme.unary(RANGE, &range("/tenants/acme/a")).await, 14, "");
}

/// etcd takes the CN of the certificate for the user.
#[tokio::test]
async fn an_identity_reaches_etcd_with_a_certificate_of_its_own() {
    let pki = Pki::make();
    let etcd = Etcd::start_with("3.7", &pki, &[&QUICK[..], &["--client-cert-auth"]].concat());
    let root = RawClient::connect(&pki, "ringfence-client", etcd.port()).await;
    add_user(&root, "kube-apiserver-etcd-client", "/tenants/acme/").await;
    set_up(&root, "UserAdd", &user("root")).await;
    let to_root = pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
    set_up(&root, "UserGrantRole", &to_root).await;
    set_up(&root, "AuthEnable", &pb::AuthEnableRequest {}).await;
    let (certificate, key) = (pki.path("apiserver.crt"), pki.path("apiserver.key"));
    let policy = format!(
        r#"
[[identity]]
name = "acme"
match = {{ ca = "tenants", cn = "acme" }}
roles = ["everything"]
upstream = {{ certificate = {certificate:?}, key = {key:?} }}
[[identity]]
name = "globex"
match = {{ ca = "tenants", cn = "globex" }}
roles = ["everything"]
[[role]]
name = "everything"
rules = [{{ prefix = "", allow = ["get", "list", "put"] }}]
"#
    );
    let ringfence = Ringfence::start_with_policy(&pki, &etcd.endpoint(), &policy, "");
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    check(&acme.unary(PUT, &put("/tenants/acme/a")).await, 0, "");
    check(&acme.unary(RANGE, &range("/tenants/globex/a")).await, 7, DENIED);
    // Ringfence's own certificate has no CN and is no user.
    let globex = RawClient::connect(&pki, "globex", ringfence.port).await;
    let reply = globex.unary(RANGE, &range("/tenants/acme/a")).await;
    check(&reply, 7, DENIED);
}

/// The attack: a tenant is called as the user of another identity, whose password ringfence knows.
#[tokio::test]
async fn a_tenant_named_like_anothers_user_does_not_become_it() {
    let wall = Wall::start("3.7", &[]).await;
    let operator = wall.client("apiserver").await;
    check(&operator.unary(PUT, &put("/secret")).await, 0, "");
    let named_root = wall.client("tenant-named-root").await;
    for request in [put("/secret"), put("/tenants/acme/a")] {
        check(&named_root.unary(PUT, &request).await, 9, NO_PASSWORD);
    }
    check(&named_root.unary(RANGE, &range("/secret")).await, 9, NO_PASSWORD);
}

/// The attack: whether somebody else's lease exists shows in how a look-up of it fails.
#[tokio::test]
async fn a_lease_that_the_users_rights_hide_reads_like_one_that_is_not_there() {
    const HIDDEN: i64 = 4242;
    let mut wall = Wall::start("3.7", &[]).await;
    let as_root = |message: Vec<u8>| crate::support::framed(&message);
    let grant = pb::LeaseGrantRequest { id: HIDDEN, ttl: 60 };
    let secret = pb::PutRequest { lease: HIDDEN, ..put("/tenants/globex/a") };
    for (path, message) in
        [("/etcdserverpb.Lease/LeaseGrant", grant.encode_to_vec()), (PUT, secret.encode_to_vec())]
    {
        let reply = wall.root.call(path, &[("token", &wall.token)], as_root(message)).await;
        check(&reply, 0, "");
    }
    let acme = wall.client("acme").await;
    for (path, request) in [
        ("/etcdserverpb.Lease/LeaseTimeToLive", time_to_live as fn(i64) -> Vec<u8>),
        ("/etcdserverpb.Lease/LeaseRevoke", revoke),
        (PUT, bind),
    ] {
        for lease in [HIDDEN, 777] {
            let reply = acme.call(path, &[], crate::support::framed(&request(lease))).await;
            check(&reply, 7, DENIED);
        }
    }
    let records = wall.records();
    let denied = records.iter().filter(|it| it["reason"] == "foreign_lease").count();
    assert_eq!(denied, 6, "each is denied, and recorded so");
}

fn time_to_live(id: i64) -> Vec<u8> {
    pb::LeaseTimeToLiveRequest { id, keys: false }.encode_to_vec()
}

fn revoke(id: i64) -> Vec<u8> {
    pb::LeaseRevokeRequest { id }.encode_to_vec()
}

fn bind(lease: i64) -> Vec<u8> {
    pb::PutRequest { lease, ..put("/tenants/acme/a") }.encode_to_vec()
}
