//! Rows of the PHP table: the response leaves whole and at once, and the work goes on behind it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use axum::{
    Json, Router,
    body::Body,
    response::IntoResponse,
    routing::{MethodRouter, get, post},
};
use http::{StatusCode, header};
use support::{Client, Gate, Server, h2client::Http2, held, soon, streamed};
use tower_epilogue::{Continuation, EarlyCloseLayer, Lifecycle, Sent, ShutdownHookLayer};

const HELLO_EARLY: [&str; 4] =
    ["HTTP/1.1 200 OK", "connection: close", "content-length: 5", "content-type: text/plain; charset=utf-8"];

/// What is told of a request with a continuation and one hook, whose response left with `bytes`.
fn a_whole_life(bytes: usize) -> Vec<String> {
    let flushed = format!("flushed:{bytes}/0");
    let life = ["handler_start/0", "handler_end/0", &flushed, "continuation_start/0", "continuation_end/0"];
    life.into_iter().chain(["hook_start:0/0", "hook_end:0/0", "ended/0"]).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn s2a_the_response_leaves_before_the_continuation() {
    let gate = Gate::closed();
    let app = Router::new()
        .route("/", held(&gate, || "hello"))
        .layer((EarlyCloseLayer::new(), ShutdownHookLayer::new(|_| async {})));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.reply().await;
    assert!(!gate.is_open(), "the connection was at its end while the continuation waited");
    assert_eq!((reply.sorted_head(), reply.text().as_str()), (HELLO_EARLY.to_vec(), "hello"));
    assert!(reply.error.is_none());

    server.journal.seen("continuation_start").await;
    assert_eq!(server.journal.lines(), a_whole_life(5)[..4]);
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), a_whole_life(5));
}

#[tokio::test]
async fn s2a_the_response_leaves_first_on_http_1_0_too() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || "hello")).layer(ShutdownHookLayer::new(|_| async {}));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("content-length"), reply.text().as_str()), (200, Some("5"), "hello"));
    assert_eq!(reply.header("transfer-encoding"), None);
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), a_whole_life(5));
}

#[tokio::test]
async fn s2a_the_response_leaves_first_on_http_2_too() {
    let gate = Gate::closed();
    let app = Router::new()
        .route("/", held(&gate, || "hello"))
        .layer((EarlyCloseLayer::new(), ShutdownHookLayer::new(|_| async {})));
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let reply = client.get("/").await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"hello"[..]));
    assert_eq!(reply.headers[header::CONTENT_LENGTH], "5");
    assert!(!reply.headers.contains_key(header::CONNECTION), "HTTP/2 knows no such header");
    // The connection serves on, beside the continuation.
    assert_eq!(client.get("/nowhere").await.unwrap().status, 404);
    gate.open();
    server.journal.ended(2).await;
    let first = server.journal.requests()[0];
    assert_eq!(server.journal.lines_of(first), a_whole_life(5));
}

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

#[tokio::test]
async fn s2a_finish_resolves_flushed_while_the_handler_goes_on() {
    let (gate, (sender, mut sent)) = (Gate::closed(), tokio::sync::mpsc::unbounded_channel());
    let app = Router::new()
        .route("/", finishing(&gate, &sender))
        .layer((EarlyCloseLayer::new(), ShutdownHookLayer::new(|_| async {})));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.reply().await;
    assert_eq!((reply.sorted_head(), reply.text().as_str()), (HELLO_EARLY.to_vec(), "hello"));
    assert_eq!(soon("it is told", sent.recv()).await, Some(Sent::Flushed));
    gate.open();
    server.journal.ended(1).await;
    let finish = ["handler_start/0", "flushed:5/0", "finish_resolved/0", "handler_end/0"];
    assert_eq!(server.journal.lines(), [&finish[..], &["hook_start:0/0", "hook_end:0/0", "ended/0"]].concat());
}

