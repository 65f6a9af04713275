//! The one clock that bounds a request, from its arrival to its continuation's end (contract rule 6).

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Wake,
    time::Duration,
};

use tokio::time::Instant;

use super::deadlines::{Deadlines, Place};

/// Which time a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ClockKind {
    /// Wall-clock time: sleeping and waiting count.
    #[default]
    Wall,
    /// The time in which the request's own code runs: its futures' polls. Neither sleep nor IO counts, as in
    /// PHP on Unix.
    Busy,
}

/// From when on a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// From the request's arrival: what a layer says.
    Arrival,
    /// From now: what the handler says.
    Now,
}

/// What the log says.
pub(super) const LIMIT_PASSED: &str = "the time limit passed";
const NEVER: u64 = u64::MAX >> 1;
/// A limit of busy time; the rest is how much of it.
const BUSY: u64 = 1 << 63;
/// How much a single poll may overrun the limit before it is reported.
const OVERSTAY: Duration = Duration::from_millis(10);

/// What a measured poll did to the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// The busy time is used up.
    pub(super) exhausted: bool,
    /// The poll ran so far past the limit.
    pub(super) overstayed: Option<Duration>,
}

/// All times are nanoseconds since the request's arrival, so that they fit an atomic.
pub(super) struct Clock {
    arrived: Instant,
    /// Wall clock: when the limit passes, or `NEVER`. Busy clock: [`BUSY`], and what may be used, or `NEVER`.
    limit: AtomicU64,
    used: AtomicU64,
    /// Among the deadlines that are waited for.
    place: Place,
    /// It is there, or has been since the limit was set.
    armed: AtomicBool,
    /// Something has waited while there was no limit.
    waited: AtomicBool,
    /// It may have a place there.
    placed: AtomicBool,
    /// Somebody wants it waited for, and does not know where.
    asked: AtomicBool,
    /// Since when a poll is being measured, plus 2; 1 until that is known, and 0 while none is. One that runs meanwhile, inside of
    /// it or on another thread (a body beside the handler that finished it), is not counted, rather than twice.
    measuring: AtomicU64,
}

/// Ends the measuring also when a poll panics.
struct Measuring<'a>(&'a AtomicU64);

impl Drop for Measuring<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("left", &self.left()).finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).map_or(NEVER, |nanos| nanos.min(NEVER))
}

/// A limit as it was at one moment.
#[derive(Clone, Copy)]
struct Limit(u64);

impl Limit {
    fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    fn is_none(self) -> bool {
        self.0 & NEVER == NEVER
    }

    /// Wall clock: when it passes.
    fn deadline(self) -> Option<u64> {
        (!self.is_busy() && !self.is_none()).then_some(self.0)
    }

    /// Busy clock: what may be used.
    fn budget(self) -> Option<u64> {
        (self.is_busy() && !self.is_none()).then_some(self.0 & NEVER)
    }
}

impl Clock {
    pub(super) fn new(arrived: Instant) -> Self {
        Self {
            arrived,
            limit: AtomicU64::new(NEVER),
            used: AtomicU64::new(0),
            place: Place::none(),
            armed: AtomicBool::new(false),
            waited: AtomicBool::new(false),
            placed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            measuring: AtomicU64::new(0),
        }
    }

    /// When the request arrived.
    pub(super) fn arrived(&self) -> Instant {
        self.arrived
    }

    fn now(&self) -> u64 {
        nanos(self.arrived.elapsed())
    }

    /// Sets the limit, from `start` on. Zero lifts it, and so does one too long to reckon with.
    ///
    /// The orderings are those of independent settings: a poll that is being measured meanwhile may be judged
    /// by the limit before or by the one after. `Release` and `Acquire` make the timer see the latest.
    pub(super) fn set(&self, limit: Duration, start: Start, kind: Option<ClockKind>) {
        let busy = kind.map_or_else(|| self.is_busy(), |kind| kind == ClockKind::Busy);
        let limit = if limit.is_zero() { NEVER } else { nanos(limit) };
        let limit = if busy {
            // What was used before counts for a layer's limit, as does what an attempt before has used.
            if start == Start::Now {
                self.used.store(0, Ordering::Release);
                // What is busy at this moment has used nothing until then.
                let now = self.now().saturating_add(2);
                let restart = |began| (began > 1).then_some(now);
                let _ = self.measuring.fetch_update(Ordering::AcqRel, Ordering::Acquire, restart);
            }
            limit | BUSY
        } else {
            let start = match start {
                Start::Arrival => 0,
                Start::Now => self.now(),
            };
            limit.saturating_add(start).min(NEVER)
        };
        self.limit.store(limit, Ordering::Release);
        // One that runs is moved by whoever calls `arm` next; it is never early, since it looks at the deadline.
        self.armed.store(false, Ordering::Release);
    }

    fn limit(&self) -> Limit {
        Limit(self.limit.load(Ordering::Acquire))
    }

    /// What is left of the limit; `None` without one.
    pub(super) fn left(&self) -> Option<Duration> {
        let limit = self.limit();
        if let Some(budget) = limit.budget() {
            // With what the poll has used that asks.
            let used = self.used.load(Ordering::Acquire).saturating_add(self.measured_so_far());
            return Some(Duration::from_nanos(budget.saturating_sub(used)));
        }
        limit.deadline().map(|deadline| Duration::from_nanos(deadline.saturating_sub(self.now())))
    }

    /// What is left on the busy clock for a thread, which is no poll; `None` if that is not the one that counts.
    pub(super) fn busy_left(&self) -> Option<Duration> {
        let budget = self.limit().budget()?;
        Some(Duration::from_nanos(budget.saturating_sub(self.used.load(Ordering::Acquire))))
    }

