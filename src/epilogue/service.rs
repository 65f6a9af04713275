//! The outermost of our services: it begins each request's life on its connection.

use std::{
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body, response::Response};
use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};

use super::Epilogue;
use crate::{
    connection::{Coming, Connection, TrackedIo},
    lifecycle::{Boxed, Drive, Home, Lifecycle, SendBody, begin, response_future},
    pool::{Pool, caught, panic_message},
};

impl Epilogue {
    /// Wraps the app's service for one connection, for your own accept loop: see the
    /// [manual](crate::manual::connection#an-accept-loop-of-your-own) for a complete one.
    ///
    /// `io` is the stream that the server reads and writes; see [`TrackedIo`]. A service outside the wrapped one must
    /// pass on each response at once: on HTTP/2, while it holds back a response without a body, a client disconnect
    /// goes unnoticed.
    pub fn wrap<IO, S>(&self, io: &TrackedIo<IO>, service: S) -> Service<S>
    where
        IO: 'static,
        S: 'static,
    {
        Service::new(ready_made(service), self.pool.clone(), io.connection().clone(), None)
    }
}

/// A router whose handlers are made into services once, and not for each request, as axum's own server does.
#[cfg(feature = "serve")]
pub(super) fn ready_made<S: 'static>(app: S) -> S {
    let mut app = Some(app);
    if let Some(app) = (&mut app as &mut dyn std::any::Any).downcast_mut::<Option<axum::Router>>() {
        *app = app.take().map(|router| router.with_state(()));
    }
    match app {
        Some(app) => app,
        None => unreachable!("it was put back"),
    }
}

#[cfg(not(feature = "serve"))]
fn ready_made<S>(app: S) -> S {
    app
}

/// An app on one connection. Made by [`Epilogue::wrap`].
#[derive(Debug)]
pub struct Service<S, A = ()> {
    /// `None` where it panicked when it was cloned.
    pub(super) app: Option<S>,
    pub(super) place: Place<A>,
    /// A request has come, and waits until the app is ready for it.
    waiting: Option<Coming>,
    /// The app panicked where it was cloned for one, or asked whether it is ready. It is the call that tells of that: it has the
    /// request.
    panicked: Option<String>,
}

/// Where it is.
#[derive(Clone, Debug)]
pub(super) struct Place<A> {
    pool: Arc<Pool>,
    /// Of the thread on which its first request comes.
    home: OnceLock<Arc<Home>>,
    connection: Connection,
    #[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "nobody asks for it"))]
    address: Option<A>,
}

/// By hand, since a clone has no request.
impl<S: Clone, A: Clone> Clone for Service<S, A> {
    fn clone(&self) -> Self {
        let (app, panicked) = match &self.app {
            Some(app) => cloned(app),
            None => (None, self.panicked.clone()),
        };
        Self { app, place: self.place.clone(), waiting: None, panicked }
    }
}

/// Clones an app, or tells what it panicked with.
fn cloned<S: Clone>(app: &S) -> (Option<S>, Option<String>) {
    match caught::call(|| app.clone()) {
        Ok(app) => (Some(app), None),
        Err(payload) => (None, Some(told(payload))),
    }
}

pub(super) fn told(payload: caught::Payload) -> String {
    let message = panic_message(&*payload);
    caught::dispose(payload);
    message
}

impl<S, A> Service<S, A> {
    pub(super) fn new(app: S, pool: Arc<Pool>, connection: Connection, address: Option<A>) -> Self {
        Self::made((Some(app), None), pool, connection, address)
    }

    /// Of an app that is cloned for the connection: where that panics, each of its requests is told.
    #[cfg(feature = "serve")]
    pub(super) fn cloned(app: &S, pool: Arc<Pool>, connection: Connection, address: Option<A>) -> Self
    where
        S: Clone,
    {
        Self::made(cloned(app), pool, connection, address)
    }

    fn made(
        (app, panicked): (Option<S>, Option<String>),
        pool: Arc<Pool>,
        connection: Connection,
        address: Option<A>,
    ) -> Self {
        #[cfg(feature = "status-page")]
        if let Some(census) = &pool.census {
            census.connected(connection.as_open());
        }
        Self { app, place: Place { pool, home: OnceLock::new(), connection, address }, waiting: None, panicked }
    }
}

