//! A connection in memory that tells what a socket tells beside its bytes: for the harness.
//!
//! tokio's pipe tells of a client that leaves in a read alone, behind all bytes that it has sent: one whose upload nobody
//! reads would never be noticed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::Notify,
};

use super::HalfClose;

/// The server's end.
#[derive(Debug)]
pub(crate) struct MemoryStream {
    stream: DuplexStream,
    ends: Arc<Ends>,
}

/// The client's end.
#[derive(Debug)]
pub(crate) struct MemoryClient {
    /// `None` in its destructor alone.
    stream: Option<DuplexStream>,
    ends: Arc<Ends>,
}

/// How the two have ended.
#[derive(Debug)]
pub(crate) struct Ends {
    number: u64,
    client: AtomicU8,
    news: Notify,
    reset: AtomicBool,
}

/// The client has shut its sending side, or closed.
const SHUT: u8 = 1;
const CLOSED: u8 = 2;

/// Both ends of a connection; each takes so many bytes that the other has not read.
pub(crate) fn pair(bytes: usize) -> (MemoryClient, MemoryStream) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (client, server) = tokio::io::duplex(bytes);
    // Relaxed: only uniqueness matters.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let ends = Arc::new(Ends { number, client: AtomicU8::new(0), news: Notify::new(), reset: AtomicBool::new(false) });
    (MemoryClient { stream: Some(client), ends: ends.clone() }, MemoryStream { stream: server, ends })
}

impl Ends {
    fn client_ends(&self, how: u8) {
        // AcqRel: whoever sees it finds the pipe as the client has left it. What is more stays.
        self.client.fetch_max(how, Ordering::AcqRel);
        self.news.notify_waiters();
    }

    /// Resolves when the client has left, whatever bytes still wait to be read.
    pub(super) async fn left(&self, half_close: HalfClose) {
        let enough = if half_close == HalfClose::Abort { SHUT } else { CLOSED };
        loop {
            // Enlisted before the look, so that what is told after it is heard of.
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.client.load(Ordering::Acquire) >= enough {
                return;
            }
            news.await;
        }
    }

    /// The client finds a reset where its connection ends.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
    }
}

// === the server's end ===

impl MemoryStream {
    /// Tells this connection from all others, at both of its ends.
    pub(crate) fn number(&self) -> u64 {
        self.ends.number
    }

    pub(super) fn ends(&self) -> &Arc<Ends> {
        &self.ends
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === the client's end ===

impl MemoryClient {
    /// Tells this connection from all others, at both of its ends.
    pub(crate) fn number(&self) -> u64 {
        self.ends.number
    }

    fn stream(&mut self) -> io::Result<Pin<&mut DuplexStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for MemoryClient {
    fn drop(&mut self) {
        // First, so that whoever hears of it reads to the end.
        self.stream = None;
        self.ends.client_ends(CLOSED);
    }
}

impl AsyncRead for MemoryClient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = (buf.filled().len(), buf.remaining());
        ready!(self.stream()?.poll_read(cx, buf))?;
        let is_end = before.1 > 0 && buf.filled().len() == before.0;
        if is_end && self.ends.reset.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryClient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream()?.poll_shutdown(cx))?;
        self.ends.client_ends(SHUT);
        Poll::Ready(Ok(()))
    }
}
