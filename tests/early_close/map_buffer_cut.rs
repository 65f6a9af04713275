//! What ends the function on buffered bodies: the limit, and the client that leaves.

use std::{io, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    routing::get,
};
use bytes::Bytes;
use http::response::Parts;
use tokio::time::Instant;
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Sent, ShutdownHookLayer, TimeLimitLayer};

use crate::support::{Gate, MemoryServer, Notes, Server, ends, h2client::Http2, soon};

/// Waits for ever, and notes its begin and its drop.
fn waits(notes: &Notes) -> EarlyCloseLayer {
    let notes = notes.clone();
    EarlyCloseLayer::new().map_buffer(move |parts: Parts, bytes: Bytes| {
        let notes = notes.clone();
        async move {
            notes.add("begun");
            let _note = notes.on_drop("dropped");
            std::future::pending::<()>().await;
            Ok::<_, io::Error>((parts, bytes))
        }
    })
}

fn app(notes: &Notes) -> Router {
    let theirs = notes.clone();
    let handler = async move || (Continuation::new(async move { theirs.add("continuation") }), "hello");
    Router::new().route("/", get(handler)).layer(waits(notes))
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_it_is_dropped_and_the_answer_is_a_503() {
    let notes = Notes::default();
    let server = MemoryServer::start(app(&notes).layer(TimeLimitLayer::new(Duration::from_secs(3))));
    let began = Instant::now();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    server.ended(1).await;
    assert_eq!(server.journal.lines().last().unwrap(), "ended/2");
    assert_eq!(notes.all()[..2], ["begun", "dropped"]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_it() {
    let notes = Notes::default();
    let (hook, mut ends) = ends();
    let server = Server::start(app(&notes).layer(hook)).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("begun").await;
    client.reset();
    let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
    assert!(status.is_aborted() && sent == Sent::Aborted, "{status} {sent:?}");
    assert_eq!(notes.all(), ["begun", "dropped", "continuation"]);
}

#[tokio::test]
async fn where_aborts_are_ignored_it_runs_to_its_end() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (hook, mut ends) = ends();
    let (theirs, waits) = (notes.clone(), gate.clone());
    let layer = EarlyCloseLayer::new().map_buffer(move |parts: Parts, bytes: Bytes| {
        let (notes, gate) = (theirs.clone(), waits.clone());
        async move {
            notes.add("begun");
            gate.passed().await;
            notes.add("ended");
            Ok::<_, io::Error>((parts, bytes))
        }
    });
    let app = Router::new().route("/", get(async || "hello"));
    let app = app.layer((layer, hook, IgnoreAbortLayer::new()));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("begun").await;
    client.reset();
    server.journal.seen("aborted").await;
    gate.open();
    let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
    assert!(status.is_aborted() && sent == Sent::Aborted, "{status} {sent:?}");
    assert_eq!(notes.all(), ["begun", "ended"]);
}

/// Its polls are the request's own time.
#[tokio::test]
async fn its_busy_time_counts() {
    let busy = EarlyCloseLayer::new().map_buffer(async |parts: Parts, bytes: Bytes| {
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(40) {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
        Ok::<_, io::Error>((parts, bytes))
    });
    let app =
        Router::new().route("/", get(async || "hello")).layer((busy, TimeLimitLayer::busy(Duration::from_millis(20))));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.status, 503);
}

/// On HTTP/2 the response's future goes with its stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn where_aborts_are_ignored_it_runs_to_its_end_on_http_2_too() {
    // More than once: its threads may tell of the end and of the abort in any order.
    for _ in 0..30 {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, waits) = (notes.clone(), gate.clone());
        let layer = EarlyCloseLayer::new().map_buffer(move |parts: Parts, bytes: Bytes| {
            let (notes, gate) = (theirs.clone(), waits.clone());
            async move {
                notes.add("begun");
                let _note = notes.on_drop("dropped");
                gate.passed().await;
                notes.add("ended");
                Ok::<_, io::Error>((parts, bytes))
            }
        });
        let hooked = notes.clone();
        let hook = ShutdownHookLayer::new(async move |end| hooked.add(format!("hook: {}", end.status())));
        let app = Router::new().route("/", get(async || "hello")).layer((layer, hook, IgnoreAbortLayer::new()));
        let server = Server::start(app).await;
        let mut client = Http2::connect(server.address).await;
        let response = client.start("GET", "/").await;
        notes.seen("begun").await;
        drop(response);
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["begun", "ended", "dropped", "hook: ABORTED"]);
    }
}

tokio::task_local! {
    static TENANT: Cloned;
}

/// Tells how often it was cloned.
struct Cloned(Notes);

impl Clone for Cloned {
    fn clone(&self) -> Self {
        self.0.add("cloned");
        Self(self.0.clone())
    }
}

/// What goes along is taken while it still runs with its client: a destructor calls nothing of the user's.
#[tokio::test]
async fn what_is_carried_goes_along_with_it() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, waits) = (notes.clone(), gate.clone());
    let layer = EarlyCloseLayer::new().map_buffer(move |parts: Parts, bytes: Bytes| {
        let (notes, gate) = (theirs.clone(), waits.clone());
        async move {
            notes.add("begun");
            gate.passed().await;
            notes.add(if TENANT.try_with(|_| ()).is_ok() { "with it" } else { "without it" });
            Ok::<_, io::Error>((parts, bytes))
        }
    });
    let scope = notes.clone();
    let tenant = middleware::from_fn(move |request: Request, next: Next| {
        TENANT.scope(Cloned(scope.clone()), async move { next.run(request).await })
    });
    let app = Router::new().route("/", get(async || "hello")).layer((tenant, layer, IgnoreAbortLayer::new()));
    let server = Server::with(app, |builder| builder.carry(&TENANT)).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("cloned").await;
    drop(response);
    server.journal.seen("aborted").await;
    notes.add("left");
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["begun", "cloned", "left", "with it"]);
}
