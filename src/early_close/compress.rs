//! tower-http's compression around a response that is there already.

use std::{
    convert::Infallible,
    fmt,
    future::{Future as _, Ready, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use axum_core::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request,
    header::{ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE},
    response::Parts,
};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tower_http::compression::{
    CompressionBody, CompressionLayer,
    predicate::{DefaultPredicate, Predicate},
};
use tower_layer::Layer as _;
use tower_service::Service;

use super::gzip::Gzips;
use crate::encoded::{self, is_fixed, vary, weaken};

/// The layer's settings, whatever their predicate.
#[derive(Clone)]
pub(super) struct Compress {
    layer: Arc<dyn Negotiate>,
    /// For tower-http's own settings: others cannot be read from its layer.
    gzips: Option<Arc<Gzips>>,
}

impl fmt::Debug for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compress").finish_non_exhaustive()
    }
}

/// What of a request's headers decides about the encoding.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepts {
    encodings: HeaderMap,
    validators: Vec<HeaderValue>,
}

impl Accepts {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let mut encodings = HeaderMap::new();
        for value in headers.get_all(ACCEPT_ENCODING) {
            encodings.append(ACCEPT_ENCODING, value.clone());
        }
        Self { encodings, validators: encoded::validators(headers) }
    }
}

impl Compress {
    pub(super) fn new<P>(layer: CompressionLayer<P>) -> Self
    where
        P: Predicate + Send + Sync + 'static,
    {
        Self { layer: Arc::new(layer), gzips: None }
    }

    /// With the settings that `CompressionLayer::new` has.
    pub(super) fn with_defaults() -> Self {
        Self { gzips: Some(Arc::default()), ..Self::new(CompressionLayer::new()) }
    }

    /// The compressors, if a body of this head is to be compressed with one of them once it is whole.
    pub(super) fn gzips(&self, accepts: &Accepts, parts: &Parts, length: u64) -> Option<Arc<Gzips>> {
        let gzips = self.gzips.as_ref()?;
        let mut accepted = accepts.encodings.values();
        let (accepted, None) = (accepted.next()?, accepted.next()) else {
            return None;
        };
        let is_left = [CONTENT_ENCODING, CONTENT_RANGE].iter().any(|name| parts.headers.contains_key(name));
        if is_left || is_fixed(parts.status, &parts.headers) || !is_worth_it(parts, length) {
            return None;
        }
        let negotiate = || {
            let response = self.layer.negotiate(accepts.encodings.clone(), Response::new(Body::new(Absent(u64::MAX))));
            response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip")
        };
        gzips.are_for(accepted, negotiate).then(|| gzips.clone())
    }

    /// Changes a head as tower-http does for a body that it compresses.
    pub(super) fn head_of_gzip(parts: &mut Parts) {
        vary(&mut parts.headers);
        parts.headers.remove(ACCEPT_RANGES);
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        weaken(&mut parts.headers);
    }

    /// The response with its body encoded as the client accepts it, or as it is.
    pub(super) fn encode(&self, accepts: Accepts, parts: Parts, body: Body) -> (Parts, Body) {
        if is_fixed(parts.status, &parts.headers) {
            return (parts, body);
        }
        // What is finite and short is taken at one go.
        let is_short = body.size_hint().upper().is_some_and(|most| most <= TURN.0 as u64);
        let body = if is_short { body } else { Body::new(InTurns { body, taken: 0, waits: 0 }) };
        let was_encoded = parts.headers.contains_key(CONTENT_ENCODING);
        let response = self.layer.negotiate(accepts.encodings, Response::from_parts(parts, body));
        let (mut parts, body) = response.into_parts();
        if was_encoded || !parts.headers.contains_key(CONTENT_ENCODING) {
            return (parts, body.into_inner());
        }
        weaken(&mut parts.headers);
        let amended = body.map_frame(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                encoded::amend(trailers);
            }
            frame
        });
        (parts, Body::new(amended))
    }

    /// The head of a HEAD response whose body was taken off before its encoding, or is empty: what its GET's would be, but
    /// for the length, which may be left out (RFC 9110, section 9.3.2).
    pub(super) fn encode_head(&self, accepts: Accepts, parts: Parts) -> Parts {
        let declared = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        self.encode(accepts, parts, Body::new(Absent(declared.unwrap_or(0)))).0
    }

    /// The head of a 304 for what was encoded.
    pub(super) fn not_modified(accepts: &Accepts, headers: &mut HeaderMap) {
        if encoded::not_modified(&accepts.validators, headers) {
            vary(headers);
        }
    }
}

/// What tower-http's layer asks by default of a response of that length.
fn is_worth_it(parts: &Parts, length: u64) -> bool {
    let mut response = http::Response::new(Absent(length));
    if let Some(content_type) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    DefaultPredicate::new().should_compress(&response)
}

/// tower-http's layer without its predicate's type.
trait Negotiate: Send + Sync {
    fn negotiate(&self, encodings: HeaderMap, response: Response) -> http::Response<CompressionBody<Body>>;
}

impl<P> Negotiate for CompressionLayer<P>
where
    P: Predicate + Send + Sync + 'static,
{
    fn negotiate(&self, encodings: HeaderMap, response: Response) -> http::Response<CompressionBody<Body>> {
        let mut request = Request::new(());
        *request.headers_mut() = encodings;
        let encoded = pin!(self.layer(There(Some(response))).call(request));
        match encoded.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => unreachable!("the service inside is ready, and what is around it waits for nothing else"),
        }
    }
}

/// A service that has its response already.
struct There(Option<Response>);

impl Service<Request<()>> for There {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(self.0.take().unwrap_or_default()))
    }
}

/// A body that lets the others on its thread, and its own limit, have their turn, however much of it there is at once. An encoder
/// asks for more until it has something to give, and what repeats itself compresses to nearly nothing.
struct InTurns {
    body: Body,
    taken: usize,
    /// So often it says yet that there is nothing.
    waits: u8,
}

/// How much there is in a turn, and what a frame counts at least. Encoders flush at its end: it is long enough to cost nothing.
const TURN: (usize, usize) = (1024 * 1024, 16);
/// An encoder that is told to wait gives out what it has. Only when it is told so once more does it wait itself.
const WAITS: u8 = 2;

impl http_body::Body for InTurns {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.taken >= TURN.0 {
            this.taken = 0;
            this.waits = WAITS;
        }
        if this.waits > 0 {
            this.waits -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.taken += frame.data_ref().map_or(0, Bytes::len).max(TURN.1);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that was taken off, of which only the length is known.
struct Absent(u64);

impl http_body::Body for Absent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}
