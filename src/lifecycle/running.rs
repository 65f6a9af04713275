//! What runs of a request's handler: futures of our services around each other, and attempts beside each other.

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

// Three numbers, each with room for more than one request could ever have in memory at once.

/// A future of one of our services that has begun and not ended.
const FUTURE: u64 = 1;
/// An attempt in service: the innermost of those futures.
const IN_SERVICE: u64 = 1 << 20;
const ALONE: u64 = 1 << 40;

/// Of `entered`: one began in a task of its own, so that nobody knows whose `finish` protects it.
const SCATTERED: u32 = 1 << 31;

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
        (self.entered.fetch_add(1, Ordering::AcqRel) + 1) & !SCATTERED
    }

    /// Whether one began in a task of its own.
    pub(super) fn is_scattered(&self) -> bool {
        self.entered.load(Ordering::Acquire) & SCATTERED != 0
    }

    /// Whether something inside of that service began in a task of its own. Then that is the handler, and the service is around.
    #[inline]
    pub(super) fn is_around(&self, number: u32) -> bool {
        self.around.load(Ordering::Acquire) & Around::NOTHING.and(number).0 != 0
    }

    /// A future of one of our services that could be the innermost. Whether it began in a task of its own: inside of the services
    /// `around`, but in the poll of none.
    pub(super) fn begin(&self, within: Within, around: Around) -> bool {
        let is_part = matches!(within, Within::Attempt | Within::Alone);
        let before = self.counts.fetch_add(FUTURE + if is_part { 0 } else { IN_SERVICE }, Ordering::AcqRel);
        let is_apart = within == Within::Nothing && futures(before) > 0;
        if is_apart {
            self.scatter(around);
        }
        is_apart
    }

    /// One that began inside of what goes on alone is polled elsewhere.
    pub(super) fn begin_apart(&self, around: Around) {
        self.counts.fetch_add(IN_SERVICE, Ordering::AcqRel);
        self.scatter(around);
    }

    fn scatter(&self, Around(around): Around) {
        self.entered.fetch_or(SCATTERED, Ordering::AcqRel);
        self.around.fetch_or(around, Ordering::AcqRel);
    }

    /// Whether it was the last.
    pub(super) fn end(&self) -> bool {
        futures(self.counts.fetch_sub(FUTURE, Ordering::AcqRel)) == 1
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
        self.counts.load(Ordering::Acquire) % ALONE / IN_SERVICE
    }

    /// Whether any attempt goes on, in service or alone.
    pub(super) fn any(&self) -> bool {
        self.counts.load(Ordering::Acquire) >= IN_SERVICE
    }
}

fn futures(counts: u64) -> u64 {
    counts % IN_SERVICE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_in_service_counts() {
        let running = Running::new();
        running.begin(Within::Nothing, Around::NOTHING);
        running.begin(Within::Attempt, Around::NOTHING);
        assert_eq!(running.in_service(), 1);
        running.begin(Within::Other, Around::NOTHING);
        assert_eq!((running.in_service(), running.is_scattered()), (2, false));
        running.leave(Count::IN_SERVICE);
        assert!(running.any() && !running.end());
        running.leave(Count::IN_SERVICE);
        assert!(!running.any() && !running.end());
        assert!(running.end());
    }

    #[test]
    fn one_in_a_task_of_its_own_is_another() {
        let running = Running::new();
        assert!(!running.begin(Within::Nothing, Around::NOTHING));
        assert!(running.begin(Within::Nothing, Around::NOTHING));
        assert_eq!((running.enter(), running.is_scattered(), running.in_service()), (2, true, 2));
        running.leave(Count::IN_SERVICE);
        assert!(running.any() && !running.end());
        assert!(!running.begin(Within::Attempt, Around::NOTHING));
        running.leave(Count::IN_SERVICE);
        assert!(!running.any() && !running.end() && running.end());
    }

    #[test]
    fn what_is_around_one_in_a_task_is_known() {
        let running = Running::new();
        let around = Around::NOTHING.and(1).and(2).and(33).and(70);
        running.begin(Within::Nothing, Around::NOTHING);
        running.begin(Within::Nothing, around);
        let found: Vec<_> = (1..=70).filter(|number| running.is_around(*number)).collect();
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn what_goes_on_alone_is_counted_with_all_that_is_inside() {
        let running = Running::new();
        running.begin(Within::Nothing, Around::NOTHING);
        running.begin_alone(Count::IN_SERVICE);
        running.begin(Within::Alone, Around::NOTHING);
        running.leave(Count::NOTHING);
        assert!(running.any() && !running.end() && running.end());
        assert!(running.any());
        running.leave(Count::ALONE);
        assert!(!running.any());
    }
}
