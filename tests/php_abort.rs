//! Rows of the PHP table: the client leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    routing::{MethodRouter, get},
};
use support::{Client, Gate, Server, h2client::Http2, soon};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_epilogue::{ConnectionStatus, Continuation, IgnoreAbortLayer, Lifecycle, Sent, ShutdownHookLayer};

/// The ways of a client to leave an HTTP/1 connection.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    /// FIN, and the client stays to read.
    HalfClose,
    /// FIN, and what comes later is answered with a RST.
    Close,
    /// RST at once.
    Reset,
}

const WAYS: [Leaving; 3] = [Leaving::HalfClose, Leaving::Close, Leaving::Reset];

impl Leaving {
    /// Gives back the client that is still there, half.
    async fn leave(self, mut client: Client) -> Option<Client> {
        match self {
            Self::HalfClose => {
                client.half_close().await;
                return Some(client);
            }
            Self::Close => client.close(),
            Self::Reset => client.reset(),
        }
        None
    }
}

const ABORTED_WITH_A_HOOK: [&str; 6] =
    ["handler_start/0", "aborted/1", "handler_dropped/1", "hook_start:0/1", "hook_end:0/1", "ended/1"];

/// A handler that never answers, never writes and never looks; its hook says how it ended.
fn silent() -> (Router, mpsc::UnboundedReceiver<(ConnectionStatus, Sent)>) {
    let (sender, ends) = mpsc::unbounded_channel();
    let hook = async move |end: tower_epilogue::End| sender.send((end.status(), end.sent())).unwrap();
    let app = Router::new().route("/", get(pending::<()>).post(pending::<()>));
    (app.layer(ShutdownHookLayer::new(hook)), ends)
}

#[tokio::test]
async fn an_abort_before_any_output_ends_a_silent_handler() {
    for way in WAYS {
        for version in ["1.0", "1.1"] {
            let (app, mut ends) = silent();
            let server = Server::start(app).await;
            let mut client = server.connect().await;
            client.send(&format!("GET / HTTP/{version}\r\nhost: test\r\n\r\n")).await;
            server.journal.seen("handler_start").await;
            let client = way.leave(client).await;
            server.journal.ended(1).await;
            assert_eq!(server.journal.lines(), ABORTED_WITH_A_HOOK, "{way:?}, HTTP/{version}");
            assert_eq!(soon("it is told", ends.recv()).await, Some((ConnectionStatus::ABORTED, Sent::Aborted)));
            if let Some(mut client) = client {
                assert_eq!(client.reply().await.head, "", "a client that left is not answered");
            }
        }
    }
}

#[tokio::test]
async fn an_abort_is_seen_behind_an_unread_upload() {
    for way in [Leaving::Close, Leaving::Reset] {
        let (app, _ends) = silent();
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        let upload = "x".repeat(70_000);
        client.send(&format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n{upload}")).await;
        server.journal.seen("handler_start").await;
        way.leave(client).await;
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines(), ABORTED_WITH_A_HOOK, "{way:?}");
    }
}

#[tokio::test]
async fn an_abort_is_seen_behind_a_pipelined_request() {
    for way in WAYS {
        let (app, _ends) = silent();
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send(&"GET / HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2)).await;
        server.journal.seen("handler_start").await;
        way.leave(client).await;
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines(), ABORTED_WITH_A_HOOK, "{way:?}: and the second was never begun");
    }
}

#[tokio::test]
async fn an_abort_before_any_output_on_http_2_ends_its_stream_alone() {
    let (app, mut ends) = silent();
    let server = Server::start(app.route("/other", get(async || "other"))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    server.journal.seen("handler_start").await;
    drop(response); // RST_STREAM
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), ABORTED_WITH_A_HOOK);
    assert_eq!(soon("it is told", ends.recv()).await, Some((ConnectionStatus::ABORTED, Sent::Aborted)));
    assert_eq!(client.get("/other").await.unwrap().body, b"other");
}

