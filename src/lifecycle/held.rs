//! The innermost response future: the handler's, which may have to go on without its client.

use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body, response::Response};
use bytes::{Buf, Bytes};
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, Entry},
};
use http_body_util::BodyExt as _;
use tracing::{Instrument as _, Span};

use super::{
    producer::{self, Producer},
    shared::Shared,
    transitions::{HandlerEnd, Verdict},
};
use crate::{
    continuation::{self, Continuation},
    pool::{Captured, carry::carried, caught},
};

/// A response body that our services take: every [`http_body::Body`] that can move to another task.
///
/// Implemented for all of them; there is nothing to implement.
pub trait SendBody: Send + 'static {
    /// The body as axum's, which costs nothing if that is what it is.
    fn into_body(self) -> Body;
}

impl<B> SendBody for B
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf,
    B::Error: Into<BoxError>,
{
    fn into_body(self) -> Body {
        let mut this = Some(self);
        // What is a `Body` already, as everything inside axum is, is not boxed again.
        if let Some(body) = (&mut this as &mut dyn std::any::Any).downcast_mut::<Option<Body>>().and_then(Option::take)
        {
            return body;
        }
        match this {
            // For `Bytes`, copying all of it out is taking it.
            Some(body) => Body::new(
                body.map_frame(|frame| frame.map_data(|mut data| -> Bytes { data.copy_to_bytes(data.remaining()) })),
            ),
            None => Body::empty(),
        }
    }
}

/// What goes along when a handler moves to a task of its own.
struct Surroundings {
    span: Span,
    captured: Vec<Box<dyn Captured>>,
}

/// A handler's future that can be moved to a task of its own: when it is dropped while aborts are ignored, and
/// after `finish`.
pub(super) struct Held<F> {
    future: Option<Pin<Box<F>>>,
    shared: Arc<Shared>,
    depth: u32,
    started: bool,
    /// Taken when the handler first waits; a handler that never does pays nothing for it.
    context: Option<Surroundings>,
    /// Kept as a pointer, since a destructor cannot ask for the bounds that it takes.
    detach: fn(Pin<Box<F>>, &Arc<Shared>, Surroundings),
}

/// What our services answer when the handler may not.
pub(crate) fn answer(verdict: Verdict) -> Response {
    let (status, text) = match verdict {
        Verdict::TimedOut => (StatusCode::SERVICE_UNAVAILABLE, "The time limit for this request has passed.\n"),
        // Nobody reads it: 499 is what nginx logs for a client that closed its connection.
        Verdict::Abandoned => (StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST), ""),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    if !text.is_empty() {
        let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    }
    response
}

impl<F, B, E> Held<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    pub(super) fn new(future: F, shared: Arc<Shared>, depth: u32) -> Self {
        Self { future: Some(Box::pin(future)), shared, depth, started: false, context: None, detach: detach::<F, B, E> }
    }

    /// Polls the handler; answers for it when it may not go on, or has finished its response.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, E>> {
        let Some(future) = self.future.as_mut() else {
            return Poll::Pending;
        };
        let first = !self.started;
        if first {
            self.started = true;
            self.shared.started_one();
            self.shared.handler_started();
        }
        let shared = &self.shared;
        let polled = poll_handler(shared, first, future.as_mut(), cx);
        let innermost = self.is_innermost();
        match polled {
            Ok(Poll::Ready(result)) => {
                self.discard();
                let result = match result {
                    Ok(response) => Ok(self.returned(response, innermost)),
                    Err(error) => {
                        if innermost {
                            self.shared.handler_ended(HandlerEnd::Ended);
                        }
                        Err(error)
                    }
                };
                self.shared.ended_one(HandlerEnd::Ended);
                Poll::Ready(result)
            }
            Ok(Poll::Pending) if innermost => self.waits(cx).map(Ok),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => {
                self.discard();
                if innermost {
                    self.shared.panicked("a handler", &payload);
                    self.shared.handler_ended(HandlerEnd::Ended);
                }
                self.shared.ended_one(HandlerEnd::Ended);
                resume_unwind(payload)
            }
        }
    }

    /// The handler returned.
    fn returned(&self, response: http::Response<B>, innermost: bool) -> Response {
        let mut response = response.map(SendBody::into_body);
        if !innermost {
            collect(&self.shared, &mut response);
            return response;
        }
        let continuations = Continuation::take_from(response.extensions_mut());
        // It may have called `finish` without ever waiting for it: then that is its answer.
        let response = match self.shared.take_finished() {
            Some(finished) => {
                caught::discard(response);
                *finished
            }
            None => response,
        };
        // The body's producer begins before the handler ends, so that the request does not end in between.
        let response = watched(&self.shared, response);
        self.shared.handler_returned(continuations);
        response
    }

    /// The handler waits: for something of its own, or for us.
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let shared = &self.shared;
        // Registered before the looks, so that what changes after them wakes us.
        shared.handler_waker.register(cx.waker());
        if self.context.is_none() {
            self.context = Some(Surroundings::capture(shared));
        }
        let finished = shared.take_finished();
        if let Some(response) = finished {
            let mut response = *response;
            collect(shared, &mut response);
            self.go_on_alone();
            return Poll::Ready(watched(&self.shared, response));
        }
        shared.arm();
        match shared.verdict() {
            Some(verdict) => {
                self.discard();
                self.shared.handler_ended(HandlerEnd::Dropped);
                self.shared.ended_one(HandlerEnd::Dropped);
                Poll::Ready(answer(verdict))
            }
            None => Poll::Pending,
        }
    }
}

