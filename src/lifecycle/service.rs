//! What all of our services do with a request: [`enter`] it, and drive its future with a [`Drive`].

use std::{
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use axum_core::response::Response;
use http::{Extensions, Request, uri::PathAndQuery};
use pin_project_lite::pin_project;

use super::{
    Lifecycle,
    drive::{Drive, response_future},
    driver::Driver,
    held::Held,
    home::Home,
    polled,
    response::{self, SendBody},
    running,
    shared::{Arrival, Shared},
    strays::{keep_dropped, poll_around},
};
use crate::{connection::Connection, pool::caught};

/// The number of the service that makes the lifecycle.
pub(super) const OUTERMOST: u32 = 1;

/// Nothing, with room for seven: a clone has it too. Ours, the client's address, and the two of axum's router are one more
/// than there is room for in a map that begins with the first.
static ROOM: LazyLock<Extensions> = LazyLock::new(|| {
    let mut extensions = Extensions::new();
    extensions.insert(0_u8);
    extensions.insert(0_u16);
    extensions.insert(0_u32);
    extensions.insert(0_u64);
    extensions.clear();
    extensions
});

/// One of our services' place in one request.
#[derive(Debug)]
pub(crate) struct Entered {
    shared: Arc<Shared>,
    depth: u32,
    /// What it is inside of.
    around: running::Around,
    catches_panics: bool,
}

/// Finds the request's lifecycle, or makes it: then this service is the outermost, and drives it.
pub(crate) fn enter<B>(request: &mut Request<B>) -> Entered
where
    B: http_body::Body,
{
    match request.extensions_mut().get_mut::<Lifecycle>() {
        Some(lifecycle) => {
            let entered = Entered::inside(lifecycle);
            note_route(&entered.shared, request.extensions());
            entered
        }
        None => {
            let arrival = arrival(Home::alone(), None, request);
            Entered::first(arrival, request, false)
        }
    }
}

/// Begins a request's life in its connection's pool: this service is the outermost.
pub(crate) fn begin<B>(home: &Arc<Home>, connection: &Connection, request: &mut Request<B>) -> Entered
where
    B: http_body::Body,
{
    home.is_here();
    let arrival = arrival(home.clone(), Some(connection), request);
    Entered::first(arrival, request, true)
}

fn arrival<'a, B: http_body::Body>(
    home: Arc<Home>,
    connection: Option<&'a Connection>,
    request: &Request<B>,
) -> Arrival<'a> {
    Arrival {
        home,
        connection,
        method: request.method().clone(),
        path: whole_path(request),
        version: request.version(),
        uploaded: request.body().is_end_stream(),
        is_job: false,
    }
}

impl Entered {
    fn first<B>(arrival: Arrival<'_>, request: &mut Request<B>, catches_panics: bool) -> Self {
        let shared = Shared::new(arrival);
        let extensions = request.extensions_mut();
        if extensions.is_empty() {
            *extensions = ROOM.clone();
        }
        extensions.insert(Lifecycle(shared.clone(), running::Around::NOTHING.and(OUTERMOST)));
        note_route(&shared, request.extensions());
        polled::called(&shared, OUTERMOST);
        Self { shared, depth: OUTERMOST, around: running::Around::NOTHING, catches_panics }
    }

    /// What this one calls finds itself inside of it.
    fn inside(lifecycle: &mut Lifecycle) -> Self {
        let shared = lifecycle.0.clone();
        let depth = shared.running.enter();
        polled::called(&shared, depth);
        let around = lifecycle.1;
        lifecycle.1 = around.and(depth);
        Self { shared, depth, around, catches_panics: false }
    }

    pub(crate) fn lifecycle(&self) -> Lifecycle {
        Lifecycle(self.shared.clone(), self.around)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Calls the inner service, holds its future, and drives the request's life around it if this is the outermost
    /// service.
    // Inlined, since a call moves the whole future once more.
    #[inline(always)]
    pub(crate) fn call<F, B, E>(self, call: impl FnOnce() -> F) -> Drive<Hold<F>>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        self.call_shaped(call, |hold| hold)
    }

