//! The bounds of the lingering close, on connections in memory under a paused clock: nothing here takes any time but
//! what the bounds say.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use axum::{Router, body::Body, routing::any};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::Instant,
};
use tower_epilogue::{EarlyCloseLayer, Epilogue, Linger, TrackedIo, Tracking};

use crate::{
    common::serve_one,
    support::{MemoryServer, Server},
};

const SECOND: Duration = Duration::from_secs(1);
const HEAD: &str = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n";

fn app() -> Router {
    Router::new().route("/", any(async || "answered at once")).layer(EarlyCloseLayer::new())
}

/// A client that has its response, to the end of the server's side, and may go on sending.
async fn answered(tracking: &Tracking) -> (DuplexStream, JoinHandle<()>) {
    answered_to(tracking, app(), HEAD).await
}

async fn answered_to(tracking: &Tracking, app: Router, request: &str) -> (DuplexStream, JoinHandle<()>) {
    let (mut client, io) = tokio::io::duplex(1024);
    let connection = serve_one(&Epilogue::new(), io, tracking, app);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("\r\n\r\nanswered at once"), "{response}");
    (client, connection)
}

/// How long the connection still takes to end.
async fn ends_after(connection: JoinHandle<()>) -> Duration {
    let began = Instant::now();
    tokio::time::timeout(1000 * SECOND, connection).await.expect("it ends").unwrap();
    began.elapsed()
}

