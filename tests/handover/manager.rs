//! What a service manager hears, and that it hears of life only from one that lives.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Pki, Ringfence, Settings, silent_member};

/// The manager's end: it notes what it is told.
struct FakeManager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl FakeManager {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    fn next_within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut bytes = [0; 8192];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    /// The next one that is no sign of life: its lines.
    fn next(&self) -> Vec<String> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let told = self.next_within(PATIENCE).expect("something is told");
            if told != "WATCHDOG=1\n" {
                return told.lines().map(str::to_owned).collect();
            }
        }
        panic!("nothing but signs of life");
    }

    /// How many signs of life there are in that time.
    fn signs_of_life(&self, time: Duration) -> usize {
        let until = Instant::now() + time;
        let mut signs = 0;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let told = self.next_within(left.max(Duration::from_millis(1)));
            signs += usize::from(told.as_deref() == Some("WATCHDOG=1\n"));
        }
        signs
    }
}

fn start(manager: &FakeManager, pki: &Pki, watchdog: &str, config: &str) -> Ringfence {
    let (_member, endpoint) = silent_member();
    let path = manager.path();
    let environment = [("NOTIFY_SOCKET", path.as_path()), ("WATCHDOG_USEC", Path::new(watchdog))];
    let settings = Settings { config, environment: &environment, ..Settings::default() };
    Ringfence::start_as(pki, &endpoint, &settings)
}

/// Reload after reload: each is begun by RELOADING with the time, and ended by READY, whatever came of it.
#[test]
fn the_manager_hears_of_ready_reload_and_end() {
    let (manager, pki) = (FakeManager::start(), Pki::make());
    let config = "[reload]\nwatch_files = false\n";
    let mut ringfence = start(&manager, &pki, "60000000", config);
    assert_eq!(manager.next(), ["READY=1", "STATUS=serves generation 1"]);
    let mut before = 0;
    let mut reload = |status: &str| {
        ringfence.signal("HUP");
        let told = manager.next();
        let [reloading, time] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(reloading, "RELOADING=1");
        let time: u64 = time.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(time > before, "{time} is not after {before}");
        before = time;
        let told = manager.next();
        assert_eq!(told[0], "READY=1");
        assert!(told[1].starts_with(&format!("STATUS={status}")), "{told:?}");
        told[1].clone()
    };
    reload("serves generation 2");
    let policy = ringfence.file("policy.toml");
    ringfence.replace_file("policy.toml", "[[identity\n");
    let status = reload("serves generation 2; the last reload failed: ");
    assert!(status.contains("policy.toml:1"), "{status}");
    ringfence.replace_file("policy.toml", &policy);
    reload("serves generation 3");
    ringfence.signal("TERM");
    assert_eq!(manager.next()[0], "STOPPING=1");
    assert_eq!(ringfence.wait().code(), Some(0));
}

/// A certificate without its key: the reload is over when the other half has come, or its time is up.
#[test]
fn a_reload_that_waits_is_over_when_it_has_waited() {
    let (manager, pki) = (FakeManager::start(), Pki::make());
    let config = "[reload]\nwatch_files = false\npair_wait_seconds = 1\n";
    let ringfence = start(&manager, &pki, "60000000", config);
    assert_eq!(manager.next()[0], "READY=1");
    let text = ringfence.file("ringfence.toml");
    ringfence.replace_file("ringfence.toml", &text.replace("ringfence-server.key", "acme.key"));
    let began = Instant::now();
    ringfence.signal("HUP");
    assert_eq!(manager.next()[0], "RELOADING=1");
    let told = manager.next();
    assert!(told[1].contains("generation 1; the last reload failed: "), "{told:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn signs_of_life_come_in_time_and_none_from_a_process_that_is_stopped() {
    let (manager, pki) = (FakeManager::start(), Pki::make());
    let mut ringfence = start(&manager, &pki, "2000000", "");
    assert_eq!(manager.next()[0], "READY=1");
    assert!(manager.signs_of_life(Duration::from_secs(5)) >= 4);
    ringfence.signal("STOP");
    // What was on its way.
    manager.signs_of_life(Duration::from_millis(200));
    assert_eq!(manager.signs_of_life(Duration::from_secs(3)), 0);
    ringfence.signal("CONT");
    assert!(manager.signs_of_life(Duration::from_secs(4)) >= 2);
    assert_eq!(ringfence.stop().code(), Some(0));
}

/// A watchdog of another process is none of ours, and without a manager nothing is different.
#[test]
fn nobody_is_told_who_did_not_ask() {
    let (manager, pki) = (FakeManager::start(), Pki::make());
    let (_member, endpoint) = silent_member();
    let path = manager.path();
    let environment = [
        ("NOTIFY_SOCKET", path.as_path()),
        ("WATCHDOG_USEC", Path::new("200000")),
        ("WATCHDOG_PID", Path::new("1")),
    ];
    let settings = Settings { environment: &environment, ..Settings::default() };
    let mut ringfence = Ringfence::start_as(&pki, &endpoint, &settings);
    assert_eq!(manager.next()[0], "READY=1");
    assert_eq!(manager.signs_of_life(Duration::from_secs(1)), 0);
    assert_eq!(ringfence.stop().code(), Some(0));
    let mut ringfence = Ringfence::start(&pki, &endpoint);
    assert_eq!(ringfence.stop().code(), Some(0));
    assert!(!ringfence.log().contains("service manager"), "{}", ringfence.log());
}