    /// The same, with `shape` around the inner service's future.
    #[inline(always)]
    pub(crate) fn call_shaped<F, B, E, S>(self, call: impl FnOnce() -> F, shape: impl FnOnce(Hold<F>) -> S) -> Drive<S>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        let driver = self.driver();
        Drive::new(driver, shape(self.hold(call)))
    }

    /// Answers in place of the inner service, which is not called.
    pub(crate) fn refuse<F, P>(self, response: Response) -> Drive<Hold<F, P>> {
        let driver = self.driver();
        Drive::new(driver, Hold::Refused { response: Some(response) })
    }

    /// A panic of the call goes on at the first poll, where the outermost service is there for it.
    #[inline(always)]
    fn hold<F, B, E>(self, call: impl FnOnce() -> F) -> Hold<F>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        // One inside of another of our services goes on to that by itself: each catch moves the whole request twice.
        let future = if self.depth == OUTERMOST {
            match caught::call(call) {
                Ok(future) => future,
                Err(payload) => return Hold::Panicked { payload: Some(payload), shared: self.shared },
            }
        } else {
            call()
        };
        // Services that are nested directly have entered by now, and need no box of ours; those behind a router
        // enter at the first poll.
        if polled::has_called_on(&self.shared, self.depth) {
            Hold::Plain {
                around: Around { future: Some(future), shared: self.shared, outside: self.around, begun: false },
            }
        } else {
            Hold::Held { held: Held::new(Box::pin(future), self.shared, self.depth, self.around) }
        }
    }

    /// The same for a service that is always the outermost. What it calls is most often a router, which has it boxed: so it
    /// always is, at once, and not moved from hand to hand.
    #[inline(always)]
    pub(crate) fn call_boxed<F, B, E>(self, call: impl FnOnce() -> F) -> Drive<Boxed<F>>
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: SendBody,
    {
        let (driver, shared) = (self.driver(), self.shared);
        let hold = match caught::call(|| Box::pin(call())) {
            Err(payload) => Hold::Panicked { payload: Some(payload), shared },
            Ok(future) if polled::has_called_on(&shared, self.depth) => {
                Hold::Plain { around: Around { future: Some(future), shared, outside: self.around, begun: false } }
            }
            Ok(future) => Hold::Held { held: Held::new(future, shared, self.depth, self.around) },
        };
        Drive::new(driver, hold)
    }

    fn driver(&self) -> Option<Driver> {
        let outermost = self.depth == OUTERMOST;
        outermost.then(|| Driver::new(self.shared.clone(), self.catches_panics))
    }
}

/// A nested router has taken its own part off the path.
fn whole_path<B>(request: &Request<B>) -> Option<PathAndQuery> {
    #[cfg(feature = "serve")]
    if let Some(whole) = request.extensions().get::<axum::extract::OriginalUri>() {
        return whole.0.path_and_query().cloned();
    }
    request.uri().path_and_query().cloned()
}

#[cfg(feature = "serve")]
pub(super) fn note_route(shared: &Shared, extensions: &Extensions) {
    if !shared.has_route() {
        if let Some(path) = extensions.get::<axum::extract::MatchedPath>() {
            shared.set_route(path.clone());
        }
    }
}

#[cfg(not(feature = "serve"))]
pub(super) fn note_route(_: &Shared, _: &Extensions) {}

pin_project! {
    /// The inner service's future.
    #[project = HoldProjection]
    pub(crate) enum Hold<F, P = F> {
        /// Another of our services is inside.
        Plain { #[pin] around: Around<P> },
        /// The innermost, for all that is known.
        Held { held: Held<F> },
        /// The inner service's call panicked.
        Panicked { payload: Option<caught::Payload>, shared: Arc<Shared> },
        /// The inner service was not called (contract rule 9).
        Refused { response: Option<Response> },
    }
}

/// With a box for every future.
pub(crate) type Boxed<F> = Hold<F, Pin<Box<F>>>;

impl<F, P, B, E> Future for Hold<F, P>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    P: Future<Output = F::Output>,
    B: SendBody,
{
    type Output = Result<Response, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            HoldProjection::Held { held } => held.poll(cx),
            HoldProjection::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending,
            },
            HoldProjection::Panicked { payload, shared } => match payload.take() {
                Some(payload) => {
                    shared.panicked("middleware", &payload);
                    resume_unwind(payload)
                }
                None => Poll::Pending,
            },
            HoldProjection::Plain { around } => around.poll(cx),
        }
    }
}

pin_project! {
    /// The middleware between two of our services.
    pub(crate) struct Around<F> {
        // `None` in its destructor alone.
        #[pin]
        future: Option<F>,
        shared: Arc<Shared>,
        // What it is inside of.
        outside: running::Around,
        // Where it is polled in none of that: something of ours has begun in it.
        begun: bool,
    }

    impl<F> PinnedDrop for Around<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Err(payload) = keep_dropped(this.shared, &[], || caught::call(|| this.future.set(None))) {
                resume_unwind(payload);
            }
        }
    }
}

impl<F, B, E> Future for Around<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: SendBody,
{
    type Output = Result<Response, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(future) = this.future.as_pin_mut() else { return Poll::Pending };
        poll_around(this.shared, *this.outside, this.begun, future, cx).map_ok(|response| {
            let mut response = response.map(SendBody::into_body);
            // What middleware between our services has added.
            response::collect(this.shared, &mut response);
            response
        })
    }
}

response_future! {
    /// The response future of our services.
    pub(crate) fn new(drive: Drive<Hold<F>>)
}
