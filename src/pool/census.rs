//! Who is told of every request and connection of a pool when it begins: its status page.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use super::Straggler;
use crate::event::RequestId;

/// Told in the task that the request or the connection is served in, so that what happens later finds it known.
///
/// None of this runs user code.
pub(crate) trait Census: Send + Sync {
    /// A request arrived; or, if it is `stored`, an attempt at a durable job began.
    fn arrived(&self, request: RequestId, stored: bool, straggler: Weak<dyn Straggler>);
    fn connected(&self, connection: Weak<dyn Open>);
    /// For the page, which knows what it is.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A connection, which may be open.
pub(crate) trait Open: Send + Sync {
    fn is_open(&self) -> bool;
}

/// The drains of a pool.
#[derive(Debug, Default)]
pub(crate) struct Drains(watch::Sender<DrainCount>);

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DrainCount {
    pub(crate) under_way: usize,
    /// Only ever more, so that a short one is not missed.
    pub(crate) over: u64,
}

/// A drain; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Draining<'a>(&'a Drains);

impl Drains {
    pub(crate) fn begin(&self) -> Draining<'_> {
        self.0.send_modify(|drains| drains.under_way += 1);
        Draining(self)
    }

    /// For whoever waits until one begins, or is over.
    pub(crate) fn subscribe(&self) -> watch::Receiver<DrainCount> {
        self.0.subscribe()
    }
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|drains| {
            drains.under_way -= 1;
            drains.over += 1;
        });
    }
}
