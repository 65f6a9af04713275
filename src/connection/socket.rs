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

#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

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
    pub(super) fn new(io: IO) -> Self {
        let mut io = Some(io);
        if let Some(tcp) = take_as::<IO, TcpStream>(&mut io) {
            // A held end of stream is a small write behind others: with Nagle's algorithm (RFC 9293, section
            // 3.7.4) it would wait for the client's delayed acknowledgement, which is 40 ms on Linux. That it
            // cannot be set on a socket that was closed meanwhile does not matter.
            let _ = tcp.set_nodelay(true);
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

    pub(super) fn watch(&self) -> Watch {
        match self {
            Self::Tcp(tcp) => Watch::Idle(Source::Tcp(tcp.clone())),
            #[cfg(unix)]
            Self::Unix(unix) => Watch::Idle(Source::Unix(unix.clone())),
            Self::Other(_) => Watch::None,
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

macro_rules! read {
    ($stream:expr, $cx:expr, $buf:expr) => {
        loop {
            ready!($stream.poll_read_ready($cx))?;
            match $stream.try_read_buf($buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
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
        fn shut(socket: &socket2::SockRef<'_>) -> io::Result<()> {
            match socket.shutdown(std::net::Shutdown::Write) {
                // The peer is gone already, which is no reason to fail a shutdown.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                result => result,
            }
        }
        match self.get_mut() {
            Self::Tcp(tcp) => Poll::Ready(shut(&socket2::SockRef::from(&**tcp))),
            #[cfg(unix)]
            Self::Unix(unix) => Poll::Ready(shut(&socket2::SockRef::from(&**unix))),
            Self::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
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
    /// Resolves when the peer has closed its sending side or reset the connection, whatever bytes still wait
    /// to be read.
    async fn left(self) {
        // tokio's priority readiness includes "read closed" (EPOLLRDHUP), which is set with bytes still queued.
        loop {
            let ready = match &self {
                Self::Tcp(tcp) => tcp.ready(Interest::PRIORITY).await,
                #[cfg(unix)]
                Self::Unix(unix) => unix.ready(Interest::PRIORITY).await,
            };
            match ready {
                Ok(ready) if ready.is_read_closed() || ready.is_write_closed() => return,
                // Urgent data, which HTTP does not know (RFC 9110 has no use for it): it would stay ready for
                // ever. Leave the watching to the reads.
                Ok(_) => std::future::pending().await,
                // The runtime's IO driver is gone, and with it every connection.
                Err(_) => return,
            }
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
    Idle(Source),
    Waiting(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Watch {
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Idle(source) = self {
            let left = source.clone().left();
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
            Self::None | Self::Idle(_) => false,
        }
    }
}
