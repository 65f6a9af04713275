//! The signals that stop a server.

#[cfg(feature = "serve")]
use std::sync::Arc;
use std::{future::pending, io};

#[cfg(feature = "serve")]
use tokio::sync::Mutex;

#[cfg(feature = "serve")]
use super::{Serve, WithGracefulShutdown};
use crate::pool::caught;

/// Resolves when the process is asked to stop: by Ctrl-C (SIGINT), or on Unix by SIGTERM, as service managers and
/// containers do.
///
/// From its first poll on, for the rest of the process's life, neither signal ends the process by itself. A server
/// that is drained with it cannot be stopped by a second signal, unless another one is given to
/// [`cut_on`](crate::WithGracefulShutdown::cut_on); with [`Serve::with_signals`](crate::Serve::with_signals) it can.
///
/// # Cancel safety
///
/// If it is dropped, a signal that arrived meanwhile is lost.
pub async fn shutdown_signal() {
    Signals::new().next().await;
}

/// The signals of the system. One that comes between two calls of `next` is not lost.
struct Signals {
    #[cfg(unix)]
    streams: Option<[tokio::signal::unix::Signal; 2]>,
    #[cfg(windows)]
    stream: Option<tokio::signal::windows::CtrlC>,
}

fn listening<S>(stream: io::Result<S>) -> Option<S> {
    let said = "cannot listen for the signals to stop: none will stop this server gracefully";
    stream.map_err(|error| caught::tell(|| tracing::error!(%error, "{said}"))).ok()
}

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};

        let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()].map(signal).map(listening);
        Self { streams: interrupt.zip(terminate).map(<[_; 2]>::from) }
    }

    async fn next(&mut self) {
        match &mut self.streams {
            Some([interrupt, terminate]) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            None => pending().await,
        }
    }
}

#[cfg(windows)]
impl Signals {
    fn new() -> Self {
        Self { stream: listening(tokio::signal::windows::ctrl_c()) }
    }

    async fn next(&mut self) {
        match &mut self.stream {
            Some(stream) => drop(stream.recv().await),
            None => pending().await,
        }
    }
}

#[cfg(feature = "serve")]
impl<L: axum::serve::Listener, S> Serve<L, S> {
    /// Shuts down gracefully (drains) at the first Ctrl-C or SIGTERM, as
    /// [`with_graceful_shutdown`](Self::with_graceful_shutdown) does, and at the second cuts what is left at once.
    ///
    /// From its first poll on, neither signal ends the process by itself any more.
    pub fn with_signals(self) -> WithGracefulShutdown<L, S, impl Future<Output = ()> + Send + 'static> {
        let first = Arc::new(Mutex::new(None));
        let second = first.clone();
        let drains = async move { first.lock().await.get_or_insert_with(Signals::new).next().await };
        let cuts = async move { second.lock().await.get_or_insert_with(Signals::new).next().await };
        self.with_graceful_shutdown(drains).cut_on(cuts)
    }
}
