//! Whether a client has left, asked of the socket itself.

use std::{
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};

use socket2::SockRef;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{io::Interest, net::TcpStream};

use super::HalfClose;
#[cfg(feature = "test-util")]
use super::memory::Ends;
use crate::pool::caught;

/// A socket, and the bytes that were written to it.
#[derive(Debug)]
pub(super) struct Counted<S> {
    pub(super) stream: S,
    sent: AtomicU64,
    shut: AtomicBool,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, sent: AtomicU64::new(0), shut: AtomicBool::new(false) }
    }

    pub(super) fn count(&self, bytes: usize) {
        // Only the one task that writes changes it.
        self.sent.store(self.sent.load(Ordering::Acquire) + bytes as u64, Ordering::Release);
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Its sending side was shut.
    pub(super) fn note_shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    #[cfg(all(feature = "acknowledged", target_os = "linux"))]
    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }
}

impl Counted<TcpStream> {
    /// Has it end with a reset when it is dropped.
    pub(super) fn reset(&self) {
        if let Err(error) = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            caught::tell(|| tracing::debug!(%error, "a connection could not be reset"));
        }
    }
}

impl<S> Deref for Counted<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

/// The socket of a connection, shared with whoever reads and writes it.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Tcp(Arc<Counted<TcpStream>>),
    #[cfg(unix)]
    Unix(Arc<Counted<UnixStream>>),
    /// No socket, and watched as if it were one.
    #[cfg(feature = "test-util")]
    Memory(Arc<Ends>),
}

impl Source {
    /// The bytes that were written to it.
    pub(super) fn sent(&self) -> u64 {
        match self {
            Self::Tcp(tcp) => tcp.sent(),
            #[cfg(unix)]
            Self::Unix(unix) => unix.sent(),
            // That is asked below an encryption, and for acknowledgements.
            #[cfg(feature = "test-util")]
            Self::Memory(_) => 0,
        }
    }

    /// Has it end with a reset when it is dropped; on a Unix socket there is none.
    pub(super) fn reset(&self) {
        match self {
            Self::Tcp(tcp) => tcp.reset(),
            #[cfg(unix)]
            Self::Unix(_) => {}
            #[cfg(feature = "test-util")]
            Self::Memory(ends) => ends.reset(),
        }
    }

    #[cfg(feature = "acknowledged")]
    pub(super) fn is_unix(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Whether it has an error that nobody has been told of; from now on it has not.
    #[cfg(feature = "acknowledged")]
    pub(super) fn has_error(&self) -> bool {
        let error = match self {
            Self::Tcp(tcp) => tcp.stream.take_error(),
            #[cfg(unix)]
            Self::Unix(unix) => unix.stream.take_error(),
            #[cfg(feature = "test-util")]
            Self::Memory(_) => Ok(None),
        };
        error.map_or(true, |error| error.is_some())
    }

    /// Resolves when the peer has left, whatever bytes still wait to be read.
    pub(super) async fn left(self, half_close: HalfClose) {
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
            #[cfg(feature = "test-util")]
            Self::Memory(ends) => return ends.left(half_close).await,
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
