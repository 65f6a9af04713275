//! Lets handlers run on when their client disconnects: PHP's `ignore_user_abort`.
//!
//! Without it, a client that leaves cancels the handler at its next `.await`, half-way through whatever it was doing.
//! With it, the handler and the body of its response run to their end; they can see the abort
//! ([`Lifecycle::is_aborted`]) and await it ([`Lifecycle::aborted`]).
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use tower::{Service, ServiceExt};
//! use tower_epilogue::IgnoreAbortLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let (charged, stored) = tokio::sync::oneshot::channel();
//! let charged = std::sync::Arc::new(std::sync::Mutex::new(Some(charged)));
//! let order = async move || {
//!     tokio::task::yield_now().await; // charge the card …
//!     charged.lock().unwrap().take().unwrap().send("stored").unwrap(); // … and store the order
//! };
//! let mut app: Router = Router::new().route("/order", post(order)).layer(IgnoreAbortLayer::new());
//!
//! // The client leaves in between:
//! let mut response = Box::pin(app.call(Request::post("/order").body(Body::empty()).unwrap()));
//! assert!(futures_util::poll!(&mut response).is_pending());
//! drop(response);
//! assert_eq!(stored.await, Ok("stored"));
//! # }
//! ```
//!
//! # Differences from `tokio::spawn` in the handler
//!
//! Nothing is spawned while the client stays. When it leaves, the handler is moved to a task that the
//! [`Epilogue`](crate::Epilogue) tracks: the time limit still bounds it, hooks still see its end, and a drain
//! waits for it.
//!
//! # What is not ignored
//!
//! The time limit, a drain's deadline, and other middleware that drops the handler, such as `tower_http::timeout`
//! between this layer and a tracked connection: they end the work on purpose. Under a server without a tracked
//! connection a dropped response reads as an abort, whoever dropped it.
//!
//! # What has no end of its own
//!
//! An event stream, for example, goes on with nobody reading it after its client has left, until the time limit; if
//! that is [off](crate::TimeLimitLayer::off), for as long as the process lives. Give such a route
//! [`IgnoreAbortLayer::off`]. [`max_detached`](crate::EpilogueBuilder::max_detached) refuses new requests while there
//! are too many such streams.
//!
//! [`Lifecycle::is_aborted`]: crate::Lifecycle::is_aborted
//! [`Lifecycle::aborted`]: crate::Lifecycle::aborted

use std::{
    future::Future,
    task::{Context, Poll},
};

use axum_core::response::Response;
use http::Request;
use tower_layer::Layer;
use tower_service::Service;

pub use crate::lifecycle::ResponseFuture;
use crate::lifecycle::{SendBody, enter};

/// Layer that lets handlers run on when their client disconnects. See the [module docs](self).
///
/// Of several around one route the innermost applies. A handler can change it with
/// [`Lifecycle::ignore_abort`](crate::Lifecycle::ignore_abort).
#[derive(Clone, Copy, Debug)]
pub struct IgnoreAbortLayer {
    ignore: bool,
}

impl IgnoreAbortLayer {
    /// Aborts are ignored.
    #[must_use]
    pub const fn new() -> Self {
        Self { ignore: true }
    }

    /// Aborts are not ignored: for a route inside a router whose layer ignores them.
    #[must_use]
    pub const fn off() -> Self {
        Self { ignore: false }
    }
}

impl Default for IgnoreAbortLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for IgnoreAbortLayer {
    type Service = IgnoreAbort<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IgnoreAbort { inner, ignore: self.ignore }
    }
}

/// Service of [`IgnoreAbortLayer`]. See the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct IgnoreAbort<S> {
    inner: S,
    ignore: bool,
}

impl<S> IgnoreAbort<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for IgnoreAbort<S>
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
        entered.shared().set_ignore_abort(self.ignore);
        ResponseFuture::new(entered.call(|| self.inner.call(request)))
    }
}
