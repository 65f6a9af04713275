//! Rows of the PHP table: redirects, empty answers, HEAD and HTTP/1.0 leave as early as any other response.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use axum::{
    Router,
    body::Body,
    response::Redirect,
    routing::{MethodRouter, get},
};
use http::StatusCode;
use support::{Gate, Reply, Server, held, soon, streamed};
use tower_epilogue::{EarlyCloseLayer, Lifecycle, Sent};

/// A handler that lets "hello" leave, waits at the gate, and says how `finish` went.
fn finishing(gate: &Gate, sent: &tokio::sync::mpsc::UnboundedSender<Sent>) -> MethodRouter {
    let (gate, sent) = (gate.clone(), sent.clone());
    get(async move |lifecycle: Lifecycle| {
        let outcome = lifecycle.finish("hello").await.unwrap();
        sent.send(outcome).unwrap();
        gate.passed().await;
        "too late"
    })
}

/// One request with an early close, read to the end of the connection while the continuation waits.
async fn early(request: &str, app: Router, gate: &Gate) -> Reply {
    let server = Server::start(app.layer(EarlyCloseLayer::new())).await;
    let mut client = server.connect().await;
    client.send(request).await;
    let reply = client.reply().await;
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines().last().unwrap(), "ended/0");
    reply
}

#[tokio::test]
async fn a_redirect_leaves_at_once() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || Redirect::to("/done")));
    let reply = early("GET / HTTP/1.1\r\nhost: test\r\n\r\n", app, &gate).await;
    assert_eq!(
        reply.sorted_head(),
        ["HTTP/1.1 303 See Other", "connection: close", "content-length: 0", "location: /done"]
    );
    assert!(reply.body.is_empty());
}

#[tokio::test]
async fn an_empty_response_leaves_at_once() {
    for response in [|| Body::empty(), || streamed(&[])] {
        let gate = Gate::closed();
        let reply =
            early("GET / HTTP/1.1\r\nhost: test\r\n\r\n", Router::new().route("/", held(&gate, response)), &gate).await;
        assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, Some("0"), 0));
        assert_eq!(reply.header("connection"), Some("close"));
    }
}

#[tokio::test]
async fn a_204_ends_with_its_head_and_the_connection_is_free() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || StatusCode::NO_CONTENT)).layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.reply_by_length(true).await;
    assert_eq!((reply.sorted_head(), reply.body.len()), (vec!["HTTP/1.1 204 No Content"], 0));
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 204);
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(2).await;
}

#[tokio::test]
async fn head_is_answered_with_the_headers_of_its_get() {
    let kinds: [fn() -> Body; 2] = [|| Body::from("hello"), || streamed(&["any ", "length"])];
    for response in kinds {
        let mut heads = Vec::new();
        for method in ["GET", "HEAD"] {
            let gate = Gate::closed();
            let app = Router::new().route("/", held(&gate, response));
            let reply = early(&format!("{method} / HTTP/1.1\r\nhost: test\r\n\r\n"), app, &gate).await;
            assert_eq!(reply.body.is_empty(), method == "HEAD");
            heads.push(reply.sorted_head().join("\n"));
        }
        assert_eq!(heads[0], heads[1]);
        assert!(heads[0].contains("content-length"));
    }
}

#[tokio::test]
async fn head_lets_the_handler_go_on_after_its_finish() {
    let (gate, (sender, mut sent)) = (Gate::closed(), tokio::sync::mpsc::unbounded_channel());
    let server = Server::start(Router::new().route("/", finishing(&gate, &sender))).await;
    let mut client = server.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, Some("5"), 0));
    assert_eq!(soon("it is told", sent.recv()).await, Some(Sent::Flushed));
    gate.open();
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert_eq!(lines[lines.len() - 2..], ["handler_end/0", "ended/0"]);
}

#[tokio::test]
async fn http_1_0_gets_a_length_and_a_close_and_never_chunks() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || streamed(&["any ", "length"])));
    let reply = early("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", app, &gate).await;
    assert_eq!((reply.header("content-length"), reply.header("connection")), (Some("10"), Some("close")));
    assert_eq!((reply.header("transfer-encoding"), reply.text().as_str()), (None, "any length"));
}

#[tokio::test]
async fn an_early_close_that_keeps_alive_declares_the_length_alone() {
    let app = Router::new()
        .route("/", get(async || streamed(&["any ", "length"])))
        .layer(EarlyCloseLayer::new().keep_alive());
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    for _ in 0..2 {
        client.send_get("/").await;
        let reply = client.reply_by_length(false).await;
        assert_eq!((reply.header("connection"), reply.text().as_str()), (None, "any length"));
    }
}
