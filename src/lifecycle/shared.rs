//! What one request is: its word, its clock, its connection, and what is still to run for it.

#[cfg(feature = "serve")]
use std::sync::OnceLock;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

#[cfg(feature = "serve")]
use axum::extract::MatchedPath;
use axum_core::response::Response;
use http::{Method, Uri, Version};
use tokio::{sync::Notify, time::Instant};

use super::{
    clock::Clock,
    hooks::Hook,
    telling::Told,
    word::{self, Word},
};
use crate::{
    connection::{Connection, Exchange},
    continuation::Continuation,
    event::{EventKind, RequestId},
    pool::{Captured, Pool, bounds::Ticket, lock},
    sync::{AtomicU32, AtomicU64, AtomicWaker, Mutex},
};

/// What the requests of one connection share: with one count of their own, which no other connection touches.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) pool: Arc<Pool>,
    /// `None` for work that no client asked for.
    pub(crate) connection: Option<Connection>,
    /// Of an attempt at a durable job, which no client asked for.
    pub(crate) seat: Option<Arc<super::seat::Seat>>,
}

/// The parts of a request that are known when it arrives.
pub(crate) struct Arrival {
    /// `None` where the layers stand alone.
    pub(crate) home: Option<Arc<Home>>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    /// Whether the request's body was over at once.
    pub(crate) uploaded: bool,
    /// It is no request, but an attempt at a durable job.
    pub(crate) is_job: bool,
}

pub(crate) struct Shared {
    me: Weak<Self>,
    id: RequestId,
    arrived: Instant,
    home: Option<Arc<Home>>,
    method: Method,
    /// As the server read it: a slice of the connection's buffer, which it keeps in memory as a whole.
    uri: Mutex<Uri>,
    #[cfg(feature = "serve")]
    route: OnceLock<MatchedPath>,
    pub(super) version: Version,
    pub(super) is_job: bool,
    word: AtomicU32,
    /// Held across a transition and its event, so that events come in the order of the transitions. Only with
    /// an event function, which what it holds is for: nobody else pays more than the room of a pointer.
    pub(super) order: Mutex<Option<Box<Told>>>,
    pub(super) clock: Clock,
    /// Where what is slow is told of.
    #[cfg(feature = "backtrace")]
    pub(super) frames: Option<Box<super::frames::RequestFrames>>,
    pub(super) exchange: Exchange,
    pub(super) core: Mutex<Core>,
    body_bytes: AtomicU64,
    /// Whom the response waits for: odd for its reader, even for its producer. Counted, so that a wait is not
    /// taken for the one before.
    waits: AtomicU32,
    /// How many of our services this request has entered.
    depth: AtomicU32,
    /// How many futures of our services run that could be the innermost.
    running: AtomicU32,
    /// The outermost response future, then the outermost body.
    pub(super) response_waker: AtomicWaker,
    /// The innermost response future, then the task that its handler goes on in.
    pub(super) handler_waker: AtomicWaker,
    pub(super) ending_waker: AtomicWaker,
    /// For those who await the abort or the fate of the response.
    pub(super) changed: Notify,
}

