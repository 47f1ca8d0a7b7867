//! The newer ringfence: it asks the older one for its sockets, and says so when it serves on them.
//!
//! It must never go on beside an older one that goes on, too.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::ServeError;
use super::super::sockets::{self, Passed, SOCKETS_MAX};
use super::{
    ANSWER_PATIENCE, ENDING, HandoverError, OFFER_BYTES_MAX, Offer, READY, VERSION, check_peer,
    is_answered, too_late,
};

/// What the older one gave, and the way to tell it that it is served.
#[derive(Debug)]
pub(in crate::server) struct Taken {
    pub(in crate::server) pid: u32,
    pub(in crate::server) sockets: Vec<Passed>,
    path: PathBuf,
    stream: UnixStream,
}

impl Taken {
    /// Asks for the sockets of the one that runs.
    ///
    /// # Errors
    /// When nobody is there, or it is not to be trusted, or gives something else.
    pub(in crate::server) async fn take(path: &Path) -> Result<Self, ServeError> {
        let nobody = |error| HandoverError::Nobody { path: path.to_owned(), error };
        let refused = |why: String| HandoverError::Refused { path: path.to_owned(), why };
        let connecting = timeout(ANSWER_PATIENCE, UnixStream::connect(path)).await;
        let stream = connecting.map_err(|_| nobody(too_late()))?.map_err(nobody)?;
        check_peer(&stream)
            .map_err(|uid| HandoverError::Stranger { path: path.to_owned(), uid })?;
        let receiving = timeout(ANSWER_PATIENCE, receive(&stream)).await;
        let received = receiving.unwrap_or_else(|_| Err(too_late()));
        let (line, given) = received.map_err(|error| refused(error.to_string()))?;
        let offer: Offer = serde_json::from_slice(&line)
            .map_err(|error| refused(format!("its offer: {error}")))?;
        if offer.v != VERSION {
            let why = format!("it speaks version {}, this one {VERSION}", offer.v);
            return Err(refused(why).into());
        }
        let passed = sockets::from_older(given)?;
        if !passed.iter().map(Passed::address).eq(offer.addresses.iter().copied()) {
            let why = "its sockets do not listen where it says".to_owned();
            return Err(refused(why).into());
        }
        Ok(Self { pid: offer.pid, sockets: passed, path: path.to_owned(), stream })
    }

    /// Tells the older one that it is served; when this returns, it ends, or is gone.
    ///
    /// # Errors
    /// When it goes on: then this one has to end.
    pub(in crate::server) async fn serves(mut self) -> Result<(), HandoverError> {
        let told = timeout(ANSWER_PATIENCE, self.tell()).await.unwrap_or_else(|_| Err(too_late()));
        let Err(error) = told else { return Ok(()) };
        // It may have been killed meanwhile. Somebody has to serve.
        if is_answered(&self.path).await {
            let why = format!("it does not end: {error}");
            return Err(HandoverError::Refused { path: self.path, why });
        }
        tracing::warn!(pid = self.pid, %error, "the older ringfence is gone already");
        Ok(())
    }

    async fn tell(&mut self) -> io::Result<()> {
        self.stream.write_all(READY).await?;
        let mut said = [0; ENDING.len()];
        self.stream.read_exact(&mut said).await?;
        if said == ENDING { Ok(()) } else { Err(io::Error::other("it says something else")) }
    }
}

/// The line, and the sockets that came with it.
async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut given) = (Vec::new(), Vec::new());
    loop {
        let (bytes, mut sockets) =
            stream.async_io(Interest::READABLE, || receive_some(stream)).await?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        line.extend_from_slice(&bytes);
        given.append(&mut sockets);
        if line.last() == Some(&b'\n') {
            return Ok((line, given));
        }
        if line.len() >= OFFER_BYTES_MAX || given.len() > SOCKETS_MAX {
            return Err(io::Error::other("its offer is too long"));
        }
    }
}

fn receive_some(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; OFFER_BYTES_MAX];
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            sockets.extend(given);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("it gives more sockets than can be taken"));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, sockets))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scene, scene};
    use super::*;

    /// The older one does not believe it, and goes on: two would serve.
    #[tokio::test]
    async fn beside_an_older_one_that_goes_on_the_newer_one_has_to_end() {
        let Scene { folder, mut giver, .. } = scene();
        let taking = async {
            let taken = Taken::take(&folder.path().join("upgrade")).await.unwrap();
            taken.stream.writable().await.unwrap();
            assert_eq!(taken.stream.try_write(b"steady").unwrap(), READY.len());
            let error = taken.serves().await.unwrap_err().to_string();
            assert!(error.contains("it does not end") && error.contains("hint: "), "{error}");
        };
        tokio::select! {
            () = taking => {}
            pid = giver.give() => panic!("{pid:?}"),
        }
    }

    /// It was killed meanwhile.
    #[tokio::test]
    async fn when_the_older_one_is_gone_the_newer_one_serves() {
        let Scene { folder, mut giver, .. } = scene();
        let path = folder.path().join("upgrade");
        let taken = tokio::select! {
            taken = Taken::take(&path) => taken.unwrap(),
            pid = giver.give() => panic!("{pid:?}"),
        };
        drop(giver);
        taken.serves().await.unwrap();
    }
}
