use std::{
    future::Future,
    task::{Context, Poll},
};

use axum_core::response::Response;
use http::Request;
use tower_service::Service;

use super::{
    Settings,
    future::{Compress, ResponseFuture},
};
use crate::lifecycle::{SendBody, enter};

/// Service of [`CompressedStreamLayer`](super::CompressedStreamLayer). See the [module docs](super).
#[derive(Clone, Copy, Debug)]
pub struct CompressedStream<S> {
    inner: S,
    settings: Settings,
}

impl<S> CompressedStream<S> {
    pub(super) const fn new(inner: S, settings: Settings) -> Self {
        Self { inner, settings }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for CompressedStream<S>
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
        let compress = Compress::prepared(self.settings, &request);
        ResponseFuture::new(entered.call_shaped(|| self.inner.call(request), compress))
    }
}
