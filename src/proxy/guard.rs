//! A client's bytes on their way to h2: each read is shown to the frame follower first. After a flood
//! nothing more is handed on, and the connection's task, which sees the flood here, ends it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::grpc::{Flood, FrameFollower, FrameLimits};

/// What is known about one connection's bytes.
#[derive(Debug)]
pub(super) struct Guard {
    opened: Instant,
    follower: RefCell<FrameFollower>,
    flood: Cell<Option<Flood>>,
    /// Since when the client takes nothing of what waits for it.
    stalled_since: Cell<Option<Duration>>,
}

/// A stream under guard.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    guard: Rc<Guard>,
}

impl Guard {
    pub(super) fn new(limits: FrameLimits) -> Self {
        Self {
            opened: Instant::now(),
            follower: RefCell::new(FrameFollower::new(limits)),
            flood: Cell::new(None),
            stalled_since: Cell::new(None),
        }
    }

    /// When the connection began to be guarded; every other time is counted from here.
    pub(super) const fn opened(&self) -> Instant {
        self.opened
    }

    pub(super) fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The limit that was broken, if one was.
    pub(super) const fn flood(&self) -> Option<Flood> {
        self.flood.get()
    }

    pub(super) fn unfinished_since(&self) -> Option<Duration> {
        self.follower.borrow().unfinished_since()
    }

    pub(super) fn has_seen_header_block(&self) -> bool {
        self.follower.borrow().has_seen_header_block()
    }

    pub(super) const fn stalled_since(&self) -> Option<Duration> {
        self.stalled_since.get()
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        self.note_progress(written);
        if let Poll::Ready(Ok(bytes)) = written {
            self.note_written(*bytes);
        }
    }

    /// TLS takes some bytes that the socket does not; then the flush is what waits.
    fn note_progress<T>(&self, polled: &Poll<T>) {
        if polled.is_ready() {
            self.stalled_since.set(None);
        } else if self.stalled_since.get().is_none() {
            self.stalled_since.set(Some(self.now()));
        }
    }

    fn note_written(&self, bytes: usize) {
        self.follower.borrow_mut().note_written(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

impl<S> Guarded<S> {
    pub(super) const fn new(stream: S, guard: Rc<Guard>) -> Self {
        Self { stream, guard }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Nobody is to be woken: whoever polls looks at the flood next.
        if this.guard.flood.get().is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        let now = this.guard.now();
        if let Err(flood) = this.guard.follower.borrow_mut().push(bytes, now) {
            this.guard.flood.set(Some(flood));
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.guard.note_write(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.guard.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.guard.note_progress(&flushed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
