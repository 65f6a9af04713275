//! How connections are treated whose clients are slow, silent, or gone half-way.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::pool::caught;

/// What a client's FIN means while its request is in flight.
///
/// TCP lets a client shut down its sending side and go on reading (half-close; RFC 9293, section 3.6). Few do, and a
/// FIN is usually the first sign of a client that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum HalfClose {
    /// The client has left, as hyper and nginx assume. Where aborts are ignored it is served all the same, and its
    /// status says ABORTED. The default.
    #[default]
    Abort,
    /// A client that has sent its whole request gets its whole response. That it has really left shows by a reset or
    /// a failing write; on HTTP/2 also when everything in flight waits for window space, which it can no longer
    /// grant, or by a [ping](crate::manual::connection#what-a-fin-means) that it cannot answer.
    Serve,
}

/// The bounds of a lingering close.
///
/// A connection that is closed while its client is still sending is reset by the kernel, and the response in flight
/// can be lost (RFC 9112, section 9.6). So whatever still arrives is read and discarded, within these bounds, if the
/// client's request was not read to its end, if bytes of it are waiting, or if it has sent requests over HTTP/2,
/// because it acknowledges what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    pub(super) bytes: u64,
    pub(super) idle: Duration,
    pub(super) total: Duration,
    pub(super) at_once: usize,
}

impl Default for Linger {
    fn default() -> Self {
        Self { bytes: 64 * 1024 * 1024, idle: Duration::from_secs(2), total: Duration::from_secs(10), at_once: 1_000 }
    }
}

impl Linger {
    /// 64 MiB, 2 s without a byte, 10 s in all, and 1,000 connections at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes are discarded at most; 64 MiB by default.
    #[must_use]
    pub const fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// How long to wait for the next byte; 2 s by default.
    #[must_use]
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// How long it may take in all; 10 s by default. A server that drains waits for it, but not beyond its
    /// [deadline](crate::EpilogueBuilder::drain_deadline).
    #[must_use]
    pub const fn total(mut self, total: Duration) -> Self {
        self.total = total;
        self
    }

    /// How many connections may linger at the same time; 1,000 by default. Others are closed immediately, so that
    /// slow clients cannot use up the server's connections.
    #[must_use]
    pub const fn at_once(mut self, connections: usize) -> Self {
        self.at_once = connections;
        self
    }
}

/// Settings of tracked connections (timeouts, keep-alive, half-close, lingering): for a
/// [`TrackedListener`](crate::TrackedListener), a [`TrackedIo`](crate::TrackedIo), and, through
/// [`EpilogueBuilder::tracking`](crate::EpilogueBuilder::tracking), for [`Epilogue::serve`](crate::Epilogue::serve).
///
/// Clones share the count of lingering connections.
#[derive(Clone, Debug)]
pub struct Tracking {
    pub(super) half_close: HalfClose,
    pub(super) linger: Option<Linger>,
    pub(super) write_stall: Option<Duration>,
    keep_alive: Option<Duration>,
    unacknowledged: Option<Duration>,
    lingering: Arc<AtomicUsize>,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            half_close: HalfClose::default(),
            linger: Some(Linger::default()),
            write_stall: Some(Duration::from_secs(60)),
            keep_alive: Some(Duration::from_secs(30)),
            unacknowledged: Some(Duration::from_secs(30)),
            lingering: Arc::default(),
        }
    }
}

impl Tracking {
    /// The default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a client's FIN means; [`HalfClose::Abort`] by default.
    #[must_use]
    pub fn half_close(mut self, half_close: HalfClose) -> Self {
        self.half_close = half_close;
        self
    }

    /// The bounds of a lingering close; [`Linger::new`] by default. `None` closes at once.
    #[must_use]
    pub fn linger(mut self, linger: impl Into<Option<Linger>>) -> Self {
        self.linger = linger.into();
        self
    }

    /// How long a write may wait for a client that accepts no bytes, 60 s by default; then the client counts as gone.
    /// `None` waits without end.
    ///
    /// Over TLS it needs the [socket below](crate::TrackedIo::over), for bytes that wait in the session's buffer.
    ///
    /// On Linux and Android [`unacknowledged`](Self::unacknowledged) applies as well, and is shorter by default: to
    /// wait longer for a reader that pauses, set both.
    ///
    /// It applies to the connection: an HTTP/2 client that leaves one stream unread while it reads others does not
    /// stall it.
    #[must_use]
    pub fn write_stall(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.write_stall = limit.into();
        self
    }

