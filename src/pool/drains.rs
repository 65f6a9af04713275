//! The drains of a pool, and who waits for one.

use std::future::{Future, pending};

use tokio::sync::watch;

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

    pub(crate) fn is_under_way(&self) -> bool {
        self.0.borrow().under_way > 0
    }

    /// Resolves when one is under way, or was since this was called.
    pub(crate) fn begun(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let mut drains = self.subscribe();
        let before = drains.borrow().over;
        async move {
            if drains.wait_for(|drains| drains.under_way > 0 || drains.over > before).await.is_err() {
                // Nobody is left who could begin one.
                pending::<()>().await;
            }
        }
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
