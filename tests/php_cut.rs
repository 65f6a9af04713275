//! Rows of the PHP table: the limit passes while a response is on its way, and together with an abort.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{convert::Infallible, future::pending, time::Duration};

use axum::{Router, body::Body, http::header, routing::get};
use support::{Gate, MemoryServer, Server, ends, h2client::Http2, soon};
use tokio::{net::TcpStream, sync::mpsc, time::sleep};
use tokio_stream::StreamExt;
use tower_epilogue::{ConnectionStatus, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, Sent, TimeLimitLayer};

const SECOND: Duration = Duration::from_secs(1);
const BOTH: ConnectionStatus = ConnectionStatus::ABORTED.union(ConnectionStatus::TIMEOUT);

/// "part", and then nothing for ever.
fn stalling() -> Body {
    Body::from_stream(tokio_stream::once(Ok::<_, Infallible>("part")).chain(tokio_stream::pending()))
}

// === a timeout after the head never looks like a whole response ===

#[tokio::test(start_paused = true)]
async fn a_limit_in_a_chunked_body_breaks_it_off() {
    let (hook, mut ended) = ends();
    let app = Router::new().route("/", get(async || stalling())).layer((TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    let reply = server.get("/").await;
    assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!((reply.text().as_str(), reply.dechunked()), ("4\r\npart\r\n", None), "no last chunk");
    server.ended(1).await;
    assert_eq!(ended.recv().await, Some((ConnectionStatus::TIMEOUT, Sent::BrokenOff)));
    let lines = server.journal.lines();
    assert_eq!(lines[..2], ["handler_start/0", "handler_end/0"]);
    assert!(lines.contains(&"body_dropped/2".to_owned()), "{lines:?}");
    let time = server.journal.events().last().unwrap().at();
    assert!(time >= SECOND && time < 2 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_in_a_body_of_declared_length_breaks_it_off() {
    let (hook, mut ended) = ends();
    let app = Router::new()
        .route("/", get(async || ([(header::CONTENT_LENGTH, "500")], stalling())))
        .layer((TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    let reply = server.get("/").await;
    assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("500"), "part"));
    assert_eq!(ended.recv().await, Some((ConnectionStatus::TIMEOUT, Sent::BrokenOff)));
}

#[tokio::test]
async fn a_limit_in_a_body_on_http_2_resets_its_stream_alone() {
    let (hook, mut ended) = ends();
    let limited = get(async |lifecycle: Lifecycle| {
        lifecycle.set_time_limit(Duration::from_millis(100));
        stalling()
    });
    let app = Router::new().route("/", limited).route("/other", get(async || "other")).layer(hook);
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let error = client.get("/").await.expect_err("the stream must not end well");
    assert!(error.is_reset() && error.is_remote(), "{error:?}");
    assert_eq!(soon("it is told", ended.recv()).await, Some((ConnectionStatus::TIMEOUT, Sent::BrokenOff)));
    assert_eq!(client.get("/other").await.unwrap().body, b"other");
}

#[tokio::test(start_paused = true)]
async fn a_limit_while_the_early_close_still_measures_is_a_503() {
    let (hook, mut ended) = ends();
    let close = EarlyCloseLayer::new().patience(10 * SECOND);
    let app = Router::new().route("/", get(async || stalling())).layer((close, TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    let reply = server.get("/").await;
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    assert!(!reply.text().contains("part"));
    assert_eq!(ended.recv().await, Some((ConnectionStatus::TIMEOUT, Sent::Flushed)));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_after_the_head_breaks_off_and_one_that_fails_before_is_a_500() {
    let failing = || {
        let parts = [Ok("part"), Err(std::io::Error::other("the table is gone"))];
        // The failure comes a moment later, when the head may have left.
        let parts = tokio_stream::iter(parts).then(async |part| {
            sleep(SECOND / 10).await;
            part
        });
        Body::from_stream(parts)
    };
    let (hook, mut ended) = ends();
    let app = Router::new()
        .route("/late", get(async move || failing()))
        .merge(Router::new().route("/early", get(async move || failing())).layer(EarlyCloseLayer::new()))
        .layer(hook);
    let server = MemoryServer::start(app);
    let late = server.get("/late").await;
    assert_eq!((late.status, late.dechunked()), (200, None));
    assert_eq!(ended.recv().await, Some((ConnectionStatus::NORMAL, Sent::BrokenOff)));
    let early = server.get("/early").await;
    assert_eq!((early.status, early.text().contains("part")), (500, false));
    assert_eq!(ended.recv().await, Some((ConnectionStatus::NORMAL, Sent::Flushed)));
}

// === a client that vanished: it neither reads nor leaves ===

#[tokio::test(start_paused = true)]
async fn a_vanished_client_is_ended_by_the_wall_limit_also_while_the_handler_waits() {
    let (hook, mut ended) = ends();
    let app = Router::new().route("/", get(pending::<()>)).layer((TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    // Not even the few bytes of the answer fit.
    let mut client = server.connect_narrow(16);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    // The hooks wait for the answer's fate up to the patience.
    let end = tokio::time::timeout(120 * SECOND, ended.recv()).await.expect("it ends by itself");
    assert!(end.unwrap().0.is_timeout());
    let dropped = server.journal.seen("handler_dropped").await.at();
    assert!(dropped >= SECOND && dropped < 2 * SECOND, "{dropped:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vanished_client_does_not_hold_a_body_past_the_limit() {
    const SIZE: usize = 20_000_000;
    let (hook, mut ended) = ends();
    let app = Router::new().route("/", get(async || vec![b'x'; SIZE])).layer((TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server.ended(1).await;
    let time = server.journal.events().last().unwrap().at();
    assert!(time >= SECOND && time < 2 * SECOND, "{time:?}");
    assert_eq!(ended.recv().await, Some((ConnectionStatus::TIMEOUT, Sent::BrokenOff)));
    // When it comes back, it can tell that this is not all.
    let reply = client.reply().await;
    assert_eq!(reply.header("content-length"), Some("20000000"));
    assert!(reply.body.len() < SIZE);
}

// === both ===

#[tokio::test(start_paused = true)]
async fn an_abort_and_then_the_limit_make_3() {
    let (hook, mut ended) = ends();
    let (sender, mut samples) = mpsc::unbounded_channel();
    let gone = Gate::closed();
    let seen = gone.clone();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send(lifecycle.status()).unwrap();
        lifecycle.aborted().await;
        sender.send(lifecycle.status()).unwrap();
        seen.open();
        pending::<()>().await;
    };
    let app =
        Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(SECOND), IgnoreAbortLayer::new(), hook));
    let server = MemoryServer::start(app);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server.journal.seen("handler_start").await;
    drop(client);
    gone.passed().await;
    server.ended(1).await;
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "aborted/1", "handler_dropped/3", "hook_start:0/3", "hook_end:0/3", "ended/3"]
    );
    let dropped = server.journal.seen("handler_dropped").await.at();
    assert!(dropped >= SECOND && dropped < 2 * SECOND, "{dropped:?}");
    assert_eq!(samples.recv().await, Some(ConnectionStatus::NORMAL));
    assert_eq!(samples.recv().await, Some(ConnectionStatus::ABORTED));
    assert_eq!(ended.recv().await, Some((BOTH, Sent::Aborted)));
    assert_eq!(BOTH.to_string(), "ABORTED | TIMEOUT");
}

#[tokio::test(start_paused = true)]
async fn the_limit_and_then_an_abort_make_3_as_well() {
    let (hook, mut ended) = ends();
    let app = Router::new().route("/", get(pending::<()>)).layer((TimeLimitLayer::new(SECOND), hook));
    let server = MemoryServer::start(app);
    // The answer does not fit before the client reads, and so is on its way when it leaves.
    let mut client = server.connect_narrow(16);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server.journal.seen("handler_dropped").await;
    client.read_until("HTTP/1.1 503").await;
    drop(client);
    server.ended(1).await;
    assert_eq!(ended.recv().await, Some((BOTH, Sent::Aborted)));
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "handler_dropped/2", "aborted/3", "hook_start:0/3", "hook_end:0/3", "ended/3"]
    );
}

#[tokio::test]
async fn on_http_2_the_limit_and_then_an_abort_make_3_as_well() {
    let (hook, mut ended) = ends();
    let limit = TimeLimitLayer::new(Duration::from_millis(50));
    let server = Server::start(Router::new().route("/", get(pending::<()>)).layer((limit, hook))).await;
    // No byte of a body is let through.
    let stream = TcpStream::connect(server.address).await.unwrap();
    let client = h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await;
    let (send, connection) = client.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://test/").body(()).unwrap();
    let (response, _) = send.ready().await.unwrap().send_request(request, true).unwrap();
    let response = soon("the head of the answer", response).await.unwrap();
    assert_eq!(response.status(), 503);
    drop(response); // RST_STREAM
    assert_eq!(soon("the hook", ended.recv()).await, Some((BOTH, Sent::Aborted)));
    server.journal.ended(1).await;
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "handler_dropped/2", "aborted/3", "hook_start:0/3", "hook_end:0/3", "ended/3"]
    );
}

#[tokio::test]
async fn on_http_2_an_abort_and_then_the_limit_make_3() {
    let (hook, mut ended) = ends();
    let app = Router::new().route("/", get(pending::<()>)).layer((
        TimeLimitLayer::new(Duration::from_millis(200)),
        IgnoreAbortLayer::new(),
        hook,
    ));
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    server.journal.seen("handler_start").await;
    drop(response);
    assert_eq!(soon("the hook", ended.recv()).await, Some((BOTH, Sent::Aborted)));
}
