//! Certificates and CAs that change under open connections.

use std::time::Duration;

use ringfence::etcd::pb::etcdserverpb::WatchResponse;

use crate::support::{Etcd, Pki, RawClient, Ringfence, wait_for};
use crate::{DENIED, WATCH, event, may_read, put, watch};

/// Another pair for the server.
fn another_pair() -> (String, String) {
    let other = Pki::make();
    let text = |file: &str| String::from_utf8(other.pem(file)).unwrap();
    (text("ringfence-server.crt"), text("ringfence-server.key"))
}

fn paths_in(config: &str, pki: &Pki, certificate: &str, key: &str) -> String {
    let folder = pki.path("");
    let folder = folder.display();
    config
        .replace(&format!("{folder}/ringfence-server.crt"), certificate)
        .replace(&format!("{folder}/ringfence-server.key"), key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_without_its_key_waits_for_the_other_half_and_then_fails_loudly() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence =
        Ringfence::start_with(&pki, &etcd.endpoint(), "[reload]\npair_wait_seconds = 2\n");
    let text = |file: &str| String::from_utf8(pki.pem(file)).unwrap();
    ringfence.replace_file("tls.crt", &text("ringfence-server.crt"));
    ringfence.replace_file("tls.key", &text("ringfence-server.key"));
    let config = paths_in(&ringfence.file("ringfence.toml"), &pki, "tls.crt", "tls.key");
    ringfence.replace_file("ringfence.toml", &config);
    ringfence.wait_for_generation(2);
    let failed = "ringfence_reloads_total{unit=\"generation\",result=\"failed\"}";
    let (certificate, key) = another_pair();
    // The other half comes within its time.
    ringfence.replace_file("tls.crt", &certificate);
    wait_for("a half pair", || ringfence.log().contains("waiting for the other half"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((ringfence.generation(), ringfence.metric(failed)), (2, 0));
    ringfence.replace_file("tls.key", &key);
    ringfence.wait_for_generation(3);
    assert_eq!(ringfence.metric(failed), 0, "{}", ringfence.log());
    // It does not come.
    ringfence.replace_file("tls.key", &text("ringfence-server.key"));
    wait_for("the failure", || ringfence.metric(failed) == 1);
    let log = ringfence.log();
    assert!(log.contains("is not the key of the certificate"), "{log}");
    assert_eq!(ringfence.generation(), 3);
    ringfence.replace_file("tls.key", &key);
    ringfence.wait_for_generation(4);
}

/// A CA roll: for a while both vouch. When the old one goes, so do those whom only it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_ca_goes_its_clients_are_cut_and_the_others_lose_nothing() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let mut ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let text = |file: &str| String::from_utf8(pki.pem(file)).unwrap();
    let (old, new) = (text("tenants-ca.crt"), text("foreign-ca.crt"));
    ringfence.replace_file("ca.crt", &format!("{old}{new}"));
    let tenants = format!("{}/tenants-ca.crt", pki.path("").display());
    let config = ringfence.file("ringfence.toml").replace(&tenants, "ca.crt");
    ringfence.replace_file("ringfence.toml", &config);
    ringfence.wait_for_generation(2);
    let of_old = RawClient::connect(&pki, "acme", ringfence.port).await;
    // The same name, from the new CA.
    let of_new = RawClient::connect(&pki, "foreign", ringfence.port).await;
    let (mut cut, mut stays) = (of_old.stream(WATCH).await, of_new.stream(WATCH).await);
    let cut_id = watch(&mut cut, "/tenants/acme/").await;
    let stays_id = watch(&mut stays, "/tenants/acme/").await;
    let revision = put(&of_new, "/tenants/acme/a", "1").await;
    assert_eq!(event(&mut cut, cut_id).await, revision);
    assert_eq!(event(&mut stays, stays_id).await, revision);
    ringfence.replace_file("ca.crt", &new);
    ringfence.wait_for_generation(3);
    let told: WatchResponse = cut.next().await;
    assert_eq!((told.canceled, told.cancel_reason.as_str()), (true, DENIED), "{told:?}");
    assert_eq!(told.watch_id, cut_id);
    assert_eq!(cut.expect_end().await.grpc_status, Some(7));
    let revision = put(&of_new, "/tenants/acme/a", "2").await;
    assert_eq!(event(&mut stays, stays_id).await, revision);
    assert!(may_read(&of_new, "/tenants/acme/a").await);
    let ended = "ringfence_connections_ended_total{reason=\"certificate_untrusted\"}";
    wait_for("the end", || ringfence.metrics().contains(&format!("{ended} 1")));
    assert_eq!(
        ringfence.metric("ringfence_watches_cut_total{reason=\"certificate_untrusted\"}"),
        1
    );
    assert_eq!(ringfence.stop().code(), Some(0));
    let records = ringfence.records();
    let closed = |record: &&serde_json::Value| record["reason"] == "certificate_untrusted";
    assert_eq!(records.iter().filter(closed).count(), 1);
    let ended = |record: &&serde_json::Value| record["fault"] == "certificate_untrusted";
    assert_eq!(records.iter().filter(ended).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_expires_ends_its_connection_and_no_other() {
    let pki = Pki::make();
    pki.issue("brief", "tenants-ca", "spiffe://example.org/tenant/acme", Duration::from_secs(3));
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let brief = RawClient::connect(&pki, "brief", ringfence.port).await;
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let (mut cut, mut stays) = (brief.stream(WATCH).await, acme.stream(WATCH).await);
    let cut_id = watch(&mut cut, "/tenants/acme/").await;
    let stays_id = watch(&mut stays, "/tenants/acme/").await;
    let told: WatchResponse = cut.next().await;
    assert_eq!((told.watch_id, told.canceled), (cut_id, true), "{told:?}");
    assert_eq!(cut.expect_end().await.grpc_status, Some(7));
    let revision = put(&acme, "/tenants/acme/a", "1").await;
    assert_eq!(event(&mut stays, stays_id).await, revision);
    let ended = "ringfence_connections_ended_total{reason=\"certificate_expired\"} 1";
    wait_for("the end", || ringfence.metrics().contains(ended));
}

/// A CA of one SPIFFE trust domain signs an ID of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_vouches_for_ids_of_its_own_trust_domain_only() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let ringfence = Ringfence::start(&pki, &etcd.endpoint());
    let config = ringfence.file("ringfence.toml");
    let bound = |domain: &str| {
        config.replace(
            "name = \"tenants\"\n",
            &format!("name = \"tenants\"\ntrust_domain = \"{domain}\"\n"),
        )
    };
    ringfence.replace_file("ringfence.toml", &bound("example.org"));
    ringfence.wait_for_generation(2);
    let acme = RawClient::connect(&pki, "acme", ringfence.port).await;
    let mut stream = acme.stream(WATCH).await;
    watch(&mut stream, "/tenants/acme/").await;
    assert!(may_read(&acme, "/tenants/acme/a").await);
    ringfence.replace_file("ringfence.toml", &bound("elsewhere.example"));
    ringfence.wait_for_generation(3);
    let told: WatchResponse = stream.next().await;
    assert_eq!((told.canceled, told.cancel_reason.as_str()), (true, DENIED), "{told:?}");
    let again = RawClient::connect(&pki, "acme", ringfence.port).await;
    assert!(!may_read(&again, "/tenants/acme/a").await);
    let refused = "speaks for SPIFFE IDs of `elsewhere.example` only";
    wait_for("the record", || ringfence.audit_text().contains(refused));
    ringfence.replace_file("ringfence.toml", &bound("Not A Domain"));
    let failing = "ringfence_reload_failing{unit=\"generation\"}";
    wait_for("the failure", || ringfence.metric(failing) == 1);
    assert!(ringfence.log().contains("`Not A Domain` is no trust domain"), "{}", ringfence.log());
}
