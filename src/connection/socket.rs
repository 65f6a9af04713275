//! A socket that can be watched while it is read and written.

use std::{
    any::Any,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::settings::{HalfClose, Tracking};

/// The IO below a [`TrackedIo`](super::TrackedIo).
///
/// tokio's sockets are kept in an `Arc`, so that a [`Watch`] can await their readiness beside the server's
/// reads; every other IO is used as it is, and what the server does not read from it is not seen.
pub(super) enum Socket<IO> {
    Tcp(Arc<TcpStream>),
    #[cfg(unix)]
    Unix(Arc<UnixStream>),
    Other(IO),
}

impl<IO: 'static> Socket<IO> {
    pub(super) fn new(io: IO, tracking: &Tracking) -> Self {
        let mut io = Some(io);
        if let Some(tcp) = take_as::<IO, TcpStream>(&mut io) {
            tracking.apply(&tcp);
            return Self::Tcp(Arc::new(tcp));
        }
        #[cfg(unix)]
        if let Some(unix) = take_as::<IO, UnixStream>(&mut io) {
            return Self::Unix(Arc::new(unix));
        }
        match io {
            Some(io) => Self::Other(io),
            None => unreachable!("an IO is taken only where this returns"),
        }
    }

    pub(super) fn watch(&self, half_close: HalfClose) -> Watch {
        match self {
            Self::Tcp(tcp) => Watch::Idle(Source::Tcp(tcp.clone()), half_close),
            #[cfg(unix)]
            Self::Unix(unix) => Watch::Idle(Source::Unix(unix.clone()), half_close),
            Self::Other(_) => Watch::None,
        }
    }
}

impl<IO> Socket<IO> {
    /// Has the socket end with a reset when it is dropped. What is written over TLS needs none: its end without a
    /// `close_notify` tells as much (RFC 8446, section 6.1).
    pub(super) fn reset(&self) {
        let set = match self {
            Self::Tcp(tcp) => SockRef::from(&**tcp).set_linger(Some(std::time::Duration::ZERO)),
            #[cfg(unix)]
            Self::Unix(_) => Ok(()),
            Self::Other(_) => Ok(()),
        };
        if let Err(error) = set {
            tracing::debug!(%error, "a connection could not be reset");
        }
    }
}

/// Takes the value out if `IO` is `T`: what a specialized impl would do.
fn take_as<IO: 'static, T: 'static>(io: &mut Option<IO>) -> Option<T> {
    (io as &mut dyn Any).downcast_mut::<Option<T>>().and_then(Option::take)
}

impl<IO> fmt::Debug for Socket<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            #[cfg(unix)]
            Self::Unix(_) => "Unix",
            Self::Other(_) => "Other",
        })
    }
}

