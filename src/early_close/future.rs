use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header::CONTENT_LENGTH, response::Parts};
use http_body::Body as _;
use pin_project_lite::pin_project;

#[cfg(feature = "compression")]
use super::compress::{Accepts, Compress};
use super::{
    Settings,
    body::Buffer,
    map::Mapping,
    reading::{Measured, Reading},
    rules::{self, Asked},
};
use crate::lifecycle::{Drive, Hold, Lifecycle, SendBody, answer, taken_off};

pin_project! {
    /// Response future of [`EarlyClose`](super::EarlyClose).
    pub struct ResponseFuture<F> {
        #[pin]
        drive: Drive<Shape<Hold<F>>>,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(drive: Drive<Shape<Hold<F>>>) -> Self {
        Self { drive }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().drive.poll(cx)
    }
}

pin_project! {
    /// Shapes the response of `inner` (contract rule 8).
    pub(super) struct Shape<F> {
        #[pin]
        inner: F,
        shaping: Shaping,
        // What is waited for after `inner`.
        step: Option<Box<Step>>,
    }
}

/// All that shaping a response depends on.
pub(super) struct Shaping {
    pub(super) settings: Settings,
    pub(super) lifecycle: Lifecycle,
    pub(super) asked: Asked,
    #[cfg(feature = "compression")]
    pub(super) accepts: Accepts,
}

/// What a response waits for before its head leaves.
enum Step {
    /// The plain body, for the user's function.
    Collect(Parts, Reading),
    /// The user's function; and the trailers.
    Map(Mapping, Option<HeaderMap>),
    /// The body as it is to leave.
    Measure(Parts, Reading),
}

/// What a step came to.
enum Done {
    Read(Measured),
    Mapped(Parts, Bytes),
    Failed,
}

/// How it goes on: with the response, or with something to wait for.
enum Next {
    Leave(Response),
    Wait(Box<Step>),
}

impl<F> Shape<F> {
    pub(super) fn new(inner: F, shaping: Shaping) -> Self {
        Self { inner, shaping, step: None }
    }
}

impl<F, E> Future for Shape<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut next = match this.step.take() {
            Some(step) => Next::Wait(step),
            None => this.shaping.begin(ready!(this.inner.poll(cx))?),
        };
        loop {
            match next {
                Next::Leave(response) => return Poll::Ready(Ok(response)),
                Next::Wait(mut step) => match this.shaping.poll(&mut step, cx) {
                    Poll::Ready(done) => next = this.shaping.go_on(*step, done),
                    Poll::Pending => {
                        *this.step = Some(step);
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

// === what comes after what ===

impl Shaping {
    fn poll(&self, step: &mut Step, cx: &mut Context<'_>) -> Poll<Done> {
        let polled = match step {
            Step::Collect(_, reading) | Step::Measure(_, reading) => reading.poll(&self.settings, cx).map(Done::Read),
            Step::Map(mapping, _) => mapping
                .poll(&self.lifecycle, cx)
                .map(|mapped| mapped.map_or(Done::Failed, |(parts, bytes)| Done::Mapped(parts, bytes))),
        };
        // So that the middleware outside sees our answer and not a dropped future.
        if polled.is_pending() && self.lifecycle.0.verdict().is_some() { Poll::Ready(Done::Failed) } else { polled }
    }

    fn begin(&mut self, response: Response) -> Next {
        if self.asked.passes_through(&response) || !self.lifecycle.0.shapes_response() {
            return Next::Leave(self.pass(response));
        }
        let (parts, body) = response.into_parts();
        let known = body.size_hint().exact();
        if self.asked.head && (known == Some(0) || body.is_end_stream()) {
            return Next::Leave(self.leave_head(parts));
        }
        // What is known to be past the limit is not read for the function.
        let fits = known.is_none_or(|length| length <= self.settings.buffer_limit as u64);
        if self.settings.map.is_some() && fits {
            let body = self.lifecycle.0.watch_known(body);
            return Next::Wait(Box::new(Step::Collect(parts, Reading::new(body))));
        }
        self.encode_and_measure(parts, body, true)
    }

    fn go_on(&mut self, step: Step, done: Done) -> Next {
        match (step, done) {
            (Step::Collect(parts, reading), Done::Read(Measured::Whole)) => {
                let mut buffer = reading.into_buffer();
                let trailers = buffer.take_trailers();
                self.map(parts, buffer.into_bytes(), trailers)
            }
            (Step::Collect(parts, reading), Done::Read(Measured::TooMuch)) => {
                self.encode_and_measure(parts, reading.into_body(), false)
            }
            (Step::Map(_, trailers), Done::Mapped(parts, bytes)) => self.mapped(parts, bytes, trailers),
            (Step::Measure(parts, reading), Done::Read(Measured::Whole)) => {
                Next::Leave(self.leave_measured(parts, reading.into_buffer()))
            }
            (Step::Measure(parts, reading), Done::Read(Measured::TooMuch)) => {
                Next::Leave(self.leave(parts, reading.into_body()))
            }
            (Step::Collect(_, reading) | Step::Measure(_, reading), Done::Read(Measured::Failed(error))) => {
                if self.lifecycle.0.verdict().is_none() {
                    let route = self.lifecycle.0.route();
                    tracing::error!(%error, route, "a response's body failed before its head was sent");
                }
                reading.discard();
                Next::Leave(self.fail())
            }
            (Step::Collect(_, reading) | Step::Measure(_, reading), Done::Mapped(..) | Done::Failed) => {
                reading.discard();
                Next::Leave(self.fail())
            }
            (Step::Map(..), Done::Read(_) | Done::Failed) => Next::Leave(self.fail()),
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
            return Next::Leave(Response::from_parts(parts, Body::empty()));
        }
        self.encode_and_measure(parts, Buffer::whole(bytes, trailers).into_body(None), true)
    }

    /// Encodes the body, if that is asked for, and measures it unless it is to leave as it comes.
    fn encode_and_measure(&mut self, parts: Parts, body: Body, hold: bool) -> Next {
        let (mut parts, body) = self.encode(parts, body);
        if let Some(length) = body.size_hint().exact() {
            rules::declare(&mut parts, length);
        } else if hold {
            return Next::Wait(Box::new(Step::Measure(parts, Reading::new(body))));
        }
        Next::Leave(self.leave(parts, body))
    }
}

// === encoding ===

#[cfg(feature = "compression")]
impl Shaping {
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

    fn pass(&self, mut response: Response) -> Response {
        if self.settings.compress.is_some() && response.status() == StatusCode::NOT_MODIFIED {
            Compress::not_modified(&self.accepts, response.headers_mut());
        }
        response
    }
}

#[cfg(not(feature = "compression"))]
impl Shaping {
    fn encode(&self, parts: Parts, body: Body) -> (Parts, Body) {
        (parts, body)
    }

    fn encode_head(&self, parts: Parts) -> Parts {
        parts
    }

    fn pass(&self, response: Response) -> Response {
        response
    }
}

// === leaving ===

impl Shaping {
    /// A HEAD response whose body was taken off already, with its length.
    fn leave_head(&mut self, parts: Parts) -> Response {
        let declared = parts.headers.contains_key(CONTENT_LENGTH);
        let mut parts = self.encode_head(parts);
        // What the function would have made of the body is not known, and may be left out (RFC 9110, section 9.3.2).
        let maps = self.settings.map.is_some();
        if maps {
            parts.headers.remove(CONTENT_LENGTH);
        }
        let unknown = maps || (declared && !parts.headers.contains_key(CONTENT_LENGTH));
        self.leave(parts, if unknown { taken_off() } else { Body::empty() })
    }

    fn leave_measured(&self, mut parts: Parts, buffer: Buffer) -> Response {
        // A declared length would cost the trailers, if they have not been given up for one already.
        let for_trailers = buffer.has_trailers() && self.asked.needs_chunks_for_trailers();
        if !for_trailers || parts.headers.contains_key(CONTENT_LENGTH) {
            rules::declare(&mut parts, buffer.length() as u64);
        }
        self.leave(parts, buffer.into_body(None))
    }

    fn leave(&self, mut parts: Parts, body: Body) -> Response {
        // Without a length it is the end of the connection that ends a body on HTTP/1.0 (RFC 9112, section 6.3).
        let ends_by_close = self.asked.version <= Version::HTTP_10
            && body.size_hint().exact().is_none()
            && !body.is_end_stream()
            && !parts.headers.contains_key(CONTENT_LENGTH);
        if ends_by_close || (self.settings.close && self.asked.version <= Version::HTTP_11) {
            rules::close(&mut parts, self.asked.version);
        }
        Response::from_parts(parts, body)
    }

    /// Something failed while nothing of the response had left: a 500, or what broke it off, if that was us, has the
    /// better answer.
    fn fail(&self) -> Response {
        let response = match self.lifecycle.0.verdict() {
            Some(verdict) => answer(verdict),
            None => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response(),
        };
        let (parts, body) = response.into_parts();
        self.leave(parts, body)
    }
}
