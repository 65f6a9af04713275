//! How much may run and wait at once (contract rule 9): the settings, and the gates that keep them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    caught,
    throttle::{Once, Refusals, Throttle},
};

/// What happens to new work when no more may run or wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// New requests are answered with a 503 and a `Retry-After` (RFC 9110, section 10.2.3), before their handler
    /// runs. The default.
    #[default]
    Refuse,
    /// The handler runs, and its response is held back until there is a place for its continuation, at most for this
    /// long. Then the response leaves all the same, and its continuation waits beyond the bound, which is counted and
    /// logged.
    Hold(Duration),
    /// Everything runs: what runs beyond the bound is only counted and logged.
    Run,
}

/// How many continuations of a class run and wait at once; see [`EpilogueBuilder::class`](crate::EpilogueBuilder::class).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub(crate) max_running: usize,
    pub(crate) max_waiting: usize,
    pub(crate) when_full: WhenFull,
}

/// How many may wait where nothing is said.
const DEFAULT_WAITING: usize = 1024;

impl Bound {
    /// `max_running` (at least one) run at once, and 1,024 wait; beyond that, [`WhenFull::Refuse`].
    #[must_use]
    pub const fn new(max_running: usize) -> Self {
        Self { max_running, max_waiting: DEFAULT_WAITING, when_full: WhenFull::Refuse }
    }

    /// How many wait for a place; 1,024 by default. With zero, none waits.
    #[must_use]
    pub const fn max_waiting(mut self, waiting: usize) -> Self {
        self.max_waiting = waiting;
        self
    }

    /// How many run, wait, or are reserved, at most.
    fn most_room(&self) -> usize {
        self.max_running.saturating_add(self.max_waiting).min(Semaphore::MAX_PERMITS)
    }

    /// What happens beyond that; [`WhenFull::Refuse`] by default.
    #[must_use]
    pub const fn when_full(mut self, policy: WhenFull) -> Self {
        self.when_full = policy;
        self
    }
}

/// How much of a bound is in use at this moment, and what it has refused so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Continuations that are running, attempts at durable jobs included.
    pub running: usize,
    /// Continuations that wait for a place.
    pub waiting: usize,
    /// Places that are reserved for requests whose handler has not responded.
    pub reserved: usize,
    /// Requests that were refused, in all.
    pub refused: u64,
    /// Continuations that were accepted although there was no room for them, in all.
    pub over: u64,
}

/// One bound: that of an `Epilogue`, or of a class.
pub(crate) struct Gate {
    pub(crate) class: Option<&'static str>,
    bound: Bound,
    /// What may run. Fair: who waits longest comes first.
    places: Arc<Semaphore>,
    /// What may run, wait, or be reserved.
    room: Arc<Semaphore>,
    tickets: AtomicUsize,
    running: AtomicUsize,
    waiting: AtomicUsize,
    refused: AtomicU64,
    over: AtomicU64,
    refusals: Arc<Throttle>,
    overflows: Arc<Throttle>,
}

/// The right to a place: reserved, waiting, or in use. Given back when dropped.
pub(crate) struct Ticket {
    pub(crate) gate: Arc<Gate>,
    _room: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("class", &self.gate.class).finish_non_exhaustive()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.tickets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One step of a continuation's way to its places.
pub(crate) enum Turn {
    /// There is a ticket for this gate.
    Kept(Ticket),
    /// It comes from the gate before, and may wait here, whether or not there is room for more that wait.
    Onward(Arc<Gate>),
    /// It needs no room, since it waits in a store: an attempt at a durable job.
    Beside(Arc<Gate>),
}

/// Waits until it may run. At each gate, those that came first run first.
///
/// While it waits at one gate it keeps nothing of the next, so that one class takes no room from the others. Nor does it wait
/// for room there: that may be kept by what waits behind it, for other continuations of the same request.
pub(crate) async fn enter(turns: Vec<Turn>) -> Vec<Place> {
    let mut places = Vec::with_capacity(turns.len());
    let mut turns = turns.into_iter();
    while let Some(turn) = turns.next() {
        let ticket = match turn {
            Turn::Kept(ticket) => ticket,
            Turn::Onward(gate) => gate.take_on(),
            Turn::Beside(gate) => gate.ticket(None),
        };
        let place = match ticket.gate.try_enter() {
            Some(place) => place,
            None => {
                turns = turns.map(Turn::without_ticket).collect::<Vec<_>>().into_iter();
                ticket.gate.enter().await
            }
        };
        places.push(Place { ticket, _place: place });
    }
    places
}

impl Turn {
    fn without_ticket(self) -> Self {
        match self {
            Self::Kept(ticket) => Self::Onward(ticket.gate.clone()),
            other => other,
        }
    }
}

/// One that runs.
pub(crate) struct Place {
    ticket: Ticket,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ticket.gate.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts those that wait, also when they give up.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    pub(crate) fn new(class: Option<&'static str>, bound: Bound) -> Arc<Self> {
        let running = bound.max_running.clamp(1, Semaphore::MAX_PERMITS);
        let bound = Bound { max_running: running, ..bound };
        Arc::new(Self {
            class,
            bound,
            places: Arc::new(Semaphore::new(running)),
            room: Arc::new(Semaphore::new(bound.most_room())),
            tickets: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            over: AtomicU64::new(0),
            refusals: Arc::default(),
            overflows: Arc::default(),
        })
    }

