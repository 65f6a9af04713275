//! Runs a hook at the end of each *request*: PHP's `register_shutdown_function`. ("Shutdown" here never means that
//! the server stops: for a graceful shutdown, see [`Epilogue::drain`](crate::Epilogue::drain).)
//!
//! The hook runs once, however the request ended (a response, an error, a panic, an abort, the time limit, a drain),
//! when its handler, body and continuation are over and its response was flushed or never will be. It is told [how
//! the request ended](End).
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{ConnectionStatus, ShutdownHookLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let (sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer(ShutdownHookLayer::new(move |end| {
//!         let sender = sender.clone();
//!         async move { sender.send((end.route(), end.status(), end.body_bytes())).unwrap() }
//!     }));
//!
//! let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
//! axum::body::to_bytes(response.into_body(), 100).await.unwrap();
//! assert_eq!(ends.recv().await, Some(("GET /".to_owned(), ConnectionStatus::NORMAL, 5)));
//! # }
//! ```
//!
//! # Differences from `tower_http::on_early_drop`
//!
//! `on_early_drop` calls a function from a destructor, only for a request that was dropped early. This layer runs an
//! async hook in a task, for every request, after the response was flushed.

use std::{
    fmt,
    future::Future,
    task::{Context, Poll},
};

use axum_core::response::Response;
use http::Request;
use tower_layer::Layer;
use tower_service::Service;

pub use crate::lifecycle::{End, HookOutcome, ResponseFuture};
use crate::{
    lifecycle::{Hook, SendBody, enter},
    pool::caught,
};

/// Layer that registers a hook for each request's end. See the [module docs](self).
///
/// Hooks run in the order of their registration: those of outer layers before those of inner ones, and both
/// before those that the handler registers with [`Lifecycle::on_shutdown`](crate::Lifecycle::on_shutdown).
#[derive(Clone, Copy)]
pub struct ShutdownHookLayer<H> {
    hook: H,
}

impl<H> ShutdownHookLayer<H> {
    /// A layer that calls a clone of `hook` at the end of each request, with an [`End`] that tells how it ended.
    ///
    /// The hook returns a future of `()`, or of a [`ControlFlow`](std::ops::ControlFlow) whose `Break` skips the
    /// remaining hooks. It is dropped when it exceeds the [hook limit](crate::EpilogueBuilder::hook_limit), 5 s by
    /// default.
    pub fn new<Fut>(hook: H) -> Self
    where
        H: FnOnce(End) -> Fut + Clone + Send + 'static,
        Fut: Future<Output: HookOutcome> + Send + 'static,
    {
        Self { hook }
    }
}

impl<H> fmt::Debug for ShutdownHookLayer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownHookLayer").finish_non_exhaustive()
    }
}

impl<S, H: Clone> Layer<S> for ShutdownHookLayer<H> {
    type Service = ShutdownHook<S, H>;

    fn layer(&self, inner: S) -> Self::Service {
        ShutdownHook { inner, hook: self.hook.clone() }
    }
}

/// Service that registers a hook for each request's end. See the [module docs](self).
#[derive(Clone, Copy)]
pub struct ShutdownHook<S, H> {
    inner: S,
    hook: H,
}

impl<S, H> ShutdownHook<S, H> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: fmt::Debug, H> fmt::Debug for ShutdownHook<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownHook").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, H, Fut, ReqBody, ResBody> Service<Request<ReqBody>> for ShutdownHook<S, H>
where
    S: Service<Request<ReqBody>, Response = http::Response<ResBody>>,
    S::Future: Future + Send + 'static,
    H: FnOnce(End) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: HookOutcome> + Send + 'static,
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
        if let Err(error) = entered.shared().add_hook(Hook::new(self.hook.clone())) {
            // Only a request whose life is over is refused: one that was sent into the service a second time.
            let route = entered.shared().route();
            caught::tell(
                || tracing::warn!(route, %error, "the hook of a `ShutdownHookLayer` was registered too late and does not run"),
            );
        }
        ResponseFuture::new(entered.call(|| self.inner.call(request)))
    }
}