/// Timers are good to a millisecond.
fn assert_about(elapsed: Duration, expected: Duration) {
    assert!(elapsed >= expected && elapsed < expected + Duration::from_millis(10), "{elapsed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_waited_for_within_the_idle_time() {
    let (_client, connection) = answered(&Tracking::new()).await;
    assert_about(ends_after(connection).await, 2 * SECOND);
    let (_client, connection) = answered(&Tracking::new().linger(Linger::new().idle(5 * SECOND))).await;
    assert_about(ends_after(connection).await, 5 * SECOND);
    // The total bounds it from above.
    let linger = Linger::new().idle(5 * SECOND).total(3 * SECOND);
    let (_client, connection) = answered(&Tracking::new().linger(linger)).await;
    assert_about(ends_after(connection).await, 3 * SECOND);
}

/// Sends a byte each second, until nobody takes it.
async fn trickles(mut client: DuplexStream) {
    while client.write_all(b"x").await.is_ok() {
        tokio::time::sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_trickles_is_waited_for_within_the_total_time() {
    for (total, tracking) in [(10, Tracking::new()), (4, Tracking::new().linger(Linger::new().total(4 * SECOND)))] {
        let (client, connection) = answered(&tracking).await;
        tokio::spawn(trickles(client));
        assert_about(ends_after(connection).await, total * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fast_client_is_waited_for_within_the_bytes() {
    const BYTES: usize = 100_000;
    let (mut client, connection) = answered(&Tracking::new().linger(Linger::new().bytes(BYTES as u64))).await;
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while client.write_all(&[b'x'; 1000]).await.is_ok() {
            sent += 1000;
        }
        sent
    });
    assert_about(ends_after(connection).await, Duration::ZERO);
    let sent = sending.await.unwrap();
    // What a read takes, and what the connection in memory holds, can come on top.
    assert!((BYTES..BYTES + 20_000).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_linger_at_once() {
    let tracking = Tracking::new().linger(Linger::new().at_once(2));
    let (_first, first) = answered(&tracking).await;
    let (_second, second) = answered(&tracking).await;
    let (_third, third) = answered(&tracking).await;
    assert_about(ends_after(third).await, Duration::ZERO);
    assert_about(ends_after(first).await, 2 * SECOND);
    assert_about(ends_after(second).await, Duration::ZERO);
    // Their places are free again.
    let (_fourth, fourth) = answered(&tracking).await;
    assert_about(ends_after(fourth).await, 2 * SECOND);
}

/// Whoever makes each of them with `new` has one bound for all.
#[tokio::test]
async fn nor_of_those_with_the_default_settings() {
    let mut all = Vec::new();
    for number in 0..=1000 {
        let (mut client, io) = tokio::io::duplex(16);
        let mut io = TrackedIo::new(io);
        client.write_all(b"more").await.unwrap();
        let lingers = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_shutdown(cx).is_pending())).await;
        assert_eq!(lingers, number < 1000, "{number}");
        all.push((client, io));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_without_lingering() {
    let (_client, connection) = answered(&Tracking::new().linger(None)).await;
    assert_about(ends_after(connection).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_is_not_waited_for() {
    let (client, connection) = answered(&Tracking::new()).await;
    drop(client);
    assert_about(ends_after(connection).await, Duration::ZERO);
    let (mut client, connection) = answered(&Tracking::new()).await;
    client.shutdown().await.unwrap();
    assert_about(ends_after(connection).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn only_a_client_that_may_still_be_sending_is_waited_for() {
    let reads = async |body: Body| {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        "answered at once"
    };
    let reading = Router::new().route("/", any(reads)).layer(EarlyCloseLayer::new());
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nwhole";
    let get = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    for (app, request) in [(reading, post), (app(), get)] {
        let (_client, connection) = answered_to(&Tracking::new(), app, request).await;
        assert_about(ends_after(connection).await, Duration::ZERO);
    }
}

/// hyper answers it, and no app.
#[tokio::test(start_paused = true)]
async fn so_may_one_whose_head_is_refused() {
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nwhole";
    for before in [false, true] {
        let (mut client, io) = tokio::io::duplex(1024);
        let app = Router::new().route("/", any(async |_: String| "read"));
        let connection = serve_one(&Epilogue::new(), io, &Tracking::new(), app);
        if before {
            client.write_all(post.as_bytes()).await.unwrap();
            assert!(client.read(&mut [0; 1024]).await.unwrap() > 0);
        }
        client.write_all(b"GET / HTTP/1.1\r\nno header\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request"), "{answer}");
        assert_about(ends_after(connection).await, 2 * SECOND);
    }
}

/// Who sends the next request over HTTP/1 has sent all of the one before.
#[tokio::test(start_paused = true)]
async fn an_upload_that_nobody_read_is_forgotten_with_the_next_request() {
    let keeps_open = Router::new().route("/", any(async || "answered at once"));
    let server = MemoryServer::start(keeps_open);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nwhole").await;
    client.read_until("\r\n\r\nanswered at once").await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    client.read_until("\r\n\r\nanswered at once").await;
    let began = Instant::now();
    assert!(server.stop().await.is_clean());
    assert_about(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_within_the_same_bounds() {
    let linger = Linger::new().total(4 * SECOND);
    let server = MemoryServer::with(app(), |builder| builder.tracking(Tracking::new().linger(linger)));
    let mut client = server.connect();
    client.send(HEAD).await;
    assert_eq!(client.reply().await.text(), "answered at once");
    tokio::spawn(trickles(client.stream));
    let began = Instant::now();
    assert!(server.stop().await.is_clean());
    assert_about(began.elapsed(), 4 * SECOND);
}

#[tokio::test]
async fn the_bounds_hold_on_tcp_while_the_server_drains() {
    let bounds = [
        // A client that says nothing more.
        (Linger::new().idle(Duration::from_millis(100)), false),
        // One that never stops.
        (Linger::new().total(Duration::from_millis(100)).bytes(u64::MAX), true),
        (Linger::new().bytes(1_000_000), true),
    ];
    for (linger, sends_on) in bounds {
        let server = Server::with(app(), |builder| builder.tracking(Tracking::new().linger(linger))).await;
        let mut client = server.connect().await;
        client.send(&HEAD.replace("1000000", "1000000000")).await;
        assert_eq!(client.reply().await.text(), "answered at once");
        let sending = async {
            let piece = vec![b'x'; 64 * 1024];
            while sends_on && client.stream.write_all(&piece).await.is_ok() {}
        };
        // The drain's own patience would be 30 s, and ours is shorter.
        let (report, ()) = tokio::join!(server.stop(), sending);
        assert!(report.is_clean(), "{linger:?}: {report}");
    }
}