#[tokio::test]
async fn a_lost_http_2_connection_aborts_all_of_its_streams() {
    let (app, mut ends) = silent();
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let responses = [client.start("GET", "/").await, client.start("GET", "/").await];
    let both = |events: &[tower_epilogue::Event]| {
        events.iter().filter(|event| event.kind().name() == "handler_start").count() == 2
    };
    server.journal.until("both handlers start", both).await;
    client.abort();
    server.journal.ended(2).await;
    for _ in responses {
        assert_eq!(soon("it is told", ends.recv()).await, Some((ConnectionStatus::ABORTED, Sent::Aborted)));
    }
}

// === while the body is on its way ===

type Parts = Arc<Mutex<Option<mpsc::Sender<Result<&'static str, Infallible>>>>>;

/// A body that sends "part\n" and then what the test puts into the channel, which it takes over.
fn streaming() -> (MethodRouter, Parts) {
    let parts = Parts::default();
    let given = parts.clone();
    let handler = async move || {
        let (sender, receiver) = mpsc::channel(8);
        sender.send(Ok("part\n")).await.unwrap();
        given.lock().unwrap().replace(sender);
        Body::from_stream(ReceiverStream::new(receiver))
    };
    (get(handler), parts)
}

#[tokio::test]
async fn an_abort_ends_a_body_that_is_silent_for_now() {
    for way in WAYS {
        let (route, parts) = streaming();
        let app = Router::new().route("/", route).layer(ShutdownHookLayer::new(|_| async {}));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.read_until("part\n").await;
        way.leave(client).await;
        server.journal.ended(1).await;
        let life = ["handler_start/0", "handler_end/0", "aborted/1", "body_dropped/1"];
        assert_eq!(
            server.journal.lines(),
            [&life[..], &["hook_start:0/1", "hook_end:0/1", "ended/1"]].concat(),
            "{way:?}"
        );
        assert!(parts.lock().unwrap().as_ref().unwrap().is_closed(), "whoever wrote to it can tell");
    }
}

#[tokio::test]
async fn an_abort_on_http_2_ends_a_body_that_is_silent_for_now() {
    let (route, _parts) = streaming();
    let server = Server::start(Router::new().route("/", route)).await;
    let mut client = Http2::connect(server.address).await;
    let mut body = client.start("GET", "/").await.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "part\n");
    drop(body); // RST_STREAM
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), ["handler_start/0", "handler_end/0", "aborted/1", "body_dropped/1", "ended/1"]);
}

