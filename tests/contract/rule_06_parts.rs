//! Where the limit finds a request: before the head, in the body, in the continuation.

use std::{
    future::{pending, poll_fn},
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{
    Continuation, EarlyCloseLayer, EventKind, IgnoreAbortLayer, Lifecycle, Output, ShutdownHookLayer, TimeLimitLayer,
};

use crate::{
    common::{SECOND, SHORT, held_back, settled, told},
    support::{
        Gate, MemoryServer, Notes, Server,
        h2client::{Http2, read},
        soon,
    },
};

fn limited(notes: &Notes) -> impl Fn(Router) -> Router + use<> {
    let notes = notes.clone();
    move |app| app.layer((TimeLimitLayer::new(SHORT), ShutdownHookLayer::new(told(&notes))))
}

#[tokio::test]
async fn before_the_head_it_is_a_503() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let _dropped = theirs.on_drop("dropped");
        pending::<()>().await;
    };
    let server = Server::start(limited(&notes)(Router::new().route("/", get(handler)))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(client.response(false).await.status, 503);
    server.journal.ended(1).await;
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().status, 503);
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["dropped", "hook: TIMEOUT, Flushed"].repeat(2));
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// In the poll that the limit brings, or in one that computed past it.
#[tokio::test]
async fn of_what_a_handler_returns_at_the_limit_nothing_streams() {
    let streams = async |lifecycle: Lifecycle| {
        poll_fn(|_| if lifecycle.status().is_timeout() { Poll::Ready(()) } else { Poll::Pending }).await;
        endless("chunked", &Notes::default())
    };
    let known = async move |lifecycle: Lifecycle| {
        streams(lifecycle).await;
        "late"
    };
    let computes = async |lifecycle: Lifecycle| {
        // Without an await, until its time is up.
        while lifecycle.time_left() != Some(Duration::ZERO) {}
        endless("declared", &Notes::default())
    };
    for early_close in [false, true] {
        let notes = Notes::default();
        let app = Router::new().route("/streams", get(streams)).route("/computes", get(computes));
        let app = limited(&notes)(app.route("/known", get(known)));
        let server = Server::start(if early_close { app.layer(EarlyCloseLayer::new()) } else { app }).await;
        let mut http2 = Http2::connect(server.address).await;
        for (path, status) in [("/streams", 503), ("/computes", 503), ("/known", 200)] {
            let mut client = server.connect().await;
            client.send_get(path).await;
            assert_eq!(client.response(false).await.status, status, "{path}");
            assert_eq!(http2.get(path).await.unwrap().status, status, "{path}");
        }
        server.journal.ended(6).await;
        assert_eq!(notes.all(), ["hook: TIMEOUT, Flushed"].repeat(6));
        server.stop().await;
    }
}

/// It streams, of unknown and of known length; it does not end before the limit.
fn endless(kind: &str, notes: &Notes) -> Response {
    let body = held_back(notes, &Gate::closed(), "first", "second");
    match kind {
        "chunked" => body.into_response(),
        "declared" => ([(http::header::CONTENT_LENGTH, "11")], body).into_response(),
        _ => panic!("no such kind: {kind}"),
    }
}

