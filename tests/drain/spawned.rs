//! A handler, or a body, that a middleware has put into a task of its own, and whose client has left.

use std::{future::ready, io, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use futures_util::{FutureExt, StreamExt, stream};
use tower_epilogue::{End, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::support::{Gate, Notes, Server, h2client::Http2, pumps, soon};

/// So that it outlives its client, as the middleware means it.
async fn spawns(request: Request, next: Next) -> Response {
    tokio::spawn(next.run(request)).await.unwrap()
}

fn app(notes: &Notes, gate: &Gate, layer: IgnoreAbortLayer) -> Router {
    let (theirs, opens, hooks) = (notes.clone(), gate.clone(), notes.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let _dropped = theirs.on_drop("dropped");
        theirs.add("begins");
        lifecycle.aborted().await;
        theirs.add("aborted");
        opens.passed().await;
        theirs.add("ends");
    };
    let hook = move |end: End| {
        hooks.add(format!("hook: {}", end.status()));
        ready(())
    };
    Router::new().route("/", get(handler)).layer((ShutdownHookLayer::new(hook), from_fn(spawns), layer))
}

async fn leaves(server: &Server, notes: &Notes) {
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("begins").await;
    client.abort();
    drop(response);
}

#[tokio::test]
async fn a_drain_waits_for_it_where_aborts_are_ignored() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let mut server = Server::start(app(&notes, &gate, IgnoreAbortLayer::new())).await;
    leaves(&server, &notes).await;
    notes.seen("aborted").await;
    server.begin_drain();
    // Nothing but the handler is left, for as many turns as a drain needs.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert!(server.drained().await.is_clean());
    assert_eq!(notes.all(), ["begins", "aborted", "ends", "dropped", "hook: ABORTED"]);
}

#[tokio::test]
async fn a_drain_names_it_at_its_deadline() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let app = app(&notes, &gate, IgnoreAbortLayer::new());
    let server = Server::with(app, |builder| builder.drain_deadline(Duration::from_millis(30))).await;
    leaves(&server, &notes).await;
    notes.seen("aborted").await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(report.stragglers()[0].route(), "GET /");
    assert_eq!(notes.all(), ["begins", "aborted", "dropped", "hook: ABORTED | TIMEOUT"]);
}

/// Where they are not it is dropped, and the drain waits for its hooks.
#[tokio::test]
async fn a_drain_waits_for_its_hooks_where_they_are_not() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let mut server = Server::start(app(&notes, &gate, IgnoreAbortLayer::off())).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("begins").await;
    server.begin_drain();
    client.abort();
    drop(response);
    assert!(server.drained().await.is_clean());
    assert!(notes.has("dropped") && notes.has("hook: ABORTED"), "{:?}", notes.all());
}

/// It waits in its own task, where nobody polls it who is told of the end.
#[tokio::test]
async fn a_body_is_dropped_at_the_limit_and_at_an_abort_and_its_hooks_run() {
    for aborts in [false, true] {
        let notes = Notes::default();
        let (theirs, hooks) = (notes.clone(), notes.clone());
        let handler = async move || {
            let dropped = theirs.on_drop("dropped");
            let first = ready(Ok::<_, io::Error>(Bytes::from_static(b"first")));
            let rest = async move {
                let _dropped = dropped;
                std::future::pending().await
            };
            Body::from_stream(stream::once(first).chain(stream::once(rest.boxed())))
        };
        let hook = move |end: End| {
            hooks.add(format!("hook: {}", end.status()));
            ready(())
        };
        let limit = Duration::from_millis(if aborts { 60_000 } else { 30 });
        let layers = (ShutdownHookLayer::new(hook), from_fn(pumps), TimeLimitLayer::new(limit));
        let server = Server::start(Router::new().route("/", get(handler)).layer(layers)).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.read_until("first").await;
        let status = if aborts {
            client.reset();
            "ABORTED"
        } else {
            assert!(!client.reply().await.text().ends_with("0\r\n\r\n"));
            "TIMEOUT"
        };
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["dropped", &format!("hook: {status}")]);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_drain_names_a_body_where_aborts_are_ignored() {
    let notes = Notes::default();
    let noted = notes.clone();
    let handler = async move || {
        let dropped = noted.on_drop("dropped");
        let first = ready(Ok::<_, io::Error>(Bytes::from_static(b"first")));
        let rest = async move {
            let _dropped = dropped;
            std::future::pending().await
        };
        Body::from_stream(stream::once(first).chain(stream::once(rest.boxed())))
    };
    let app = Router::new().route("/", get(handler)).layer((from_fn(pumps), IgnoreAbortLayer::new()));
    let server = Server::with(app, |builder| builder.drain_deadline(Duration::from_millis(30))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    let response = soon("the head", response).await.unwrap();
    // It resets the stream.
    drop(response);
    server.journal.seen("aborted").await;
    client.abort();
    soon("only the body is left", async {
        while server.epilogue.running() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(notes.all(), ["dropped"]);
}
