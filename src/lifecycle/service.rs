//! What all of our services do with a request: [`enter`] it, and drive its future with a [`Drive`].

use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use pin_project_lite::pin_project;

use super::{
    Lifecycle,
    admission::Reserving,
    delivery::Delivery,
    held::{self, Held, SendBody},
    shared::{Arrival, Home, Shared},
    transitions::Verdict,
};
use crate::pool::caught;

/// The number of the service that makes the lifecycle.
const OUTERMOST: u32 = 1;

/// One of our services' place in one request.
#[derive(Debug)]
pub(crate) struct Entered {
    shared: Arc<Shared>,
    depth: u32,
    catches_panics: bool,
}

/// Finds the request's lifecycle, or makes it: then this service is the outermost, and drives it.
pub(crate) fn enter<B>(request: &mut Request<B>) -> Entered
where
    B: http_body::Body,
{
    match request.extensions().get::<Lifecycle>() {
        Some(lifecycle) => Entered::inside(lifecycle.0.clone(), request),
        None => {
            let arrival = arrival(None, request);
            Entered::first(arrival, request, false)
        }
    }
}

/// Begins a request's life in its connection's pool: this service is the outermost.
pub(crate) fn begin<B>(home: &Arc<Home>, request: &mut Request<B>) -> Entered
where
    B: http_body::Body,
{
    let arrival = arrival(Some(home.clone()), request);
    Entered::first(arrival, request, true)
}

fn arrival<B: http_body::Body>(home: Option<Arc<Home>>, request: &Request<B>) -> Arrival {
    Arrival {
        home,
        method: request.method().clone(),
        uri: request.uri().clone(),
        version: request.version(),
        uploaded: request.body().is_end_stream(),
        is_job: false,
    }
}

impl Entered {
    fn first<B>(arrival: Arrival, request: &mut Request<B>, catches_panics: bool) -> Self {
        let shared = Shared::new(arrival);
        request.extensions_mut().insert(Lifecycle(shared.clone()));
        note_route(&shared, request);
        Self { shared, depth: OUTERMOST, catches_panics }
    }

    fn inside<B>(shared: Arc<Shared>, request: &Request<B>) -> Self {
        note_route(&shared, request);
        let depth = shared.enter_service();
        Self { shared, depth, catches_panics: false }
    }

    pub(crate) fn lifecycle(&self) -> Lifecycle {
        Lifecycle(self.shared.clone())
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Calls the inner service, holds its future, and drives the request's life around it if this is the outermost
    /// service.
    pub(crate) fn call<F, B, E>(self, call: impl FnOnce() -> F) -> Drive<Hold<F>>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        self.call_shaped(call, |hold| hold)
    }

    /// The same, with `shape` around the inner service's future.
    pub(crate) fn call_shaped<F, B, E, S>(self, call: impl FnOnce() -> F, shape: impl FnOnce(Hold<F>) -> S) -> Drive<S>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        let driver = self.driver();
        let inner = shape(self.hold(call));
        Drive { driver, inner: Inner::Waiting { inner } }
    }

    /// Answers in place of the inner service, which is not called.
    pub(crate) fn refuse<F>(self, response: Response) -> Drive<Hold<F>> {
        let driver = self.driver();
        // It entered and will not run: the service outside of it is the innermost again.
        if self.depth != OUTERMOST {
            self.shared.leave_service(self.depth);
        }
        Drive { driver, inner: Inner::Waiting { inner: Hold::Refused { response: Some(response) } } }
    }

    /// A panic of the call goes on at the first poll, where the outermost service is there for it.
    fn hold<F, B, E>(self, call: impl FnOnce() -> F) -> Hold<F>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        let future = match caught::call(call) {
            Ok(future) => future,
            Err(payload) => return Hold::Panicked { payload: Some(payload), shared: self.shared },
        };
        // Services that are nested directly have entered by now, and need no box of ours; those behind a router
        // enter at the first poll.
        if self.shared.is_innermost(self.depth) {
            Hold::Held { held: Held::new(future, self.shared, self.depth) }
        } else {
            Hold::Plain { future, shared: self.shared }
        }
    }

    fn driver(&self) -> Option<Driver> {
        let outermost = self.depth == OUTERMOST;
        outermost.then(|| Driver {
            shared: Some(self.shared.clone()),
            catches_panics: self.catches_panics,
            holding: None,
        })
    }
}

