//! What a [`TestServer`](super::TestServer) listens to.

use std::{io, sync::Arc};

use axum::serve::Listener;
use tokio::{net::TcpListener, sync::mpsc};

use super::presence::{Guest, Presence};
use crate::connection::MemoryStream;

/// A listener whose connections are known at both ends.
pub(super) trait Knows: Listener {
    fn guest(io: &Self::Io, address: &Self::Addr) -> Guest;
}

impl Knows for TcpListener {
    fn guest(_: &Self::Io, address: &Self::Addr) -> Guest {
        Guest::Socket(*address)
    }
}

/// Accepts connections in memory.
pub(super) struct MemoryListener(pub(super) mpsc::UnboundedReceiver<MemoryStream>);

impl Knows for MemoryListener {
    fn guest(io: &Self::Io, (): &Self::Addr) -> Guest {
        Guest::Memory(io.number())
    }
}

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

/// A listener that tells whom it accepts, and when it is gone: nobody is accepted any more.
pub(super) struct Telling<L> {
    pub(super) listener: L,
    pub(super) presence: Arc<Presence>,
}

impl<L> Drop for Telling<L> {
    fn drop(&mut self) {
        self.presence.close();
    }
}

impl<L: Knows> Listener for Telling<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.listener.accept().await;
        self.presence.accepted(L::guest(&io, &address));
        (io, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
