//! The innermost body: what the handler gave, watched while it is produced.

use std::{
    future::poll_fn,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use tokio::runtime::Handle;

use super::{alone::News, passage::Waits, response::BrokenOff, shared::Shared, transitions::Verdict, word};
use crate::{
    event::{BODY, EventKind},
    pool::{caught, lock},
    status::ConnectionStatus,
    sync::Mutex,
};

/// A body that is produced on its request's clock, whose end is noticed, and which goes on without its reader
/// where aborts are ignored.
pub(super) struct Producer {
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
    /// It is never polled again, whatever stands outside.
    over: bool,
    news: Option<News>,
}

/// A body between two polls, where the limit finds it: it is dropped then also if nobody asks for more of it, as an HTTP/2
/// server does not whose client leaves no room.
pub(super) struct Waiting {
    /// `None` while it is polled or asked, and once it is dropped.
    body: Mutex<Option<Body>>,
    /// Its length was not known: then its end is told of.
    streamed: bool,
}

impl Shared {
    /// Watches a body of known length that is about to be read inside of the outermost body, which therefore cannot
    /// do that for it.
    pub(crate) fn watch_known(self: &Arc<Self>, body: Body) -> Body {
        let bodiless = self.is_head() || body.is_end_stream();
        if bodiless || self.has_producer() || body.size_hint().exact().is_none() {
            return body;
        }
        Producer::start(body, self, false)
    }
}

impl Producer {
    /// Whether `body` is to be watched: not if it is never to be sent, nor if its length is known. Nearly all of those are whole
    /// in memory, and the outermost body does for them what is left to do.
    pub(super) fn watches(body: &Body, bodiless: bool) -> bool {
        !bodiless && !body.is_end_stream() && body.size_hint().exact().is_none()
    }

    pub(super) fn watch(body: Body, shared: &Arc<Shared>) -> Body {
        Self::start(body, shared, true)
    }

    fn start(body: Body, shared: &Arc<Shared>, streamed: bool) -> Body {
        shared.producer_started();
        let waiting = Arc::new(Waiting { body: Mutex::new(Some(body)), streamed });
        shared.add_body(&waiting);
        Body::new(Self { waiting, shared: shared.clone(), over: false, news: None })
    }

    /// There is one place for the waker of a request's producer: of several, those that come later have their own.
    fn register(&mut self, cx: &mut Context<'_>) {
        if self.news.is_none() && !self.shared.word().has_producers() {
            return self.shared.register(Waits::Producer, cx);
        }
        self.news.get_or_insert_with(|| News::of(&self.shared)).enlist(cx);
    }

    fn take(&self) -> Option<Body> {
        lock(&self.waiting.body).take()
    }

    fn put_back(&self, body: Body) {
        *lock(&self.waiting.body) = Some(body);
        // Looked at after that: whoever tells of the limit has found the body, or is seen here. On an abort the server itself
        // lets go of it.
        if self.shared.verdict() == Some(Verdict::TimedOut) {
            self.drop_body();
        }
    }

    /// Drops it, if nobody has.
    fn drop_body(&self) {
        if let Some(body) = self.take() {
            self.ended(body, EventKind::BodyDropped);
        }
    }

    fn ended(&self, body: Body, event: EventKind) {
        caught::discard(body);
        self.shared.producer_ended(self.waiting.streamed.then_some(event));
    }

    fn end(&mut self, body: Body, event: EventKind) {
        self.over = true;
        self.ended(body, event);
    }

    /// What it says of itself is the user's code, and may panic.
    fn ask<T>(&self, otherwise: T, question: impl FnOnce(&Body) -> T) -> T {
        struct Asked<'a>(&'a Producer, Option<Body>);

        impl Drop for Asked<'_> {
            fn drop(&mut self) {
                if let Some(body) = self.1.take() {
                    self.0.put_back(body);
                }
            }
        }

        let asked = Asked(self, self.take());
        asked.1.as_ref().map_or(otherwise, question)
    }
}

impl Shared {
    /// The limit has passed while the response's reader is waited for: what is produced for it is dropped, in a task of its
    /// own, since it is the user's.
    pub(super) fn drop_producers(&self) {
        let Some(me) = self.arc() else { return };
        for waiting in self.bodies() {
            me.clone().drop_producer(&waiting);
        }
    }

    fn drop_producer(self: Arc<Self>, waiting: &Waiting) {
        // If it is polled in this moment, it is dropped after that.
        let Some(body) = lock(&waiting.body).take() else { return };
        let event = waiting.streamed.then_some(EventKind::BodyDropped);
        let (owner, told) = (self.clone(), event.clone());
        let work = async move {
            caught::discard(body);
            owner.producer_ended(told);
        };
        let _runtime = self.runtime().map(Handle::enter);
        if let Err(work) = self.pool().spawn(work) {
            caught::discard(work);
            self.producer_ended(event);
        }
    }
}

