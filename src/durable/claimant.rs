//! A request's claim on its key, for all that may answer it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::idempotency::Guard;
use crate::pool::lock;

/// The claim, if the request has a key. It goes to the response that is kept.
#[derive(Default)]
pub(super) struct Claimant {
    guard: Mutex<Option<Guard>>,
    /// How many go on that may come to the one.
    going: AtomicUsize,
}

impl Claimant {
    pub(super) fn take(&self) -> Option<Guard> {
        lock(&self.guard).take()
    }

    pub(super) fn put(&self, guard: Guard) {
        *lock(&self.guard) = Some(guard);
    }

    /// Something goes on as long as the value lives.
    pub(super) fn goes_on(self: &Arc<Self>) -> Going {
        self.going.fetch_add(1, Ordering::AcqRel);
        Going(self.clone())
    }

    pub(super) fn going(&self) -> usize {
        self.going.load(Ordering::Acquire)
    }
}

/// Something goes on.
pub(super) struct Going(Arc<Claimant>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.going.fetch_sub(1, Ordering::AcqRel);
    }
}
