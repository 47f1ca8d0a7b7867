//! A newer ringfence takes the place of an older one, or does not, and then the older one goes on.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use crate::knocking::{Fared, go_on, knock};
use crate::program::Program;
use crate::support::{Etcd, PATIENCE, Pki, Ringfence, Settings, audit_files, http_get, wait_for};

pub const UPGRADE: &str = "[upgrade]\nsocket = \"upgrade.sock\"\n";
pub const TAKE_OVER: &[&str] = &["--take-over"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_one_serves_and_the_older_one_ends_as_with_sigterm() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut older = Ringfence::start_with(&pki, &etcd.endpoint(), UPGRADE);
    let mode = older.path("upgrade.sock").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let client = pki.client_config(Some("acme"), &["h2"]);
    assert_eq!(knock(&client, older.port).await, Fared::Served);
    let mut newer = Program::start(&older, "newer", "ringfence.toml", TAKE_OVER);
    newer.serves();
    assert_eq!(older.wait().code(), Some(0), "{}", older.log());
    let log = older.log();
    let pid = format!("newer={}", newer.process_id());
    assert!(log.contains("another ringfence serves") && log.contains(&pid), "{log}");
    assert_eq!(knock(&client, older.port).await, Fared::Served);
    assert_eq!(older.metric("ringfence_handshakes_total"), 1, "the newer one's admin port");
    // It hands over itself.
    let mut newest = Program::start(&older, "newest", "ringfence.toml", TAKE_OVER);
    newest.serves();
    assert_eq!(newer.wait().code(), Some(0), "{}", newer.log());
    assert_eq!(knock(&client, older.port).await, Fared::Served);
    assert_eq!(newest.stop().code(), Some(0), "{}", newest.log());
    assert!(!older.path("upgrade.sock").exists());
    // What nobody holds any more is refused again.
    assert!(matches!(knock(&client, older.port).await, Fared::Broken(_)));
}

/// A mistake of its config, an address of its own, a word that is not the right one: the older one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_one_that_fails_leaves_the_older_one_serving() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut older = Ringfence::start_with(&pki, &etcd.endpoint(), UPGRADE);
    let config = older.file("ringfence.toml");
    let port = format!("127.0.0.1:{}", older.port);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    // A folder that cannot be locked.
    std::fs::create_dir_all(older.path("no-log/.lock")).unwrap();
    let both = format!("\"{port}\", \"{elsewhere}\"");
    for (name, from, to, expected) in [
        ("mistake", "version = 1", "version = 2", "`version` is 2"),
        ("foreign", port.as_str(), elsewhere.as_str(), "passes a socket that listens on"),
        ("taken", &format!("\"{port}\"]\ncert"), &format!("{both}]\ncert"), "cannot listen on"),
        ("audit", "directory = \"audit\"", "directory = \"no-log\"", "it is no regular file"),
        ("unset", "[upgrade]\nsocket = \"upgrade.sock\"\n", "", "needs `upgrade.socket`"),
    ] {
        assert!(config.contains(from), "{from}");
        older.replace_file("newer.toml", &config.replacen(from, to, 1));
        let mut newer = Program::start(&older, name, "newer.toml", TAKE_OVER);
        assert_eq!(newer.wait().code(), Some(1), "{name}: {}", newer.log());
        assert!(newer.log().contains(expected), "{name}: {}", newer.log());
    }
    // Who takes the sockets and goes away, and who says something else.
    for word in [&b""[..], b"steady\n"] {
        let mut stream = UnixStream::connect(older.path("upgrade.sock")).unwrap();
        let mut offer = [0; 4096];
        let length = stream.read(&mut offer).unwrap();
        let offer: serde_json::Value = serde_json::from_slice(&offer[..length]).unwrap();
        let admin = format!("127.0.0.1:{}", older.admin_port);
        assert_eq!(offer["addresses"], serde_json::json!([port, admin]));
        assert_eq!((&offer["v"], &offer["pid"]), (&1.into(), &older.process_id().into()));
        stream.write_all(word).unwrap();
    }
    let came_to_nothing = || older.log().matches("nothing came of the take-over").count();
    wait_for("both to be seen", || came_to_nothing() >= 2);
    let client = pki.client_config(Some("acme"), &["h2"]);
    assert_eq!(knock(&client, older.port).await, Fared::Served);
    // A start that does not ask is told what it could ask for.
    let mut second = Program::start(&older, "second", "ringfence.toml", &[]);
    assert_eq!(second.wait().code(), Some(1));
    assert!(
        second.log().contains("`ringfence serve --take-over` takes its place"),
        "{}",
        second.log()
    );
    // And after all of it one that is in order takes over.
    let mut newer = Program::start(&older, "newer", "ringfence.toml", TAKE_OVER);
    newer.serves();
    assert_eq!(older.wait().code(), Some(0));
    assert_eq!(knock(&client, older.port).await, Fared::Served);
    assert_eq!(newer.stop().code(), Some(0));
}

