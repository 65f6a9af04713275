//! What one request is: its word, its clock, its connection, and what is still to run for it.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use http::{Method, Version, uri::PathAndQuery};
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    clock::Clock,
    deadlines::Deadlines,
    finish::Finished,
    home::Home,
    hooks::Hook,
    passage::{Passing, Verb, Waits},
    running::Running,
    word::{self, Word},
};
use crate::{
    connection::{Connection, Exchange},
    continuation::Continuation,
    event::{EventKind, RequestId},
    pool::{Pool, bounds::Ticket, lock},
    queue::Queue,
    sync::{AtomicBool, AtomicU32, AtomicU64, AtomicWaker, Mutex},
};

/// The parts of a request that are known when it arrives.
pub(crate) struct Arrival<'a> {
    pub(crate) home: Arc<Home>,
    /// `None` where it is not known, and for work that no client asked for.
    pub(crate) connection: Option<&'a Connection>,
    pub(crate) method: Method,
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) version: Version,
    /// Whether the request's body was over at once.
    pub(crate) uploaded: bool,
    /// It is no request, but an attempt at a durable job.
    pub(crate) is_job: bool,
}

#[cfg(test)]
impl Arrival<'_> {
    pub(super) fn of_a_test(pool: &Arc<Pool>) -> Self {
        Self {
            home: Home::here(pool),
            connection: None,
            method: Method::GET,
            path: Some(PathAndQuery::from_static("/")),
            version: Version::HTTP_11,
            uploaded: true,
            is_job: false,
        }
    }
}

/// There is one for each request, and for each continuation that waits: it keeps no more than that needs. What most requests
/// never have is in [`Rare`]; what is over with the response, in the passage.
pub(crate) struct Shared {
    me: Weak<Self>,
    id: RequestId,
    home: Arc<Home>,
    pub(super) passing: Mutex<Passing>,
    /// Its route is known.
    #[cfg(feature = "serve")]
    pub(super) routed: AtomicBool,
    pub(super) verb: Verb,
    pub(super) version: Version,
    pub(super) is_job: bool,
    /// The status of the response that was handed over; 0 before that.
    pub(super) answered: AtomicU16,
    /// That response is one of HTTP/1.0, although its request need not be.
    pub(super) without_chunks: AtomicBool,
    word: AtomicU64,
    pub(super) clock: Clock,
    pub(super) exchange: Exchange,
    pub(super) core: Mutex<Core>,
    body_bytes: AtomicU64,
    /// Whom the response waits for: odd for its reader, even for its producer. Counted, so that a wait is not
    /// taken for the one before.
    pub(super) waits: AtomicU32,
    /// One of our services is to shape its response.
    shaped: AtomicBool,
    /// The outermost body is being polled: nobody is waited for.
    pub(super) produces: AtomicBool,
    pub(super) running: Running,
    /// Its task's place on the pool's list.
    listed: AtomicU32,
    pub(super) ending_waker: AtomicWaker,
}

/// What is still to run.
#[derive(Default)]
pub(super) struct Core {
    pub(super) continuations: Queue<Continuation>,
    pub(super) hooks: Queue<Hook>,
    pub(super) rare: Option<Box<Rare>>,
    /// Where its limit is waited for, if nobody knows where it is served.
    pub(super) deadlines: Option<Arc<Deadlines<Shared>>>,
}