#[cfg(feature = "serve")]
fn note_route<B>(shared: &Shared, request: &Request<B>) {
    if !shared.has_route() {
        if let Some(path) = request.extensions().get::<axum::extract::MatchedPath>() {
            shared.set_route(path.clone());
        }
    }
}

#[cfg(not(feature = "serve"))]
fn note_route<B>(_: &Shared, _: &Request<B>) {}

pin_project! {
    /// The inner service's future.
    #[project = HoldProjection]
    pub(crate) enum Hold<F> {
        /// Another of our services is inside.
        Plain { #[pin] future: F, shared: Arc<Shared> },
        /// The innermost, for all that is known.
        Held { held: Held<F> },
        /// The inner service's call panicked.
        Panicked { payload: Option<caught::Payload>, shared: Arc<Shared> },
        /// The inner service was not called (contract rule 9).
        Refused { response: Option<Response> },
    }
}

impl<F, B, E> Future for Hold<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            HoldProjection::Held { held } => held.poll(cx),
            HoldProjection::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
            HoldProjection::Panicked { payload, shared } => match payload.take() {
                Some(payload) => {
                    shared.panicked("a service", &payload);
                    resume_unwind(payload)
                }
                None => Poll::Pending,
            },
            HoldProjection::Plain { future, shared } => future.poll(cx).map_ok(|response| {
                let mut response = response.map(SendBody::into_body);
                // What middleware between our services has added.
                held::collect(shared, &mut response);
                response
            }),
        }
    }
}

pin_project! {
    /// What is outside of the inner service's future: in the outermost service, the driver.
    ///
    /// The fields' order is the order of their drops: first the driver says why, then the handler's future
    /// decides what that means for it.
    pub(crate) struct Drive<F> {
        driver: Option<Driver>,
        #[pin]
        inner: Inner<F>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<F> {
        Waiting { #[pin] inner: F },
        /// Answered without it.
        Gone,
    }
}

impl<F, E> Future for Inner<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            InnerProjection::Waiting { inner } => inner.poll(cx),
            InnerProjection::Gone => Poll::Pending,
        }
    }
}

impl<F, E> Future for Drive<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(driver) = this.driver else {
            return this.inner.poll(cx);
        };
        if driver.holding.is_some() {
            return driver.poll_holding(cx).map(|response| driver.hand_over(Ok(response)));
        }
        let polled = match caught::poll(this.inner.as_mut(), cx) {
            Ok(Poll::Pending) => driver.poll(this.inner.as_mut(), cx),
            Ok(ready) => ready,
            Err(payload) => {
                this.inner.set(Inner::Gone);
                driver.panicked(payload)
            }
        };
        match polled {
            Poll::Ready(Ok(response)) => driver.hold_back(response, cx).map(|response| driver.hand_over(Ok(response))),
            polled => polled.map(|result| driver.hand_over(result)),
        }
    }
}

pin_project! {
    /// The response future of our services.
    pub struct ResponseFuture<F> {
        #[pin]
        drive: Drive<Hold<F>>,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(drive: Drive<Hold<F>>) -> Self {
        Self { drive }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().drive.poll(cx)
    }
}

/// What the outermost of our services does beside its inner future.
#[derive(Debug)]
struct Driver {
    /// `None` once the response was handed over.
    shared: Option<Arc<Shared>>,
    catches_panics: bool,
    /// The response waits for a place for its continuations (contract rule 9).
    holding: Option<Box<Holding>>,
}

/// A response that is held back.
struct Holding {
    response: Option<Response>,
    reserving: Reserving,
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").finish_non_exhaustive()
    }
}