    /// TCP keep-alive (RFC 9293, section 3.8.4): after how long without a byte the client's machine is probed, 30 s
    /// by default, and then again every third of that time. The client counts as gone when three probes are not
    /// answered. On Linux and Android, if [`unacknowledged`](Self::unacknowledged) is set as well, one unanswered
    /// probe suffices once no byte has arrived for that long: after 40 s by default. `None` leaves the system's
    /// setting.
    #[must_use]
    pub fn keep_alive(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.keep_alive = after.into();
        self
    }

    /// How long bytes may stay unacknowledged before the client's machine counts as gone, 30 s by default
    /// (`TCP_USER_TIMEOUT`, RFC 5482; on Linux and Android only). `None` leaves the system's setting. The system counts
    /// milliseconds, from 1 up to almost 25 days: a shorter or longer time is rounded to that.
    ///
    /// The system treats a receive window that stays closed for that long in the same way: a client whose machine
    /// answers, but whose program reads nothing of what is waiting for it, counts as gone too, even if its response
    /// was flushed already.
    #[must_use]
    pub fn unacknowledged(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.unacknowledged = limit.into();
        self
    }

    /// Sets a socket up. A socket that was closed meanwhile refuses, which does not matter.
    pub(super) fn apply(&self, tcp: &TcpStream) {
        let set = || -> io::Result<()> {
            // A held end of stream is a small write behind others: with Nagle's algorithm (RFC 9293, section
            // 3.7.4) it would wait for the client's delayed acknowledgement, which is 40 ms on Linux.
            tcp.set_nodelay(true)?;
            let socket = SockRef::from(tcp);
            if let Some(after) = self.keep_alive {
                socket.set_tcp_keepalive(&keep_alive(after))?;
            }
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if let Some(limit) = self.unacknowledged {
                // As an `int` of milliseconds, of which 0 would mean the system's own.
                let most = Duration::from_millis(i32::MAX as u64);
                socket.set_tcp_user_timeout(Some(limit.clamp(Duration::from_millis(1), most)))?;
            }
            Ok(())
        };
        if let Err(error) = set() {
            // In the task that accepts, which is all connections' own.
            caught::tell(|| tracing::trace!(%error, "a socket's options could not be set"));
        }
    }

    /// A place among the lingering, if there is one.
    pub(super) fn begin_linger(&self) -> Option<Lingering> {
        let linger = self.linger?;
        // Relaxed: a count that guards nothing but itself.
        if self.lingering.fetch_add(1, Ordering::Relaxed) >= linger.at_once {
            self.lingering.fetch_sub(1, Ordering::Relaxed);
            let said = "as many connections linger as `Linger::at_once` allows: one is closed immediately";
            caught::tell(|| tracing::debug!("{said}"));
            return None;
        }
        Some(Lingering { limits: linger, count: self.lingering.clone() })
    }
}

fn keep_alive(after: Duration) -> TcpKeepalive {
    // Whole seconds are all that the socket option knows, and Linux takes no more of them than these.
    let seconds = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
    let interval = seconds(after / 3);
    let options = TcpKeepalive::new().with_time(seconds(after));
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "redox", target_os = "solaris")))]
    let options = options.with_interval(interval);
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "redox", target_os = "solaris", windows)))]
    let options = options.with_retries(3);
    options
}

/// A place among the lingering connections.
#[derive(Debug)]
pub(super) struct Lingering {
    pub(super) limits: Linger,
    count: Arc<AtomicUsize>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_limit_that_the_system_cannot_count_is_the_nearest_that_it_can() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let most = Duration::from_millis(2_147_483_647);
        let (least, day) = (Duration::from_millis(1), Duration::from_secs(86_400));
        let cases = [(Duration::MAX, most), (30 * day, most), (day, day), (Duration::ZERO, least)];
        for (limit, set) in cases {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            Tracking::new().unacknowledged(limit).apply(&tcp);
            assert_eq!(SockRef::from(&tcp).tcp_user_timeout().unwrap(), Some(set), "{limit:?}");
        }
    }
}
