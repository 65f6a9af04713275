//! The lingering close: what the client still sends is read and thrown away, so that it reads its response.

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    Connection,
    settings::{Lingering, Tracking},
};

/// Where an orderly close stands.
#[derive(Debug, Default)]
pub(super) enum Close {
    #[default]
    Open,
    /// Our side is shut; the client's is read and thrown away.
    Lingering(Box<State>),
    Closed,
}

#[derive(Debug)]
pub(super) struct State {
    place: Lingering,
    bytes: u64,
    ends: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    /// A request was answered before it was read to its end.
    pub(crate) fn left_unread(&self) {
        self.0.unread_upload.store(true, Ordering::Release);
    }

    /// Bytes have come. With no request in flight they are of the next one's head, which may be refused before it is whole:
    /// then there is none that could be left unread.
    pub(super) fn read_some(&self) {
        if !self.is_http2() && !self.is_upgraded() && self.0.parties.is_empty() {
            self.left_unread();
        }
    }

    /// The response that is handed over is the last: what comes behind it is the application's.
    pub(crate) fn upgrades(&self) {
        self.0.upgraded.store(true, Ordering::Release);
    }

    /// Whether it is the application that closes it: one side, when it likes, and what the client still sends is for it to read.
    pub(super) fn is_upgraded(&self) -> bool {
        self.0.upgraded.load(Ordering::Acquire)
    }
}

impl Close {
    #[cfg(feature = "serve")]
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Closed)
    }

    pub(super) fn is_begun(&self) -> bool {
        !matches!(self, Self::Open)
    }

    /// Shuts our side, and lingers if the client `may_send`, or if bytes are waiting.
    pub(super) fn poll<IO>(
        &mut self,
        io: &mut IO,
        tracking: &Tracking,
        may_send: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            match self {
                Self::Open => {
                    ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
                    *self = match State::begin(io, tracking, may_send, cx) {
                        Some(state) => Self::Lingering(Box::new(state)),
                        None => Self::Closed,
                    };
                }
                Self::Lingering(state) => {
                    ready!(state.poll(io, cx));
                    *self = Self::Closed;
                }
                Self::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl State {
    fn begin<IO>(io: &mut IO, tracking: &Tracking, may_send: bool, cx: &mut Context<'_>) -> Option<Self>
    where
        IO: AsyncRead + Unpin,
    {
        let place = tracking.begin_linger()?;
        let now = Instant::now();
        let ends = now + place.limits.total.min(MAX);
        let mut bytes = 0;
        if !may_send {
            // Its request was read. Bytes that wait are another request of it, or the rest of one.
            match discard(io, cx) {
                Poll::Ready(Ok(more)) if more > 0 => bytes = more,
                _ => return None,
            }
        }
        let timer = Box::pin(tokio::time::sleep_until(ends.min(now + place.limits.idle.min(MAX))));
        Some(Self { place, bytes, ends, timer })
    }

    /// Until the client closes, or a bound is reached.
    fn poll<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<()>
    where
        IO: AsyncRead + Unpin,
    {
        for _ in 0..READS_A_POLL {
            match discard(io, cx) {
                Poll::Ready(Ok(more)) if more > 0 => {
                    self.bytes += more;
                    let now = Instant::now();
                    if self.bytes > self.place.limits.bytes || now >= self.ends {
                        return Poll::Ready(());
                    }
                    let idle = now + self.place.limits.idle.min(MAX);
                    self.timer.as_mut().reset(self.ends.min(idle));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
        // A client that sends as fast as we read must not keep this worker to itself.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

const READS_A_POLL: usize = 32;
/// Longer than any close should take, and short enough to be added to any instant.
const MAX: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// One read, thrown away: 0 at the end.
fn discard<IO: AsyncRead + Unpin>(io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
    let mut bytes = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    let mut buffer = ReadBuf::uninit(&mut bytes);
    ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len() as u64))
}
