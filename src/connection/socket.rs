//! A socket that can be watched while it is read and written.

use std::{
    any::Any,
    fmt, io,
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

#[cfg(feature = "test-util")]
use super::memory::MemoryStream;
use super::{
    TrackedIo, Tracking,
    watch::{Counted, Source},
};

/// The IO below a [`TrackedIo`](super::TrackedIo).
///
/// tokio's sockets are kept in an `Arc`, so that a [`Watch`](super::watch::Watch) can await their readiness beside the server's
/// reads; every other IO is used as it is, and what the server does not read from it is not seen.
pub(super) enum Socket<IO> {
    Tcp(Arc<Counted<TcpStream>>),
    #[cfg(unix)]
    Unix(Arc<Counted<UnixStream>>),
    #[cfg(feature = "test-util")]
    Memory(MemoryStream),
    Other(IO),
}

impl<IO: 'static> Socket<IO> {
    pub(super) fn new(io: IO, tracking: &Tracking) -> Self {
        let mut io = Some(io);
        if let Some(tcp) = take_as::<IO, TcpStream>(&mut io) {
            tracking.apply(&tcp);
            return Self::Tcp(Arc::new(Counted::new(tcp)));
        }
        #[cfg(unix)]
        if let Some(unix) = take_as::<IO, UnixStream>(&mut io) {
            return Self::Unix(Arc::new(Counted::new(unix)));
        }
        #[cfg(feature = "test-util")]
        if let Some(memory) = take_as::<IO, MemoryStream>(&mut io) {
            return Self::Memory(memory);
        }
        let Some(io) = io else { unreachable!("an IO is taken only where this returns") };
        Self::of_tracked(&io, tracking).unwrap_or(Self::Other(io))
    }

    /// That of an IO which is tracked already: its listener need not know of whoever serves it.
    fn of_tracked(io: &dyn Any, tracking: &Tracking) -> Option<Self> {
        if let Some(Socket::Tcp(tcp)) = io.downcast_ref::<TrackedIo<TcpStream>>().map(|io| &io.socket) {
            tracking.apply(tcp);
            return Some(Self::Tcp(tcp.clone()));
        }
        #[cfg(unix)]
        if let Some(Socket::Unix(unix)) = io.downcast_ref::<TrackedIo<UnixStream>>().map(|io| &io.socket) {
            return Some(Self::Unix(unix.clone()));
        }
        None
    }

    /// The socket itself, beside whoever reads and writes it.
    pub(super) fn source(&self) -> Option<Source> {
        match self {
            Self::Tcp(tcp) => Some(Source::Tcp(tcp.clone())),
            #[cfg(unix)]
            Self::Unix(unix) => Some(Source::Unix(unix.clone())),
            #[cfg(feature = "test-util")]
            Self::Memory(memory) => Some(Source::Memory(memory.ends().clone())),
            Self::Other(_) => None,
        }
    }
}

