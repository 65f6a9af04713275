//! Responses without a body, and what their heads may say of it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, Entry},
};

use super::shared::Shared;
use crate::pool::caught;

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
