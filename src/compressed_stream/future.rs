use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body as _;
use pin_project_lite::pin_project;

use super::{Settings, accept::Encoding, body::Compressed, encoder::Encoder};
use crate::{
    encoded::{self, is_fixed, vary, weaken},
    lifecycle::{Drive, Hold, response_future},
};

response_future! {
    /// Response future of [`CompressedStream`](super::CompressedStream).
    pub(super) fn new(drive: Drive<Compress<Hold<F>>>)
}

pin_project! {
    /// Compresses the response of `inner`, if it streams and the client accepts that.
    pub(super) struct Compress<F> {
        #[pin]
        inner: F,
        settings: Settings,
        encoding: Option<Encoding>,
        // The request's method.
        connect: bool,
        // The tags that its client has.
        validators: Vec<HeaderValue>,
    }
}

impl<F> Compress<F> {
    /// Takes from the request what it needs, and the service's future then.
    pub(super) fn prepared<B>(settings: Settings, request: &Request<B>) -> impl FnOnce(F) -> Self + use<F, B> {
        let encoding = settings.offer.choose(request.headers());
        let connect = request.method() == Method::CONNECT;
        let validators = encoded::validators(request.headers());
        move |inner| Self { inner, settings, encoding, connect, validators }
    }
}

impl<F, E> Future for Compress<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if response.status() == StatusCode::NOT_MODIFIED {
            if encoded::not_modified(this.validators, response.headers_mut()) {
                vary(response.headers_mut());
            }
            return Poll::Ready(Ok(response));
        }
        let connected = *this.connect && response.status().is_success();
        if connected || !streams(&response) || !may_be_compressed(&response) {
            return Poll::Ready(Ok(response));
        }
        if response.extensions_mut().insert(Decided).is_some() {
            return Poll::Ready(Ok(response));
        }
        vary(response.headers_mut());
        let Some(encoding) = *this.encoding else {
            return Poll::Ready(Ok(response));
        };
        relabel(response.headers_mut(), encoding);
        // For a `HEAD` as well: a server sends nothing of it, but who measures it is to find what its `GET` would get (RFC
        // 9110, section 8.6).
        let settings = *this.settings;
        let compress = |body| Body::new(Compressed::new(body, Encoder::new(encoding, settings.level), settings.pause));
        Poll::Ready(Ok(response.map(compress)))
    }
}

/// Left in a response by the innermost of several such layers, for those outside.
#[derive(Clone)]
struct Decided;

/// Whether the body's length is not known. That of one that was taken off is: nothing tells it from an empty one. What is declared
/// is known as well, as that of a file: its `HEAD` has it without a body.
fn streams(response: &Response) -> bool {
    let body = response.body();
    !response.headers().contains_key(header::CONTENT_LENGTH)
        && body.size_hint().exact().is_none()
        && !body.is_end_stream()
}

fn may_be_compressed(response: &Response) -> bool {
    let (status, headers) = (response.status(), response.headers());
    let never = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || headers.contains_key(header::CONTENT_ENCODING)
        || headers.contains_key(header::CONTENT_RANGE)
        || is_fixed(status, headers);
    !never && !is_compressed_already(headers)
}

/// Media types that are compressed by their nature, and gRPC, which compresses its messages itself.
fn is_compressed_already(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = content_type.trim_start().to_ascii_lowercase();
    let is = |prefix: &&str| content_type.starts_with(*prefix);
    let compressed = ["image/", "audio/", "video/", "font/woff", "application/grpc"].iter().any(is)
        || ["application/zip", "application/gzip", "application/x-gzip", "application/zstd"].iter().any(is);
    compressed && !content_type.starts_with("image/svg+xml")
}

/// The head of the compressed representation.
fn relabel(headers: &mut HeaderMap, encoding: Encoding) {
    headers.insert(header::CONTENT_ENCODING, encoding.name());
    // Ranges would be those of the compressed bytes, which differ from time to time.
    headers.remove(header::ACCEPT_RANGES);
    // For the same reason a strong validator would be wrong (RFC 9110, section 8.8.1).
    weaken(headers);
}
