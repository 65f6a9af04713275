//! Panics in user code that is called or polled: each costs its own request only.

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

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::FutureExt;
use http::StatusCode;
use tower::{Layer, Service, ServiceExt};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TrackedListener};

use crate::{
    common::{settled, streamed, told},
    support::{
        Gate, Journal, Notes, Server,
        h2client::{Http2, read},
        logs, soon,
    },
};

/// Asks on a connection on which another request waits, and has that come to its end afterwards. What is asked for
/// is told by its status, or is `None` if it was broken off.
async fn beside_another(server: &Server, gate: &Gate) -> Option<u16> {
    let mut client = Http2::connect(server.address).await;
    let other = client.start("GET", "/waits").await;
    let status = client.get("/panics").await.ok().map(|whole| whole.status);
    gate.open();
    let other = soon("the other stream", async { read(other.await.unwrap()).await.unwrap() }).await;
    assert_eq!(other.body, b"waited");
    assert_eq!(client.get("/waits").await.unwrap().body, b"waited");
    status
}

/// The same on HTTP/1, where a connection has one request at a time.
async fn on_http1(server: &Server) -> u16 {
    server.get("/panics").await.status
}

fn waits(gate: &Gate) -> Router {
    let gate = gate.clone();
    Router::new().route(
        "/waits",
        get(async move || {
            gate.passed().await;
            "waited"
        }),
    )
}

/// How often each note was made.
fn counted(notes: &Notes, note: &str) -> usize {
    notes.all().iter().filter(|other| *other == note).count()
}

#[tokio::test]
async fn in_a_handler_it_is_a_500() {
    for late in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let handler = async move || -> () {
            if late {
                tokio::task::yield_now().await;
            }
            panic!("the handler panics, as this test wants it");
        };
        let app = Router::new().route("/panics", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app.merge(waits(&gate))).await;
        assert_eq!(beside_another(&server, &gate).await, Some(500));
        assert_eq!(on_http1(&server).await, 500);
        server.journal.ended(4).await;
        assert_eq!(notes.all(), ["hook: NORMAL, Flushed"].repeat(2));
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn in_a_continuation_the_ones_behind_it_run() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        (
            Continuation::new(async { panic!("the continuation panics, as this test wants it") }),
            Continuation::blocking(|| panic!("the blocking continuation panics, as this test wants it")),
            Continuation::new(async move { notes.add("third") }),
            "hello",
        )
    };
    let theirs = notes.clone();
    let hook = async move |end: tower_epilogue::End| theirs.add(end.panic().unwrap());
    let app = Router::new().route("/panics", get(handler)).layer(ShutdownHookLayer::new(hook));
    let server = Server::start(app.merge(waits(&gate))).await;
    assert_eq!(beside_another(&server, &gate).await, Some(200));
    server.journal.ended(3).await;
    assert_eq!(on_http1(&server).await, 200);
    server.journal.ended(4).await;
    assert_eq!(notes.all(), ["third", "the continuation panics, as this test wants it"].repeat(2));
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn in_a_hook_the_ones_behind_it_run() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        // In the function itself, in its future at once, and later.
        let at_once = |_| -> std::future::Ready<()> { panic!("the hook panics, as this test wants it") };
        lifecycle.on_shutdown(at_once).unwrap();
        lifecycle.on_shutdown(async |_| -> () { panic!("the hook panics, as this test wants it") }).unwrap();
        let later = async |_| -> () {
            tokio::task::yield_now().await;
            panic!("the hook panics, as this test wants it");
        };
        lifecycle.on_shutdown(later).unwrap();
        let notes = theirs.clone();
        lifecycle.on_shutdown(async move |end| notes.add(format!("{:?}", end.panic().is_some()))).unwrap();
        "hello"
    };
    let server = Server::start(Router::new().route("/panics", get(handler)).merge(waits(&gate))).await;
    assert_eq!(beside_another(&server, &gate).await, Some(200));
    assert_eq!(on_http1(&server).await, 200);
    server.journal.ended(4).await;
    assert_eq!(notes.all(), ["true", "true"]);
    assert!(server.stop().await.is_clean());
}

/// A body whose first frame panics; with a known length it is another one that watches it.
struct Panics {
    known: bool,
}

