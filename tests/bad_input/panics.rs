//! Panics in handlers, continuations and hooks, and in what goes along with them: each costs its own request only.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse, routing::get};
use http::StatusCode;
use tower_epilogue::{Continuation, Lifecycle, ShutdownHookLayer};

use crate::{
    common::told,
    support::{
        Gate, Notes, Server,
        h2client::{Http2, read},
        soon,
    },
};

/// Asks on a connection on which another request waits, and has that come to its end afterwards. What is asked for
/// is told by its status, or is `None` if it was broken off.
pub(crate) async fn beside_another(server: &Server, gate: &Gate) -> Option<u16> {
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
pub(crate) async fn on_http1(server: &Server) -> u16 {
    server.get("/panics").await.status
}

pub(crate) fn waits(gate: &Gate) -> Router {
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
