//! A generation: config, policy and certificates are in force together, or not at all.

use crate::may_read;
use crate::support::{Etcd, Pki, RawClient, Ringfence, http_get, wait_for};

const BROKEN: &str = "ringfence_reload_failing{unit=\"generation\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_counts_without_a_restart_for_connections_that_are_open() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let policy = ringfence.file("policy.toml");
    assert!(!may_read(&acme, "/shared/a").await);
    let more = policy.replace(
        "{ prefix = \"/inbox/\"",
        "{ prefix = \"/shared/\", allow = [\"get\"] },\n  { prefix = \"/inbox/\"",
    );
    assert_ne!(policy, more);
    ringfence.replace_file("policy.toml", &more);
    ringfence.wait_for_generation(2);
    wait_for_async(async || may_read(&acme, "/shared/a").await).await;
    ringfence.replace_file("policy.toml", &policy);
    ringfence.wait_for_generation(3);
    wait_for_async(async || !may_read(&acme, "/shared/a").await).await;
    // It is asked for with a signal, too, and then whatever the files look like.
    ringfence.signal("HUP");
    ringfence.wait_for_generation(4);
    assert_eq!(ringfence.stop().code(), Some(0));
    let text: String = crate::support::audit_files(ringfence.audit_folder())
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .inspect(crate::support::check_record)
        .filter(|record| record["type"] == "generation.start")
        .map(|record| record["generation"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [2, 3, 4]);
}