impl http_body::Body for Panics {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        panic!("the body panics, as this test wants it");
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if self.known { http_body::SizeHint::with_exact(10) } else { http_body::SizeHint::new() }
    }
}

#[tokio::test]
async fn in_a_body_it_is_broken_off() {
    for known in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let app = Router::new()
            .route("/panics", get(async move || Body::new(Panics { known })))
            .layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app.merge(waits(&gate))).await;
        assert_eq!(beside_another(&server, &gate).await, None);
        let reply = server.get("/panics").await;
        assert!(reply.body.is_empty() && reply.header("content-length") != Some("0"), "{reply:?}");
        server.journal.ended(4).await;
        assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"].repeat(2), "known: {known}");
        assert!(server.stop().await.is_clean());
    }
}

/// A body that some middleware outside of our layers has made of ours.
#[tokio::test]
async fn in_a_body_of_another_layer_it_is_broken_off_and_not_the_clients_abort() {
    for known in [false, true] {
        for streams in [false, true] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let body = move || if streams { streamed(&["hel", "lo"]) } else { Body::from("hello") };
            let app = Router::new()
                .route("/panics", get(async move || body()))
                .layer(ShutdownHookLayer::new(told(&notes)))
                .layer(map_response(
                    move |response: Response| async move { response.map(|_| Body::new(Panics { known })) },
                ));
            let server = Server::start(app.merge(waits(&gate))).await;
            assert_eq!(beside_another(&server, &gate).await, None);
            let reply = server.get("/panics").await;
            assert!(reply.body.is_empty() && reply.header("content-length") != Some("0"), "{reply:?}");
            server.journal.ended(4).await;
            assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"].repeat(2), "known: {known}, streams: {streams}");
            assert!(server.stop().await.is_clean());
        }
    }
}

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

#[tokio::test]
async fn in_a_body_that_is_being_measured_it_is_a_500() {
    for known in [false, true] {
        let gate = Gate::closed();
        let app = Router::new()
            .route("/panics", get(async move || Body::new(Panics { known })))
            .layer(EarlyCloseLayer::new())
            .merge(waits(&gate));
        let server = Server::start(app).await;
        // A known length is declared without asking the body for anything.
        assert_eq!(beside_another(&server, &gate).await, if known { None } else { Some(500) });
        server.journal.ended(3).await;
        assert!(server.stop().await.is_clean());
    }
}

/// The message is not a string, and dropping it panics once more.
struct Evil(Notes);

impl Drop for Evil {
    fn drop(&mut self) {
        self.0.add("payload dropped");
        panic!("the payload of a panic panics, as this test wants it");
    }
}

#[tokio::test]
async fn with_a_payload_that_panics_when_it_is_dropped_it_costs_that_request_only() {
    for what in ["handler", "body", "continuation", "hook"] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let evil = Evil(theirs.clone());
            let panics = async move {
                if true {
                    std::panic::panic_any(evil)
                }
            };
            match what {
                "handler" => {
                    panics.await;
                    StatusCode::OK.into_response()
                }
                "body" => {
                    let frames = futures_util::stream::once(async move {
                        panics.await;
                        Ok::<_, Infallible>("never")
                    });
                    Body::from_stream(frames).into_response()
                }
                "continuation" => Continuation::new(panics).into_response(),
                _ => {
                    lifecycle.on_shutdown(async move |_| -> () { panics.await }).unwrap();
                    "hello".into_response()
                }
            }
        };
        let app = Router::new().route("/panics", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app.merge(waits(&gate))).await;
        beside_another(&server, &gate).await;
        server.journal.ended(3).await;
        assert_eq!(counted(&notes, "payload dropped"), 1, "{what}");
        assert_eq!(notes.all().iter().filter(|note| note.starts_with("hook: NORMAL")).count(), 1, "{what}");
        assert!(server.stop().await.is_clean());
    }
}

/// A body that panics when it is asked for its length, or whether it has ended.
pub(crate) struct Unmeasurable {
    pub(crate) asked_for_its_end: bool,
}

impl http_body::Body for Unmeasurable {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        assert!(!self.asked_for_its_end, "the body panics, as this test wants it");
        false
    }

    fn size_hint(&self) -> http_body::SizeHint {
        panic!("the body panics, as this test wants it");
    }
}

