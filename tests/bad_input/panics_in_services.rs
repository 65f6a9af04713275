//! Panics of middleware and of apps, where they are called, asked, polled or cloned: each costs its own request only.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse, routing::get};
use futures_util::FutureExt;
use tower::{Layer, Service, ServiceExt};
use tower_epilogue::{IgnoreAbortLayer, ShutdownHookLayer, TrackedListener};

use crate::{
    common::{settled, told},
    panics::{beside_another, on_http1, waits},
    support::{
        Gate, Journal, Notes, Server,
        h2client::{Http2, read},
        logs, soon,
    },
};

/// A layer whose service panics where it is called, or where its future is polled, before or after the inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PanicsIn {
    Call,
    PollBefore,
    PollAfter,
}

#[derive(Clone)]
struct PanicsInService<S> {
    inner: S,
    place: PanicsIn,
}

impl<S> Layer<S> for PanicsIn {
    type Service = PanicsInService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PanicsInService { inner, place: *self }
    }
}

impl<S> Service<Request> for PanicsInService<S>
where
    S: Service<Request, Response: Send, Error: Send, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let panics = request.uri().path() == "/panics";
        let place = self.place;
        assert!(!(panics && place == PanicsIn::Call), "the service panics, as this test wants it");
        let response = self.inner.call(request);
        Box::pin(async move {
            assert!(!(panics && place == PanicsIn::PollBefore), "the service panics, as this test wants it");
            let response = response.await;
            assert!(!(panics && place == PanicsIn::PollAfter), "the service panics, as this test wants it");
            response
        })
    }
}

const PLACES: [PanicsIn; 3] = [PanicsIn::Call, PanicsIn::PollBefore, PanicsIn::PollAfter];

/// Inside of our layers, between them, and outside of them, in a router.
#[tokio::test]
async fn in_a_middleware_it_is_a_500_and_the_hooks_run() {
    for (panics, place) in PLACES.into_iter().flat_map(|panics| (0..4).map(move |place| (panics, place))) {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let app = Router::new().route("/panics", get(async || "hello")).merge(waits(&gate));
        let (hook, ignore) = (ShutdownHookLayer::new(told(&notes)), IgnoreAbortLayer::new());
        let app = match place {
            0 => app.layer((hook, ignore, panics)),
            1 => app.layer((hook, panics, ignore)),
            2 => app.layer((panics, hook, ignore)),
            _ => app.layer(ignore).layer(panics).layer(hook),
        };
        let server = Server::start(app).await;
        let what = format!("{panics:?} at {place}");
        assert_eq!(beside_another(&server, &gate).await, Some(500), "{what}");
        assert_eq!(on_http1(&server).await, 500, "{what}");
        server.journal.ended(4).await;
        // A hook is registered where its layer is reached.
        let hooks = if (panics, place) == (PanicsIn::Call, 2) { 2 } else { 4 };
        assert_eq!(notes.all(), ["hook: NORMAL, Flushed"].repeat(hooks), "{what}");
        let report = server.stop().await;
        assert!(report.is_clean(), "{what}: {report}");
    }
}

/// An app that is no router has nothing between itself and the connection but our outermost service.
#[tokio::test]
async fn in_the_outermost_service_of_an_app_it_is_a_500() {
    for panics in PLACES {
        let (journal, gate) = (Journal::default(), Gate::closed());
        let epilogue = journal.epilogue().build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = panics.layer(Router::new().route("/panics", get(async || "hello")).merge(waits(&gate)));
        let serve = epilogue.serve(listener, app).with_graceful_shutdown(std::future::pending());
        let server = tokio::spawn(serve.into_future());
        let mut client = Http2::connect(address).await;
        let other = client.start("GET", "/waits").await;
        assert_eq!(client.get("/panics").await.map(|whole| whole.status).ok(), Some(500), "{panics:?}");
        gate.open();
        let other = soon("the other stream", async { read(other.await.unwrap()).await.unwrap() }).await;
        assert_eq!(other.body, b"waited");
        let mut http1 = crate::support::Client::connect(address).await;
        http1.send_get("/panics").await;
        assert_eq!(http1.response(false).await.status, 500, "{panics:?}");
        journal.ended(3).await;
        server.abort();
    }
}

/// An app whose first clone panics.
struct Copies<S>(S, Arc<AtomicUsize>);

impl<S: Clone> Clone for Copies<S> {
    fn clone(&self) -> Self {
        assert!(self.1.fetch_add(1, Ordering::SeqCst) > 0, "on purpose");
        Self(self.0.clone(), self.1.clone())
    }
}

impl<S: Service<Request>> Service<Request> for Copies<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.0.call(request)
    }
}

