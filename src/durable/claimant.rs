//! A request's claim on its key, for all that may answer it.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use http::Extensions;

use super::{
    Durable,
    idempotency::{Guard, IdempotencyKey},
    store::fill_key,
};
use crate::pool::lock;

/// The claim, if the request has a key. It goes to the response that is kept.
#[derive(Default)]
pub(super) struct Claimant {
    guard: Mutex<Option<Guard>>,
    key: OnceLock<IdempotencyKey>,
    /// How many responses are held back that may be the one.
    held: AtomicUsize,
}

impl Claimant {
    /// It was claimed.
    pub(super) fn has(&self, guard: Guard, key: IdempotencyKey) {
        *lock(&self.guard) = Some(guard);
        let _ = self.key.set(key);
    }

    pub(super) fn take(&self) -> Option<Guard> {
        lock(&self.guard).take()
    }

    pub(super) fn put_back(&self, guard: Guard) {
        *lock(&self.guard) = Some(guard);
    }

    /// What identifies the request, if it has a key, whoever has the claim.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.get().map(IdempotencyKey::as_str)
    }

    /// Gives the jobs that a handler returned their keys, wherever its response goes from here. Those of two attempts have the
    /// same.
    pub(super) fn stamp(&self, extensions: &mut Extensions) {
        let Some(key) = self.key() else { return };
        for (index, promise) in Durable::take_from(extensions).into_iter().enumerate() {
            Durable::put_back(promise, extensions, |job| fill_key(job, Some((key, index))));
        }
    }

    pub(super) fn hold(self: &Arc<Self>) -> Held {
        self.held.fetch_add(1, Ordering::AcqRel);
        Held(self.clone())
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) > 0
    }
}

/// A response is held back.
pub(super) struct Held(Arc<Claimant>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}
