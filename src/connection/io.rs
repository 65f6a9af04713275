//! The IO wrapper that keeps a connection's account.

use std::{
    io,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Connection, SocketHandle, Tracking,
    linger::Close,
    others::Others,
    reader,
    socket::Socket,
    stall::Stall,
    turn::Turn,
    watch::Source,
    windows::{self, Full},
};

/// Wraps a connection's stream, so that its [`Connection`] knows when responses were flushed and when the client
/// left.
///
/// Wrap the outermost stream: around a `TlsStream`, not inside it. Everything is forwarded, including vectored
/// writes. It costs a few atomic operations per call, and no system call. Pass it to
/// [`Epilogue::wrap`](crate::Epilogue::wrap).
#[derive(Debug)]
pub struct TrackedIo<IO> {
    pub(super) socket: Socket<IO>,
    /// The socket below it, if that was told of.
    below: Option<Source>,
    connection: Connection,
    tracking: Tracking,
    close: Close,
    stall: Stall,
    /// The end of an encryption is a write, too. On its own, since the flushes around it have nothing to wait for.
    shutdown_stall: Stall,
    /// Bytes have come that the server may not have acted on yet.
    fresh: bool,
    /// The end of input is put off while the server's other tasks have their turn, to begin with those.
    others: Option<Arc<Others>>,
    /// It was put off for a turn, for what the server had handed over.
    gave_turn: bool,
    /// What the socket has told of while the server was given its turn.
    untold: Option<io::Error>,
    turn: Turn,
    full: Option<Box<Full>>,
}

impl<IO: 'static> TrackedIo<IO> {
    /// Wraps `io`, with the default [settings](Tracking).
    ///
    /// A [`TcpStream`](tokio::net::TcpStream) or [`UnixStream`](tokio::net::UnixStream) is watched for a client
    /// disconnect even while nobody reads; of any other IO, only what its reads and writes report is seen, unless it
    /// is given the socket below, with [`over`](Self::over).
    ///
    /// `TCP_NODELAY` and the timeouts of [`Tracking`] are set on a `TcpStream`. All that are made by `new` share one
    /// bound on [how many linger](crate::Linger::at_once).
    pub fn new(io: IO) -> Self {
        static DEFAULT: LazyLock<Tracking> = LazyLock::new(Tracking::default);
        Self::with(io, &DEFAULT)
    }

    /// Wraps `io`, with the settings of `tracking`; otherwise as [`new`](Self::new).
    pub fn with(io: IO, tracking: &Tracking) -> Self {
        let socket = Socket::new(io, tracking);
        let source = socket.source();
        Self::build(socket, None, source, tracking)
    }

    /// Wraps `io`, a TLS stream or another wrapper over the socket of `below`: see
    /// [`TrackedSocket`](crate::TrackedSocket).
    pub fn over(io: IO, below: &SocketHandle, tracking: &Tracking) -> Self {
        Self::build(Socket::Other(io), below.source(), below.source(), tracking)
    }

    fn build(socket: Socket<IO>, below: Option<Source>, source: Option<Source>, tracking: &Tracking) -> Self {
        Self {
            socket,
            below,
            connection: Connection::new(source, tracking.half_close),
            tracking: tracking.clone(),
            close: Close::default(),
            stall: Stall::default(),
            shutdown_stall: Stall::default(),
            fresh: false,
            others: None,
            gave_turn: false,
            untold: None,
            turn: Turn::Reading,
            full: None,
        }
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

    fn register(&self, cx: &Context<'_>) {
        self.connection.register(cx.waker());
    }

    /// Whether the end of input, or a reset, waits for one more turn of the server, which wakes this task: because it has not
    /// acted on what came before it; or, on HTTP/2, because it has handed over the end of a response, of which the client may
    /// have all, and only this turn's flush tells.
    fn has_another_turn(&mut self, cx: &Context<'_>) -> bool {
        if std::mem::take(&mut self.fresh) {
            // On HTTP/2 a request begins in a task of its own, and the server reads on before that has run.
            self.others = Some(Others::have_their_turn(cx));
            return true;
        }
        if self.others.as_ref().is_some_and(|others| !others.had_their_turn(cx)) {
            return true;
        }
        self.others = None;
        let given = !std::mem::replace(&mut self.gave_turn, true) && self.connection.awaits_a_turn();
        if given {
            cx.waker().wake_by_ref();
        }
        given
    }

    fn refused(&self) -> Option<io::Error> {
        self.connection.is_refused().then(|| {
            io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the response on this connection was broken off: its time limit passed, or its client left",
            )
        })
    }

    /// Whether the end of input is to be kept from the server: as long as anything can still leave.
    fn hides_end(&mut self, stalled: bool, cx: &mut Context<'_>) -> bool {
        if !self.connection.hides_end_of_input() {
            return false;
        }
        let full = windows::poll(&mut self.full, &self.connection, stalled, cx).is_ready();
        if full {
            self.connection.shows_end_of_input();
        }
        !full
    }

    fn write_begins(&mut self, bytes: &[u8]) {
        reader::step();
        self.connection.write_begins(self.turn);
        self.turn.write_begins(bytes);
    }

    fn nothing_to_read(&mut self) -> Poll<io::Result<()>> {
        self.turn = Turn::Writing;
        self.connection.turn_begins();
        Poll::Pending
    }

    /// The end of input is kept from the server. A reset that comes behind it no read would tell of.
    fn reads_no_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.watch(cx);
        self.nothing_to_read()
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.stall.since = None;
                self.connection.wrote(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(error))),
            Poll::Pending => self.poll_stalled(cx).map(Err),
        }
    }

    /// The client takes no byte; ready if it has not for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Poll::Ready(error) = self.poll_held_up(cx) {
            return Poll::Ready(error);
        }
        ready!(self.stall.poll(self.tracking.write_stall, cx));
        Poll::Ready(self.failed(stalled()))
    }

    /// Whether it takes any is not known; ready if nothing more is to be written.
    fn poll_held_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.turn.stall();
        self.connection.acts_no_more(false);
        // Registered before the second look, so that a refusal after it wakes us.
        self.register(cx);
        if let Some(error) = self.refused() {
            return Poll::Ready(error);
        }
        self.connection.stalled();
        self.connection.watch(cx);
        Poll::Pending
    }

    fn poll_shutdown_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.shutdown_stall.poll(self.tracking.write_stall, cx));
        Poll::Ready(self.failed(stalled()))
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client takes no more bytes")
}