impl<IO> Socket<IO> {
    /// Has the socket end with a reset when it is dropped. What is written over TLS needs none: its end without a
    /// `close_notify` tells as much (RFC 8446, section 6.1); the socket below any other wrapper is reset by itself.
    pub(super) fn reset(&self) {
        match self {
            Self::Tcp(tcp) => tcp.reset(),
            #[cfg(unix)]
            Self::Unix(_) => {}
            #[cfg(feature = "test-util")]
            Self::Memory(memory) => memory.ends().reset(),
            Self::Other(_) => {}
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
            #[cfg(feature = "test-util")]
            Self::Memory(_) => "Memory",
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
            let room = $buf.remaining();
            let mut short = false;
            let read = $stream.try_io(Interest::READABLE, || {
                let bytes = $stream.try_read_buf($buf)?;
                short = bytes > 0 && bytes < room;
                if short { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match read {
                _ if short => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    };
}

macro_rules! write {
    ($stream:expr, $cx:expr, $write:expr) => {
        loop {
            ready!($stream.poll_write_ready($cx))?;
            match $write {
                Ok(bytes) => {
                    $stream.count(bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    };
}

/// What is written in several parts and is smaller than this is put together first: that costs the processor less than a list
/// of parts costs the kernel. A small response's head and its body are two.
const TOGETHER: usize = 512;

fn put_together<'a>(bufs: &[io::IoSlice<'_>], room: &'a mut [u8; TOGETHER]) -> Option<&'a [u8]> {
    let mut filled = 0;
    for buf in bufs {
        let end = filled + buf.len();
        room.get_mut(filled..end)?.copy_from_slice(buf);
        filled = end;
    }
    room.get(..filled)
}

macro_rules! write_parts {
    ($stream:expr, $cx:expr, $bufs:expr) => {
        match put_together($bufs, &mut [0; TOGETHER]) {
            Some(whole) => write!($stream, $cx, $stream.try_write(whole)),
            None => write!($stream, $cx, $stream.try_write_vectored($bufs)),
        }
    };
}

impl<IO: AsyncRead + Unpin> AsyncRead for Socket<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => read!(tcp, cx, buf),
            #[cfg(unix)]
            Self::Unix(unix) => read!(unix, cx, buf),
            #[cfg(feature = "test-util")]
            Self::Memory(io) => Pin::new(io).poll_read(cx, buf),
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
            #[cfg(feature = "test-util")]
            Self::Memory(io) => Pin::new(io).poll_write(cx, buf),
            Self::Other(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => write_parts!(tcp, cx, bufs),
            #[cfg(unix)]
            Self::Unix(unix) => write_parts!(unix, cx, bufs),
            #[cfg(feature = "test-util")]
            Self::Memory(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Other(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.stream.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(unix) => unix.stream.is_write_vectored(),
            #[cfg(feature = "test-util")]
            Self::Memory(io) => io.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // A socket has no buffer of its own; tokio's flush does nothing either.
            Self::Tcp(_) => Poll::Ready(Ok(())),
            #[cfg(unix)]
            Self::Unix(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "test-util")]
            Self::Memory(io) => Pin::new(io).poll_flush(cx),
            Self::Other(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        fn shut<S>(socket: &Counted<S>, descriptor: &SockRef<'_>) -> io::Result<()> {
            match descriptor.shutdown(std::net::Shutdown::Write) {
                Ok(()) => socket.note_shut(),
                // The peer is gone already, which is no reason to fail a shutdown.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => return Err(error),
            }
            Ok(())
        }
        match self.get_mut() {
            Self::Tcp(tcp) => Poll::Ready(shut(tcp, &SockRef::from(&tcp.stream))),
            #[cfg(unix)]
            Self::Unix(unix) => Poll::Ready(shut(unix, &SockRef::from(&unix.stream))),
            #[cfg(feature = "test-util")]
            Self::Memory(io) => Pin::new(io).poll_shutdown(cx),
            Self::Other(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    #[test]
    fn small_parts_are_put_together_whole_and_in_order() {
        let mut room = [0; TOGETHER];
        let parts = [b"head".as_slice(), b"", b"body"].map(IoSlice::new);
        assert_eq!(put_together(&parts, &mut room), Some(b"headbody".as_slice()));
        assert_eq!(put_together(&[], &mut room), Some(b"".as_slice()));
        for (more, fits) in [(TOGETHER - 8, true), (TOGETHER - 7, false)] {
            let more = vec![b'x'; more];
            let parts = [b"headbody".as_slice(), &more].map(IoSlice::new);
            assert_eq!(put_together(&parts, &mut room).map(<[u8]>::len), fits.then_some(TOGETHER));
            // Behind one that does not fit none does.
            let parts = [&more, b"headbody".as_slice(), b""].map(IoSlice::new);
            assert_eq!(put_together(&parts, &mut room).is_some(), fits);
        }
    }
}