#[tokio::test]
async fn fastcgi_finish_request_basic_what_comes_after_the_finish_never_reaches_the_client() {
    let gate = Gate::closed();
    gate.open();
    let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let (end_sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let app = Router::new().route("/", finishing(&gate, &sender)).route("/next", get(async || "next")).layer(
        ShutdownHookLayer::new(async move |end| end_sender.send((end.route(), end.panic(), end.sent())).unwrap()),
    );
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(client.reply_by_length(false).await.text(), "hello");
    assert_eq!(soon("it is told", sent.recv()).await, Some(Sent::Flushed));
    // Neither this response nor the next on the same connection has a trace of it, and nothing failed.
    assert_eq!(soon("it is told", ends.recv()).await.unwrap(), ("GET /".to_owned(), None, Sent::Flushed));
    client.send("GET /next HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    let next = client.reply().await;
    assert_eq!((next.status, next.text().as_str()), (200, "next"));
}

#[tokio::test]
async fn finish_a_second_time_is_an_error_value_and_the_work_goes_on() {
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let app = Router::new().route(
        "/",
        get(async move |lifecycle: Lifecycle| {
            lifecycle.finish("first").await.unwrap();
            let refused = lifecycle.finish("second").await.unwrap_err();
            sender.send(refused.is_finished_twice()).unwrap();
        }),
    );
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "first");
    assert_eq!(soon("it is told", answers.recv()).await, Some(true));
    server.journal.ended(1).await;
}

// === which half of the recipe matters ===

#[tokio::test]
async fn s1c_a_chunked_body_ends_with_its_stream_and_not_with_the_continuation() {
    let gate = Gate::closed();
    let server = Server::start(Router::new().route("/", held(&gate, || streamed(&["any ", "length"])))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.read_until("\r\n0\r\n\r\n").await;
    assert!(reply.contains("transfer-encoding: chunked"), "{reply}");
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn s1c_on_http_1_0_the_connection_ends_with_the_stream_and_not_with_the_continuation() {
    let gate = Gate::closed();
    let server = Server::start(Router::new().route("/", held(&gate, || streamed(&["any ", "length"])))).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.header("transfer-encoding"), reply.text().as_str()), (None, "any length"));
    assert!(reply.error.is_none() && !gate.is_open());
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn s1c_on_http_2_the_stream_ends_with_the_body_and_not_with_the_continuation() {
    let gate = Gate::closed();
    let server = Server::start(Router::new().route("/", held(&gate, || streamed(&["any ", "length"])))).await;
    let reply = Http2::connect(server.address).await.get("/").await.unwrap();
    assert_eq!((&reply.body[..], reply.headers.get(header::CONTENT_LENGTH)), (&b"any length"[..], None));
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn s1c_an_early_close_measures_a_stream_and_declares_its_length() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || streamed(&["any ", "length"]))).layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.reply().await;
    assert_eq!(reply.sorted_head(), ["HTTP/1.1 200 OK", "connection: close", "content-length: 10"]);
    assert_eq!(reply.text(), "any length");
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn s1c_the_next_request_on_the_connection_does_not_wait_for_the_continuation() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || "hello")).route("/next", get(async || "next"));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send_get("/").await;
        assert_eq!(client.reply_by_length(false).await.text(), "hello");
    }
    client.send_get("/next").await;
    assert_eq!(client.reply_by_length(false).await.text(), "next");
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(4).await;
}