impl<IO> TrackedIo<IO> {
    /// What was written over TLS waits in the session's own buffer. Whether the client takes any of it only the socket
    /// below can tell.
    fn poll_flush_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(sent) = self.below.as_ref().map(Source::sent) else {
            return self.poll_held_up(cx);
        };
        if std::mem::replace(&mut self.stall.sent, sent) != sent {
            self.stall.since = None;
        }
        self.poll_stalled(cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for TrackedIo<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        reader::step();
        self.connection.read_begins();
        // Registered before anything is looked at, so that a change after the look wakes us.
        self.register(cx);
        let stalled = self.turn.is_stalled();
        if self.connection.has_hidden_end() && self.hides_end(stalled, cx) {
            return self.reads_no_more(cx);
        }
        self.turn = Turn::Reading;
        let before = buf.filled().len();
        let room = buf.remaining();
        let read = match self.untold.take() {
            Some(error) => Err(error),
            None => match Pin::new(&mut self.socket).poll_read(cx, buf) {
                Poll::Ready(read) => {
                    self.connection.acts_on_reads(false);
                    read
                }
                Poll::Pending => return self.nothing_to_read(),
            },
        };
        match read {
            // It is told with the drop of that body, which wakes this task.
            Ok(()) if buf.filled().len() == before && room > 0 && self.connection.is_given_an_end() => {
                self.nothing_to_read()
            }
            Err(error) if self.connection.is_given_an_end() => {
                self.untold = Some(error);
                self.nothing_to_read()
            }
            Ok(()) if buf.filled().len() == before && room > 0 => {
                if self.has_another_turn(cx) {
                    // A FIN right behind a request: the server gets one turn to begin with it, in which the request
                    // says whether aborts are ignored, and a handler that need not wait answers.
                    return self.nothing_to_read();
                }
                self.connection.saw_end_of_input();
                if self.hides_end(stalled, cx) {
                    return self.reads_no_more(cx);
                }
                Poll::Ready(Ok(()))
            }
            Ok(()) => {
                self.connection.read_some();
                (self.fresh, self.gave_turn) = (true, false);
                Poll::Ready(Ok(()))
            }
            Err(error) if self.has_another_turn(cx) => {
                // The same turn for a request whose client reset the connection right behind it. The socket itself would
                // not tell of it a second time.
                self.untold = Some(error);
                self.nothing_to_read()
            }
            Err(error) => Poll::Ready(Err(self.failed(error))),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TrackedIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        self.write_begins(buf);
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        self.write_begins(bufs.first().map_or(&[], |buf| buf));
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.refused() {
            return Poll::Ready(Err(error));
        }
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.stall.since = None;
                if self.connection.flushed(self.turn) {
                    cx.waker().wake_by_ref();
                }
                if self.full.is_none() && self.connection.has_hidden_end() && self.connection.waits_for_windows() {
                    // It was this turn that filled them: the wait for room begins in the next.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(error))),
            Poll::Pending => self.poll_flush_stalled(cx).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.connection.is_refused() || this.connection.is_upgraded() {
            return Pin::new(&mut this.socket).poll_shutdown(cx);
        }
        this.connection.shutting_down();
        match this.poll_close(cx) {
            Poll::Pending if !this.close.is_begun() => this.poll_shutdown_stalled(cx).map(Err),
            closed => closed,
        }
    }
}

// === the end ===

impl<IO> TrackedIo<IO> {
    /// The server has let go of it: whoever waits is told.
    pub(super) fn end(&mut self) {
        if self.connection.ends_with_reset() {
            self.socket.reset();
            if let Some(below) = &self.below {
                below.reset();
            }
        }
        self.connection.closed();
    }

    /// Whether a server that dropped it may have cut off what is on its way to a client that sends on.
    #[cfg(feature = "serve")]
    pub(super) fn has_to_linger(&self) -> bool {
        let gone = self.connection.is_reset() || self.connection.client_left();
        !gone && !self.close.is_over() && self.tracking.linger.is_some() && self.connection.written() > 0
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TrackedIo<IO> {
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let may_send = self.connection.may_be_sent_to();
        self.close.poll(&mut self.socket, &self.tracking, may_send, cx)
    }

    /// Closes it when the server has dropped it: ready when that is over. Registers with the [`Connection`], too.
    #[cfg(feature = "serve")]
    pub(crate) fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.register(cx);
        self.poll_close(cx).map(|_| ())
    }

    /// How long that may take.
    #[cfg(feature = "serve")]
    pub(crate) fn lingers_for(&self) -> std::time::Duration {
        self.tracking.linger.map(|linger| linger.total).unwrap_or_default()
    }
}

impl<IO> Drop for TrackedIo<IO> {
    fn drop(&mut self) {
        self.end();
    }
}
