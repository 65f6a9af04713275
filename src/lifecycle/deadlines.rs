//! The wall-clock limits of a runtime's requests, all under one timer (contract rule 6).
//!
//! A timer for each request would cost it an allocation, and two turns under the lock of the runtime's timers, for a limit that
//! hardly ever passes. This one is set for the earliest deadline. It is left alone when that is taken off, but for the last: then
//! it rings for nothing, once, and is set for the one that is the earliest by then.

use std::{
    cmp::Ordering as Order,
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, Sleep},
};

use super::timer::poll_sleep;
use crate::pool::{caught, lock};

const NEVER: u64 = u64::MAX;
/// What is further away is looked at again after this long: tokio's timers reach no further than two years.
const FURTHEST: u64 = 365 * 24 * 60 * 60 * 1_000_000_000;
/// So many are woken between two turns under the lock.
const BATCH: usize = 1_000;

/// The deadlines that are waited for in one runtime, each with whom it wakes, which it keeps until then.
pub(super) struct Deadlines<T> {
    runtime: Handle,
    /// All times are nanoseconds since then.
    epoch: Instant,
    state: Mutex<State<T>>,
}

struct State<T> {
    due: BTreeSet<Due<T>>,
    /// `None` before the first deadline, and while somebody [sets](Setting) it.
    timer: Option<Pin<Box<Sleep>>>,
    /// When it rings; `NEVER` if it does not.
    rings: u64,
    /// Somebody sets it outside of the lock, and looks at the deadlines once more afterwards.
    is_being_set: bool,
    /// The runtime has ended, and its timers with it.
    is_over: bool,
}

/// Where somebody stands among the deadlines: kept by whoever has it, read and written under their lock.
#[derive(Debug)]
pub(super) struct Place(AtomicU64);

impl Place {
    pub(super) const fn none() -> Self {
        Self(AtomicU64::new(NEVER))
    }
}

/// By their time, and the same at the same time by who they are: nobody is here twice.
struct Due<T> {
    at: u64,
    who: Arc<T>,
}

impl<T> Due<T> {
    fn key(&self) -> (u64, *const T) {
        (self.at, Arc::as_ptr(&self.who))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Order {
        self.key().cmp(&other.key())
    }
}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Due<T> {}

impl<T> fmt::Debug for Deadlines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadlines").field("runtime", &self.runtime.id()).finish_non_exhaustive()
    }
}

impl<T> State<T> {
    /// Takes `who` off, and gives back what was kept of it.
    fn take(&mut self, place: &Place, who: Arc<T>) -> (Option<Due<T>>, Arc<T>) {
        // Relaxed, here and below: under the lock.
        let mine = Due { at: place.0.swap(NEVER, Ordering::Relaxed), who };
        let kept = if mine.at == NEVER { None } else { self.due.take(&mine) };
        (kept, mine.who)
    }

    /// Takes off those whose time has come, the earliest first: so many that the lock is not held for long.
    fn take_passed(&mut self, now: u64) -> Vec<Arc<T>> {
        let mut passed = Vec::new();
        while passed.len() < BATCH && self.due.first().is_some_and(|due| due.at <= now) {
            passed.extend(self.due.pop_first().map(|due| due.who));
        }
        passed
    }

    /// Whether the timer has rung since it was set, which is noted.
    fn has_rung(&mut self) -> bool {
        let has_rung = self.rings != NEVER && self.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if has_rung {
            self.rings = NEVER;
        }
        has_rung
    }

    /// The timer, if nobody waits: a clock that a test has stopped would go on to where it rings.
    fn take_unused(&mut self) -> Option<Pin<Box<Sleep>>> {
        if !self.due.is_empty() || self.is_being_set {
            return None;
        }
        self.rings = NEVER;
        self.timer.take()
    }
}