/// One read. A short one has emptied the socket: then tokio's readiness is cleared, as its own reads do, which
/// saves the system call that would only say so. It is cleared by saying "would block" where the readiness of
/// *before* the read is known, so that what arrives after it is not missed.
macro_rules! read {
    ($stream:expr, $cx:expr, $buf:expr) => {
        loop {
            ready!($stream.poll_read_ready($cx))?;
            let mut short = None;
            let room = $buf.initialize_unfilled();
            let read = $stream.try_io(Interest::READABLE, || {
                let bytes = io::Read::read(&mut &*SockRef::from(&**$stream), room)?;
                if bytes > 0 && bytes < room.len() {
                    short = Some(bytes);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(bytes)
            });
            match (short, read) {
                (Some(bytes), _) | (None, Ok(bytes)) => {
                    $buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    };
}

macro_rules! write {
    ($stream:expr, $cx:expr, $write:expr) => {
        loop {
            ready!($stream.poll_write_ready($cx))?;
            match $write {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    };
}

impl<IO: AsyncRead + Unpin> AsyncRead for Socket<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => read!(tcp, cx, buf),
            #[cfg(unix)]
            Self::Unix(unix) => read!(unix, cx, buf),
            Self::Other(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Socket<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => write!(tcp, cx, tcp.try_write(buf)),
            #[cfg(unix)]
            Self::Unix(unix) => write!(unix, cx, unix.try_write(buf)),
            Self::Other(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => write!(tcp, cx, tcp.try_write_vectored(bufs)),
            #[cfg(unix)]
            Self::Unix(unix) => write!(unix, cx, unix.try_write_vectored(bufs)),
            Self::Other(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(unix) => unix.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // A socket has no buffer of its own; tokio's flush does nothing either.
            Self::Tcp(_) => Poll::Ready(Ok(())),
            #[cfg(unix)]
            Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        fn shut(socket: &SockRef<'_>) -> io::Result<()> {
            match socket.shutdown(std::net::Shutdown::Write) {
                // The peer is gone already, which is no reason to fail a shutdown.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                result => result,
            }
        }
        match self.get_mut() {
            Self::Tcp(tcp) => Poll::Ready(shut(&SockRef::from(&**tcp))),
            #[cfg(unix)]
            Self::Unix(unix) => Poll::Ready(shut(&SockRef::from(&**unix))),
            Self::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// A socket that a TLS stream, or another wrapper, is put around before a [`TrackedIo`](super::TrackedIo).
///
/// It lets the [`TrackedIo`](super::TrackedIo) above watch the socket for a client that leaves, which nothing above
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
    /// Sets the socket up as [`TrackedIo`](super::TrackedIo) would.
    pub fn new(tcp: TcpStream, tracking: &Tracking) -> Self {
        Self(Socket::new(tcp, tracking))
    }

    /// For [`TrackedIo::over`](super::TrackedIo::over).
    #[must_use]
    pub fn handle(&self) -> SocketHandle {
        SocketHandle(match &self.0 {
            Socket::Tcp(tcp) => Some(Source::Tcp(tcp.clone())),
            #[cfg(unix)]
            Socket::Unix(unix) => Some(Source::Unix(unix.clone())),
            Socket::Other(_) => None,
        })
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

/// A [`TrackedSocket`] that was given away.
#[derive(Clone)]
pub struct SocketHandle(Option<Source>);

impl SocketHandle {
    pub(super) fn watch(&self, half_close: HalfClose) -> Watch {
        self.0.clone().map_or(Watch::None, |source| Watch::Idle(source, half_close))
    }
}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketHandle").finish_non_exhaustive()
    }
}

/// What a [`Watch`] watches.
#[derive(Clone)]
pub(super) enum Source {
    Tcp(Arc<TcpStream>),
    #[cfg(unix)]
    Unix(Arc<UnixStream>),
}

impl Source {
    /// Resolves when the peer has left, whatever bytes still wait to be read.
    async fn left(self, half_close: HalfClose) {
        let interest = match half_close {
            // tokio's priority readiness includes "read closed" (EPOLLRDHUP), which a FIN sets with bytes still
            // queued.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            HalfClose::Abort => Interest::PRIORITY,
            // A reset alone: all that other systems tell while bytes wait.
            _ => Interest::ERROR,
        };
        let ready = match &self {
            Self::Tcp(tcp) => tcp.ready(interest).await,
            #[cfg(unix)]
            Self::Unix(unix) => unix.ready(interest).await,
        };
        match ready {
            Ok(ready) if ready.is_read_closed() || ready.is_write_closed() || ready.is_error() => {}
            // Urgent data, for which HTTP has no use: it would stay ready for ever. Leave the watching to the
            // reads.
            Ok(_) => std::future::pending().await,
            // The runtime's IO driver is gone, and with it every connection.
            Err(_) => {}
        }
    }
}

/// Whether the client has left, asked of the socket itself.
///
/// Begun at the first question, so that a connection whose handlers never wait pays nothing; kept from one
/// request to the next.
#[derive(Default)]
pub(super) enum Watch {
    #[default]
    None,
    Idle(Source, HalfClose),
    Waiting(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Watch {
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Idle(source, half_close) = self {
            let left = source.clone().left(*half_close);
            *self = Self::Waiting(Box::pin(left));
        }
        match self {
            Self::Waiting(left) => {
                let left = left.as_mut().poll(cx).is_ready();
                if left {
                    *self = Self::None;
                }
                left
            }
            Self::None | Self::Idle(..) => false,
        }
    }
}
