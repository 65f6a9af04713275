//! What is logged once a second, with its number: an overload must not be made worse by its log.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Lets a message through once a second, with the number of those since the last.
#[derive(Default)]
pub(super) struct Throttle {
    /// In milliseconds of the process, plus one; 0 before the first.
    last: AtomicU64,
    count: AtomicU64,
}

impl Throttle {
    pub(super) fn hit(&self) -> Option<u64> {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        self.count.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(BEGAN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX) + 1;
        let last = self.last.load(Ordering::Relaxed);
        // Of several at once, the one that changes it speaks.
        let due = last == 0 || now - last.min(now) >= 1000;
        let mine = due && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        mine.then(|| self.count.swap(0, Ordering::Relaxed))
    }
}

/// One throttle for what no gate refuses.
#[derive(Default)]
pub(crate) struct Refusals(Throttle);

impl Refusals {
    pub(crate) fn tell(&self, route: &str, why: &'static str) {
        tracing::debug!(route, why, "a request was refused");
        if let Some(count) = self.0.hit() {
            tracing::warn!(route, count, why, "requests are refused");
        }
    }
}
