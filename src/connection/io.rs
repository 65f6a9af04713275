//! The IO wrapper that keeps a connection's account.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, socket::Socket};

/// An IO whose [`Connection`] knows when responses were flushed and when the client left.
///
/// Wrap it around the outermost stream: around a `TlsStream`, not inside of it. Everything is forwarded,
/// vectored writes too. Costs a few atomic operations a call, and no system call.
#[derive(Debug)]
pub struct TrackedIo<IO> {
    socket: Socket<IO>,
    connection: Connection,
}

impl<IO: 'static> TrackedIo<IO> {
    /// Wraps `io`.
    ///
    /// A [`TcpStream`](tokio::net::TcpStream) or [`UnixStream`](tokio::net::UnixStream) is watched for a
    /// client that leaves even while nobody reads; of any other IO only what its reads and writes tell is seen.
    ///
    /// `TCP_NODELAY` is set on a `TcpStream`; below a TLS stream, set it yourself.
    pub fn new(io: IO) -> Self {
        let socket = Socket::new(io);
        let connection = Connection::new(socket.watch());
        Self { socket, connection }
    }

    /// The handle to what this IO sees.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl<IO> TrackedIo<IO> {
    fn failed(&self, error: io::Error) -> io::Error {
        // A reset, a broken pipe, a timeout of the transport: no byte will reach this client any more.
        self.connection.saw_client_leave();
        error
    }

    fn refused(&self) -> Option<io::Error> {
        self.connection.is_refused().then(|| {
            io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the response on this connection was broken off: its time limit passed, or its client left",
            )
        })
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.connection.wrote(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(error))),
            Poll::Pending => {
                self.connection.stalled();
                Poll::Pending
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for TrackedIo<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.connection.read_begins();
        // Registered before anything is looked at, so that a change after the look wakes us.
        self.connection.register(cx.waker());
        if self.connection.has_hidden_end() && self.connection.hides_end_of_input() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let room = buf.remaining();
        match ready!(Pin::new(&mut self.socket).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() == before && room > 0 => {
                self.connection.saw_client_leave();
                if self.connection.hides_end_of_input() {
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            }
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.failed(error))),
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for TrackedIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.register(cx.waker());
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.register(cx.waker());
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) => {
                self.connection.flushed();
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(self.failed(error))),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.connection.is_refused() {
            self.connection.shutting_down();
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl<IO> Drop for TrackedIo<IO> {
    fn drop(&mut self) {
        self.connection.closed();
    }
}