impl<F> Held<F> {
    fn is_innermost(&self) -> bool {
        self.shared.is_innermost(self.depth)
    }

    fn go_on_alone(&mut self) {
        if let Some(future) = self.future.take() {
            let context = self.context.take().unwrap_or_else(|| Surroundings::capture(&self.shared));
            (self.detach)(future, &self.shared, context);
        }
    }

    fn discard(&mut self) {
        caught::discard(self.future.take());
    }
}

impl<F> Drop for Held<F> {
    fn drop(&mut self) {
        if self.future.is_none() {
            return;
        }
        if !self.started {
            // A middleware made it and threw it away: then the service outside of it is the innermost again.
            self.discard();
            self.shared.leave_service(self.depth);
            return;
        }
        // A finished response that nobody took.
        let finished = self.shared.take_finished();
        if let Some(response) = finished {
            finish_nowhere(&self.shared, *response);
        }
        if self.is_innermost() && self.shared.survives_drop() {
            return self.go_on_alone();
        }
        let innermost = self.is_innermost();
        // If ours is inside of it, that decides for itself.
        self.discard();
        if innermost {
            self.shared.handler_ended(HandlerEnd::Dropped);
        }
        self.shared.ended_one(HandlerEnd::Dropped);
    }
}

impl Surroundings {
    fn capture(shared: &Shared) -> Self {
        Self { span: Span::current(), captured: shared.captured() }
    }
}

