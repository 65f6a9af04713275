//! Our service, as hyper calls it.

use std::{
    convert::Infallible,
    task::{Context, Poll, Waker},
};

use axum_core::{body::Body, response::Response};
use http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use tokio_util::either::Either;

use super::{
    ResponseFuture, Service,
    service::{ask, told},
};
use crate::{lifecycle::SendBody, pool::caught};

/// One connection's service.
///
/// An app that is ready at once, as axum's is, is called as soon as a request of HTTP/1 is there: neither the service nor
/// the request is moved to where they would wait for that.
pub(super) struct Glue<S, A> {
    ready: Service<S, A>,
    waits: TowerToHyperService<Service<S, A>>,
}

impl<S: Clone, A: Clone> Glue<S, A> {
    pub(super) fn new(service: Service<S, A>) -> Self {
        Self { ready: service.clone(), waits: TowerToHyperService::new(service) }
    }
}

impl<S, A, B> hyper::service::Service<Request<Incoming>> for Glue<S, A>
where
    A: Clone + Send + Sync + 'static,
    S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
    B: SendBody,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<ResponseFuture<S::Future>, TowerToHyperServiceFuture<Service<S, A>, Request<Incoming>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // A stream of HTTP/2 has a task of its own: there its app is called.
        if request.version() < Version::HTTP_2 {
            if let Some(mut app) = self.ready.ready_app() {
                let app = app.as_mut().map_err(std::mem::take);
                return Either::Left(self.ready.place.respond(app, request));
            }
        }
        Either::Right(self.waits.call(request))
    }
}

impl<S: Clone, A> Service<S, A> {
    /// A clone of the app, if it is ready at once; or what it panicked with where it was cloned or asked for that.
    #[inline]
    fn ready_app<B>(&self) -> Option<Result<S, String>>
    where
        S: tower_service::Service<B>,
    {
        let mut app = match caught::call(|| self.app.clone()) {
            Ok(app) => app?,
            Err(payload) => return Some(Err(told(payload))),
        };
        match ask(&mut app, &mut Context::from_waker(Waker::noop())) {
            Ok(Poll::Ready(_)) => Some(Ok(app)),
            // It is asked again, by a task that waits for it.
            Ok(Poll::Pending) => None,
            Err(message) => Some(Err(message)),
        }
    }
}
