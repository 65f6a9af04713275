//! Reserves a place for a route's continuation before its handler runs: [`ReserveLayer`].
//!
//! Where a [class](crate::EpilogueBuilder::class) of continuations is bounded, it is too late to refuse a request
//! once its handler has returned one. So the routes that return them declare it:
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_epilogue::{Bound, Continuation, Epilogue, ReserveLayer};
//!
//! async fn signup() -> (Continuation, &'static str) {
//!     let mail = Continuation::new(async { /* … */ }).class("mail");
//!     (mail, "We'll email you.")
//! }
//!
//! // Four mails at once, and 100 that wait; beyond that, sign-ups get a 503 with `Retry-After`.
//! let epilogue = Epilogue::builder().class("mail", Bound::new(4).max_waiting(100)).build();
//! let app: Router = Router::new().route("/signup", post(signup).layer(ReserveLayer::class("mail")));
//! # let _ = (epilogue, app);
//! ```
//!
//! The place is released if the handler returns without such a continuation. The common bound of all continuations
//! ([`max_running`](crate::EpilogueBuilder::max_running)) needs no layer.
//!
//! The layer does nothing under a policy other than [`WhenFull::Refuse`](crate::WhenFull::Refuse), for a class
//! without a bound, or where no [`Epilogue`](crate::Epilogue) serves. If other classes have bounds and this one has
//! none, its name may be misspelt: that is logged, once for each such class.

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

/// Layer that reserves a place for a continuation. See the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct ReserveLayer {
    class: &'static str,
}

impl ReserveLayer {
    /// Reserves a place in the class `name`.
    #[must_use]
    pub const fn class(name: &'static str) -> Self {
        Self { class: name }
    }
}

impl<S> Layer<S> for ReserveLayer {
    type Service = Reserve<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Reserve { inner, class: self.class }
    }
}

/// Service of [`ReserveLayer`]. See the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct Reserve<S> {
    inner: S,
    class: &'static str,
}

impl<S> Reserve<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Reserve<S>
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let entered = enter(&mut request);
        if let Some(refusal) = entered.shared().admit_class(self.class, &mut request) {
            return ResponseFuture::new(entered.refuse(refusal));
        }
        ResponseFuture::new(entered.call(|| self.inner.call(request)))
    }
}
