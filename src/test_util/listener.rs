//! What a [`TestServer`](super::TestServer) listens to.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::serve::Listener;
use tokio::sync::{Notify, mpsc};

use crate::connection::MemoryStream;

/// Accepts connections in memory.
pub(super) struct MemoryListener(pub(super) mpsc::UnboundedReceiver<MemoryStream>);

impl Listener for MemoryListener {
    type Io = MemoryStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(io) => (io, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(())
    }
}

/// A listener that tells when it is gone: nobody is accepted any more.
pub(super) struct Closing<L> {
    pub(super) listener: L,
    pub(super) closed: Arc<Closed>,
}

#[derive(Default)]
pub(super) struct Closed {
    closed: AtomicBool,
    news: Notify,
}

impl Closed {
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// For whoever waits for it.
    pub(super) fn news(&self) -> &Notify {
        &self.news
    }
}

impl<L> Drop for Closing<L> {
    fn drop(&mut self) {
        self.closed.closed.store(true, Ordering::Release);
        self.closed.news.notify_waiters();
    }
}

impl<L: Listener> Listener for Closing<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.listener.accept().await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