impl http_body::Body for Producer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let Some(mut body) = this.take() else {
            this.over = true;
            return Poll::Ready(Some(Err(broken_off())));
        };
        if this.shared.producer_is_over() {
            this.end(body, EventKind::BodyDropped);
            return Poll::Ready(Some(Err(broken_off())));
        }
        let polled = this.shared.measure(BODY, || caught::call(|| Pin::new(&mut body).poll_frame(cx)));
        match polled {
            Ok(Poll::Pending) => {
                this.put_back(body);
                // Registered before the second look, so that what changes after it wakes us: nobody else polls it where it
                // is in a task of its own.
                this.register(cx);
                this.shared.arm();
                if this.shared.producer_is_over() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Ok(Poll::Ready(Some(Ok(frame)))) => {
                // Behind trailers nothing comes, and a server does not ask.
                match caught::call(|| frame.is_trailers() || body.is_end_stream()) {
                    Ok(true) => this.end(body, EventKind::BodyEnd),
                    Ok(false) => this.put_back(body),
                    Err(payload) => {
                        this.put_back(body);
                        resume_unwind(payload);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(Poll::Ready(Some(Err(error)))) => {
                // Before its end, which may be that of its request. One that is held back is told of by who holds it.
                if this.shared.word().has(word::HEAD) {
                    this.shared.body_failed(&error);
                }
                this.end(body, EventKind::BodyDropped);
                Poll::Ready(Some(Err(error.into_inner())))
            }
            Ok(Poll::Ready(None)) => {
                this.end(body, EventKind::BodyEnd);
                Poll::Ready(None)
            }
            Err(payload) => {
                this.shared.panicked(BODY, &payload);
                caught::dispose(payload);
                this.end(body, EventKind::BodyDropped);
                Poll::Ready(Some(Err("the response's body panicked".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.ask(false, Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        if self.over { SizeHint::with_exact(0) } else { self.ask(SizeHint::default(), Body::size_hint) }
    }
}

fn broken_off() -> BoxError {
    BrokenOff.into()
}

impl Drop for Producer {
    fn drop(&mut self) {
        if self.shared.producer_survives_drop() {
            if let Some(body) = self.take() {
                drain(&self.shared, body, self.waiting.streamed);
            }
        }
        self.drop_body();
    }
}

/// How many frames that are ready at once are discarded in one poll.
const FRAMES_A_POLL: usize = 32;

/// Runs a body's producer to its end, for a reader that left and whose leaving is ignored (contract rule 5).
pub(super) fn drain(shared: &Arc<Shared>, mut body: Body, streamed: bool) {
    shared.producer_goes_on();
    let owner = shared.clone();
    let detached = shared.pool().detach();
    let work = async move {
        let _detached = detached;
        // Another attempt's response may be on its way, and has the places of those who are woken.
        let mut news = News::of(&owner);
        let ended = poll_fn(|cx| {
            news.enlist(cx);
            for _ in 0..FRAMES_A_POLL {
                let polled =
                    owner.measure(BODY, || caught::call(|| http_body::Body::poll_frame(Pin::new(&mut body), cx)));
                match polled {
                    Ok(Poll::Ready(Some(Ok(_)))) if !owner.producer_is_over() => {}
                    Ok(Poll::Ready(None)) => return Poll::Ready(true),
                    Ok(Poll::Ready(Some(Ok(_)))) => return Poll::Ready(false),
                    Ok(Poll::Ready(Some(Err(error)))) => {
                        owner.body_failed(&error);
                        return Poll::Ready(false);
                    }
                    Err(payload) => {
                        owner.panicked(BODY, &payload);
                        caught::dispose(payload);
                        return Poll::Ready(false);
                    }
                    Ok(Poll::Pending) => {
                        owner.arm();
                        if owner.producer_is_over() {
                            return Poll::Ready(false);
                        }
                        return Poll::Pending;
                    }
                }
            }
            // No reader's pace holds it up: it lets the others, and its own limit's timer, have their turn.
            owner.arm();
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        caught::discard(body);
        let event = if ended { EventKind::BodyEnd } else { EventKind::BodyDropped };
        owner.unread_ended(streamed.then_some(event));
    };
    if let Err(work) = shared.pool().spawn(work) {
        caught::discard(work);
        shared.unread_ended(streamed.then_some(EventKind::BodyDropped));
    }
    // Whoever waits for the producer's end is the task that a drain knows of.
    shared.ensure_ending();
}

// === how long it goes on ===

impl Shared {
    /// Whether a body that somebody else drops is produced to its end in a task of its own: it has no life beyond its response
    /// but where aborts are ignored.
    pub(crate) fn producer_survives_drop(&self) -> bool {
        let word = self.word();
        word.status() == ConnectionStatus::ABORTED && word.ignores_abort()
    }

    /// Whether the body's producer is to end now, or what waits for it. What was given to `finish` is no rest of the handler:
    /// an abort ends it as any other.
    pub(crate) fn producer_verdict(&self) -> Option<Verdict> {
        let word = self.word();
        let timed_out = word.status().is_timeout().then_some(Verdict::TimedOut);
        timed_out.or(word.is_abandoned().then_some(Verdict::Abandoned))
    }

    pub(crate) fn producer_is_over(&self) -> bool {
        self.producer_verdict().is_some()
    }
}

// === who is waited for ===

impl Shared {
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