#[tokio::test]
async fn s1c_an_early_close_really_closes_and_answers_no_pipelined_request() {
    let gate = Gate::closed();
    let app = Router::new().route("/", held(&gate, || "hello")).layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send(&"GET / HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2)).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(server.journal.requests().len(), 1);
}

// === the length ===

#[tokio::test]
async fn s1e_output_past_the_declared_length_is_no_abort_and_reaches_nobody() {
    let (written, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let handler = async move || {
        let (output, parts) = tokio::sync::mpsc::channel::<Result<&str, std::io::Error>>(1);
        let late = Continuation::new(async move {
            // Its output has nowhere to go: an error value, and the work goes on.
            written.send(output.send(Ok(" and more")).await.is_err()).unwrap();
        });
        let first = tokio_stream::once(Ok("hello"));
        let parts = tokio_stream::StreamExt::chain(first, tokio_stream::wrappers::ReceiverStream::new(parts));
        (late, [(header::CONTENT_LENGTH, "5")], Body::from_stream(parts))
    };
    let app = Router::new().route("/", get(handler)).route("/next", get(async || "next"));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.reply_by_length(false).await;
    assert_eq!(reply.text(), "hello");
    assert_eq!(soon("it is told", outcomes.recv()).await, Some(true));
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert!(lines.contains(&"flushed:5/0".to_owned()), "{lines:?}");
    assert_eq!(lines[lines.len() - 2..], ["continuation_end/0", "ended/0"]);
    client.send("GET /next HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "next");
}

#[tokio::test]
async fn s1f_a_wrong_length_is_never_sent() {
    fn says<R: IntoResponse + 'static>(length: &'static str, body: fn() -> R) -> MethodRouter {
        get(async move || ([(header::CONTENT_LENGTH, length)], body()))
    }
    let app = Router::new()
        .route("/long", says("500", || "hello"))
        .route("/short", says("3", || "hello"))
        .route("/long-stream", says("500", || streamed(&["hel", "lo"])))
        .route("/short-stream", says("3", || streamed(&["hel", "lo"])))
        .layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    for path in ["/long", "/short", "/long-stream", "/short-stream"] {
        let reply = server.get(path).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("5"), "hello"), "{path}");
        assert_eq!(reply.head.matches("content-length").count(), 1, "{path}");
        let reply = Http2::connect(server.address).await.get(path).await.unwrap();
        assert_eq!((&reply.headers[header::CONTENT_LENGTH], &reply.body[..]), (&"5".parse().unwrap(), &b"hello"[..]));
    }
}

#[tokio::test]
async fn s1f_a_wrong_length_of_a_body_too_big_to_measure_does_not_look_whole() {
    let (sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let app = Router::new()
        .route("/", get(async || ([(header::CONTENT_LENGTH, "500")], streamed(&["too big", " to measure"]))))
        .layer((
            EarlyCloseLayer::new().buffer_limit(4),
            ShutdownHookLayer::new(async move |end| sender.send(end.sent()).unwrap()),
        ));
    let server = Server::start(app).await;
    let reply = server.get("/").await;
    assert!(reply.body.len() < 500, "fewer bytes than declared, and then the end: {reply:?}");
    assert_eq!(soon("it is told", ends.recv()).await, Some(Sent::BrokenOff));
}

#[tokio::test]
async fn s1h_the_length_is_in_bytes() {
    const TEXT: &str = "zwölf Größen.";
    assert_eq!(TEXT.chars().count(), 13);
    let app = Router::new()
        .route("/", get(async || TEXT))
        .route("/stream", get(async || streamed(&["zwölf ", "Größen."])))
        .layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    for path in ["/", "/stream"] {
        let reply = server.get(path).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("16"), TEXT), "{path}");
    }
}

// === what the request brought ===

#[tokio::test]
async fn s33_what_the_request_brought_goes_along_into_the_continuation() {
    let (gate, (sender, mut seen)) = (Gate::closed(), tokio::sync::mpsc::unbounded_channel());
    let work = gate.clone();
    let handler = async move |uri: http::Uri, Json(order): Json<serde_json::Value>| {
        let accepted = Json(order["id"].clone());
        let work = Continuation::new(async move {
            work.passed().await;
            sender.send((uri.to_string(), order["text"].clone())).unwrap();
        });
        (StatusCode::ACCEPTED, work, accepted)
    };
    let server = Server::start(Router::new().route("/order", post(handler)).layer(EarlyCloseLayer::new())).await;
    let body = r#"{"id":7,"text":"zwölf Größen"}"#;
    let mut client = Client::connect(server.address).await;
    client
        .send(&format!(
            "POST /order?a=1 HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (202, "7"));
    drop(client);
    gate.open();
    assert_eq!(soon("it is told", seen.recv()).await.unwrap(), ("/order?a=1".to_owned(), "zwölf Größen".into()));
}
