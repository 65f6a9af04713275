//! The socket below an encryption, as far as a connection has to know it.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Tracking, socket::Socket, watch::Source};

/// A TCP socket to be wrapped in a TLS stream (or another wrapper) that is then wrapped in a
/// [`TrackedIo`](super::TrackedIo).
///
/// It lets the [`TrackedIo`](super::TrackedIo) above watch the socket for a client disconnect, which nothing above
/// the encryption can see while bytes wait unread.
///
/// ```no_run
/// # async fn accept<T>(tcp: tokio::net::TcpStream, tls: impl AsyncFnOnce(tower_epilogue::TrackedSocket) -> T)
/// # where T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static {
/// use tower_epilogue::{TrackedIo, TrackedSocket, Tracking};
///
/// let tracking = Tracking::new();
/// let socket = TrackedSocket::new(tcp, &tracking);
/// let below = socket.handle();
/// let io = TrackedIo::over(tls(socket).await, &below, &tracking);
/// # let _ = io;
/// # }
/// ```
#[derive(Debug)]
pub struct TrackedSocket(Socket<TcpStream>);

impl TrackedSocket {
    /// Sets `TCP_NODELAY` and the timeouts of `tracking` on the socket, as
    /// [`TrackedIo::with`](super::TrackedIo::with) would.
    pub fn new(tcp: TcpStream, tracking: &Tracking) -> Self {
        Self(Socket::new(tcp, tracking))
    }

    /// The handle that [`TrackedIo::over`](super::TrackedIo::over) takes.
    #[must_use]
    pub fn handle(&self) -> SocketHandle {
        SocketHandle(self.0.source())
    }
}

impl AsyncRead for TrackedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TrackedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Refers to a [`TrackedSocket`] that was moved into a TLS stream. It keeps the socket open: drop it after
/// [`TrackedIo::over`](super::TrackedIo::over).
#[derive(Clone)]
pub struct SocketHandle(Option<Source>);

impl SocketHandle {
    pub(super) fn source(&self) -> Option<Source> {
        self.0.clone()
    }
}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketHandle").finish_non_exhaustive()
    }
}