/// What is still to run.
#[derive(Default)]
pub(super) struct Core {
    pub(super) continuations: VecDeque<(Continuation, Vec<Box<dyn Captured>>)>,
    pub(super) hooks: VecDeque<Hook>,
    /// The response that was given to `finish`, until the innermost service takes it.
    pub(super) finished: Option<Box<Response>>,
    pub(super) panic: Option<Box<str>>,
    /// The error of the first continuation that failed.
    pub(super) failure: Option<Box<str>>,
    /// The places that are kept for its continuations.
    pub(super) tickets: Vec<Ticket>,
    /// The class of the continuation that runs or waits for its place.
    pub(super) class: Option<&'static str>,
    /// The socket, for a continuation that waits for the client's acknowledgement.
    #[cfg(feature = "acknowledged")]
    pub(super) delivered: Option<crate::connection::Delivered>,
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
    pub(crate) fn new(arrival: Arrival) -> Arc<Self> {
        let Arrival { home, method, uri, version, uploaded, is_job } = arrival;
        if let Some(feed) = pool(home.as_ref()).feed() {
            feed.ensure_delivery();
        }
        let arrived = Instant::now();
        let word = if uploaded { word::UPLOADED } else { 0 };
        #[cfg(feature = "backtrace")]
        let frames = pool(home.as_ref()).slow.is_some().then(Box::default);
        let shared = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: RequestId::next(),
            arrived,
            home,
            method,
            uri: Mutex::new(uri),
            #[cfg(feature = "serve")]
            route: OnceLock::new(),
            version,
            is_job,
            word: AtomicU32::new(word),
            order: Mutex::new(None),
            clock: Clock::new(arrived),
            #[cfg(feature = "backtrace")]
            frames,
            exchange: Exchange::default(),
            core: Mutex::default(),
            body_bytes: AtomicU64::new(0),
            waits: AtomicU32::new(0),
            // The first of our services is the one that makes this.
            depth: AtomicU32::new(1),
            running: AtomicU32::new(0),
            response_waker: AtomicWaker::new(),
            handler_waker: AtomicWaker::new(),
            ending_waker: AtomicWaker::new(),
            changed: Notify::new(),
        });
        // Before the connection can tell anything of it.
        shared.tell(EventKind::Arrived);
        if let Some(connection) = shared.connection() {
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
        pool(self.home.as_ref())
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.home.as_ref()?.connection.as_ref()
    }

    pub(super) fn home(&self) -> Option<&Home> {
        self.home.as_deref()
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }

    pub(super) fn http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    #[cfg(feature = "serve")]
    pub(crate) fn set_route(&self, route: MatchedPath) {
        // A nested router matches a longer route later, on the same request; the first is that of the outermost
        // router, which is the whole one in axum.
        let _ = self.route.set(route);
    }

    #[cfg(feature = "serve")]
    pub(crate) fn has_route(&self) -> bool {
        self.route.get().is_some()
    }

    /// Method and matched route, else method and path; never a query.
    pub(crate) fn route(&self) -> String {
        #[cfg(feature = "serve")]
        if let Some(route) = self.route.get() {
            return format!("{} {}", self.method, route.as_str());
        }
        format!("{} {}", self.method, lock(&self.uri).path())
    }

    /// What may take long begins: the buffer that the request was read into is not to wait for it.
    pub(super) fn let_buffer_go(&self) {
        #[cfg(feature = "serve")]
        let named = self.has_route();
        #[cfg(not(feature = "serve"))]
        let named = false;
        let mut uri = lock(&self.uri);
        // Parsing a string copies it.
        let path = if named { Ok(Uri::default()) } else { uri.path().parse() };
        if let Ok(path) = path {
            *uri = path;
        }
    }

    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Acquire)
    }

    pub(super) fn count_body_bytes(&self, bytes: usize) {
        self.body_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
    }

    pub(crate) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    pub(super) fn weak(&self) -> Weak<Self> {
        self.me.clone()
    }

    pub(super) fn arc(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// One more of our services was entered. The innermost is the one whose number stays the highest.
    pub(crate) fn enter_service(&self) -> u32 {
        self.depth.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The service that was entered last was never polled, and is gone.
    pub(super) fn leave_service(&self, depth: u32) {
        // If others were entered meanwhile, it was not the innermost, and nothing changes.
        let _ = self.depth.compare_exchange(depth, depth - 1, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn started_one(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    /// A future of one of our services ended. After the last, the handler has ended, whatever the middleware between
    /// did with the service inside of it.
    pub(super) fn ended_one(&self, how: super::transitions::HandlerEnd) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 && self.word().has(word::HANDLER) {
            self.handler_ended(how);
        }
    }

    pub(crate) fn is_innermost(&self, depth: u32) -> bool {
        self.depth.load(Ordering::Acquire) == depth
    }

    // === transitions ===

    /// Changes the word, and tells of it. `None` from `change` means that this may not happen (any more).
    ///
    /// AcqRel: whoever sees the new word sees what was done before it.
    pub(super) fn change(
        &self,
        event: Option<EventKind>,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> Option<Change> {
        let told = self.pool().feed().zip(event).map(|(feed, kind)| (feed, kind, lock(&self.order)));
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
        if let Some((feed, kind, mut order)) = told {
            feed.push(self.event(order.get_or_insert_default(), kind, new.status()));
        }
        Some(Change { old, new })
    }

    /// Tells of something that changes nothing.
    pub(super) fn tell(&self, event: EventKind) {
        if self.pool().feed().is_some() {
            self.change(Some(event), Some);
        }
    }

    /// Wakes everybody who looks at the word.
    pub(super) fn wake_all(&self) {
        self.response_waker.wake();
        self.handler_waker.wake();
        self.ending_waker.wake();
        self.wake_awaiting();
    }

    pub(super) fn wake_awaiting(&self) {
        if self.word().has(word::AWAITED) {
            self.changed.notify_waiters();
        }
    }

    // === a slow reader ===

    /// The server has a frame and has not asked for the next.
    pub(super) fn reader_begins(&self) {
        // Only the task that the response is in changes the count.
        let waits = self.waits.load(Ordering::Acquire);
        if waits % 2 == 0 {
            self.waits.store(waits.wrapping_add(1), Ordering::Release);
            self.ending_waker.wake();
        }
    }

    /// The producer is waited for.
    pub(super) fn producer_begins(&self) {
        let waits = self.waits.load(Ordering::Acquire);
        if waits % 2 == 1 {
            self.waits.store(waits.wrapping_add(1), Ordering::Release);
        }
    }

    /// The number of the wait, if it is the reader that is waited for.
    pub(super) fn wait_for_reader(&self) -> Option<u32> {
        Some(self.waits.load(Ordering::Acquire)).filter(|waits| waits % 2 == 1)
    }
}

fn pool(home: Option<&Arc<Home>>) -> &Arc<Pool> {
    match home {
        Some(home) => &home.pool,
        None => Pool::global(),
    }
}

/// A transition that took place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) old: Word,
    pub(super) new: Word,
}
