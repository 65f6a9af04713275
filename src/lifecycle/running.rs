//! What runs of a request's handler: futures of our services around each other, and attempts beside each other.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU32, AtomicU64};

/// An attempt that nobody around it waits for any more, by what made it so. What one is counted by: beyond all futures of our
/// services, and all other attempts, that one request could ever have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Apart {
    /// It has called `finish`.
    Finished = 1 << 21,
    /// Its client has left, and whatever was around it has dropped it.
    Left = 1 << 42,
}

/// There is one in service.
const IN_SERVICE: u64 = 1 << 63;

pub(super) struct Running {
    /// How many of our services this request has entered. The innermost is the one whose number stays the highest.
    entered: AtomicU32,
    /// The innermost of them that was ever polled.
    deepest: AtomicU32,
    /// In one word, so that of several that end at once the last sees that it is.
    counts: AtomicU64,
}

impl Running {
    pub(super) fn new() -> Self {
        Self { entered: AtomicU32::new(1), deepest: AtomicU32::new(0), counts: AtomicU64::new(0) }
    }

    pub(super) fn enter(&self) -> u32 {
        self.entered.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn is_innermost(&self, depth: u32) -> bool {
        self.entered.load(Ordering::Acquire) == depth
    }

    /// Nothing inside of this service was ever polled, although it may have been called.
    pub(super) fn is_deepest(&self, depth: u32) -> bool {
        self.deepest.load(Ordering::Acquire) == depth
    }

    /// A future of one of our services that could be the innermost.
    pub(super) fn begin(&self, depth: u32) {
        self.deepest.fetch_max(depth, Ordering::AcqRel);
        let _ = self.counts.fetch_update(Ordering::AcqRel, Ordering::Acquire, |counts| Some((counts | IN_SERVICE) + 1));
    }

    /// Whether it was the last; then none is in service.
    pub(super) fn end(&self) -> bool {
        let futures = |counts| counts % Apart::Finished as u64;
        let ended = |counts| {
            let left = counts - 1;
            Some(if futures(left) == 0 { left & !IN_SERVICE } else { left })
        };
        self.counts.fetch_update(Ordering::AcqRel, Ordering::Acquire, ended).is_ok_and(|before| futures(before) == 1)
    }

    /// It is in service no more.
    pub(super) fn begin_apart(&self, why: Apart) {
        self.counts.fetch_add(why as u64, Ordering::AcqRel);
        self.leave(None);
    }

    /// An attempt has ended, in service or `apart`. Before that is told: of several that end at once, the last tells.
    pub(super) fn leave(&self, apart: Option<Apart>) {
        match apart {
            Some(why) => self.counts.fetch_sub(why as u64, Ordering::AcqRel),
            None => self.counts.fetch_and(!IN_SERVICE, Ordering::AcqRel),
        };
    }

    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) fn is_in_service(&self) -> bool {
        self.counts.load(Ordering::Acquire) >= IN_SERVICE
    }

    /// Whether any attempt goes on, in service or apart.
    pub(super) fn any(&self) -> bool {
        self.counts.load(Ordering::Acquire) >= Apart::Finished as u64
    }

    /// Whether any goes on that has finished.
    pub(super) fn any_finished(&self) -> bool {
        self.counts.load(Ordering::Acquire) % Apart::Left as u64 >= Apart::Finished as u64
    }
}
