use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, Version, header, response::Parts};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::{Settings, body::Buffer};
use crate::lifecycle::{Drive, Hold, Lifecycle, SendBody, answer};

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
        settings: Settings,
        lifecycle: Lifecycle,
        version: Version,
        connect: bool,
        head: bool,
        buffering: Option<Buffering>,
    }
}

/// A response whose body is being measured.
struct Buffering {
    parts: Parts,
    body: Body,
    buffer: Buffer,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<F> Shape<F> {
    pub(super) fn new(
        inner: F,
        settings: Settings,
        lifecycle: Lifecycle,
        version: Version,
        connect: bool,
        head: bool,
    ) -> Self {
        Self { inner, settings, lifecycle, version, connect, head, buffering: None }
    }
}

impl<F, E> Future for Shape<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.buffering.is_none() {
            let response = ready!(this.inner.poll(cx))?;
            if passes_through(&response, *this.connect) || !this.lifecycle.0.shapes_response() {
                return Poll::Ready(Ok(response));
            }
            let (mut parts, body) = response.into_parts();
            if this.settings.close && *this.version <= Version::HTTP_11 {
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                // hyper adds `keep-alive` to a 1.1 response for a 1.0 client that asked for it, whatever the response
                // says; not to a 1.0 response.
                parts.version = *this.version;
            }
            if let Some(length) = body.size_hint().exact() {
                // The body of a HEAD response may have been taken off already, with its length.
                if !(*this.head && length == 0) {
                    declare(&mut parts, length);
                }
                return Poll::Ready(Ok(Response::from_parts(parts, body)));
            }
            *this.buffering = Some(Buffering { parts, body, buffer: Buffer::default(), patience: None });
        }
        let Some(buffering) = this.buffering.as_mut() else {
            return Poll::Pending;
        };
        let measured = ready!(buffering.poll(*this.settings, cx));
        let Some(Buffering { mut parts, body, buffer, .. }) = this.buffering.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(match measured {
            Measured::Whole => {
                if !buffer.has_trailers() {
                    declare(&mut parts, buffer.length() as u64);
                }
                Response::from_parts(parts, buffer.into_body(None))
            }
            Measured::TooMuch => Response::from_parts(parts, buffer.into_body(Some(body))),
            Measured::Failed(error) => failed(this.lifecycle, &error, parts),
        }))
    }
}

/// What buffering came to.
enum Measured {
    Whole,
    /// Too many bytes, or too slow.
    TooMuch,
    Failed(axum_core::Error),
}

impl Buffering {
    fn poll(&mut self, settings: Settings, cx: &mut Context<'_>) -> Poll<Measured> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Measured::Whole),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Measured::Failed(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    self.buffer.push(frame);
                    if self.body.is_end_stream() && self.buffer.length() <= settings.buffer_limit {
                        return Poll::Ready(Measured::Whole);
                    }
                    if self.buffer.length() > settings.buffer_limit {
                        return Poll::Ready(Measured::TooMuch);
                    }
                }
                Poll::Pending => break,
            }
        }
        if settings.patience.is_zero() {
            return Poll::Ready(Measured::TooMuch);
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(settings.patience)));
        patience.as_mut().poll(cx).map(|()| Measured::TooMuch)
    }
}

/// Responses that have no length to declare, or that a client reads as they come.
fn passes_through(response: &Response, connect: bool) -> bool {
    let status = response.status();
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || (connect && status.is_success())
    {
        return true;
    }
    let content_type = response.headers().get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    [&b"text/event-stream"[..], b"application/grpc"].iter().any(|streamed| {
        content_type.len() >= streamed.len() && content_type[..streamed.len()].eq_ignore_ascii_case(streamed)
    })
}

fn declare(parts: &mut Parts, length: u64) {
    let value = HeaderValue::from(length);
    let declared = parts.headers.insert(header::CONTENT_LENGTH, value);
    if let Some(declared) = declared.filter(|declared| *declared != parts.headers[header::CONTENT_LENGTH]) {
        tracing::warn!(?declared, length, "a handler declared a wrong Content-Length: it was corrected");
    }
    // A length and chunks exclude each other (RFC 9112, section 6.2).
    parts.headers.remove(header::TRANSFER_ENCODING);
}

/// The body failed while nothing of the response had left.
fn failed(lifecycle: &Lifecycle, error: &axum_core::Error, mut parts: Parts) -> Response {
    // What broke it off, if that was us, knows the better answer.
    let mut response = match lifecycle.0.verdict() {
        Some(verdict) => answer(verdict),
        None => {
            tracing::error!(%error, route = lifecycle.0.route(), "a response's body failed before its head was sent");
            (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response()
        }
    };
    if let Some(connection) = parts.headers.remove(header::CONNECTION) {
        response.headers_mut().insert(header::CONNECTION, connection);
    }
    response
}
