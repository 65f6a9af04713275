//! The connections that a server has open.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

#[cfg(feature = "test-util")]
use tokio::sync::Notify;

use crate::{
    connection::{Asked, Connection},
    pool::{self, lock},
};

/// The open connections of one server.
#[derive(Default)]
pub(crate) struct OpenConnections {
    open: Mutex<HashMap<u64, Connection>>,
    accepted: AtomicU64,
    #[cfg(feature = "test-util")]
    changed: Notify,
}

/// A connection's place among the open ones; given back when it is dropped.
pub(super) struct Open {
    key: u64,
    open: Arc<OpenConnections>,
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.open.open).remove(&self.key);
        self.open.tell();
    }
}

impl OpenConnections {
    pub(super) fn insert(self: &Arc<Self>, connection: Connection) -> Open {
        let mut open = lock(&self.open);
        // Relaxed: it is counted under the lock.
        let key = self.accepted.fetch_add(1, Ordering::Relaxed);
        open.insert(key, connection);
        drop(open);
        self.tell();
        Open { key, open: self.clone() }
    }

    /// Has all of them do what their server asks; tells how many they are.
    pub(super) fn ask(&self, asked: Asked) -> usize {
        let open: Vec<_> = lock(&self.open).values().cloned().collect();
        // Outside of the lock: whoever is woken may end, and take its place out.
        open.iter().for_each(|connection| connection.ask(asked));
        open.len()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// The requests in flight on all of them.
    pub(crate) fn in_flight(&self) -> Vec<Arc<dyn pool::Straggler>> {
        lock(&self.open).values().flat_map(Connection::in_flight).collect()
    }

    #[cfg(feature = "test-util")]
    fn tell(&self) {
        self.changed.notify_waiters();
    }

    #[cfg(not(feature = "test-util"))]
    #[expect(clippy::unused_self, reason = "it is the harness that listens")]
    fn tell(&self) {}
}

#[cfg(feature = "test-util")]
impl OpenConnections {
    /// Whether that one of all that were accepted, counted from 0, was open and is no more.
    pub(crate) fn has_let_go_of(&self, key: u64) -> bool {
        let open = lock(&self.open);
        key < self.accepted.load(Ordering::Relaxed) && !open.contains_key(&key)
    }

    /// For whoever waits until there are more, or fewer.
    pub(crate) fn changed(&self) -> &Notify {
        &self.changed
    }
}
