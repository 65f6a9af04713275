//! The outermost body: what the server takes, watched until it is flushed.

use std::{
    cell::Cell,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use axum_core::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use self::end::Held;
use super::{measure::Measure, passage::Waits, producer, response::BrokenOff, shared::Shared};
use crate::{event::BODY, pool::caught, status::Sent};

mod end;

/// A body that counts what leaves, and whose drop tells the request what became of it.
pub(super) struct Delivery {
    shared: Arc<Shared>,
    /// `None` once it has ended, or went on without us.
    body: Option<Body>,
    /// No inner body of ours watches its producer: then this one does.
    bare: bool,
    /// Its length is known.
    sized: bool,
    /// Its client knows that too, or another one.
    known: bool,
    /// The server has taken the last frame, or is never to take any.
    complete: bool,
    failed: bool,
    /// It panicked where it was asked about itself: it is not asked any more, and what comes next is an error.
    panicked: Cell<bool>,
    held: Held,
    /// What is still to come of a length that is known: an HTTP/1 server that has it lets go of the body, without asking
    /// for its end, and a client of HTTP/2 need not wait for that.
    left: Option<u64>,
    /// HTTP/2: trailers are announced.
    announces: bool,
    /// It has said so itself: it is asked for nothing more.
    ended: bool,
    /// HTTP/2: of the last chunk, what was not given out yet.
    rest: Bytes,
    /// Somebody asked whether it has ended, as a server does before it sends a head.
    asked: Cell<bool>,
}

impl Delivery {
    /// Watches `body`.
    pub(super) fn watch(body: Body, shared: Arc<Shared>, measure: Measure) -> Body {
        let Measure { bodiless, sized, length, announces } = measure;
        let known = length.is_some();
        let complete = bodiless || (length == Some(0) && !shared.http2());
        let held = match (shared.http2() && !complete).then(|| shared.connection()).flatten() {
            Some(connection) => {
                connection.guards(&shared.exchange);
                if length == Some(0) && !announces {
                    connection.await_given(&shared.exchange);
                }
                Held::Open
            }
            None => Held::Never,
        };
        if complete && shared.http2() && shared.connection().is_some() {
            shared.exchange.give_end();
        }
        let bare = !complete && !shared.has_producer();
        if !complete {
            // Whether it is ever asked for its first frame depends on the reader: some versions of hyper first wait until
            // there is room for it.
            shared.reader_begins();
        }
        Body::new(Self {
            shared,
            body: Some(body),
            bare,
            sized,
            known,
            complete,
            failed: false,
            panicked: Cell::new(false),
            held,
            left: length,
            announces,
            ended: false,
            rest: Bytes::new(),
            asked: Cell::new(false),
        })
    }

    fn fail(&mut self, error: axum_core::Error) -> Poll<Option<Result<Frame<Bytes>, axum_core::Error>>> {
        self.failed = true;
        if self.shared.http2() {
            // Before its stream is reset: a client that has seen that may leave before the server lets go of us.
            self.shared.decide(Sent::BrokenOff);
        }
        Poll::Ready(Some(Err(error)))
    }

    /// The next frame of what is inside.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum_core::Error>>> {
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        let poll = || {
            self.shared.produces.store(true, Ordering::Release);
            let polled = caught::call(|| Pin::new(body).poll_frame(cx));
            self.shared.produces.store(false, Ordering::Release);
            polled
        };
        // One of known length is whole in memory, nearly always, and costs no look at the clock. Around one that is watched
        // itself there may be that of a middleware.
        let is_measured = self.bare && (!self.sized || self.shared.clock.is_busy());
        let polled = if is_measured { self.shared.measure(BODY, poll) } else { poll() };
        match polled {
            Ok(polled) => polled,
            Err(payload) => {
                self.shared.panicked(BODY, &payload);
                caught::dispose(payload);
                Poll::Ready(Some(Err(panicked())))
            }
        }
    }

    /// What it says of itself is the user's code, and it may be the server that asks.
    fn ask<T>(&self, question: impl FnOnce(&Body) -> T) -> Option<T> {
        let body = self.body.as_ref().filter(|_| !self.panicked.get())?;
        let told = |payload| {
            self.panicked.set(true);
            self.shared.panicked(BODY, &payload);
            caught::dispose(payload);
        };
        caught::call(|| question(body)).map_err(told).ok()
    }

    fn has_ended(&self) -> bool {
        self.failed || self.body.is_none() || self.ask(Body::is_end_stream).unwrap_or(false)
    }
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        if matches!(this.held, Held::Gone) {
            // A server asks for nothing behind the end.
            this.asked.set(false);
            this.shared.exchange.take_elsewhere();
            return Poll::Ready(None);
        }
        // Nor does one that was told that there is nothing: whoever asked is none.
        this.asked.set(this.asked.get() && !this.complete);
        if this.shared.is_broken_off() {
            return this.fail(broken_off());
        }
        if this.panicked.get() {
            return this.fail(panicked());
        }
        if this.left == Some(0) {
            this.shared.exchange.take_all();
        }
        let polled = if matches!(this.held, Held::End(_)) { this.poll_held() } else { this.poll_next(cx) };
        if polled.is_pending() {
            // Registered before the second look, so that what changes after it wakes us.
            this.shared.register(Waits::Response, cx);
            this.shared.watch_client(cx);
            if this.shared.is_broken_off() {
                return this.fail(broken_off());
            }
            if matches!(this.held, Held::End(_)) {
                return this.poll_held();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.asked.set(true);
        self.shared.exchange.ask_for_end();
        match self.held {
            Held::Never => self.has_ended(),
            Held::Open | Held::End(_) => false,
            Held::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = match &self.body {
            Some(_) => self.ask(Body::size_hint).unwrap_or_default(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

/// How many empty frames that are ready at once are taken out in one poll.
const MARKS_A_POLL: usize = 32;

fn broken_off() -> axum_core::Error {
    axum_core::Error::new(BrokenOff)
}

fn panicked() -> axum_core::Error {
    axum_core::Error::new("the response's body panicked")
}

impl Delivery {
    /// The next frame, before anything is held.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum_core::Error>>> {
        let this = self;
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return this.give(rest);
        }
        if this.ended {
            return this.hold(None);
        }
        let mut marks = 0;
        let frame = loop {
            let Poll::Ready(frame) = this.poll_body(cx) else {
                // The producer, and not the reader, is waited for. A limit cuts us through the response's waker.
                this.shared.producer_begins();
                this.shared.arm();
                return Poll::Pending;
            };
            // An empty frame is the mark of a flush, for the compressors inside: it has nothing to say to a client, and
            // HTTP/2 would send it (RFC 9113, section 10.5, on why not to).
            let is_mark = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
            if !frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(is_mark)) {
                break frame;
            }
            if this.has_ended() {
                break None;
            }
            marks += 1;
            if marks == MARKS_A_POLL {
                // Nobody's pace holds up a producer of nothing: it lets the others, and its own limit, have their turn.
                this.shared.producer_begins();
                this.shared.arm();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        let holds = matches!(this.held, Held::Open);
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                this.shared.body_failed(&error);
                return this.fail(error);
            }
            None if holds => return this.hold(None),
            None => {
                this.complete = true;
                // Who stands outside may ask on, as some compressors do.
                caught::discard(this.body.take());
                return Poll::Ready(None);
            }
        };
        let frame = match frame.into_data() {
            Ok(data) => {
                this.shared.count_body_bytes(data.len());
                let has_ended = this.has_ended();
                this.shared.reader_begins();
                if holds {
                    this.ended = has_ended;
                    // Whether it is polled again, and when it leaves, depends on the reader: the limit must not.
                    this.shared.arm();
                    return this.give(data);
                }
                let all = this.count_down(data.len()) && !this.shared.http2();
                this.complete = has_ended || all;
                if !this.complete {
                    this.shared.arm();
                }
                Frame::data(data)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) if holds => return this.hold(Some(trailers)),
                Ok(trailers) => {
                    this.complete = true;
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            },
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // First what the response came to, then the producer's drop: whether that goes on without its reader
        // depends on it.
        let unfinished = self.bare && !self.complete && !self.failed;
        if unfinished {
            self.shared.producer_started();
        }
        if matches!(self.held, Held::Never | Held::Gone) && self.shared.http2() {
            self.shared.exchange.leave_end(self.asked.get());
        }
        self.shared.body_dropped(self.complete, self.failed);
        let body = self.body.take();
        if unfinished {
            match body {
                Some(body) if self.shared.producer_survives_drop() => producer::drain(&self.shared, body, false),
                body => {
                    caught::discard(body);
                    self.shared.producer_ended(None);
                }
            }
        } else {
            caught::discard(body);
            if self.shared.has_producer() && self.shared.producer_survives_drop() {
                // In another task, where a middleware has put it: a drain waits for it.
                self.shared.ensure_ending();
            }
        }
    }
}
