//! Which attempts at a request run: in service, inside of which of our services, and alone.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU32, AtomicU64};

/// What an attempt is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(u64);

impl Count {
    /// Another counts in its place.
    pub(super) const NOTHING: Self = Self(0);
    pub(super) const IN_SERVICE: Self = Self(IN_SERVICE);
    /// Nobody around it waits for it any more: it has called `finish`, or its client has left and whatever was around it has
    /// dropped it.
    pub(super) const ALONE: Self = Self(ALONE);
}

// Two numbers, each with room for more than one request could ever have in memory at once.

/// What is in service: the innermost future of ours, of those around each other.
const IN_SERVICE: u64 = 1;
const ALONE: u64 = 1 << 32;

/// What the first poll of a future of ours came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    /// Another one, in that service, which counted as the attempt until now.
    Attempt(u32),
    /// Another one, in which there was one already.
    Other,
    /// One that goes on by itself, and is the attempt still.
    Alone,
    /// No future of this request's: it is the first, or in a task of its own. The services around it, where it is not told of
    /// that itself.
    Nothing(Option<Around>),
}

/// Numbers of services of ours, as far as they fit in: what another is inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Around(u32);

impl Around {
    pub(super) const NOTHING: Self = Self(0);

    /// And that one.
    pub(super) fn and(self, number: u32) -> Self {
        Self(self.0 | bit(number))
    }
}

/// Nothing, for a number that does not fit in.
fn bit(number: u32) -> u32 {
    1_u32.checked_shl(number.wrapping_sub(1)).unwrap_or(0)
}

pub(super) struct Running {
    /// How many of our services this request has entered.
    entered: AtomicU32,
    /// Those around something that began in a task of its own.
    around: AtomicU32,
    /// Those whose futures count as attempts in service: whoever takes a bit away takes that out of the counts.
    counted: AtomicU32,
    /// In one word, so that of several that end at once the last sees that it is.
    counts: AtomicU64,
}

impl Running {
    pub(super) fn new() -> Self {
        Self {
            entered: AtomicU32::new(1),
            around: AtomicU32::new(0),
            counted: AtomicU32::new(0),
            counts: AtomicU64::new(0),
        }
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
        self.around.load(Ordering::Acquire) & bit(number) != 0
    }

    /// An attempt begins in the service of that number. Whether others go on that it may be inside of, though it is polled in a
    /// task of its own. Those in the services `around` it count no longer: it counts in their place.
    pub(super) fn begin(&self, within: Within, number: u32, around: Around) -> bool {
        let before = self.counts.fetch_add(IN_SERVICE, Ordering::AcqRel);
        self.counted.fetch_or(bit(number), Ordering::AcqRel);
        let Within::Nothing(other) = within else { return false };
        let around = other.unwrap_or(around);
        if around.0 != 0 {
            // In this order: one that begins in this moment is seen here, or sees that it is around.
            self.around.fetch_or(around.0, Ordering::AcqRel);
            let taken = self.counted.fetch_and(!around.0, Ordering::AcqRel) & around.0;
            self.counts.fetch_sub(u64::from(taken.count_ones()), Ordering::AcqRel);
        }
        before > 0
    }

    /// The future in the one service counts from now on in the place of the one in the other. Not if something that began in a
    /// task has taken that place.
    pub(super) fn hand_over(&self, from: u32, to: u32) -> bool {
        let hand = |counted| (bit(from) == 0 || counted & bit(from) != 0).then_some(counted & !bit(from) | bit(to));
        self.counted.fetch_update(Ordering::AcqRel, Ordering::Acquire, hand).is_ok()
    }

    /// What the future in that service counts for. Its end: it counts for nothing then.
    pub(super) fn give_up(&self, number: u32) -> Count {
        let bit = bit(number);
        let counts = bit == 0 || self.counted.fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        if counts { Count::IN_SERVICE } else { Count::NOTHING }
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
        assert!(!running.begin(Within::Nothing(None), 1, Around::NOTHING));
        assert!(!running.begin(Within::Other, 2, Around::NOTHING));
        running.begin_alone(running.give_up(1));
        assert_eq!((running.in_service(), running.any()), (1, true));
        assert!(running.hand_over(2, 70));
        running.leave(running.give_up(2));
        assert_eq!((running.in_service(), running.any()), (1, true));
        running.leave(running.give_up(70));
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
        running.begin(Within::Other, 2, around);
        assert!(!running.is_scattered());
        assert!(running.begin(Within::Nothing(Some(around)), 71, Around::NOTHING) && running.is_scattered());
        // It counts in the place of the other.
        assert_eq!((running.in_service(), running.give_up(2), running.hand_over(2, 3)), (1, Count::NOTHING, false));
        let found: Vec<_> = (1..=70).filter(|number| running.is_around(*number)).collect();
        assert_eq!(found, [1, 2]);
    }
}
