//! A listener whose connections are tracked.

use std::io;

use axum::serve::Listener;

use super::{TrackedIo, Tracking};

/// Wraps any [`axum::serve::Listener`], so that flushes and client disconnects on its connections are seen.
///
/// It must be used together with [`Epilogue::make_service`](crate::Epilogue::make_service), through which requests
/// learn of their connection. A router served without it also compiles, but its layers then work as if they were
/// [alone](crate::manual::connection#without-a-tracked-connection).
///
/// ```no_run
/// # async fn serve(app: axum::Router) -> std::io::Result<()> {
/// use tower_epilogue::{Epilogue, TrackedListener, shutdown_signal};
///
/// let epilogue = Epilogue::new();
/// let listener = TrackedListener::new(tokio::net::TcpListener::bind("127.0.0.1:3000").await?);
/// axum::serve(listener, epilogue.make_service(app)).with_graceful_shutdown(shutdown_signal()).await?;
/// println!("{}", epilogue.drain().await); // waits for the continuations, too
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TrackedListener<L> {
    inner: L,
    tracking: Tracking,
}

impl<L> TrackedListener<L> {
    /// Wraps `inner`, with the default [settings](Tracking).
    pub fn new(inner: L) -> Self {
        Self::with(inner, Tracking::default())
    }

    /// Wraps `inner`, with the settings of `tracking`.
    pub fn with(inner: L, tracking: Tracking) -> Self {
        Self { inner, tracking }
    }

    /// The listener inside.
    pub fn get_ref(&self) -> &L {
        &self.inner
    }
}

impl<L: Listener> Listener for TrackedListener<L> {
    type Io = TrackedIo<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, addr) = self.inner.accept().await;
        (TrackedIo::with(io, &self.tracking), addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}