    /// How many run at once, where that is kept and not just counted.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(crate) fn most(&self) -> Option<usize> {
        (self.bound.when_full != WhenFull::Run).then_some(self.bound.max_running)
    }

    pub(crate) fn when_full(&self) -> WhenFull {
        self.bound.when_full
    }

    #[cfg(feature = "status-page")]
    pub(crate) fn bound(&self) -> Bound {
        self.bound
    }

    fn ticket(self: &Arc<Self>, room: Option<OwnedSemaphorePermit>) -> Ticket {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        Ticket { gate: self.clone(), _room: room }
    }

    /// A place is kept, if there is room.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Ticket> {
        self.room.clone().try_acquire_owned().ok().map(|room| self.ticket(Some(room)))
    }

    /// So many places are kept as soon as there is room for all of them, and at the latest, room or not, so long from now.
    /// Those that there is never room for at once are not waited for, nor kept: what needs them runs one after the other.
    pub(crate) async fn reserve_within(self: Arc<Self>, count: usize, limit: Duration) -> Vec<Ticket> {
        let count = u32::try_from(count.min(self.bound.most_room())).unwrap_or(u32::MAX);
        // All of them in one turn, so that no two wait for what the other keeps.
        let room = tokio::time::timeout(limit, self.room.clone().acquire_many_owned(count)).await;
        // The semaphore is never closed.
        let mut room = room.ok().and_then(Result::ok);
        let mut ticket = || match room.as_mut().and_then(|room| room.split(1)) {
            Some(room) => self.ticket(Some(room)),
            None => self.reserve().unwrap_or_else(|| self.overflow()),
        };
        (0..count).map(|_| ticket()).collect()
    }

    /// There may be no room, and what was promised is kept all the same (contract rules 1 and 13).
    pub(crate) fn insist(self: &Arc<Self>) -> Ticket {
        match self.bound.when_full {
            WhenFull::Run => self.ticket(None),
            WhenFull::Refuse | WhenFull::Hold(_) => self.reserve().unwrap_or_else(|| self.overflow()),
        }
    }

    fn overflow(self: &Arc<Self>) -> Ticket {
        self.count_overflow("more continuations wait than `max_waiting` allows");
        self.ticket(None)
    }

    fn count_overflow(&self, what: &'static str) {
        self.over.fetch_add(1, Ordering::Relaxed);
        let class = self.class;
        let say = move |count| caught::tell(|| tracing::warn!(class, count, "{what}"));
        if let Some(count) = self.overflows.hit(|| say) {
            say(count);
        }
    }

    /// A place, if one is free and nobody waits for it; the inner `None` where places are only counted.
    fn try_enter(&self) -> Option<Option<OwnedSemaphorePermit>> {
        if self.bound.when_full == WhenFull::Run {
            let running = self.running.fetch_add(1, Ordering::Relaxed);
            if running >= self.bound.max_running {
                self.count_overflow("more continuations run than `max_running` allows");
            }
            return Some(None);
        }
        let place = self.places.clone().try_acquire_owned().ok()?;
        self.running.fetch_add(1, Ordering::Relaxed);
        Some(Some(place))
    }

    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        self.running.fetch_add(1, Ordering::Relaxed);
        place
    }

    /// Of those that come from the gate before there are no more than may run there: that is a bound, too.
    fn take_on(self: &Arc<Self>) -> Ticket {
        match self.bound.when_full {
            WhenFull::Run => self.ticket(None),
            WhenFull::Refuse | WhenFull::Hold(_) => self.reserve().unwrap_or_else(|| self.ticket(None)),
        }
    }

    /// A request is refused; each is told of at level debug, and once a second all of them together.
    pub(crate) fn refuse(&self, route: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let class = self.class;
        caught::tell(|| tracing::debug!(route, class, "a request was refused with a 503: its bound is full"));
        let say = move |route: &str, count| {
            caught::tell(|| {
                tracing::warn!(route, class, count, "requests are refused with a 503: their bound is full");
            });
        };
        let later = || {
            let route = route.to_owned();
            move |count| say(&route, count)
        };
        if let Some(count) = self.refusals.hit(later) {
            say(route, count);
        }
    }

    pub(crate) fn load(&self) -> Load {
        // Each for itself: together they are no snapshot.
        let running = self.running.load(Ordering::Relaxed);
        let waiting = self.waiting.load(Ordering::Relaxed);
        Load {
            running,
            waiting,
            reserved: self.tickets.load(Ordering::Relaxed).saturating_sub(running + waiting),
            refused: self.refused.load(Ordering::Relaxed),
            over: self.over.load(Ordering::Relaxed),
        }
    }
}