#[tokio::test]
async fn an_ignored_abort_lets_the_body_be_produced_to_its_end() {
    for way in [Leaving::Close, Leaving::Reset] {
        let (route, parts) = streaming();
        let server = Server::start(Router::new().route("/", route).layer(IgnoreAbortLayer::new())).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.read_until("part\n").await;
        way.leave(client).await;
        server.journal.seen("aborted").await;
        let sender = parts.lock().unwrap().take().unwrap();
        for _ in 0..100 {
            soon("the producer goes on", sender.send(Ok("more\n"))).await.expect("somebody takes it");
        }
        drop(sender);
        server.journal.ended(1).await;
        assert_eq!(
            server.journal.lines(),
            ["handler_start/0", "handler_end/0", "aborted/1", "body_end/1", "ended/1"],
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn s6b_hooks_run_to_their_end_whatever_happened_to_the_connection() {
    for way in [Leaving::Close, Leaving::Reset] {
        let (route, parts) = streaming();
        let (sender, mut done) = mpsc::unbounded_channel();
        let (first, second, third) = (sender.clone(), sender.clone(), sender);
        let app = Router::new()
            .route("/", route)
            .layer(ShutdownHookLayer::new(async move |_| third.send("third").unwrap()))
            .layer(ShutdownHookLayer::new(async move |_| {
                // Output after an abort: an error value, and not the hook's end.
                let output = parts.lock().unwrap().take().unwrap();
                assert!(output.send(Ok("bye")).await.is_err());
                second.send("second").unwrap();
            }))
            .layer(ShutdownHookLayer::new(async move |end: tower_epilogue::End| {
                tokio::task::yield_now().await;
                assert!(end.status().is_aborted());
                first.send("first").unwrap();
            }));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.read_until("part\n").await;
        way.leave(client).await;
        server.journal.ended(1).await;
        let mut order = Vec::new();
        soon("it is told", done.recv_many(&mut order, 3)).await;
        assert_eq!(order, ["first", "second", "third"], "{way:?}");
    }
}

#[tokio::test]
async fn the_continuation_of_an_aborted_response_runs_once_and_to_its_end() {
    for ignore in [false, true] {
        let (work, gate) = (Gate::closed(), Gate::closed());
        let (held, answer) = (work.clone(), gate.clone());
        let app = Router::new()
            .route(
                "/",
                get(async move |lifecycle: Lifecycle| {
                    let _critical = lifecycle.shield();
                    answer.passed().await;
                    (Continuation::new(async move { held.passed().await }), "nobody reads it")
                }),
            )
            .layer(if ignore { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() });
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        server.journal.seen("handler_start").await;
        client.reset();
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.seen("continuation_start").await;
        work.open();
        server.journal.ended(1).await;
        assert_eq!(
            server.journal.lines(),
            ["handler_start/0", "aborted/1", "handler_end/1", "continuation_start/1", "continuation_end/1", "ended/1"],
            "ignored: {ignore}"
        );
    }
}

// === after the response ===

#[tokio::test]
async fn a_client_that_leaves_after_its_response_has_not_aborted() {
    for way in WAYS {
        let (gate, (sender, mut ends)) = (Gate::closed(), mpsc::unbounded_channel());
        let held = gate.clone();
        let app = Router::new()
            .route("/", get(async move || (Continuation::new(async move { held.passed().await }), "hello")))
            .layer(ShutdownHookLayer::new(async move |end| sender.send((end.status(), end.sent())).unwrap()));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        assert_eq!(client.reply_by_length(false).await.text(), "hello");
        if let Some(mut client) = way.leave(client).await {
            // The server has seen it: it closes its side as well.
            assert_eq!(client.reply().await.head, "");
        }
        server.journal.seen("continuation_start").await;
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(soon("it is told", ends.recv()).await, Some((ConnectionStatus::NORMAL, Sent::Flushed)), "{way:?}");
        assert!(server.journal.lines().contains(&"continuation_end/0".to_owned()), "{way:?}");
    }
}

#[tokio::test]
async fn a_lost_connection_does_not_end_a_handler_that_has_finished_its_response() {
    let (gate, (sender, mut flags)) = (Gate::closed(), mpsc::unbounded_channel());
    let work = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        assert_eq!(lifecycle.finish("hello").await, Ok(Sent::Flushed));
        work.passed().await;
        sender.send(lifecycle.is_aborted()).unwrap();
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/").await.unwrap().body, b"hello");
    client.abort();
    server.journal.seen("finish_resolved").await;
    gate.open();
    assert_eq!(soon("it is told", flags.recv()).await, Some(false));
    server.journal.ended(1).await;
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "flushed:5/0", "finish_resolved/0", "handler_end/0", "ended/0"]
    );
}

#[tokio::test]
async fn a_finish_for_a_client_that_left_resolves_aborted_and_the_handler_goes_on() {
    let (gate, (sender, mut outcomes)) = (Gate::closed(), mpsc::unbounded_channel());
    let work = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.ignore_abort(true);
        work.passed().await;
        let sent = lifecycle.finish("hello").await;
        tokio::task::yield_now().await;
        sender.send((sent, lifecycle.status())).unwrap();
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    server.journal.seen("handler_start").await;
    drop(response);
    server.journal.seen("aborted").await;
    gate.open();
    assert_eq!(soon("it is told", outcomes.recv()).await, Some((Ok(Sent::Aborted), ConnectionStatus::ABORTED)));
    server.journal.ended(1).await;
}

#[tokio::test]
async fn an_abort_while_a_finished_response_is_on_its_way_does_not_end_the_handler() {
    let (gate, (sender, mut outcomes)) = (Gate::closed(), mpsc::unbounded_channel());
    let work = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let sent = lifecycle.finish(vec![b'x'; 20_000_000]).await;
        work.passed().await;
        sender.send((sent, lifecycle.status(), lifecycle.ignores_abort())).unwrap();
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("\r\n\r\n").await;
    client.reset();
    server.journal.seen("finish_resolved").await;
    gate.open();
    assert_eq!(soon("it is told", outcomes.recv()).await, Some((Ok(Sent::Aborted), ConnectionStatus::ABORTED, false)));
    server.journal.ended(1).await;
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "aborted/1", "finish_resolved/1", "handler_end/1", "ended/1"]
    );
}
