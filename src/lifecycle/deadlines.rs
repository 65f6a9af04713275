//! The wall-clock limits of a runtime's requests, all under one timer (contract rule 6).
//!
//! A timer for each request would cost it an allocation, and two turns under the lock of the runtime's timers, for a limit that
//! hardly ever passes. This one is set for the earliest deadline. It is left alone when that is taken off: then it rings for
//! nothing, once, and is set for the one that is the earliest by then.

use std::{
    cmp::Ordering as Order,
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
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

    /// Takes off all whose time has come, the earliest first.
    fn take_passed(&mut self, now: u64) -> Vec<Arc<T>> {
        let mut passed = Vec::new();
        while self.due.first().is_some_and(|due| due.at <= now) {
            passed.extend(self.due.pop_first().map(|due| due.who));
        }
        passed
    }

    /// Whether the timer has rung, which is noted. A runtime that ends rings all of its timers, whatever their time.
    fn has_rung(&mut self, now: u64) -> bool {
        let has_rung = self.rings != NEVER && self.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if has_rung {
            self.is_over = now < self.rings;
            self.rings = NEVER;
        }
        has_rung
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
        drop(state);
        drop(before);
        if is_first {
            self.turn();
        }
    }

    /// Takes `who` off.
    pub(super) fn take_off(&self, place: &Place, who: Arc<T>) {
        let taken = lock(&self.state).take(place, who);
        // Not under the lock: it may be the last of it.
        drop(taken);
    }

    /// Sees to it that the timer rings for the first; if it has rung, wakes those whose time has come.
    ///
    /// That is so as with a timer for each: one whose time has passed is woken when the runtime looks at its timers, unless it
    /// has by then. What came too late for that may still be done in the poll that brings it.
    fn turn(self: &Arc<Self>) {
        // Timers of this runtime, and the time as it is there: a test may have stopped it.
        let _entered = self.runtime.enter();
        loop {
            let now = nanos(self.epoch.elapsed());
            let mut state = lock(&self.state);
            // Whoever it was that it rang for: it may have rung while somebody else had it in hand.
            if state.has_rung(now) {
                if state.is_over {
                    let due = std::mem::take(&mut state.due);
                    drop(state);
                    return drop(due);
                }
                let passed = state.take_passed(now);
                if !passed.is_empty() {
                    drop(state);
                    passed.into_iter().for_each(wake);
                    continue;
                }
            }
            let first = state.due.first().map_or(NEVER, |due| due.at).min(now.saturating_add(FURTHEST));
            if state.due.is_empty() || first >= state.rings || state.is_being_set {
                return;
            }
            state.rings = first;
            state.is_being_set = true;
            let timer = state.timer.take();
            drop(state);
            // Outside of the lock: one whose time has passed by then rings there and then.
            Setting { deadlines: self, timer }.set(first);
        }
    }
}

/// The timer of the `rings` of one is being set: over also when that panics, where there are no timers.
struct Setting<'a, T: Wake + Send + Sync + 'static> {
    deadlines: &'a Arc<Deadlines<T>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T: Wake + Send + Sync + 'static> Setting<'_, T> {
    fn set(mut self, rings: u64) {
        let at = self.deadlines.epoch + Duration::from_nanos(rings);
        let timer = match &mut self.timer {
            Some(timer) => {
                timer.as_mut().reset(at);
                // It is polled only where it can ring: in a runtime that ends, that would panic.
                if timer.is_elapsed() {
                    return;
                }
                timer
            }
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        let waker = Waker::from(self.deadlines.clone());
        let _ = poll_sleep(timer.as_mut(), &mut Context::from_waker(&waker));
    }
}

impl<T: Wake + Send + Sync + 'static> Drop for Setting<'_, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.deadlines.state);
        state.is_being_set = false;
        if std::thread::panicking() {
            state.rings = NEVER;
        }
        state.timer = self.timer.take();
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