/// One poll of the handler, on its request's clock.
#[inline]
fn poll_handler<F: Future>(
    shared: &Shared,
    first: bool,
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Result<Poll<F::Output>, caught::Payload> {
    let polling = continuation::Polling::begin();
    let polled = shared.measure_first("handler", first, || caught::poll(future, cx));
    for continuation in polling.end() {
        tracing::warn!(
            route = shared.route(),
            "a response with a continuation was dropped before any layer saw it: the continuation runs all the same"
        );
        shared.keep(continuation);
    }
    polled
}

/// Takes the continuations out of a response.
pub(super) fn collect(shared: &Shared, response: &mut Response) {
    for continuation in Continuation::take_from(response.extensions_mut()) {
        shared.keep(continuation);
    }
}

/// Watches the body of what the handler answered.
fn watched(shared: &Arc<Shared>, response: Response) -> Response {
    let bodiless = is_bodiless(shared, response.status());
    response.map(|body| Producer::watch(body, shared, bodiless))
}

/// Whether the server is not to send this response's body (RFC 9110, section 6.4.1).
pub(super) fn is_bodiless(shared: &Shared, status: StatusCode) -> bool {
    shared.method() == http::Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// What stands in for a body that was taken off: a router outside would declare the length of an empty one, which is
/// not that of the GET (RFC 9110, section 8.6).
pub(crate) fn taken_off() -> Body {
    struct TakenOff;

    impl http_body::Body for TakenOff {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            Poll::Ready(None)
        }

        fn is_end_stream(&self) -> bool {
            true
        }
    }

    Body::new(TakenOff)
}

/// The length that the response declares for a body whose own is not known.
pub(super) fn declared(response: &Response) -> Option<u64> {
    if http_body::Body::size_hint(response.body()).exact().is_some() {
        return None;
    }
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Takes off what the server must not send with a response that has no body.
pub(super) fn strip(shared: &Shared, response: &mut Response) {
    if response.status() == StatusCode::NO_CONTENT || response.status().is_informational() {
        // RFC 9110, section 8.6.
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if !shared.http2() {
        // hyper leaves the body out, and takes the length of a HEAD response from it.
        return;
    }
    // Over HTTP/2 hyper sends whatever body there is.
    let exact = http_body::Body::size_hint(response.body()).exact();
    if exact == Some(0) {
        return;
    }
    let body = std::mem::replace(response.body_mut(), taken_off());
    if let (Some(length), true) = (exact, shared.method() == http::Method::HEAD) {
        if let Entry::Vacant(entry) = response.headers_mut().entry(CONTENT_LENGTH) {
            entry.insert(length.into());
        }
    }
    caught::discard(body);
}

/// Lets a handler go on in a tracked task.
fn detach<F, B, E>(mut future: Pin<Box<F>>, shared: &Arc<Shared>, context: Surroundings)
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    let owner = shared.clone();
    let detached = shared.pool().detach();
    let work = async move {
        let _detached = detached;
        let outcome = poll_fn(|cx| {
            owner.handler_waker.register(cx.waker());
            match poll_handler(&owner, false, future.as_mut(), cx) {
                Ok(Poll::Ready(result)) => return Poll::Ready(Ok(Some(result))),
                Err(payload) => return Poll::Ready(Err(payload)),
                Ok(Poll::Pending) => {}
            }
            owner.arm();
            if owner.verdict().is_some() { Poll::Ready(Ok(None)) } else { Poll::Pending }
        })
        .await;
        caught::discard(future);
        match outcome {
            Ok(Some(Ok(response))) => {
                let mut response = response.map(SendBody::into_body);
                let continuations = Continuation::take_from(response.extensions_mut());
                if let Some(companion) = owner.pool().companions().first() {
                    companion.keep_stray(response.extensions_mut());
                }
                go_nowhere(&owner, response);
                owner.handler_returned(continuations);
            }
            Ok(Some(Err(_))) => owner.handler_ended(HandlerEnd::Ended),
            Ok(None) => owner.handler_ended(HandlerEnd::Dropped),
            Err(payload) => {
                owner.panicked("a handler", &payload);
                caught::dispose(payload);
                owner.handler_ended(HandlerEnd::Ended);
            }
        }
        owner.ended_one(HandlerEnd::Ended);
    };
    let work = carried(context.captured, work).instrument(context.span);
    if let Err(work) = shared.pool().spawn(work) {
        caught::discard(work);
        shared.handler_ended(HandlerEnd::Dropped);
        shared.ended_one(HandlerEnd::Dropped);
    }
    // Whoever waits for the handler's end is the task that runs the hooks.
    shared.ensure_ending();
}

/// A response that comes too late to be sent. After `finish` it is dropped (contract rule 7).
fn go_nowhere(shared: &Arc<Shared>, response: Response) {
    if shared.is_finished() {
        caught::discard(response);
    } else {
        produce_unread(shared, response.into_body());
    }
}

/// A response that was given to `finish`, and that nobody takes. What came with it runs.
pub(super) fn finish_nowhere(shared: &Arc<Shared>, mut response: Response) {
    collect(shared, &mut response);
    produce_unread(shared, response.into_body());
}

/// A body that nobody reads. If its client left and that is ignored, it is still produced to its end (contract rule 5).
fn produce_unread(shared: &Arc<Shared>, body: Body) {
    let bodiless = shared.method() == http::Method::HEAD || http_body::Body::is_end_stream(&body);
    if bodiless || !shared.producer_survives_drop() {
        caught::discard(body);
        return;
    }
    let streamed = http_body::Body::size_hint(&body).exact().is_none();
    shared.producer_started();
    producer::drain(shared, body, streamed);
}