async fn wait_for_async(holds: impl AsyncFn() -> bool) {
    let started = std::time::Instant::now();
    while !holds().await {
        assert!(started.elapsed() < crate::support::PATIENCE, "in time");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_policy_changes_nothing_and_says_why_until_it_is_mended() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let policy = ringfence.file("policy.toml");
    assert_eq!(ringfence.metric(BROKEN), 0);
    // Half of it is right, and would take a right away.
    let broken = policy
        .replace("\"/tenants/${uri.path.2}/\"", "\"/elsewhere/\"")
        .replace("deny = [", "dney = [");
    ringfence.replace_file("policy.toml", &broken);
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    assert!(may_read(&acme, "/tenants/acme/a").await);
    assert_eq!(ringfence.generation(), 1);
    let log = ringfence.log();
    assert!(log.contains("policy.toml:20: ") && log.contains("dney"), "{log}");
    let (status, text) = http_get(ringfence.admin_port, "/readyz?verbose").unwrap();
    assert_eq!(status, 200, "it serves as before: {text}");
    assert!(text.contains("[!] config: generation 1 goes on: error: "), "{text}");
    assert!(text.contains("policy.toml:20: "), "{text}");
    ringfence.replace_file("policy.toml", &policy);
    ringfence.wait_for_generation(2);
    assert_eq!(ringfence.metric(BROKEN), 0);
    let (_, text) = http_get(ringfence.admin_port, "/readyz?verbose").unwrap();
    assert!(text.contains("[+] config: generation 2\n"), "{text}");
    assert_eq!(
        ringfence.metric("ringfence_reloads_total{unit=\"generation\",result=\"failed\"}"),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_refused_by_name_and_takes_the_rest_with_it() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let config = ringfence.file("ringfence.toml");
    let changed = config
        .replace("cores = 2", "cores = 1")
        .replace("[audit]\n", "[audit]\nmode = \"buffered\"\n")
        .replace("[upstream]", "[limits]\nconnections = 5\ncall_timeout_seconds = 7\n[upstream]");
    ringfence.replace_file("ringfence.toml", &changed);
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    let log = ringfence.log();
    for name in ["audit.mode", "cores", "limits.connections"] {
        assert!(log.contains(&format!("`{name}` is changed, and cannot be while")), "{log}");
    }
    assert!(!log.contains("`limits.call_timeout_seconds` is changed"), "{log}");
    assert!(may_read(&acme, "/tenants/acme/a").await);
    assert_eq!(ringfence.generation(), 1);
    // What means the same may be written otherwise, and other limits may change.
    let same = config
        .replace("cores = 2", "# threads\ncores = 0x2")
        .replace("[upstream]", "[limits]\ncall_timeout_seconds = 7\n[upstream]");
    ringfence.replace_file("ringfence.toml", &same);
    ringfence.wait_for_generation(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_is_written_in_two_halves_is_in_force_as_a_whole_or_not_at_all() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let policy = ringfence.file("policy.toml");
    // The first half is a policy too: one without the deny rules.
    let (first, second) = policy.split_once("  { key =").unwrap();
    let more = first.replace(
        "{ prefix = \"/tenants",
        "{ prefix = \"/shared/\", allow = [\"get\"] },\n  { prefix = \"/tenants",
    );
    let half = format!("{more}]\n");
    let whole = format!("{more}  {{ key ={second}");
    let path = ringfence.path("policy.toml");
    for _ in 0..4 {
        std::fs::write(&path, &half).unwrap();
        // Less than it takes to be believed.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        std::fs::write(&path, &whole).unwrap();
    }
    ringfence.wait_for_generation(2);
    wait_for_async(async || may_read(&acme, "/shared/a").await).await;
    assert_eq!(ringfence.generation(), 2, "{}", ringfence.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_which_generation_is_in_force_and_why_not_the_next() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let config = ringfence.path("ringfence.toml");
    let status = || {
        let program = env!("CARGO_BIN_EXE_ringfence");
        let command = [std::ffi::OsStr::new("status"), "--config".as_ref(), config.as_os_str()];
        let output = std::process::Command::new(program).args(command).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, text, _) = status();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("[+] config: generation 1\n") && text.ends_with("ok\n"), "{text}");
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file("policy.toml", &policy.replace("[[role]]", "[[rolle]]"));
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    let (code, text, _) = status();
    assert_eq!(code, Some(0), "it serves: {text}");
    assert!(text.contains("[!] config: generation 1 goes on: error: "), "{text}");
    assert_eq!(ringfence.stop().code(), Some(0));
    let (code, _, error) = status();
    assert_eq!(code, Some(2));
    assert!(error.contains("cannot ask ringfence at 127.0.0.1:"), "{error}");
}

/// A second name for a policy file kept every reload from coming to its end, and nobody heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_name_for_a_policy_file_holds_nothing_up() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let config = ringfence.file("ringfence.toml");
    std::os::unix::fs::symlink("policy.toml", ringfence.path("policy-too.toml")).unwrap();
    ringfence
        .replace_file("ringfence.toml", &config.replace("[\"policy.toml\"]", "[\"policy*.toml\"]"));
    ringfence.wait_for_generation(2);
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file("policy.toml", &format!("{policy}# more\n"));
    ringfence.wait_for_generation(3);
}

/// A file that is gone was read again and again, three times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_is_gone_fails_once() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let policy = ringfence.file("policy.toml");
    std::fs::remove_file(ringfence.path("policy.toml")).unwrap();
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let failed = ringfence.metric("ringfence_reloads_total{unit=\"generation\",result=\"failed\"}");
    assert_eq!(failed, 1, "{}", ringfence.log());
    ringfence.replace_file("policy.toml", &policy);
    ringfence.wait_for_generation(2);
}

/// Fewer seconds than at the start would cut, and an outcome would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_drain_counts_without_a_restart() {
    let pki = Pki::make();
    let (_silent, endpoint) = crate::support::silent_member();
    let mut ringfence = Ringfence::start_with(
        &pki,
        &endpoint,
        "[limits]\ndrain_timeout_seconds = 1\ncall_timeout_seconds = 5\n",
    );
    let config = ringfence.file("ringfence.toml");
    let longer = config
        .replace("drain_timeout_seconds = 1\n", "drain_timeout_seconds = 30\n")
        .replace("[upstream]\n", "[upstream]\nconnect_timeout_seconds = 60\n");
    ringfence.replace_file("ringfence.toml", &longer);
    ringfence.wait_for_generation(2);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let call = tokio::spawn(async move {
        let request = ringfence::etcd::pb::etcdserverpb::RangeRequest {
            key: "/tenants/acme/a".into(),
            ..Default::default()
        };
        acme.unary("/etcdserverpb.KV/Range", &request).await
    });
    let allowed = "ringfence_requests_total{rpc=\"/etcdserverpb.KV/Range\",verdict=\"allow\"} 1";
    wait_for("the call", || ringfence.metrics().contains(allowed));
    assert_eq!(tokio::task::block_in_place(|| ringfence.stop()).code(), Some(0));
    // Its own time ended it, and it was told so.
    assert_eq!(call.await.unwrap().grpc_status, Some(4));
    let outcomes = ringfence.records();
    assert!(outcomes.iter().any(|record| record["fault"] == "timeout"), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_does_not_take_the_place_of_one_that_holds() {
    let pki = Pki::make_with(
        "[[certificate]]\nname = \"over\"\nauthority = \"kubernetes-ca\"\ndns = [\"localhost\"]\nuse = [\"server\"]\nexpired_days_ago = 1\n",
    );
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let config = ringfence.file("ringfence.toml");
    ringfence.replace_file("ringfence.toml", &config.replace("ringfence-server.", "over."));
    wait_for("the failure", || ringfence.metric(BROKEN) == 1);
    assert!(ringfence.log().contains("`client.certificate` has expired"), "{}", ringfence.log());
    RawClient::connect(&pki, "acme", ringfence.port).await;
    assert_eq!(ringfence.generation(), 1);
}
