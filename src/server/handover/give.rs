//! The older ringfence: who connects is asked who it is, gets copies of the listening sockets, and takes its place when
//! it says that it serves. One at a time.
//!
//! It must never end anything itself: it says that it is time.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::sockets::{Copies, SOCKETS_MAX};
use super::place::Standing;
use super::{
    ANSWER_PATIENCE, ENDING, OFFER_BYTES_MAX, Offer, READY, START_PATIENCE, VERSION, check_peer,
    too_late,
};

/// After a failed accept (out of file descriptors, say) the listener rests.
const REST: Duration = Duration::from_millis(100);

/// What is handed over, and where.
#[derive(Debug)]
pub(in crate::server) struct Giver {
    standing: Standing,
    copies: Copies,
    line: Vec<u8>,
}

impl Giver {
    /// # Errors
    /// When there are more sockets than can be handed over.
    pub(in crate::server) fn new(standing: Standing, copies: Copies) -> io::Result<Self> {
        let addresses = copies.addresses.clone();
        let offer = Offer { v: VERSION, pid: std::process::id(), addresses };
        let mut line = serde_json::to_vec(&offer)?;
        line.push(b'\n');
        if copies.sockets.len() > SOCKETS_MAX || line.len() > OFFER_BYTES_MAX {
            let why = format!("`upgrade.socket` hands over {SOCKETS_MAX} sockets at most");
            return Err(io::Error::other(why));
        }
        Ok(Self { standing, copies, line })
    }

    /// Waits until another ringfence serves in this one's place, for ever perhaps; its process number, if it is known.
    pub(in crate::server) async fn give(&mut self) -> Option<u32> {
        loop {
            let stream = match self.standing.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on `upgrade.socket`");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            if let Err(uid) = check_peer(&stream) {
                tracing::warn!(uid, "a stranger wants to take over; refused");
                continue;
            }
            let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let pid = peer.and_then(|pid| u32::try_from(pid).ok());
            tracing::info!(?pid, "another ringfence wants to take over");
            match self.give_to(stream).await {
                Ok(()) => {
                    self.standing.leave();
                    return pid;
                }
                Err(error) => {
                    tracing::warn!(?pid, %error, "nothing came of the take-over; this ringfence goes on");
                }
            }
        }
    }

    async fn give_to(&self, mut stream: UnixStream) -> io::Result<()> {
        timeout(ANSWER_PATIENCE, self.offer(&stream)).await.map_err(|_| too_late())??;
        let mut said = [0; READY.len()];
        let ready = timeout(START_PATIENCE, stream.read_exact(&mut said)).await;
        ready.map_err(|_| too_late())??;
        if said != READY {
            return Err(io::Error::other("it says something else than that it serves"));
        }
        // Who is gone by now does not hear it: then this one goes on.
        let telling = timeout(ANSWER_PATIENCE, stream.write_all(ENDING)).await;
        telling.map_err(|_| too_late())?
    }

    /// The line, and with its first byte the sockets.
    async fn offer(&self, stream: &UnixStream) -> io::Result<()> {
        let sockets: Vec<_> = self.copies.sockets.iter().map(|socket| socket.as_fd()).collect();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::Error::other("there are too many sockets"));
            }
            let line = [IoSlice::new(&self.line)];
            Ok(sendmsg(stream, &line, &mut control, SendFlags::NOSIGNAL)?)
        };
        let sent = stream.async_io(Interest::WRITABLE, send).await?;
        // The buffer of a socket that was just made has room for all of it.
        if sent < self.line.len() {
            return Err(io::Error::other("it does not take the whole offer"));
        }
        Ok(())
    }
}
