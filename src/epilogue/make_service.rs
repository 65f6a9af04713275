//! The outermost of our services: it begins each request's life on its connection.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::ConnectInfo,
    serve::{IncomingStream, Listener},
};
use axum_core::{BoxError, body::Body, response::Response};
use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};

use super::Epilogue;
use crate::{
    connection::{Connection, TrackedIo, TrackedListener},
    lifecycle::{Lifecycle, ResponseFuture, SendBody, begin},
    pool::Pool,
};

impl Epilogue {
    /// Makes the app's service for each connection of a [`TrackedListener`], for [`axum::serve`].
    ///
    /// It is the outermost of our services: in it a panic of the app becomes a 500. Requests carry
    /// [`ConnectInfo`] with the listener's address type.
    ///
    /// ```no_run
    /// # async fn serve(app: axum::Router) -> std::io::Result<()> {
    /// use tower_epilogue::{Epilogue, TrackedListener};
    ///
    /// let listener = TrackedListener::new(tokio::net::TcpListener::bind("127.0.0.1:3000").await?);
    /// axum::serve(listener, Epilogue::new().make_service(app)).await
    /// # }
    /// ```
    pub fn make_service<S>(&self, app: S) -> MakeService<S> {
        MakeService { app, pool: self.pool.clone() }
    }

    /// Wraps the app's service for one connection, for an accept loop of your own.
    ///
    /// `io` is what the server reads and writes; see [`TrackedIo`].
    pub fn wrap<IO, S>(&self, io: &TrackedIo<IO>, service: S) -> Service<S>
    where
        IO: 'static,
    {
        Service::new(service, self.pool.clone(), io.connection().clone(), None)
    }
}

/// Made by [`Epilogue::make_service`].
#[derive(Clone, Debug)]
pub struct MakeService<S> {
    app: S,
    pool: Arc<Pool>,
}

/// The future of [`MakeService`]; ready at once.
pub type MakeServiceFuture<S, A> = Ready<Result<Service<S, A>, Infallible>>;

impl<L, S> tower_service::Service<IncomingStream<'_, TrackedListener<L>>> for MakeService<S>
where
    L: Listener,
    L::Addr: Clone + Sync + 'static,
    S: Clone,
{
    type Response = Service<S, L::Addr>;
    type Error = Infallible;
    type Future = MakeServiceFuture<S, L::Addr>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, TrackedListener<L>>) -> Self::Future {
        let address = Some(stream.remote_addr().clone());
        ready(Ok(self.for_connection(stream.io().connection().clone(), address)))
    }
}

impl<S: Clone> MakeService<S> {
    pub(super) fn for_connection<A>(&self, connection: Connection, address: Option<A>) -> Service<S, A> {
        Service::new(self.app.clone(), self.pool.clone(), connection, address)
    }
}

/// An app on one connection.
#[derive(Clone, Debug)]
pub struct Service<S, A = ()> {
    inner: S,
    pool: Arc<Pool>,
    connection: Connection,
    address: Option<A>,
}

impl<S, A> Service<S, A> {
    fn new(inner: S, pool: Arc<Pool>, connection: Connection, address: Option<A>) -> Self {
        Self { inner, pool, connection, address }
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
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let entered = begin(&self.pool, Some(&self.connection), &mut request);
        if let Some(address) = &self.address {
            request.extensions_mut().insert(ConnectInfo(address.clone()));
        }
        let lifecycle = entered.lifecycle();
        let request = request
            .map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(Upload { body, lifecycle }) });
        let hold = entered.hold(self.inner.call(request));
        ResponseFuture::new(entered.drive(hold))
    }
}

/// A request's body that tells when it was read to its end.
struct Upload<B> {
    body: B,
    lifecycle: Lifecycle,
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
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            if frame.is_none() || self.body.is_end_stream() {
                self.lifecycle.0.uploaded();
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