#[tokio::test]
async fn in_the_body_the_connection_is_closed_and_never_a_well_formed_end_on_http1() {
    for (kind, early_close) in ["chunked", "declared"].into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let notes = Notes::default();
        let theirs = notes.clone();
        // The head has left long before that.
        let layers = (TimeLimitLayer::new(10 * SHORT), ShutdownHookLayer::new(told(&notes)));
        let app = Router::new().route("/", get(async move || endless(kind, &theirs))).layer(layers);
        let app = if early_close { app.layer(EarlyCloseLayer::new().patience(Duration::ZERO)) } else { app };
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 200, "{kind}");
        if reply.header("content-length").is_some() {
            assert_eq!(reply.text(), "first", "{kind}: short of what was declared");
        } else {
            assert_eq!(reply.dechunked(), None, "{kind}: no last chunk in {:?}", reply.text());
            assert!(reply.text().contains("first"));
        }
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "body dropped", "hook: TIMEOUT, BrokenOff"], "{kind}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn in_the_body_the_stream_is_reset_and_the_connection_lives_on_http2() {
    for kind in ["chunked", "declared"] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let app = limited(&notes)(Router::new().route("/", get(async move || endless(kind, &theirs))));
        let server = Server::start(app.route("/ping", get(async || "pong"))).await;
        let mut client = Http2::connect(server.address).await;
        let error = client.get("/").await.unwrap_err();
        assert!(error.is_reset() && error.is_remote(), "{error}");
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "body dropped", "hook: TIMEOUT, BrokenOff"], "{kind}");
        assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_body_it_is_an_error_without_a_server_of_ours() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = limited(&notes)(Router::new().route("/", get(async move || endless("chunked", &theirs))));
    let response = app.oneshot(http::Request::new(Body::empty())).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    settled().await;
    assert_eq!(notes.all(), ["producing", "body dropped", "hook: TIMEOUT, BrokenOff"]);
}

/// While an early close holds the head back, the limit is before the head.
#[tokio::test]
async fn in_a_body_that_is_being_measured_it_is_a_503() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = limited(&notes)(Router::new().route("/", get(async move || endless("chunked", &theirs))));
    let app = app.layer(EarlyCloseLayer::new().patience(Duration::from_secs(60)));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.response(false).await;
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    server.journal.ended(1).await;
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().status, 503);
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["producing", "body dropped", "hook: TIMEOUT, Flushed"].repeat(2));
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// A reader that stops keeps the server from asking the body: status and hooks come at once all the same.
#[tokio::test]
async fn a_reader_that_stops_does_not_put_off_the_limit() {
    for known_length in [false, true] {
        for http2 in [false, true] {
            let notes = Notes::default();
            let frames = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 65_536])));
            let handler = async move || {
                if known_length {
                    return Body::from(vec![b'x'; 20_000_000]);
                }
                Body::from_stream(frames.take(320))
            };
            let server = Server::start(limited(&notes)(Router::new().route("/", get(handler)))).await;
            if http2 {
                let mut client = Http2::connect(server.address).await;
                let response = client.start("GET", "/").await;
                notes.count(1).await;
                let whole = soon("the end", async { read(response.await.unwrap()).await });
                assert!(whole.await.is_err(), "known length: {known_length}");
            } else {
                let mut client = server.connect().await;
                client.send_get("/").await;
                notes.count(1).await;
                let reply = client.reply().await;
                assert!(reply.body.len() < 20_000_000 && reply.dechunked().is_none());
            }
            server.journal.ended(1).await;
            assert_eq!(notes.all(), ["hook: TIMEOUT, BrokenOff"], "http2: {http2}, known length: {known_length}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// On HTTP/2 it may never ask for more, and stay all the same: what the body holds does not wait for that.
#[tokio::test]
async fn what_is_produced_for_a_reader_that_stops_is_dropped_at_the_limit() {
    for http2 in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (noted, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let (held, limits) = (noted.on_drop("body dropped"), lifecycle.clone());
            lifecycle.output(async move |mut output: Output| {
                let _held = held;
                let data = vec![b'x'; 20_000_000];
                opens.passed().await;
                // Enough for what the kernel takes at once.
                limits.set_time_limit(10 * SHORT);
                output.write(data).await
            })
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let mut http1 = server.connect().await;
        let mut client = Http2::connect(server.address).await;
        let unread = if http2 {
            Some(soon("a head", client.start("GET", "/").await).await.unwrap())
        } else {
            http1.send_get("/").await;
            http1.read_until("\r\n\r\n").await;
            None
        };
        gate.open();
        server.journal.ended(1).await;
        notes.count(2).await;
        assert_eq!(notes.all(), ["body dropped", "hook: TIMEOUT, BrokenOff"], "http2: {http2}");
        drop((unread, client, http1));
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn in_the_continuation_it_is_dropped_and_the_response_was_whole() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let continuation = Continuation::new(async move {
            let _dropped = theirs.on_drop("continuation dropped");
            pending::<()>().await;
        });
        (continuation, "hello")
    };
    let server = Server::start(limited(&notes)(Router::new().route("/", get(handler)))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(client.response(false).await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"hello");
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["continuation dropped", "hook: TIMEOUT, Flushed"].repeat(2));
    // The connection is as good as before.
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.response(true).await.status, 200);
    assert!(server.stop().await.is_clean());
}