#[tokio::test]
async fn where_a_body_tells_its_length_it_is_a_500_and_the_continuation_runs() {
    for asked_for_its_end in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        // Not one of axum's handlers, whose router asks by itself.
        let service = tower::service_fn(move |_: Request| {
            let notes = theirs.clone();
            let body = Body::new(Unmeasurable { asked_for_its_end });
            let work = Continuation::new(async move { notes.add("continuation") });
            std::future::ready(Ok::<_, Infallible>((work, body).into_response()))
        });
        let service = ShutdownHookLayer::new(told(&notes)).layer(service);
        let server = Server::start(Router::new().route_service("/panics", service).merge(waits(&gate))).await;
        assert_eq!(beside_another(&server, &gate).await, Some(500));
        server.journal.ended(3).await;
        assert_eq!(on_http1(&server).await, 500);
        server.journal.ended(4).await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"].repeat(2));
        assert!(server.stop().await.is_clean());
    }
}

/// A value that goes along into continuations, and panics where it is to.
struct Unclonable;

impl Clone for Unclonable {
    fn clone(&self) -> Self {
        panic!("the clone panics, as this test wants it");
    }
}

tokio::task_local!(static UNCLONABLE: Unclonable);

#[tokio::test]
async fn where_a_task_local_is_cloned_the_continuation_runs_without_it() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        let work = async move { notes.add(format!("carried: {}", UNCLONABLE.try_with(|_| ()).is_ok())) };
        (Continuation::new(work), "hello")
    };
    let app = Router::new().route("/panics", get(handler)).layer(ShutdownHookLayer::new(told(&notes))).layer(
        axum::middleware::from_fn(async |request: Request, next: axum::middleware::Next| {
            UNCLONABLE.scope(Unclonable, next.run(request)).await
        }),
    );
    let server = Server::with(app, |builder| builder.carry(&UNCLONABLE)).await;
    assert_eq!(on_http1(&server).await, 200);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["carried: false", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// A subscriber that panics at every error it is told of.
struct PanicsAtErrors;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for PanicsAtErrors {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        assert!(*event.metadata().level() != tracing::Level::ERROR, "the subscriber panics, as this test wants it");
    }
}

#[test]
fn of_a_subscriber_while_a_runtime_ends_it_holds_no_drain_up() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (epilogue, _client) = first.block_on(async {
        let handler = async || (Continuation::new(std::future::pending()), "hello");
        let server = Server::start(Router::new().route("/", get(handler))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        server.journal.seen("continuation_start").await;
        (server.epilogue.clone(), client)
    });
    assert_eq!(epilogue.running(), 1);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(PanicsAtErrors), || drop(first));
    assert_eq!((epilogue.running(), epilogue.lost()), (0, 1));
    assert!(runtime().block_on(soon("it drains", epilogue.drain())).is_clean());
}

/// A subscriber that panics where the first span of a continuation is entered.
struct PanicsOnce(AtomicBool);

impl<S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>> tracing_subscriber::Layer<S>
    for PanicsOnce
{
    fn on_enter(&self, id: &tracing::Id, context: tracing_subscriber::layer::Context<'_, S>) {
        let on_thread = std::thread::current().name().is_some_and(|name| name.starts_with("blocking"));
        let ours = context.span(id).is_some_and(|span| span.name() == "continuation");
        let first = on_thread && ours && !self.0.swap(true, Ordering::SeqCst);
        assert!(!first, "the subscriber panics, as this test wants it");
    }
}

#[tokio::test]
async fn of_a_subscriber_on_the_only_thread_of_blocking_continuations_the_others_run() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        (Continuation::blocking(move || notes.add("ran")), "hello")
    };
    let subscriber = tracing_subscriber::registry().with(PanicsOnce(false.into()));
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let server = Server::with(Router::new().route("/", get(handler)), |builder| builder.max_blocking(1)).await;
    for _ in 0..3 {
        assert_eq!(server.get("/").await.status, 200);
    }
    server.journal.ended(3).await;
    assert!(notes.all().len() >= 2, "{:?}", notes.all());
    assert!(server.stop().await.is_clean());
}
