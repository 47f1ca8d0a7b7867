//! From an older ringfence to a newer one, over a unix socket: the older one gives copies of its listening sockets, the
//! newer one says when it serves on them, and only then the older one ends. What they say is here; who says it is in
//! `give` and `take`.
//!
//! Until the newer one serves, nothing that it does or leaves undone changes anything about the older one.

mod give;
mod place;
mod take;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

pub(super) use give::Giver;
pub(super) use place::{Place, is_answered};
pub(super) use take::Taken;

/// The version of what is said.
const VERSION: u32 = 1;
/// The most bytes of the one line that comes with the sockets.
const OFFER_BYTES_MAX: usize = 8192;
/// What the newer one says when it serves.
const READY: &[u8] = b"ready\n";
/// What the older one answers; from then on it ends.
const ENDING: &[u8] = b"ending\n";
/// How long one message may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the newer one may take to serve: longer than it may wait for the audit folder.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Why no ringfence takes the place of another.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The config names no socket for it.
    #[error(
        "`--take-over` needs `upgrade.socket`, and the config has none\n  hint: [upgrade] socket = \"PATH\", the same as that of the ringfence that runs"
    )]
    NotConfigured,
    /// Nobody is there.
    #[error("nobody hands over on `{}`, `upgrade.socket`: {error}\n  hint: without a ringfence that runs with this setting, start without `--take-over`", path.display())]
    Nobody {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody is there, and was not to be.
    #[error("a ringfence that runs hands over on `{}`, `upgrade.socket`\n  hint: `ringfence serve --take-over` takes its place; or stop it first", .0.display())]
    Runs(PathBuf),
    /// It is another user's.
    #[error("`{}`, `upgrade.socket`, belongs to a process of the user {uid}\n  hint: both ringfences run as the same user, or the other one as root", path.display())]
    Stranger {
        /// Where.
        path: PathBuf,
        /// Whose.
        uid: u32,
    },
    /// What it says cannot be used.
    #[error("the older ringfence on `{}`, `upgrade.socket`, does not hand over: {why}\n  hint: its log says more; it goes on as before", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its socket cannot be made.
    #[error("cannot listen on `{}`, `upgrade.socket`: {error}\n  hint: a path of its own, in a folder that ringfence may write", path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The line that comes with the sockets, and says where each listens.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Offer {
    v: u32,
    pid: u32,
    addresses: Vec<SocketAddr>,
}

/// Whether a process of that user may take part: the same user, or root, who could do anything anyhow.
const fn is_trusted(own_uid: u32, uid: u32) -> bool {
    uid == own_uid || uid == 0
}

/// The user of the process at the other end, as the kernel knows it; an error when it is a stranger's.
fn check_peer(stream: &UnixStream) -> Result<(), u32> {
    let own_uid = rustix::process::geteuid().as_raw();
    match stream.peer_cred().map(|peer| peer.uid()) {
        Ok(uid) if is_trusted(own_uid, uid) => Ok(()),
        Ok(uid) => Err(uid),
        // Who cannot be known is a stranger.
        Err(_) => Err(u32::MAX),
    }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it took too long")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use super::super::sockets::{Copies, SOCKETS_MAX};
    use super::*;

    #[test]
    fn the_same_user_and_root_are_trusted_and_no_stranger() {
        for (own, uid, expected) in [
            (0, 0, true),
            (1000, 1000, true),
            (1000, 0, true),
            (0, 1000, false),
            (1000, 1001, false),
            (1000, u32::MAX, false),
        ] {
            assert_eq!(is_trusted(own, uid), expected, "{own} {uid}");
        }
    }

    #[test]
    fn an_offer_of_full_size_fits() {
        let address: SocketAddr =
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap();
        let offer = Offer { v: VERSION, pid: u32::MAX, addresses: vec![address; SOCKETS_MAX] };
        let line = serde_json::to_vec(&offer).unwrap();
        assert!(line.len() < OFFER_BYTES_MAX, "{}", line.len());
        assert_eq!(serde_json::from_slice::<Offer>(&line).unwrap(), offer);
    }

    /// An older ringfence that has one socket.
    pub(super) struct Scene {
        pub(super) folder: tempfile::TempDir,
        listener: std::net::TcpListener,
        pub(super) giver: Giver,
    }

    pub(super) fn scene() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let copies = Copies {
            addresses: vec![listener.local_addr().unwrap()],
            sockets: vec![listener.as_fd().try_clone_to_owned().unwrap()],
        };
        let place = Place::make(&folder.path().join("upgrade")).unwrap();
        let giver = Giver::new(place.stand().unwrap(), copies).unwrap();
        Scene { folder, listener, giver }
    }

    #[tokio::test]
    async fn sockets_go_over_and_the_older_one_ends_when_the_newer_one_serves() {
        let Scene { folder, listener, mut giver } = scene();
        let path = folder.path().join("upgrade");
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        let taking = async {
            let taken = Taken::take(&path).await.unwrap();
            assert_eq!(taken.pid, std::process::id());
            let [passed] = taken.sockets.as_slice() else { panic!("{taken:?}") };
            assert_eq!(passed.address(), listener.local_addr().unwrap());
            taken.serves().await.unwrap();
        };
        let (pid, ()) = tokio::join!(giver.give(), taking);
        assert_eq!(pid, Some(std::process::id()));
    }

    /// The attack: what is no newer ringfence that serves ends the older one.
    #[tokio::test]
    async fn who_goes_away_or_says_anything_else_changes_nothing() {
        let Scene { folder, mut giver, .. } = scene();
        let path = folder.path().join("upgrade");
        let taking = async {
            drop(UnixStream::connect(&path).await.unwrap());
            drop(Taken::take(&path).await.unwrap());
            let stream = UnixStream::connect(&path).await.unwrap();
            for word in [&b"steady\n"[..], b"ready ", b"\n", &[0; 100_000]] {
                stream.writable().await.unwrap();
                // It may have been closed already.
                drop(stream.try_write(word));
            }
            Taken::take(&path).await.unwrap().serves().await.unwrap();
        };
        let (pid, ()) = tokio::join!(giver.give(), taking);
        assert_eq!(pid, Some(std::process::id()));
    }

    #[tokio::test]
    async fn a_socket_file_that_nobody_serves_is_replaced_and_no_other_file_is() {
        let Scene { folder, giver, .. } = scene();
        let path = folder.path().join("upgrade");
        assert!(is_answered(&path).await);
        drop(giver);
        assert!(!path.exists(), "who ends takes its own file along");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists() && !is_answered(&path).await);
        let error = Taken::take(&path).await.unwrap_err().to_string();
        assert!(error.contains("nobody hands over") && error.contains("hint: "), "{error}");
        let second = Place::make(&path).unwrap().stand().unwrap();
        assert!(is_answered(&path).await);
        // Another one stands there by now: that one's file stays.
        let third = Place::make(&path).unwrap().stand().unwrap();
        drop(second);
        assert!(is_answered(&path).await);
        drop(third);
        std::fs::write(&path, "mine").unwrap();
        let error = Place::make(&path).unwrap_err().to_string();
        assert!(error.contains("is there and is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