/// The second one has not begun: it does not run on a clock that has run out, and nothing is silent about it.
#[tokio::test]
async fn the_continuations_behind_one_that_reached_the_limit_are_dropped_too() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let waits = Continuation::new(pending());
        let behind = Continuation::new(async move {
            tokio::task::yield_now().await;
            theirs.add("ran behind the limit");
        });
        (waits, behind, "hello")
    };
    let server = Server::start(limited(&notes)(Router::new().route("/", get(handler)))).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: TIMEOUT, Flushed"]);
    let kinds: Vec<_> = server.journal.events().iter().map(|event| event.kind().clone()).collect();
    let dropped = kinds.iter().filter(|kind| **kind == EventKind::ContinuationDropped).count();
    assert_eq!(dropped, 2, "{kinds:?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn in_the_rest_of_a_handler_that_finished_it_is_dropped_and_the_response_was_whole() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let _dropped = theirs.on_drop("rest dropped");
        lifecycle.finish("finished").await.unwrap();
        lifecycle.set_time_limit(SHORT);
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"finished");
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["rest dropped", "hook: TIMEOUT, Flushed"].repeat(2));
    assert!(server.stop().await.is_clean());
}

/// They have a limit of their own.
#[tokio::test(start_paused = true)]
async fn in_the_hooks_it_counts_for_nothing() {
    let notes = Notes::default();
    let handler = async || {
        tokio::time::sleep(8 * SECOND).await;
        "hello"
    };
    let waits = ShutdownHookLayer::new(async |_| tokio::time::sleep(4 * SECOND).await);
    let layers = (TimeLimitLayer::new(10 * SECOND), waits, ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(layers));
    assert_eq!(server.get("/").await.text(), "hello");
    server.ended(1).await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn ignoring_aborts_does_not_ignore_the_limit() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let _dropped = theirs.on_drop("dropped");
        let _shield = lifecycle.shield();
        pending::<()>().await;
    };
    let app = limited(&notes)(Router::new().route("/", get(handler))).layer(IgnoreAbortLayer::new());
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.status, 503);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["dropped", "hook: TIMEOUT, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// Uses up what the runtime lets a task do in one go, and then waits for ever.
async fn spent() {
    while tokio::task::coop::has_budget_remaining() {
        tokio::task::coop::consume_budget().await;
    }
    pending::<()>().await;
}

#[tokio::test]
async fn a_handler_or_continuation_that_used_up_its_tasks_budget_is_dropped_all_the_same() {
    let notes = Notes::default();
    let (theirs, its) = (notes.clone(), notes.clone());
    let handler = async move || {
        let _dropped = theirs.on_drop("handler dropped");
        spent().await;
    };
    let continuing = async move || {
        let dropped = its.on_drop("continuation dropped");
        let work = async move {
            let _dropped = dropped;
            spent().await;
        };
        (Continuation::new(work), "hello")
    };
    let app = limited(&notes)(Router::new().route("/", get(handler)).route("/continuing", get(continuing)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.status, 503);
    server.journal.ended(1).await;
    assert_eq!(server.get("/continuing").await.text(), "hello");
    server.journal.ended(2).await;
    let status = "hook: TIMEOUT, Flushed";
    assert_eq!(notes.all(), ["handler dropped", status, "continuation dropped", status]);
    assert!(server.stop().await.is_clean());
}