/// One that is killed while the newer one starts is replaced all the same; what it left behind stands in nobody's way.
#[test]
fn without_an_older_one_there_is_nothing_to_take() {
    let pki = Pki::make();
    let mut older = Ringfence::start_with(&pki, "http://127.0.0.1:1", UPGRADE);
    older.kill();
    assert!(older.path("upgrade.sock").exists(), "a kill leaves it");
    let mut newer = Program::start(&older, "alone", "ringfence.toml", TAKE_OVER);
    assert_eq!(newer.wait().code(), Some(1));
    let said = newer.log();
    let parts = ["nobody hands over on", "`upgrade.socket`", "start without `--take-over`"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    let mut newer = Program::start(&older, "plain", "ringfence.toml", &[]);
    newer.serves();
    assert_eq!(newer.stop().code(), Some(0), "{}", newer.log());
}

/// Both write the same folder and the same witness for a while; the log is whole, and says who ran beside whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_share_a_sealed_log_and_its_witness() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let place = tempfile::tempdir().unwrap();
    let (key, witness) = (place.path().join("key"), place.path().join("witness"));
    let program = env!("CARGO_BIN_EXE_ringfence");
    let made = Command::new(program).args(["audit", "keygen"]).arg(&key).status().unwrap();
    assert!(made.success());
    let audit = format!("[audit.checkpoint]\nkey = {key:?}\nwitness = {witness:?}\nrecords = 2\n");
    let settings = Settings { audit: &audit, config: UPGRADE, ..Settings::default() };
    let mut older = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let client = pki.client_config(Some("acme"), &["h2"]);
    let mut programs: Vec<Program> = Vec::new();
    for round in 0..3 {
        for _ in 0..20 {
            assert_eq!(knock(&client, older.port).await, Fared::Served);
        }
        let name = format!("round-{round}");
        let mut newer = Program::start(&older, &name, "ringfence.toml", TAKE_OVER);
        let knocking = async {
            for _ in 0..20 {
                let fared = knock(&client, older.port).await;
                assert!(!matches!(fared, Fared::Broken(_)), "{fared:?}");
            }
        };
        knocking.await;
        newer.serves();
        programs.push(newer);
    }
    assert_eq!(older.wait().code(), Some(0));
    for mut program in programs {
        // All but the last have ended, or will.
        drop(Command::new("kill").args(["-s", "TERM", &program.process_id().to_string()]).output());
        assert_eq!(program.wait().code(), Some(0), "{}", program.log());
    }
    assert_eq!(audit_files(older.audit_folder()).len(), 4);
    let verified = Command::new(program)
        .args(["audit", "verify", "--key"])
        .arg(key.with_extension("pub"))
        .arg("--witness")
        .arg(&witness)
        .arg(older.audit_folder())
        .output()
        .unwrap();
    let said = String::from_utf8([verified.stdout, verified.stderr].concat()).unwrap();
    assert!(verified.status.success(), "{said}");
    let number = |before: &str, after: &str| -> u64 {
        let rest = said.split(before).nth(1).unwrap();
        rest.split(after).next().unwrap().parse().unwrap()
    };
    // But for the last record of each.
    let (records, sealed) =
        (number("in order: ", " records in 4 chains"), number("bytes, ", " of them"));
    assert_eq!(sealed, records - 4, "{said}");
    println!("three take-overs over one sealed log: {}", said.trim());
}

/// Who is in the middle of a call keeps it; a watch is told that its ringfence ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_older_one_are_drained() {
    use ringfence::etcd::pb::etcdserverpb::watch_request::RequestUnion;
    use ringfence::etcd::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};

    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut older = Ringfence::start_with(&pki, &etcd.endpoint(), UPGRADE);
    let client = crate::support::RawClient::connect(&pki, "acme", older.port).await;
    let mut watch = client.stream("/etcdserverpb.Watch/Watch").await;
    let key = b"/tenants/acme/x".to_vec();
    let create = WatchCreateRequest { key: key.into(), ..WatchCreateRequest::default() };
    watch.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
    let created: WatchResponse = watch.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    let mut newer = Program::start(&older, "newer", "ringfence.toml", TAKE_OVER);
    newer.serves();
    assert!(watch.next_or_end::<WatchResponse>().await.is_none());
    assert_eq!(watch.end.as_ref().and_then(|end| end.grpc_status), Some(14));
    assert_eq!(older.wait().code(), Some(0));
    assert_eq!(newer.stop().code(), Some(0));
}

/// Who was accepted by the older one and has said nothing yet is heard; who says nothing at all is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_shaking_hands_is_served_and_who_is_silent_holds_nothing_up() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut older = Ringfence::start_with(&pki, &etcd.endpoint(), UPGRADE);
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(tokio::net::TcpStream::connect(("127.0.0.1", older.port)).await.unwrap());
    }
    let silent = tokio::net::TcpStream::connect(("127.0.0.1", older.port)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut newer = Program::start(&older, "newer", "ringfence.toml", TAKE_OVER);
    wait_for("the drain", || older.log().contains("ending: no new connections"));
    let began = std::time::Instant::now();
    // Longer than an idle connection would be given.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let client = pki.client_config(Some("acme"), &["h2"]);
    for stream in streams {
        let fared = go_on(&client, stream).await;
        assert!(!matches!(fared, Fared::Broken(_)), "{fared:?}");
    }
    newer.serves();
    assert_eq!(older.wait().code(), Some(0), "{}", older.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(silent);
    assert_eq!(newer.stop().code(), Some(0));
}

/// `[upgrade]` holds until the end: a reload that would change it is refused by name.
#[test]
fn the_socket_is_not_changed_by_a_reload() {
    let pki = Pki::make();
    let ringfence = Ringfence::start_with(&pki, "http://127.0.0.1:1", UPGRADE);
    let config = ringfence.file("ringfence.toml").replace("upgrade.sock", "other.sock");
    ringfence.replace_file("ringfence.toml", &config);
    wait_for("the refusal", || ringfence.log().contains("`upgrade.socket` is changed"));
    assert_eq!(ringfence.generation(), 1);
    let too_long = "x".repeat(200);
    let config = config.replace("other.sock", &too_long);
    ringfence.replace_file("ringfence.toml", &config);
    wait_for("the mistake", || ringfence.log().contains("longer than the system takes"));
}