    /// How long the poll that is being measured has taken; zero where none is.
    fn measured_so_far(&self) -> u64 {
        self.measuring.load(Ordering::Acquire).checked_sub(2).map_or(0, |began| self.now().saturating_sub(began))
    }

    /// Something was busy so long; tells how much is used.
    fn spend(&self, spent: u64) -> u64 {
        self.used.fetch_add(spent, Ordering::AcqRel).saturating_add(spent)
    }

    /// A thread was busy so long: that is one long poll.
    pub(super) fn ran(&self, time: Duration) {
        if self.limit().budget().is_some() {
            self.spend(nanos(time));
        }
    }

    /// Whether the busy time is used up by the poll that is being measured.
    pub(super) fn is_used_up(&self) -> bool {
        let Some(budget) = self.limit().budget() else { return false };
        self.used.load(Ordering::Acquire).saturating_add(self.measured_so_far()) >= budget
    }

    /// Whether polls are what the limit counts.
    pub(super) fn is_busy(&self) -> bool {
        self.limit().is_busy()
    }

    /// Whether any limit is set.
    #[inline]
    pub(super) fn is_limited(&self) -> bool {
        !self.limit().is_none()
    }

    /// Whether a wall limit is set.
    pub(super) fn is_wall_limited(&self) -> bool {
        self.limit().deadline().is_some()
    }

    /// Somebody wants the limit waited for, and does not know where: before a look at whether the head has left.
    ///
    /// SeqCst, here and in `was_asked`: one of both comes first, and the other then sees to it.
    pub(super) fn note_asked(&self) {
        self.asked.swap(true, Ordering::SeqCst);
    }

    /// The same behind the head.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::SeqCst)
    }

    /// Whether a wall limit is set and has passed.
    pub(super) fn is_past(&self) -> bool {
        self.limit().deadline().is_some_and(|deadline| self.now() >= deadline)
    }

    /// Runs one poll of the user's on this clock. Without a limit that costs a load.
    ///
    /// Polls nest, as services do; the outermost counts for all. The `first` poll of all began with the request's
    /// arrival, if nothing has waited since: that saves one look at the clock.
    pub(super) fn measure<T>(&self, first: bool, poll: impl FnOnce() -> T) -> (T, Measured) {
        let limit = self.limit();
        let mut measured = Measured { exhausted: false, overstayed: None };
        if limit.is_none() {
            return (poll(), measured);
        }
        if self.measuring.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return (poll(), measured);
        }
        let measuring = Measuring(&self.measuring);
        let has_waited = self.armed.load(Ordering::Acquire) || self.waited.load(Ordering::Relaxed);
        let begins_now = !first || limit.is_busy() || has_waited;
        let began = if begins_now { self.now() } else { 0 };
        self.measuring.store(began.saturating_add(2), Ordering::Release);
        let result = poll();
        let ended = self.now();
        // Since the limit was restarted, if it was.
        let busy_since = self.measuring.load(Ordering::Acquire).saturating_sub(2);
        drop(measuring);
        // Read again: the poll may have restarted the limit.
        let limit = self.limit();
        if let Some(budget) = limit.budget() {
            let used = self.spend(ended.saturating_sub(busy_since));
            measured.exhausted = used >= budget;
            let over = Duration::from_nanos(used.saturating_sub(budget));
            measured.overstayed = (measured.exhausted && over > OVERSTAY).then_some(over);
        } else if let Some(deadline) = limit.deadline() {
            let over = Duration::from_nanos(ended.saturating_sub(deadline));
            // One that only began late is not to blame.
            measured.overstayed = (began < deadline && over > OVERSTAY).then_some(over);
        }
        (result, measured)
    }

    /// Has `who` woken when the wall limit passes; true if `who` waits for it already, and it has passed.
    ///
    /// It is put among the `deadlines` at the first call, so that a request which never waits pays nothing for its limit. If the
    /// runtime knows that it has passed, it is woken there and then.
    pub(super) fn arm<'a, T: Wake + Send + Sync + 'static>(
        &self,
        deadlines: impl FnOnce() -> Cow<'a, Arc<Deadlines<T>>>,
        who: impl FnOnce() -> Option<Arc<T>>,
    ) -> bool {
        let Some(deadline) = self.limit().deadline() else {
            // Relaxed: the one who asks is the task that waits here.
            self.waited.store(true, Ordering::Relaxed);
            return false;
        };
        if self.armed.swap(true, Ordering::AcqRel) {
            return self.now() >= deadline;
        }
        if let Some(who) = who() {
            deadlines().put(&self.place, who, || {
                // Read again: it may have been set meanwhile, by one whose own call of this then comes, or came, after the swap.
                let at = self.arrived.checked_add(Duration::from_nanos(self.limit().deadline()?))?;
                // SeqCst, here and in `was_placed`: of this and the end of the request, one comes first, and the other then sees
                // to it that nothing stays.
                self.placed.swap(true, Ordering::SeqCst);
                Some(at)
            });
        }
        false
    }

    /// Nobody is woken any more.
    pub(super) fn stop<T: Wake + Send + Sync + 'static>(&self, deadlines: &Deadlines<T>, who: Arc<T>) {
        deadlines.take_off(&self.place, who);
    }

    /// Whether there is anything to [stop](Self::stop): also a limit that was lifted or moved since, for it keeps whom it would
    /// wake. It is told once.
    pub(super) fn was_placed(&self) -> bool {
        self.placed.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