impl<S, A, ReqBody, ResBody> tower_service::Service<Request<ReqBody>> for Service<S, A>
where
    S: tower_service::Service<Request<Body>, Response = http::Response<ResBody>>,
    S::Future: Send + 'static,
    A: Clone + Send + Sync + 'static,
    ReqBody: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: SendBody,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let Some(app) = &mut self.app else { return Poll::Ready(Ok(())) };
        self.panicked = None;
        let polled = ask(app, cx).unwrap_or_else(|message| {
            self.panicked = Some(message);
            Poll::Ready(Ok(()))
        });
        if polled.is_ready() {
            self.waiting = None;
        } else if self.waiting.is_none() {
            self.waiting = Some(self.place.connection.coming());
        }
        polled
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let app = match (&mut self.app, self.panicked.take()) {
            (Some(app), None) => Ok(app),
            (_, message) => Err(message.unwrap_or_default()),
        };
        self.place.respond(app, request)
    }
}

/// Asks an app whether it is ready. `Err` is what it panicked with.
pub(super) fn ask<S, B>(app: &mut S, cx: &mut Context<'_>) -> Result<Poll<Result<(), S::Error>>, String>
where
    S: tower_service::Service<B>,
{
    caught::call(|| app.poll_ready(cx)).map_err(told)
}

impl<A: Clone + Send + Sync + 'static> Place<A> {
    /// Begins a request's life, and calls the app, which is ready. `Err` is what it has panicked with before.
    #[inline]
    pub(super) fn respond<S, ReqBody, ResBody>(
        &self,
        app: Result<&mut S, String>,
        mut request: Request<ReqBody>,
    ) -> ResponseFuture<S::Future>
    where
        S: tower_service::Service<Request<Body>, Response = http::Response<ResBody>>,
        S::Future: Send + 'static,
        ReqBody: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        ReqBody::Error: Into<BoxError>,
        ResBody: SendBody,
    {
        let home = self.home.get_or_init(|| Home::here(&self.pool));
        let entered = begin(home, &self.connection, &mut request);
        #[cfg(feature = "serve")]
        if let Some(address) = &self.address {
            use axum::extract::ConnectInfo;
            request.extensions_mut().insert(ConnectInfo(address.clone()));
        }
        if let Some(refusal) = entered.shared().admit(&mut request) {
            return ResponseFuture::new(entered.refuse(refusal));
        }
        let request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => {
                let coming = Some(self.connection.coming());
                Body::new(Upload { body, lifecycle: entered.lifecycle(), coming })
            }
        });
        ResponseFuture::new(entered.call_boxed(|| match app {
            Ok(app) => app.call(request),
            // The panic hook was told of it where it began.
            Err(message) => resume_unwind(Box::new(message)),
        }))
    }
}

response_future! {
    /// The response future of [`Service`].
    pub(super) fn new(drive: Drive<Boxed<F>>)
}

/// A request's body that tells when it was read to its end.
struct Upload<B> {
    body: B,
    lifecycle: Lifecycle,
    /// `None` once that is so.
    coming: Option<Coming>,
}

impl<B> http_body::Body for Upload<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.coming.is_none() {
            // hyper tells of the end behind the last byte, but not if its response has left before: then it waits for the
            // next request.
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            if frame.is_none() || self.body.is_end_stream() {
                self.lifecycle.0.uploaded();
                self.coming = None;
            }
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

#[cfg(all(test, feature = "serve"))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, routing::get};
    use tower::ServiceExt as _;

    use super::*;

    /// axum would apply the layer anew for each request.
    #[tokio::test]
    async fn a_routers_layers_are_applied_before_the_first_request() {
        let applied = Arc::new(AtomicUsize::new(0));
        let count = applied.clone();
        let layer = tower::layer::layer_fn(move |inner: axum::routing::Route| {
            count.fetch_add(1, Ordering::SeqCst);
            inner
        });
        let app = ready_made(Router::new().route("/", get(|| async {})).layer(layer));
        let before = applied.load(Ordering::SeqCst);
        for _ in 0..3 {
            let response = app.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), http::StatusCode::OK);
        }
        assert_eq!(applied.load(Ordering::SeqCst), before);
    }
}
