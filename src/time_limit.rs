//! A request timeout that covers everything from the request's arrival to its continuation's end: PHP's
//! `max_execution_time` and `set_time_limit`.
//!
//! At the limit the work is dropped at its next `.await`. If the response head has not been sent, the client is
//! answered with a 503; if the body is on its way, the connection (on HTTP/2, the stream) is broken off, so that the
//! client can tell; after that, the continuation ends. Hooks then see [`ConnectionStatus::TIMEOUT`].
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{Lifecycle, TimeLimitLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! async fn slow(lifecycle: Lifecycle) -> &'static str {
//!     lifecycle.set_time_limit(Duration::from_secs(60)); // this one may take longer
//!     tokio::time::sleep(Duration::from_secs(50)).await;
//!     "done"
//! }
//!
//! let app: Router = Router::new()
//!     .route("/slow", get(slow))
//!     .route("/stuck", get(|| std::future::pending::<()>()))
//!     .layer(TimeLimitLayer::new(Duration::from_secs(30)));
//!
//! let stuck = app.clone().oneshot(Request::get("/stuck").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(stuck.status(), 503);
//! let slow = app.oneshot(Request::get("/slow").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(slow.status(), 200);
//! # }
//! ```
//!
//! # Which time counts
//!
//! By default wall-clock time: sleeping, waiting for others and a slow reader count. With
//! [`busy`](TimeLimitLayer::busy), only the time in which the request's own code runs, as in PHP on Unix.
//!
//! A poll that does not return cannot be interrupted; if it returns more than 10 ms past the limit, a warning names
//! its route.
//!
//! # Differences from `tower_http::timeout`
//!
//! `TimeoutLayer` ends with the response's head. This layer bounds the body and the continuation as well, can be
//! restarted and lifted by the handler ([`Lifecycle::set_time_limit`]), and can count busy time. At the limit it polls
//! the handler once more, and `TimeoutLayer` does not: a response that is ready by then is still sent, with the status
//! TIMEOUT, if its length is known; one that streams is replaced by the 503.
//!
//! [`ConnectionStatus::TIMEOUT`]: crate::ConnectionStatus::TIMEOUT
//! [`Lifecycle::set_time_limit`]: crate::Lifecycle::set_time_limit

use std::{
    future::Future,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::response::Response;
use http::Request;
use tower_layer::Layer;
use tower_service::Service;

pub use crate::lifecycle::{ClockKind, ResponseFuture};
use crate::lifecycle::{SendBody, enter};

/// Layer that sets a request's time limit (timeout). See the [module docs](self).
///
/// Of several around one route the innermost applies.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimitLayer {
    limit: Duration,
    kind: ClockKind,
}

impl TimeLimitLayer {
    /// A limit in wall-clock time. `Duration::ZERO` means no limit, as does one too long for the clock (centuries).
    ///
    /// # Panics
    ///
    /// It does not. But a request that waits under such a limit panics outside of all tokio runtimes, and in one
    /// without timers ([`enable_time`](tokio::runtime::Builder::enable_time)).
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, kind: ClockKind::Wall }
    }

    /// A limit in busy time: only the polls of handler, body and continuation count. A blocking continuation counts
    /// as one long poll.
    #[must_use]
    pub const fn busy(limit: Duration) -> Self {
        Self { limit, kind: ClockKind::Busy }
    }

    /// No limit: for a route inside a router whose layer sets one.
    #[must_use]
    pub const fn off() -> Self {
        Self::new(Duration::ZERO)
    }
}

/// 60 seconds of wall-clock time. (PHP's default of 30 would end together with the default patience with a slow
/// reader, and so leave no time for the continuation.)
impl Default for TimeLimitLayer {
    fn default() -> Self {
        Self::new(Duration::from_secs(60))
    }
}

impl<S> Layer<S> for TimeLimitLayer {
    type Service = TimeLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeLimit { inner, layer: *self }
    }
}

/// Service of [`TimeLimitLayer`]. See the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct TimeLimit<S> {
    inner: S,
    layer: TimeLimitLayer,
}

impl<S> TimeLimit<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for TimeLimit<S>
where
    S: Service<Request<ReqBody>, Response = http::Response<ResBody>>,
    S::Future: Future + Send + 'static,
    ReqBody: http_body::Body,
    ResBody: SendBody,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let entered = enter(&mut request);
        entered.shared().start_time_limit(self.layer.limit, self.layer.kind);
        ResponseFuture::new(entered.call(|| self.inner.call(request)))
    }
}
