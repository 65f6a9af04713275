//! One clock from the request's arrival to its continuation's end: PHP's `max_execution_time` and
//! `set_time_limit`.
//!
//! At the limit the work is dropped at its next `.await`: before the response's head the client is answered
//! with a 503, in the body the connection (on HTTP/2, the stream) is broken off so that the client can tell,
//! and after it the continuation ends. Hooks then see [`ConnectionStatus::TIMEOUT`].
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
//! By default the time on the wall: sleeping, waiting for others and a slow reader count. With
//! [`busy`](TimeLimitLayer::busy), only the time in which the request's own code runs, as in PHP on Unix.
//!
//! A poll that does not end cannot be dropped; if it ends more than 10 ms past the limit, a warning names its route.
//!
//! # Differences from `tower_http::timeout`
//!
//! That one ends with the response's head. This one bounds the body and the continuation as well, can be
//! restarted and lifted by the handler ([`Lifecycle::set_time_limit`]), and can count busy time. Both poll the
//! handler before the timer: one that answers in the last moment has answered.
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

/// Layer that sets the time limit. See the [module docs](self).
///
/// Of several around one route the innermost decides.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimitLayer {
    limit: Duration,
    kind: ClockKind,
}

impl TimeLimitLayer {
    /// A limit on the wall clock. Zero is no limit, as is one too long to reckon with.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, kind: ClockKind::Wall }
    }

    /// A limit on the busy clock: only the polls of handler, body and continuation count. A blocking
    /// continuation counts as one long poll.
    #[must_use]
    pub const fn busy(limit: Duration) -> Self {
        Self { limit, kind: ClockKind::Busy }
    }

    /// No limit: for a route inside of a router whose layer sets one.
    #[must_use]
    pub const fn off() -> Self {
        Self::new(Duration::ZERO)
    }
}

/// 60 seconds on the wall clock. (PHP's default of 30 would be over together with the default patience with a slow
/// reader, who would then cost the continuation.)
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

/// Service that sets the time limit. See the [module docs](self).
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
