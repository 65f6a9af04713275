//! Which attempts at a request run: in service, inside of which of our services, and alone.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU32, AtomicU64};

/// What an attempt is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(u64);

impl Count {
    /// It is part of one that is counted.
    pub(super) const NOTHING: Self = Self(0);
    pub(super) const IN_SERVICE: Self = Self(IN_SERVICE);
    /// Nobody around it waits for it any more: it has called `finish`, or its client has left and whatever was around it has
    /// dropped it.
    pub(super) const ALONE: Self = Self(ALONE);
}

// Two numbers, each with room for more than one request could ever have in memory at once.

/// The innermost future of ours, of those around each other.
const IN_SERVICE: u64 = 1;
const ALONE: u64 = 1 << 32;

/// What the first poll of a future of ours came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    /// Another one, which counted as the attempt until now.
    Attempt,
    /// Another one, in which there was one already.
    Other,
    /// One that goes on by itself, and is the attempt still.
    Alone,
    /// Nothing of this request.
    Nothing,
}

/// Numbers of services of ours, as far as they fit in: what another is inside of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around(u32);

impl Around {
    pub(super) const NOTHING: Self = Self(0);

    /// And that one.
    pub(super) fn and(self, number: u32) -> Self {
        Self(self.0 | 1_u32.checked_shl(number - 1).unwrap_or(0))
    }
}

pub(super) struct Running {
    /// How many of our services this request has entered.
    entered: AtomicU32,
    /// Those around something that began in a task of its own.
    around: AtomicU32,
    /// In one word, so that of several that end at once the last sees that it is.
    counts: AtomicU64,
}

impl Running {
    pub(super) fn new() -> Self {
        Self { entered: AtomicU32::new(1), around: AtomicU32::new(0), counts: AtomicU64::new(0) }
    }

    pub(super) fn enter(&self) -> u32 {
        self.entered.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether any began in a task of its own: nobody knows then whose `finish` protects what.
    pub(super) fn is_scattered(&self) -> bool {
        self.around.load(Ordering::Acquire) != 0
    }

    /// Whether something inside of that service began in a task of its own. Then that is the handler, and the service is around.
    #[inline]
    pub(super) fn is_around(&self, number: u32) -> bool {
        self.around.load(Ordering::Acquire) & Around::NOTHING.and(number).0 != 0
    }

    /// An attempt begins. Whether another goes on that it may be inside of, and so are the services `around` it, though it is
    /// polled in a task of its own.
    pub(super) fn begin(&self, within: Within, around: Around) -> bool {
        let before = self.counts.fetch_add(IN_SERVICE, Ordering::AcqRel);
        let is_apart = within == Within::Nothing && before > 0;
        if is_apart {
            self.around.fetch_or(around.0, Ordering::AcqRel);
        }
        is_apart
    }

    /// It was counted by that, and goes on by itself.
    pub(super) fn begin_alone(&self, before: Count) {
        self.counts.fetch_add(ALONE, Ordering::AcqRel);
        self.leave(before);
    }

    /// An attempt has ended. Before that is told: of several that end at once, the last tells.
    pub(super) fn leave(&self, count: Count) {
        self.counts.fetch_sub(count.0, Ordering::AcqRel);
    }

    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres", test))]
    pub(super) fn in_service(&self) -> u64 {
        self.counts.load(Ordering::Acquire) % ALONE
    }

    /// Whether any attempt goes on, in service or alone.
    pub(super) fn any(&self) -> bool {
        self.counts.load(Ordering::Acquire) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_counts() {
        let running = Running::new();
        assert!(!running.begin(Within::Nothing, Around::NOTHING));
        assert!(!running.begin(Within::Other, Around::NOTHING));
        running.begin_alone(Count::IN_SERVICE);
        assert_eq!((running.in_service(), running.any()), (1, true));
        running.leave(Count::IN_SERVICE);
        assert_eq!((running.in_service(), running.any()), (0, true));
        running.begin_alone(Count::NOTHING);
        running.leave(Count::ALONE);
        assert!(running.any());
        running.leave(Count::ALONE);
        assert!(!running.any());
    }

    #[test]
    fn what_is_around_one_in_a_task_is_known() {
        let running = Running::new();
        let around = Around::NOTHING.and(1).and(2).and(33).and(70);
        running.begin(Within::Other, around);
        assert!(!running.is_scattered());
        assert!(running.begin(Within::Nothing, around) && running.is_scattered());
        let found: Vec<_> = (1..=70).filter(|number| running.is_around(*number)).collect();
        assert_eq!(found, [1, 2]);
    }
}