/// Requests that are never refused.
pub(crate) type Exempt = Box<dyn Fn(&Parts) -> bool + Send + Sync>;

/// All the bounds of one pool.
pub(crate) struct Bounds {
    pub(crate) all: Option<Arc<Gate>>,
    pub(crate) classes: Vec<Arc<Gate>>,
    pub(crate) max_detached: Option<usize>,
    /// How many blocking continuations may wait for a thread.
    pub(crate) max_blocking_waiting: Option<usize>,
    pub(crate) retry_after: Duration,
    pub(crate) exempt: Option<Exempt>,
    /// Refused for those two, and not for a gate.
    pub(crate) refused_detached: AtomicU64,
    pub(crate) refused_blocking: AtomicU64,
    pub(crate) refusals: Refusals,
    /// Classes without one that a place was asked for in.
    pub(crate) unbounded: Once,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            all: None,
            classes: Vec::new(),
            max_detached: None,
            max_blocking_waiting: None,
            retry_after: Duration::from_secs(1),
            exempt: None,
            refused_detached: AtomicU64::new(0),
            refused_blocking: AtomicU64::new(0),
            refusals: Refusals::default(),
            unbounded: Once::default(),
        }
    }
}

impl Bounds {
    /// The gate of a class, if one is set.
    pub(crate) fn class(&self, name: &str) -> Option<&Arc<Gate>> {
        self.classes.iter().find(|gate| gate.class == Some(name))
    }

    /// The gates that a continuation passes, in order: first that of its class, so that what waits there takes no place
    /// from others. Blocking ones have a cap of their own in place of the common one.
    pub(crate) fn gates(&self, class: Option<&str>, blocking: bool) -> impl Iterator<Item = &Arc<Gate>> {
        class.and_then(|name| self.class(name)).into_iter().chain(self.all.as_ref().filter(|_| !blocking))
    }

    /// All of them, in an order in which a continuation passes those that it does.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Arc<Gate>> {
        self.classes.iter().chain(&self.all)
    }

    pub(crate) fn refused(&self) -> u64 {
        let gates = self.all.iter().chain(&self.classes);
        let others = [&self.refused_detached, &self.refused_blocking];
        gates.map(|gate| gate.load().refused).chain(others.map(|count| count.load(Ordering::Relaxed))).sum()
    }

    /// The seconds for a `Retry-After`, one at least.
    pub(crate) fn retry_after(&self) -> u64 {
        self.retry_after.as_secs().saturating_add(u64::from(self.retry_after.subsec_nanos() > 0)).max(1)
    }
}
