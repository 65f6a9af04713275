//! What a response goes through before its head leaves, step by step.

#[cfg(feature = "compression")]
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_core::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, Version,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
    response::Parts,
};
use http_body::Body as _;

use super::{
    Settings,
    body::Buffer,
    map::Mapping,
    reading::{Measured, Reading},
    rules::{self, Asked},
};
#[cfg(feature = "compression")]
use super::{
    compress::{Accepts, Compress},
    gzip::Gzips,
};
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
use crate::lifecycle::HeldBack;
use crate::{
    lifecycle::{Lifecycle, is_broken_off, taken_off},
    pool::caught,
};

/// All that shaping a response depends on.
pub(super) struct Shaping {
    pub(super) settings: Settings,
    pub(super) lifecycle: Lifecycle,
    /// Another one stands outside.
    pub(super) inside: bool,
    pub(super) asked: Asked,
    #[cfg(feature = "compression")]
    pub(super) accepts: Accepts,
    /// What the response promises that is held back.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) held: Option<HeldBack>,
}

/// Left in the response that was shaped, for those that stand outside: of several the innermost decides. One that a middleware
/// puts in its place has not been shaped.
#[derive(Clone)]
pub(super) struct Shaped;

/// What a response waits for before its head leaves.
pub(super) enum Step {
    /// Its body.
    Read(Parts, Reading, Purpose),
    /// The user's function; and the trailers.
    Map(Mapping, Option<HeaderMap>),
}

/// What a body is read for.
pub(super) enum Purpose {
    /// The user's function.
    Map,
    /// A compressor that takes it whole.
    #[cfg(feature = "compression")]
    Gzip(Arc<Gzips>),
    /// To be measured, and to leave.
    Leave,
}

/// What a step came to.
pub(super) enum Done {
    Read(Measured),
    Mapped(Parts, Bytes),
    Failed,
    /// The request is not to be waited for any longer.
    Over,
}

/// How it goes on: with the response, or with something to wait for.
pub(super) enum Next {
    Leave(Response),
    Wait(Box<Step>),
}

impl Next {
    fn read(parts: Parts, body: Body, purpose: Purpose) -> Self {
        Self::Wait(Box::new(Step::Read(parts, Reading::new(body), purpose)))
    }
}

// === what comes after what ===

