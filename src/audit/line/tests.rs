//! Lines as they are written, byte for byte.

use std::time::Duration;

use super::*;
use crate::audit::event::{ConnectionId, RecordedTouches};
use crate::etcd::{KeyRange, KeyVerb, LeaseUse, StoredKey, Touches};

fn check(event: Event<'_>, expected: &str) {
    let record = Record { time: Duration::new(1_800_000_000, 1_000), event };
    let mut bytes = Vec::new();
    let previous = LineHash::of(b"before");
    let hash = LineWriter::default().write(7, previous, &record, &mut bytes);
    let line = String::from_utf8(bytes).unwrap();
    assert_eq!(LineHash::of(line.trim_end().as_bytes()), hash);
    let _: serde_json::Value = serde_json::from_str(&line).unwrap();
    let head = "{\"v\":1,\"seq\":7,\"time\":\"2027-01-15T08:00:00.000001Z\",";
    assert_eq!(line, format!("{head}{expected},\"prev\":\"{previous}\"}}\n"));
}

fn decision_of<'a>(verdict: Verdict<'a>, touches: &'a Touches) -> Event<'a> {
    Event::Decision(DecisionEvent {
        call: CallId::new(ConnectionId(3), 9),
        principal: Some("tenant(cn=acme)"),
        path: Path::Known("/etcdserverpb.KV/Range"),
        verdict,
        touches: RecordedTouches::new(touches),
        request_bytes: 12,
    })
}

#[test]
fn a_decision_is_one_object() {
    let touches: Touches = smallvec::smallvec![
        Touch::Key { verb: KeyVerb::Get, range: KeyRange::point(StoredKey::new("/a\\\"x")) },
        Touch::Key { verb: KeyVerb::List, range: KeyRange::prefix(b"\xff\x01") },
        Touch::Key { verb: KeyVerb::Delete, range: KeyRange::between(b"a", None).unwrap() },
        Touch::Lease { usage: LeaseUse::Attach, lease: 0x7f },
    ];
    check(
        decision_of(Verdict::Allow(smallvec::smallvec!["r/1 (p.toml:3)"]), &touches),
        "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
         \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"allow\",\"rules\":[\"r/1 (p.toml:3)\"],\
         \"touches\":[{\"verb\":\"get\",\"key\":\"/a\\\\\\\"x\"},\
         {\"verb\":\"list\",\"key_hex\":\"ff01\",\"range_end_hex\":\"ff02\"},\
         {\"verb\":\"delete\",\"key\":\"a\",\"to_infinity\":true},\
         {\"verb\":\"lease.attach\",\"lease\":\"7f\"}],\"request_bytes\":12",
    );
    let refuse = Verdict::Refuse { reason: "malformed", detail: "twice".to_owned() };
    check(
        decision_of(refuse, &Touches::new()),
        "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
         \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"refuse\",\"reason\":\"malformed\",\
         \"detail\":\"twice\",\"touches\":[],\"request_bytes\":12",
    );
}
#[test]
fn the_end_of_a_connection_says_why() {
    let event = Event::ConnectionClose {
        connection: ConnectionId(3),
        calls: Some(2),
        reason: Some("idle"),
    };
    check(event, "\"type\":\"connection.close\",\"connection\":3,\"calls\":2,\"reason\":\"idle\"");
}
/// The attack: a megabyte of control characters, twice in one record, made a line of many.
#[test]
fn a_key_of_a_megabyte_is_cut_and_told_by_its_hash() {
    let key = StoredKey::new(vec![1; 1 << 20]);
    let touches: Touches =
        smallvec::smallvec![Touch::Key { verb: KeyVerb::Put, range: KeyRange::point(key) }];
    let cut = "01".repeat(1024);
    // sha256sum of the same bytes
    let sha256 = "ee78cd29d3a534713b36e6ff6fa3668c8a8f851a542d5eb2401c25ca4e057d02";
    check(
        decision_of(Verdict::Deny { reason: "no_rule", rule: None, touch: 0 }, &touches),
        &format!(
            "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
             \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"deny\",\"reason\":\"no_rule\",\
             \"touch\":0,\"touches\":[{{\"verb\":\"put\",\"key_hex\":\"{cut}\",\
             \"key_bytes\":1048576,\"key_sha256\":\"{sha256}\"}}],\"request_bytes\":12"
        ),
    );
}

#[test]
fn keys_that_a_rule_hides_have_other_names() {
    use crate::audit::event::{RecordedEnd, RecordedKey, RecordedTouch};
    let hashed = |hash: &str| {
        let (key, hash) = ("0123456789abcdef".to_owned(), hash.repeat(32));
        Box::new(crate::keyed_hash::Hashed { key, hash })
    };
    let none = Touches::new();
    let key = || RecordedKey::Hashed { prefix: b"/s/", hash: hashed("ab") };
    let touches = RecordedTouches {
        touches: smallvec::smallvec![
            RecordedTouch::Key {
                verb: KeyVerb::Put,
                start: RecordedKey::Parts(b"/registry/"),
                end: RecordedEnd::Point,
                value: Some(hashed("cd")),
            },
            RecordedTouch::Key {
                verb: KeyVerb::List,
                start: key(),
                end: RecordedEnd::Before(key()),
                value: None,
            },
            RecordedTouch::Verb("get"),
        ],
        level: Level::Request,
        one_in: NonZeroU32::new(100).unwrap(),
    };
    let Event::Decision(mut event) = decision_of(Verdict::Allow(smallvec::smallvec![]), &none)
    else {
        panic!()
    };
    event.touches = touches;
    let (key, value) = (hashed("ab"), hashed("cd"));
    let head = "\"type\":\"decision\",\"connection\":3,\"call\":9,\"principal\":\"tenant(cn=acme)\",\
         \"rpc\":\"/etcdserverpb.KV/Range\",\"verdict\":\"allow\",\"rules\":[]";
    check(
        Event::Decision(event.clone()),
        &format!(
            "{head},\"one_in\":100,\"touches\":[{{\"verb\":\"put\",\"key\":\"/registry/\",\"key_is_cut\":true,\
             \"value_hmac\":\"{value}\"}},{{\"verb\":\"list\",\"key\":\"/s/\",\"key_is_cut\":true,\
             \"key_hmac\":\"{key}\",\"range_end\":\"/s/\",\"range_end_is_cut\":true,\
             \"range_end_hmac\":\"{key}\"}},{{\"verb\":\"get\"}}],\"request_bytes\":12"
        ),
    );
    event.touches.level = Level::Metadata;
    event.touches.touches.drain(..2);
    event.touches.one_in = NonZeroU32::MIN;
    check(
        Event::Decision(event),
        &format!(
            "{head},\"level\":\"metadata\",\"touches\":[{{\"verb\":\"get\"}}],\"request_bytes\":12"
        ),
    );
}