impl<T: Wake + Send + Sync + 'static> Deadlines<T> {
    pub(super) fn new(runtime: Handle) -> Arc<Self> {
        let state = State { due: BTreeSet::new(), timer: None, rings: NEVER, is_being_set: false, is_over: false };
        let epoch = {
            let _entered = runtime.enter();
            Instant::now()
        };
        Arc::new(Self { runtime, epoch, state: Mutex::new(state) })
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has `who` woken at the time that `at` gives, and not at one that it gave before; `None` is never. It is asked under
    /// the lock: of two who ask at once, the second finds what the first was told.
    ///
    /// # Panics
    ///
    /// If the runtime has no timers.
    pub(super) fn put(self: &Arc<Self>, place: &Place, who: Arc<T>, at: impl FnOnce() -> Option<Instant>) {
        let mut state = lock(&self.state);
        let (before, who) = state.take(place, who);
        let is_first = match at().filter(|_| !state.is_over) {
            Some(at) => {
                let at = nanos(at.saturating_duration_since(self.epoch)).min(NEVER - 1);
                place.0.store(at, Ordering::Relaxed);
                state.due.insert(Due { at, who });
                at < state.rings
            }
            None => false,
        };
        let unused = state.take_unused();
        drop(state);
        // Not under the lock: it may be the last of it.
        drop((before, unused));
        if is_first {
            self.turn();
        }
    }

    /// Takes `who` off.
    pub(super) fn take_off(&self, place: &Place, who: Arc<T>) {
        let mut state = lock(&self.state);
        let (taken, unused) = (state.take(place, who), state.take_unused());
        drop(state);
        drop((taken, unused));
    }

    /// Sees to it that the timer rings for the first; if it has rung, wakes those whose time has come.
    ///
    /// That is so as with a timer for each: one whose time has passed is woken when the runtime looks at its timers, unless it
    /// has by then. What came too late for that may still be done in the poll that brings it.
    fn turn(self: &Arc<Self>) {
        // Timers of this runtime, and the time as it is there: a test may have stopped it.
        // One that is in a thread-local variable ends where there is nothing to enter any more, and no clock either.
        let is_gone = Handle::try_current().is_err_and(|none| none.is_thread_local_destroyed());
        let _entered = (!is_gone).then(|| self.runtime.enter());
        let mut has_rung = false;
        loop {
            let mut state = lock(&self.state);
            // Whoever it was that it rang for: it may have rung while somebody else had it in hand.
            has_rung |= state.has_rung();
            let now = if is_gone { 0 } else { nanos(self.epoch.elapsed()) };
            if has_rung {
                let passed = state.take_passed(now);
                if !passed.is_empty() {
                    drop(state);
                    passed.into_iter().for_each(wake);
                    continue;
                }
                has_rung = false;
            }
            let unused = state.take_unused();
            let Some(first) = state.due.first().map(|due| due.at) else {
                drop(state);
                return drop(unused);
            };
            if first >= state.rings || state.is_being_set {
                return;
            }
            let rings = first.min(now.saturating_add(FURTHEST));
            state.rings = rings;
            state.is_being_set = true;
            let timer = state.timer.take();
            drop(state);
            // Outside of the lock: one whose time has passed by then rings there and then.
            match (Setting { deadlines: self, timer, outcome: Outcome::Failed }).set(rings) {
                Outcome::Set => {}
                Outcome::Rang => has_rung = true,
                Outcome::Over | Outcome::Failed => return,
            }
        }
    }
}

/// The timer of the `rings` of one is being set: over also when that panics, where there are no timers.
struct Setting<'a, T: Wake + Send + Sync + 'static> {
    deadlines: &'a Arc<Deadlines<T>>,
    timer: Option<Pin<Box<Sleep>>>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Set,
    /// Its time has passed.
    Rang,
    /// The runtime has ended.
    Over,
    Failed,
}

impl<T: Wake + Send + Sync + 'static> Setting<'_, T> {
    fn set(mut self, rings: u64) -> Outcome {
        let at = self.deadlines.epoch + Duration::from_nanos(rings);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).as_mut();
        let waker = Waker::from(self.deadlines.clone());
        self.outcome = self.deadlines.set(timer, at, &waker);
        self.outcome
    }
}

impl<T> Deadlines<T> {
    fn set(&self, mut timer: Pin<&mut Sleep>, at: Instant, waker: &Waker) -> Outcome {
        timer.as_mut().reset(at);
        // It is polled only where it can ring: in a runtime that ends, that would panic.
        if !timer.is_elapsed() {
            match poll(timer.as_mut(), waker) {
                Some(Poll::Pending) => return Outcome::Set,
                Some(Poll::Ready(())) => {}
                None => return Outcome::Over,
            }
        }
        // A runtime that ends rings all of its timers, and what is set afterwards rings at once. No clock tells that: it may have
        // rung between two looks at one.
        timer.as_mut().reset(self.epoch + Duration::from_nanos(100 * FURTHEST));
        if timer.is_elapsed() {
            return Outcome::Over;
        }
        // Where it rang in the poll, it has kept whom it would wake.
        poll(timer, Waker::noop()).map_or(Outcome::Over, |_| Outcome::Rang)
    }
}

/// `None` if the runtime ends in this moment.
fn poll(timer: Pin<&mut Sleep>, waker: &Waker) -> Option<Poll<()>> {
    caught::call(|| poll_sleep(timer, &mut Context::from_waker(waker))).map_err(caught::dispose).ok()
}

impl<T: Wake + Send + Sync + 'static> Drop for Setting<'_, T> {
    fn drop(&mut self) {
        let mut timer = self.timer.take();
        let mut state = lock(&self.deadlines.state);
        state.is_being_set = false;
        if self.outcome != Outcome::Set {
            state.rings = NEVER;
        }
        let mut due = BTreeSet::new();
        match self.outcome {
            Outcome::Set | Outcome::Rang => state.timer = timer.take(),
            // There are no timers, or no more.
            Outcome::Over | Outcome::Failed => {
                state.is_over = self.outcome == Outcome::Over;
                due = std::mem::take(&mut state.due);
            }
        }
        drop(state);
        caught::discard((due, timer));
    }
}

/// The timer rings.
impl<T: Wake + Send + Sync + 'static> Wake for Deadlines<T> {
    fn wake(self: Arc<Self>) {
        self.turn();
    }
}

/// What one of them does to its tasks is no reason for the others to miss their time.
fn wake(who: Arc<impl Wake>) {
    if let Err(payload) = caught::call(|| who.wake()) {
        caught::dispose(payload);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests;