impl Shaping {
    /// What is waited for is left in `waits`.
    pub(super) fn poll_on(
        &mut self,
        mut next: Next,
        waits: &mut Option<Box<Step>>,
        cx: &mut Context<'_>,
    ) -> Poll<Response> {
        loop {
            match next {
                Next::Leave(response) => {
                    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
                    drop(self.held.take());
                    return Poll::Ready(response);
                }
                Next::Wait(mut step) => match self.poll(&mut step, cx) {
                    Poll::Ready(done) => next = self.go_on(*step, done),
                    Poll::Pending => {
                        *waits = Some(step);
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn poll(&self, step: &mut Step, cx: &mut Context<'_>) -> Poll<Done> {
        let was_over = self.lifecycle.0.producer_is_over();
        let polled = match step {
            Step::Read(_, reading, _) => reading.poll(&self.settings, &self.lifecycle, cx).map(Done::Read),
            Step::Map(mapping, _) => {
                mapping.poll(cx).map(|mapped| mapped.map_or(Done::Failed, |(parts, bytes)| Done::Mapped(parts, bytes)))
            }
        };
        match polled {
            // So that the middleware outside sees our answer and not a dropped future.
            Poll::Pending if self.lifecycle.0.producer_is_over() => Poll::Ready(Done::Over),
            // The body was told so, whatever it has made of that.
            Poll::Ready(Done::Read(Measured::Failed(error)))
                if was_over || (is_broken_off(&error) && self.lifecycle.0.producer_is_over()) =>
            {
                caught::discard(error);
                Poll::Ready(Done::Over)
            }
            Poll::Ready(Done::Failed) if was_over => Poll::Ready(Done::Over),
            polled => polled,
        }
    }

    pub(super) fn begin(&mut self, response: Response) -> Next {
        if self.asked.passes_through(&response) || response.extensions().get::<Shaped>().is_some() {
            return Next::Leave(self.pass(response));
        }
        let (parts, body) = response.into_parts();
        #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
        {
            self.held = HeldBack::of(&self.lifecycle, &parts);
        }
        let known = body.size_hint().exact();
        if self.asked.head && (known == Some(0) || body.is_end_stream()) {
            return Next::Leave(self.leave_head(parts));
        }
        // Behind the request's limit, or its client, nothing is waited for. What is whole by then leaves as it is: our own
        // answer, what a middleware between made of it, or what a handler gave in its last poll. Not past a function, which
        // it was to see.
        if let Some(length) = known.filter(|_| self.settings.map.is_none() && self.lifecycle.0.producer_is_over()) {
            let mut parts = parts;
            rules::declare(&mut parts, length, &self.lifecycle);
            return Next::Leave(self.leave(parts, body));
        }
        // What is known to be past the limit is not read for the function.
        let fits = known.is_none_or(|length| length <= self.settings.buffer_limit as u64);
        if self.settings.map.is_some() && fits {
            let body = self.lifecycle.0.watch_known(body);
            return Next::read(parts, body, Purpose::Map);
        }
        self.encode_and_measure(parts, body, true)
    }

    fn go_on(&mut self, step: Step, done: Done) -> Next {
        match (step, done) {
            (Step::Read(parts, reading, purpose), Done::Read(Measured::Whole)) => {
                self.read(parts, reading.into_buffer(), purpose)
            }
            (Step::Read(mut parts, reading, Purpose::Leave), Done::Read(Measured::TooMuch)) => {
                let body = reading.into_body();
                // Its end may be known with what was too much.
                if let Some(length) = body.size_hint().exact() {
                    rules::declare(&mut parts, length, &self.lifecycle);
                }
                Next::Leave(self.leave(parts, body))
            }
            (Step::Read(parts, reading, _), Done::Read(Measured::TooMuch)) => {
                self.encode_and_measure(parts, reading.into_body(), false)
            }
            (Step::Read(_, reading, _), Done::Read(Measured::Failed(error))) => {
                self.lifecycle.0.held_body_failed(&error);
                reading.discard();
                Next::Leave(self.fail())
            }
            (Step::Map(_, trailers), Done::Mapped(parts, bytes)) => self.mapped(parts, bytes, trailers),
            (step, done) => {
                if let Step::Read(_, reading, _) = step {
                    reading.discard();
                }
                Next::Leave(if let Done::Over = done { self.cut() } else { self.fail() })
            }
        }
    }

    #[cfg_attr(
        not(feature = "compression"),
        expect(clippy::needless_pass_by_value, reason = "there is something in it only with the feature")
    )]
    fn read(&mut self, parts: Parts, mut buffer: Buffer, purpose: Purpose) -> Next {
        match purpose {
            Purpose::Leave => Next::Leave(self.leave_measured(parts, buffer)),
            Purpose::Map => {
                let trailers = buffer.take_trailers();
                self.map(parts, buffer.into_bytes(), trailers)
            }
            #[cfg(feature = "compression")]
            Purpose::Gzip(_) if buffer.has_trailers() => self.encode_and_measure(parts, buffer.into_body(None), true),
            #[cfg(feature = "compression")]
            Purpose::Gzip(gzips) => {
                let mut parts = parts;
                Compress::head_of_gzip(&mut parts);
                let body = Body::new(gzips.body(buffer.into_bytes()));
                Next::read(parts, body, Purpose::Leave)
            }
        }
    }

    fn map(&self, parts: Parts, bytes: Bytes, trailers: Option<HeaderMap>) -> Next {
        match &self.settings.map {
            Some(map) => Next::Wait(Box::new(Step::Map(map.call(parts, bytes, &self.lifecycle), trailers))),
            None => Next::Leave(self.leave(parts, Body::from(bytes))),
        }
    }

    fn mapped(&mut self, mut parts: Parts, bytes: Bytes, trailers: Option<HeaderMap>) -> Next {
        // That of the body before.
        parts.headers.remove(CONTENT_LENGTH);
        if rules::is_bodiless(parts.status) {
            return Next::Leave(self.pass(Response::from_parts(parts, Body::empty())));
        }
        self.encode_and_measure(parts, Buffer::whole(bytes, trailers).into_body(None), true)
    }

    /// Encodes the body, if that is asked for, and measures it unless it is to leave as it comes.
    fn encode_and_measure(&mut self, parts: Parts, body: Body, hold: bool) -> Next {
        #[cfg(feature = "compression")]
        if let (true, Some(gzips)) = (hold, self.gzips(&parts, &body)) {
            return Next::read(parts, self.lifecycle.0.watch_known(body), Purpose::Gzip(gzips));
        }
        let (mut parts, body) = self.encode(parts, body);
        if let Some(length) = body.size_hint().exact() {
            rules::declare(&mut parts, length, &self.lifecycle);
        } else if hold {
            return Next::read(parts, body, Purpose::Leave);
        }
        Next::Leave(self.leave(parts, body))
    }
}

// === encoding ===

#[cfg(feature = "compression")]
impl Shaping {
    /// The compressors, for a body of known length that may be held back and is to be compressed with one of them.
    fn gzips(&self, parts: &Parts, body: &Body) -> Option<Arc<Gzips>> {
        let length = body.size_hint().exact().filter(|length| *length <= self.settings.buffer_limit as u64)?;
        self.settings.compress.as_ref()?.gzips(&self.accepts, parts, length)
    }

    fn encode(&mut self, parts: Parts, body: Body) -> (Parts, Body) {
        let Some(compress) = &self.settings.compress else {
            return (parts, body);
        };
        let body = self.lifecycle.0.watch_known(body);
        compress.encode(std::mem::take(&mut self.accepts), parts, body)
    }

    fn encode_head(&mut self, parts: Parts) -> Parts {
        match &self.settings.compress {
            Some(compress) => compress.encode_head(std::mem::take(&mut self.accepts), parts),
            None => parts,
        }
    }

    /// What stands for something that was encoded.
    fn amend(&self, response: &mut Response) {
        if self.settings.compress.is_some() && response.status() == http::StatusCode::NOT_MODIFIED {
            Compress::not_modified(&self.accepts, response.headers_mut());
        }
    }
}

#[cfg(not(feature = "compression"))]
#[expect(clippy::unused_self, reason = "there is something to do only with the feature")]
impl Shaping {
    fn encode(&self, parts: Parts, body: Body) -> (Parts, Body) {
        (parts, body)
    }

    fn encode_head(&self, parts: Parts) -> Parts {
        parts
    }

    fn amend(&self, _: &mut Response) {}
}

// === leaving ===

impl Shaping {
    /// A HEAD response whose body was taken off already, with its length, or is empty.
    fn leave_head(&mut self, parts: Parts) -> Response {
        let was_encoded = parts.headers.contains_key(CONTENT_ENCODING);
        let mut parts = self.encode_head(parts);
        // What the function would have made of the body is not known, and may be left out (RFC 9110, section 9.3.2).
        let maps = self.settings.map.is_some();
        if maps {
            parts.headers.remove(CONTENT_LENGTH);
        }
        let unknown = maps || parts.headers.contains_key(CONTENT_ENCODING) != was_encoded;
        self.leave(parts, if unknown { taken_off() } else { Body::empty() })
    }

    fn pass(&self, mut response: Response) -> Response {
        self.amend(&mut response);
        if !self.asked.is_bodiless(response.status()) && self.ends_by_close(response.headers(), response.body()) {
            // Else hyper promises a client that asks for it a connection that lives on.
            *response.version_mut() = self.asked.version;
        }
        response
    }

    /// Without a length it is the end of the connection that ends a body on HTTP/1.0 (RFC 9112, section 6.3).
    fn ends_by_close(&self, headers: &HeaderMap, body: &Body) -> bool {
        self.asked.version <= Version::HTTP_10
            && body.size_hint().exact().is_none()
            && !body.is_end_stream()
            && !headers.contains_key(CONTENT_LENGTH)
    }

    fn leave_measured(&self, mut parts: Parts, buffer: Buffer) -> Response {
        // A declared length would cost the trailers, if they have not been given up for one already.
        let for_trailers = self.asked.needs_chunks_for_trailers() && buffer.has_named_trailers(&parts.headers);
        if !for_trailers || parts.headers.contains_key(CONTENT_LENGTH) {
            rules::declare(&mut parts, buffer.length() as u64, &self.lifecycle);
        }
        self.leave(parts, buffer.into_body(None))
    }

    pub(super) fn leave(&self, mut parts: Parts, body: Body) -> Response {
        if body.size_hint().exact().is_none() {
            rules::keep_declared(&mut parts, body.size_hint().lower(), &self.lifecycle);
        }
        if self.ends_by_close(&parts.headers, &body) || (self.settings.close && self.asked.version <= Version::HTTP_11)
        {
            rules::close(&mut parts, self.asked.version);
        }
        if self.inside {
            parts.extensions.insert(Shaped);
        }
        Response::from_parts(parts, body)
    }
}
