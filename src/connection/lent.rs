//! An IO that comes back from the server that it was given to.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::TrackedIo;
use crate::pool::lock;

/// What a server is given in place of a [`TrackedIo`].
///
/// hyper closes in order what it has finished, and drops everything else: a connection whose response was broken off, or that
/// has to end now. Then its client may have responses on the way to it, which a close would destroy if that client
/// sends on. So the IO is given [back](Back), to linger.
pub(crate) struct Lent<IO> {
    /// Until it is dropped.
    io: Option<TrackedIo<IO>>,
    back: Back<IO>,
}

/// Where a [`Lent`] IO comes back, if it has to linger. It is boxed only then: most have been closed.
pub(crate) struct Back<IO>(Arc<Mutex<Option<Box<TrackedIo<IO>>>>>);

impl<IO> Lent<IO> {
    pub(crate) fn new(io: TrackedIo<IO>) -> (Self, Back<IO>) {
        let back = Arc::default();
        (Self { io: Some(io), back: Back(Arc::clone(&back)) }, Back(back))
    }

    fn io(self: Pin<&mut Self>) -> io::Result<Pin<&mut TrackedIo<IO>>>
    where
        IO: Unpin,
    {
        self.get_mut().io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<IO> Back<IO> {
    /// The IO, if the server has dropped it in a state in which it has to linger.
    pub(crate) fn take(&self) -> Option<Box<TrackedIo<IO>>> {
        lock(&self.0).take()
    }
}

impl<IO> Drop for Lent<IO> {
    fn drop(&mut self) {
        if let Some(mut io) = self.io.take() {
            io.end();
            if io.has_to_linger() {
                *lock(&self.back.0) = Some(Box::new(io));
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lent<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lent<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_shutdown(cx)
    }
}
