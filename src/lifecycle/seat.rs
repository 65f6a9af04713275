//! The place of an attempt at a durable job: taken by the driver, or given up by whoever has its job (contract rule 9).

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use super::{ClockKind, clock::Start, shared::Shared};

const WANTED: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What an attempt and its runner share. It is decided once: either it runs, or its job goes back into the store, and
/// never both.
pub(crate) struct Seat {
    /// How long the attempt may run, from when it has its place.
    limit: Duration,
    state: AtomicU8,
    decided: Notify,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Seat {
    /// True if that is how it is now, whoever decided it.
    ///
    /// AcqRel: whoever comes second sees what was decided.
    fn decide(&self, state: u8) -> bool {
        match self.state.compare_exchange(WANTED, state, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.decided.notify_one();
                true
            }
            Err(decided) => decided == state,
        }
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }
}

#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
impl Seat {
    pub(crate) fn new(limit: Duration) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { limit, state: AtomicU8::new(WANTED), decided: Notify::new() })
    }

    /// Whether it was taken, once that is known. For one who waits.
    pub(crate) async fn taken(&self) -> bool {
        while self.is(WANTED) {
            self.decided.notified().await;
        }
        self.is(TAKEN)
    }
}

impl Shared {
    fn seat(&self) -> Option<&Seat> {
        self.home().seat.as_deref()
    }

    /// The runner waits no longer.
    pub(super) fn seat_given_up(&self) -> bool {
        self.seat().is_some_and(|seat| seat.is(GIVEN_UP))
    }

    /// Whether what has its places, or has waited in vain for them, runs: an attempt without a place does not, and its
    /// limit counts from here on.
    pub(super) fn take_seat(&self, has_places: bool) -> bool {
        // What an attempt has left behind as a continuation of its own comes when its seat is taken already.
        let Some(seat) = self.seat().filter(|seat| !seat.is(TAKEN)) else { return true };
        let takes = seat.decide(if has_places { TAKEN } else { GIVEN_UP }) && has_places;
        if takes {
            self.clock.set(seat.limit, Start::Now, Some(ClockKind::Wall));
        }
        takes
    }

    /// Gives the place up, unless it was taken: true if it never will be.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(crate) fn give_up_seat(&self) -> bool {
        let given_up = self.seat().is_some_and(|seat| seat.decide(GIVEN_UP));
        self.ending_waker.wake();
        given_up
    }
}
