//! What etcd has said and the client has not taken.
//!
//! Everything that comes is taken off the connection to etcd at once and kept here in one piece: small
//! frames that pile up in the HTTP/2 library end that connection, which others share. etcd may send
//! more only when the client has taken it, so a client that stops costs one window of memory.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;

/// How long a client is waited for when its stream is ended on our side.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// The bytes of one reply or stream that wait for the client.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: BytesMut,
    /// How much of it etcd has sent and may not replace yet.
    unreleased: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a message of our own.
    pub(super) fn push_own(&mut self, message: &[u8]) {
        self.waiting.extend_from_slice(message);
    }

    /// Takes bytes of etcd. What the client has room for goes on at once and is not copied: as many
    /// bytes more may etcd send.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) fn push(
        &mut self,
        mut chunk: Bytes,
        client: &mut SendStream<Bytes>,
    ) -> Result<usize, h2::Error> {
        let mut taken = 0;
        if self.waiting.is_empty() {
            client.reserve_capacity(chunk.len());
            taken = client.capacity().min(chunk.len());
            if taken > 0 {
                client.send_data(chunk.split_to(taken), false)?;
            }
        }
        self.unreleased += chunk.len();
        self.waiting.extend_from_slice(&chunk);
        Ok(taken)
    }

    /// Sends on what the client has room for; how many bytes more etcd may send. Pending when nothing
    /// waits, or the client takes nothing.
    pub(super) fn poll_flush(
        &mut self,
        client: &mut SendStream<Bytes>,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, h2::Error>> {
        while !self.waiting.is_empty() {
            client.reserve_capacity(self.waiting.len());
            let room = client.capacity().min(self.waiting.len());
            if room > 0 {
                client.send_data(self.waiting.split_to(room).freeze(), false)?;
                let released = room.min(self.unreleased);
                self.unreleased -= released;
                return Poll::Ready(Ok(released));
            }
            match std::task::ready!(client.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(h2::Reason::CANCEL.into())),
            }
        }
        Poll::Pending
    }

    /// Waits until the client has taken all of it; nothing more of etcd is expected.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) async fn flush(&mut self, client: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
        while !self.is_empty() {
            std::future::poll_fn(|context| self.poll_flush(client, context)).await?;
        }
        Ok(())
    }
}