/// What most requests do not have.
#[derive(Default)]
pub(super) struct Rare {
    /// What was given to `finish`, until whatever its attempt runs in takes it.
    pub(super) finished: Option<Finished>,
    /// The attempt that has called it.
    pub(super) finisher: u32,
    pub(super) panic: Option<Box<str>>,
    /// The error of the first continuation that failed.
    pub(super) failure: Option<Box<str>>,
    /// Its runtime has ended before it did.
    pub(super) lost: bool,
    /// The places that are kept for its continuations.
    pub(super) tickets: Vec<Ticket>,
    /// The class of the continuation that is about to take its tickets, and whether it blocks.
    pub(super) starting: Option<(Option<&'static str>, bool)>,
    /// The class of the continuation that runs or waits for its place.
    pub(super) class: Option<&'static str>,
    /// The classes of blocking continuations that wait for their turn past their limit.
    pub(super) late: Vec<Option<&'static str>>,
    /// The socket, for a continuation that waits for the client's acknowledgement.
    #[cfg(feature = "acknowledged")]
    pub(super) delivered: Option<crate::connection::Delivered>,
    /// Who stores what a response promises that goes nowhere, the innermost last.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) keepers: Vec<Arc<dyn super::Keeper>>,
    /// When the limit was last restarted on the busy clock, which for a thread begins then.
    pub(super) restarted: Option<Instant>,
    /// For those who await the abort or the fate of the response.
    changed: Option<Arc<Notify>>,
    /// Where what is slow is told of.
    #[cfg(feature = "backtrace")]
    pub(super) frames: Option<Arc<super::frames::RequestFrames>>,
}

impl Core {
    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Its runtime has ended, and nobody takes anything from here any more.
    pub(super) fn is_lost(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.lost)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle")
            .field("request", &self.id)
            .field("route", &self.route())
            .field("state", &self.word())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(arrival: Arrival<'_>) -> Arc<Self> {
        let Arrival { home, connection, method, path, version, uploaded, is_job } = arrival;
        if let Some(feed) = home.pool.feed() {
            feed.ensure_delivery();
        }
        let word = if uploaded { word::UPLOADED } else { 0 };
        let shared = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: RequestId::next(),
            home,
            verb: Verb::of(&method),
            passing: Mutex::new(Passing::new(connection.cloned(), method, path)),
            #[cfg(feature = "serve")]
            routed: AtomicBool::new(false),
            version,
            is_job,
            answered: AtomicU16::new(0),
            without_chunks: AtomicBool::new(false),
            word: AtomicU64::new(word),
            clock: Clock::new(Instant::now()),
            exchange: Exchange::default(),
            core: Mutex::default(),
            body_bytes: AtomicU64::new(0),
            waits: AtomicU32::new(0),
            shaped: AtomicBool::new(false),
            produces: AtomicBool::new(false),
            // The first of our services is the one that makes this.
            running: Running::new(),
            listed: AtomicU32::new(0),
            ending_waker: AtomicWaker::new(),
        });
        // Before the connection can tell anything of it.
        shared.tell(EventKind::Arrived);
        if let Some(connection) = connection {
            connection.enter(&shared);
        }
        if let Some(watch) = &shared.pool().slow {
            let weak: Weak<Self> = Arc::downgrade(&shared);
            watch.watch(weak);
        }
        #[cfg(feature = "status-page")]
        if let Some(census) = &shared.pool().census {
            let weak: Weak<Self> = Arc::downgrade(&shared);
            census.arrived(shared.id, is_job, weak);
        }
        shared
    }

    // === what it is ===

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.home.pool
    }

    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// The runtime that it is served in, if that is known.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.home.deadlines().map(|deadlines| deadlines.runtime())
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.arrived().elapsed()
    }

    pub(super) fn http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    pub(super) fn is_head(&self) -> bool {
        self.verb.is_head()
    }

    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Acquire)
    }

    /// For the outermost body alone, which counts its own chunks: so it needs no step that nobody can come between.
    pub(super) fn count_body_bytes(&self, bytes: usize) {
        self.body_bytes.store(self.body_bytes() + bytes as u64, Ordering::Release);
    }

    pub(crate) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    pub(super) fn arc(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(super) fn listed(&self) -> usize {
        self.listed.load(Ordering::Acquire) as usize
    }

    pub(super) fn set_listed(&self, key: usize) {
        // Four billions of them would not fit into any memory.
        self.listed.store(u32::try_from(key).unwrap_or(u32::MAX), Ordering::Release);
    }

    /// One that shapes responses was entered: true if another one was before, which stands outside.
    pub(crate) fn enter_shaping(&self) -> bool {
        self.shaped.swap(true, Ordering::AcqRel)
    }

    // === transitions ===

    /// Changes the word, and tells of it. `None` from `change` means that this may not happen (any more).
    ///
    /// AcqRel: whoever sees the new word sees what was done before it.
    #[inline]
    pub(super) fn change(
        &self,
        event: Option<EventKind>,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> Option<Change> {
        // Held across a transition and its event, so that events come in the order of the transitions.
        let told = self.pool().feed().zip(event).map(|(feed, kind)| (feed, kind, feed.told(self.id)));
        let old = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let word = Word(word);
                // `Ended` is the last that happens.
                (!word.has(word::ENDED)).then(|| change(word)).flatten().map(|word| word.0)
            })
            .ok()
            .map(Word)?;
        // The same function of the same word.
        let new = change(old).unwrap_or(old);
        if let Some((feed, kind, mut told)) = told {
            let is_last = kind == EventKind::Ended;
            feed.push(self.event(told.of(self.id), kind, new.status()));
            if is_last {
                told.forget(self.id);
            }
        }
        Some(Change { old, new })
    }

    /// Tells of something that changes nothing.
    #[inline]
    pub(super) fn tell(&self, event: EventKind) {
        if self.pool().feed().is_some() {
            self.change(Some(event), Some);
        }
    }

    /// Wakes everybody who looks at the word.
    pub(super) fn wake_all(&self) {
        self.wake(Waits::Response);
        self.wake(Waits::Handler);
        self.wake(Waits::Producer);
        self.ending_waker.wake();
        self.wake_awaiting();
    }

    pub(super) fn wake_awaiting(&self) {
        if self.word().has(word::AWAITED) {
            self.changed().notify_waiters();
        }
    }

    /// Wakes those who await the abort or the fate of the response.
    pub(super) fn changed(&self) -> Arc<Notify> {
        lock(&self.core).rare().changed.get_or_insert_default().clone()
    }
}

/// A transition that took place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) old: Word,
    pub(super) new: Word,
}