impl Driver {
    /// The inner future waits. If it may not, the innermost service is let answer, so that the middleware
    /// between sees an ordinary response; if that is not to be had at once, the answer is ours.
    fn poll<F, E>(&self, mut inner: Pin<&mut Inner<F>>, cx: &mut Context<'_>) -> Poll<Result<Response, E>>
    where
        F: Future<Output = Result<Response, E>>,
    {
        let Some(shared) = &self.shared else { return Poll::Pending };
        // Registered before the look, so that what changes after it wakes us.
        shared.response_waker.register(cx.waker());
        shared.arm();
        shared.watch_client(cx);
        let Some(verdict) = shared.verdict() else {
            return Poll::Pending;
        };
        if verdict == Verdict::Abandoned {
            // The client had left before the request arrived, and by now the layers have not said to ignore it.
            shared.abandon();
        }
        shared.handler_waker.wake();
        match caught::poll(inner.as_mut(), cx) {
            Ok(Poll::Pending) => {
                inner.set(Inner::Gone);
                Poll::Ready(Ok(held::answer(verdict)))
            }
            Ok(ready) => ready,
            Err(payload) => {
                inner.set(Inner::Gone);
                self.panicked(payload)
            }
        }
    }

    /// Under our own server a panic is a 500; elsewhere it goes on as if we were not there.
    fn panicked<E>(&self, payload: caught::Payload) -> Poll<Result<Response, E>> {
        if let Some(shared) = self.shared.as_ref().filter(|shared| shared.panic().is_none()) {
            shared.panicked("a middleware", &payload);
        }
        if !self.catches_panics {
            // Said before the unwinding drops us: that drop is not the client's.
            if let Some(shared) = &self.shared {
                shared.response_failed();
            }
            resume_unwind(payload);
        }
        caught::dispose(payload);
        Poll::Ready(Ok((StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response()))
    }

    /// Keeps the response back, if the bounds ask for that.
    fn hold_back(&mut self, mut response: Response, cx: &mut Context<'_>) -> Poll<Response> {
        let Some(shared) = self.shared.as_ref().filter(|shared| shared.pool().bounds.is_some()) else {
            return Poll::Ready(response);
        };
        held::collect(shared, &mut response);
        match shared.reserving() {
            None => Poll::Ready(response),
            Some(reserving) => {
                self.holding = Some(Box::new(Holding { response: Some(response), reserving }));
                self.poll_holding(cx)
            }
        }
    }

    fn poll_holding(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let (Some(shared), Some(holding)) = (&self.shared, &mut self.holding) else { return Poll::Pending };
        if let Poll::Ready(tickets) = holding.reserving.as_mut().poll(cx) {
            shared.keep_tickets(tickets);
        } else {
            shared.response_waker.register(cx.waker());
            shared.arm();
            shared.watch_client(cx);
            let Some(verdict) = shared.verdict() else { return Poll::Pending };
            if verdict == Verdict::Abandoned {
                shared.abandon();
            }
            // The limit passed before the head: a 503 takes its place (contract rule 6). Its continuation runs.
            caught::discard(holding.response.replace(held::answer(verdict)));
        }
        let response = holding.response.take();
        self.holding = None;
        response.map_or(Poll::Pending, Poll::Ready)
    }

    fn hand_over<E>(&mut self, result: Result<Response, E>) -> Result<Response, E> {
        let Some(shared) = self.shared.take() else { return result };
        match result {
            Ok(mut response) => {
                held::collect(&shared, &mut response);
                #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
                super::job::refuse_unkept(&shared, &mut response);
                let bodiless = held::is_bodiless(&shared, response.status());
                if bodiless {
                    held::strip(&shared, &mut response);
                }
                shared.response_leaves();
                let declared = held::declared(&response);
                Ok(response.map(|body| Delivery::watch(body, shared, bodiless, declared)))
            }
            Err(error) => {
                shared.response_failed();
                Err(error)
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.response_lost();
        }
    }
}