/// An app that panics where it is made ready for a request, as long as it is to: where it is cloned for it, or asked.
struct Ready<S> {
    inner: S,
    in_clone: bool,
    panics: Arc<AtomicBool>,
}

impl<S: Clone> Clone for Ready<S> {
    fn clone(&self) -> Self {
        assert!(!(self.in_clone && self.panics.load(Ordering::SeqCst)), "cloned too often");
        Self { inner: self.inner.clone(), in_clone: self.in_clone, panics: self.panics.clone() }
    }
}

impl<S: Service<Request>> Service<Request> for Ready<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        assert!(self.in_clone || !self.panics.load(Ordering::SeqCst), "asked too much");
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.inner.call(request)
    }
}

#[tokio::test]
async fn where_an_app_is_made_ready_for_a_request_it_is_a_500() {
    for in_clone in [false, true] {
        let panics = Arc::new(AtomicBool::new(false));
        let (journal, gate) = (Journal::default(), Gate::closed());
        let epilogue = journal.epilogue().build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Router::new().route("/", get(async || "hello")).merge(waits(&gate));
        let app = Ready { inner, in_clone, panics: panics.clone() };
        let server = tokio::spawn(epilogue.serve(listener, app).into_future());
        let mut http2 = Http2::connect(address).await;
        let other = http2.start("GET", "/waits").await;
        journal.seen("handler_start").await;
        let mut http1 = crate::support::Client::connect(address).await;
        for (now, status) in [(false, 200), (true, 500), (false, 200)] {
            panics.store(now, Ordering::SeqCst);
            http1.send_get("/").await;
            assert_eq!(http1.response(false).await.status, status);
            assert_eq!(http2.get("/").await.unwrap().status, status);
        }
        gate.open();
        let other = soon("the other stream", async { read(other.await.unwrap()).await.unwrap() }).await;
        assert_eq!((other.body, epilogue.panicked()), (b"waited".to_vec(), 2));
        journal.ended(7).await;
        server.abort();
    }
}

/// It is in the task that accepts them that axum has it cloned.
#[tokio::test]
async fn where_an_app_is_cloned_for_a_connection_of_axums_server_the_others_are_served() {
    let epilogue = Journal::default().epilogue().build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Copies(Router::new().route("/", get(async || "hello")), Arc::default());
    let server = axum::serve(TrackedListener::new(listener), epilogue.make_service(app));
    let server = tokio::spawn(server.into_future());
    for (status, panics) in [(500, 1), (200, 1)] {
        let mut client = crate::support::Client::connect(address).await;
        client.send_get("/").await;
        assert_eq!(client.response(false).await.status, status);
        assert!(!server.is_finished() && epilogue.panicked() == panics);
    }
    server.abort();
}

/// It is cloned for each connection, where these are accepted.
#[tokio::test]
async fn where_an_app_is_cloned_for_a_connection_the_others_are_served() {
    let logs = logs();
    let epilogue = Journal::default().epilogue().build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Copies(Router::new().route("/", get(async || "hello")), Arc::default());
    let serve = epilogue.serve(listener, app).with_graceful_shutdown(std::future::pending());
    let server = tokio::spawn(serve.into_future());
    let mut none = crate::support::Client::connect(address).await;
    none.send_get("/").await;
    assert_eq!(none.reply().await.status, 0);
    let mut other = crate::support::Client::connect(address).await;
    other.send_get("/").await;
    assert_eq!(other.response(false).await.text(), "hello");
    assert!(!server.is_finished() && epilogue.panicked() == 1);
    assert!(logs.with("cloned").iter().any(|line| line.contains("on purpose")));
    server.abort();
}

/// On a server that is not ours a panic goes on as if we were not there; but the request's hooks run.
#[tokio::test(start_paused = true)]
async fn in_a_service_it_goes_on_without_a_server_of_ours_and_the_hooks_run() {
    for (panics, place) in PLACES.into_iter().flat_map(|panics| (0..2).map(move |place| (panics, place))) {
        let notes = Notes::default();
        let handler = tower::service_fn(async |_: Request| Ok::<_, Infallible>("hello".into_response()));
        let (hook, ignore) = (ShutdownHookLayer::new(told(&notes)), IgnoreAbortLayer::new());
        let request = Request::get("/panics").body(Body::empty()).unwrap();
        let answer = async move {
            if place == 0 {
                (hook, ignore, panics).layer(handler).oneshot(request).await
            } else {
                (hook, panics, ignore).layer(handler).oneshot(request).await
            }
        };
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        let message = answer.unwrap_err().downcast::<&str>().unwrap();
        assert_eq!(*message, "the service panics, as this test wants it");
        settled().await;
        assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"], "{panics:?} at {place}");
    }
}
