//! Responses as our services see them: what may be sent, what is answered in a handler's place, and what goes nowhere.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body, response::Response};
use bytes::{Buf, Bytes};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, Entry},
};
use http_body::SizeHint;
use pin_project_lite::pin_project;

use super::{producer::Producer, shared::Shared, transitions::Verdict};
use crate::{continuation::Continuation, pool::caught};

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
            Some(body) => Body::new(InBytes { body }),
            None => Body::empty(),
        }
    }
}

pin_project! {
    /// A body whose data is [`Bytes`], and which says of its end and its length what the other one does.
    struct InBytes<B> {
        #[pin]
        body: B,
    }
}

impl<B: http_body::Body> http_body::Body for InBytes<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        // For `Bytes`, copying all of it out is taking it.
        let in_bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
        self.project().body.poll_frame(cx).map_ok(|frame| frame.map_data(in_bytes))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a body ends with that its request ends.
#[derive(Debug)]
pub(super) struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was broken off: its time limit passed, or its client left")
    }
}

impl StdError for BrokenOff {}

/// Whether a body failed with that, and not by itself; as far as whatever stands between lets that through.
pub(crate) fn is_broken_off(error: &axum_core::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<BrokenOff>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What our services answer when the handler may not.
pub(crate) fn answer(verdict: Verdict) -> Response {
    let (status, text) = match verdict {
        // By the limit, or because the server stops.
        Verdict::TimedOut => (StatusCode::SERVICE_UNAVAILABLE, "This request could not be finished in time.\n"),
        // Nobody reads it: 499 is what nginx logs for a client that closed its connection.
        Verdict::Abandoned => (StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST), ""),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    if !text.is_empty() {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
    }
    response
}

/// Takes the continuations out of a response.
#[inline]
pub(super) fn collect(shared: &Shared, response: &mut Response) {
    if !response.extensions().is_empty() {
        collect_all(shared, response);
    }
}

fn collect_all(shared: &Shared, response: &mut Response) {
    for continuation in Continuation::take_from(response.extensions_mut()) {
        shared.keep(continuation);
    }
}

/// Watches the body of what the handler answered. One that streams comes too late if the limit has passed by then: it would be
/// broken off before even its head had left, so a 503 takes its place (contract rule 6).
pub(super) fn watched(shared: &Arc<Shared>, response: Response) -> Response {
    let bodiless = is_bodiless(shared, response.status());
    if !Producer::watches(response.body(), bodiless) {
        return response;
    }
    // What promises jobs is broken off: under a key it is the answer for good, and a 503 must not be that.
    if shared.is_out_of_time() && !promises_jobs(&response) {
        caught::discard(response);
        return answer(Verdict::TimedOut);
    }
    response.map(|body| Producer::watch(body, shared))
}

fn promises_jobs(response: &Response) -> bool {
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    return crate::durable::is_promised(response.extensions());
    #[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
    {
        let _ = response;
        false
    }
}

/// Whether the server is not to send this response's body (RFC 9110, sections 6.4.1 and 9.3.6).
pub(super) fn is_bodiless(shared: &Shared, status: StatusCode) -> bool {
    shared.is_head()
        || (shared.verb.is_connect() && status.is_success())
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// Whether no server may send it as the one response (RFC 9110, section 15.2). A 101 of HTTP/1 is one (section 15.2.2), and
/// HTTP/2 has none (RFC 9113, section 8.6).
pub(super) fn is_unfinal(shared: &Shared, status: StatusCode) -> bool {
    status.is_informational() && !is_upgrade(shared, status)
}

/// Whether the connection is the application's behind this response (RFC 9110, sections 9.3.6 and 15.2.2). Over HTTP/2 that
/// is a stream of it.
pub(super) fn is_upgrade(shared: &Shared, status: StatusCode) -> bool {
    !shared.http2() && (status == StatusCode::SWITCHING_PROTOCOLS || shared.verb.is_connect() && status.is_success())
}

/// What stands in for a body that was taken off: a router outside would declare the length of an empty one, which is
/// not that of the GET (RFC 9110, section 8.6).
pub(crate) fn taken_off() -> Body {
    struct TakenOff;

    impl http_body::Body for TakenOff {
        type Data = Bytes;
        type Error = Infallible;

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

/// The length of the body: its own, which need not tell its end as well, or what the response declares.
pub(super) fn length(response: &Response) -> Option<u64> {
    http_body::Body::size_hint(response.body()).exact().or_else(|| declared(response))
}

fn declared(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Takes off what the server must not send with a response that has no body.
pub(super) fn strip(shared: &Shared, response: &mut Response) {
    let status = response.status();
    let never = status == StatusCode::NO_CONTENT || status.is_informational();
    // RFC 9110, section 8.6. A 304 may declare the length of the 200 that it stands for; a router declares that of what it was
    // given.
    if never || status == StatusCode::NOT_MODIFIED && declared(response) == Some(0) {
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
    if let (Some(length), true) = (exact, shared.is_head() && !never) {
        if let Entry::Vacant(entry) = response.headers_mut().entry(CONTENT_LENGTH) {
            entry.insert(length.into());
        }
    }
    caught::discard(body);
}
