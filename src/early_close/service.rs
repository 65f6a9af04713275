use std::{
    future::Future,
    task::{Context, Poll},
};

use axum_core::response::Response;
use http::Request;
use tower_service::Service;

#[cfg(feature = "compression")]
use super::compress::Accepts;
use super::{
    Settings,
    future::{ResponseFuture, Shape},
    rules::Asked,
    shaping::Shaping,
};
use crate::lifecycle::{SendBody, enter};

/// Service of [`EarlyCloseLayer`](super::EarlyCloseLayer). See the [module docs](super).
#[derive(Clone, Debug)]
pub struct EarlyClose<S> {
    inner: S,
    settings: Settings,
}

impl<S> EarlyClose<S> {
    pub(super) const fn new(inner: S, settings: Settings) -> Self {
        Self { inner, settings }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for EarlyClose<S>
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
        let shaping = Shaping {
            settings: self.settings.clone(),
            lifecycle: entered.lifecycle(),
            inside: entered.shared().enter_shaping(),
            asked: Asked::new(&request),
            #[cfg(feature = "compression")]
            accepts: self.settings.compress.as_ref().map(|_| Accepts::new(request.headers())).unwrap_or_default(),
            #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
            held: None,
        };
        ResponseFuture::new(entered.call_shaped(|| self.inner.call(request), |hold| Shape::new(hold, shaping)))
    }
}
