//! Rows of the PHP table: slow readers, and many requests whose continuations take long.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use support::{Client, Gate, MemoryServer, Server, h2client::Http2, soon};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};
use tower_epilogue::{Continuation, End, Lifecycle, Sent, ShutdownHookLayer};

/// 20 MB.
const SIZE: usize = 20_000_000;
const SECOND: Duration = Duration::from_secs(1);

/// 20 MB, and a continuation that tells how much of it the client had read when it started.
fn large(read: &Arc<AtomicU64>) -> (Router, mpsc::UnboundedReceiver<u64>, mpsc::UnboundedReceiver<Sent>) {
    let ((starts, started), (ends, ended)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let read = read.clone();
    let handler = async move || {
        let work = async move { starts.send(read.load(Ordering::SeqCst)).unwrap() };
        (Continuation::new(work), vec![b'x'; SIZE])
    };
    let hook = async move |end: End| ends.send(end.sent()).unwrap();
    (Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(hook)), started, ended)
}

/// A connection whose own buffer is small.
async fn connect_small(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.connect(server.address).await.unwrap()
}

/// Reads to the end of the connection, little by little, and counts.
async fn read_slowly(stream: &mut TcpStream, read: &AtomicU64) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            return all;
        }
        all.extend_from_slice(&buffer[..count]);
        read.fetch_add(count as u64, Ordering::SeqCst);
        yield_now().await;
    }
}

fn is_whole(reply: &[u8]) {
    let head = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(String::from_utf8_lossy(&reply[..head]).contains("content-length: 20000000"));
    assert!(reply[head..].len() == SIZE && reply[head..].iter().all(|byte| *byte == b'x'));
}

const CLOSING: &str = "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_slow_reader_of_20_mb_holds_its_continuation_until_the_last_byte_has_left() {
    let read = Arc::default();
    let (app, mut started, mut ended) = large(&read);
    let server = Server::start(app).await;
    let mut client = Client { stream: connect_small(&server).await };
    client.send(CLOSING).await;
    is_whole(&soon("all of it", read_slowly(&mut client.stream, &read)).await);
    let at_start = soon("the continuation", started.recv()).await.unwrap();
    // What had left and was not read is in the kernel's buffers: some megabytes.
    assert!(at_start > SIZE as u64 / 2, "it started when the client had {at_start} bytes");
    assert_eq!(soon("it is told", ended.recv()).await, Some(Sent::Flushed));
}

#[tokio::test]
async fn a_slow_reader_on_http_2_holds_its_continuation_until_the_last_byte_has_left() {
    let read = Arc::default();
    let (app, mut started, mut ended) = large(&read);
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let mut body = client.start("GET", "/").await.await.unwrap().into_body();
    while let Some(chunk) = soon("a chunk", body.data()).await {
        let length = chunk.unwrap().len();
        read.fetch_add(length as u64, Ordering::SeqCst);
        body.flow_control().release_capacity(length).unwrap();
    }
    assert_eq!(read.load(Ordering::SeqCst), SIZE as u64);
    let at_start = soon("the continuation", started.recv()).await.unwrap();
    assert!(at_start > SIZE as u64 / 2, "it started when the client had {at_start} bytes");
    assert_eq!(soon("it is told", ended.recv()).await, Some(Sent::Flushed));
}

#[tokio::test]
async fn past_the_patience_the_continuation_starts_and_the_slow_reader_still_gets_everything() {
    let read = Arc::default();
    let (app, mut started, mut ended) = large(&read);
    let server = Server::with(app, |builder| builder.patience(Duration::from_millis(100))).await;
    let mut client = Client { stream: connect_small(&server).await };
    client.send(CLOSING).await;
    assert_eq!(soon("the continuation", started.recv()).await, Some(0));
    assert_eq!(soon("the hook", ended.recv()).await, Some(Sent::GivenUp));
    server.journal.ended(1).await;
    is_whole(&soon("all of it", read_slowly(&mut client.stream, &read)).await);
    assert!(server.journal.lines().iter().all(|line| line.ends_with("/0")), "{:?}", server.journal.lines());
}

#[tokio::test]
async fn past_the_patience_a_slow_reader_on_http_2_still_gets_everything() {
    let read = Arc::default();
    let (app, mut started, mut ended) = large(&read);
    let server = Server::with(app, |builder| builder.patience(Duration::from_millis(100))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await.await.unwrap();
    assert_eq!(soon("the continuation", started.recv()).await, Some(0));
    assert_eq!(soon("the hook", ended.recv()).await, Some(Sent::GivenUp));
    server.journal.ended(1).await;
    let whole = soon("all of it", support::h2client::read(response)).await.unwrap();
    assert_eq!(whole.body.len(), SIZE);
}

#[tokio::test(start_paused = true)]
async fn the_patience_with_a_slow_reader_is_30_seconds_unless_said_otherwise() {
    for (patience, expected) in [(None, 30), (Some(2), 2)] {
        let (app, _started, mut ended) = large(&Arc::default());
        let server = MemoryServer::with(app, |builder| match patience {
            Some(seconds) => builder.patience(seconds * SECOND),
            None => builder,
        });
        let mut client = server.connect();
        client.send(CLOSING).await;
        server.ended(1).await;
        let start = server.journal.seen("continuation_start").await.at();
        assert!(start >= expected * SECOND && start < expected * SECOND + SECOND / 10, "{start:?}");
        assert_eq!(ended.recv().await, Some(Sent::GivenUp));
        assert_eq!(client.reply().await.body.len(), SIZE);
    }
}

// === many ===

/// A route whose continuation takes 2 seconds.
fn two_seconds() -> Router {
    Router::new().route("/", get(async || (Continuation::new(sleep(2 * SECOND)), "hello")))
}

#[tokio::test(start_paused = true)]
async fn twenty_requests_with_continuations_of_2_s_are_answered_at_once() {
    let server = MemoryServer::start(two_seconds());
    let began = Instant::now();
    // One after the other on one connection, where PHP behind a connection pool answers the next after the
    // continuation before.
    let mut client = server.connect();
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        client.read_until("hello").await;
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(server.epilogue.running(), 20);
    server.ended(20).await;
    assert!(began.elapsed() < 2 * SECOND + SECOND / 10, "side by side: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_with_continuations_of_2_s_are_answered_at_once() {
    let server = MemoryServer::start(two_seconds());
    let began = Instant::now();
    let clients: JoinSet<_> = (0..50)
        .map(|_| {
            let mut client = server.connect();
            async move {
                for _ in 0..20 {
                    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
                    client.read_until("hello").await;
                }
                began.elapsed()
            }
        })
        .collect();
    assert_eq!(clients.join_all().await, [Duration::ZERO; 50]);
    assert_eq!(server.epilogue.running(), 1000);
    server.ended(1000).await;
    assert!(began.elapsed() < 2 * SECOND + SECOND / 10, "side by side: {:?}", began.elapsed());
    assert_eq!(server.journal.requests().len(), 1000);
}

/// Fetches `count` times; each answer has to come while all the work behind it waits.
async fn fetch(address: std::net::SocketAddr, count: usize) {
    let mut client = Client::connect(address).await;
    for _ in 0..count {
        client.send_get("/").await;
        assert_eq!(client.reply_by_length(false).await.text(), "hello");
    }
}

/// Answers at once; the work waits at the gate, in a continuation or behind a `finish`.
fn held(gate: &Gate) -> Router {
    let (returns, finishes) = (gate.clone(), gate.clone());
    Router::new()
        .route("/", get(async move || (Continuation::new(async move { returns.passed().await }), "hello")))
        .route(
            "/finishes",
            get(async move |lifecycle: Lifecycle| {
                assert_eq!(lifecycle.finish("hello").await, Ok(Sent::Flushed));
                finishes.passed().await;
            }),
        )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiting_continuations_hold_up_no_answer() {
    let gate = Gate::closed();
    let server = Server::start(held(&gate)).await;
    let clients: JoinSet<_> = (0..20).map(|_| fetch(server.address, 50)).collect();
    soon("a thousand answers", clients.join_all()).await;
    assert_eq!(server.epilogue.running(), 1000);
    fetch(server.address, 1).await;
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(1001).await;
    let events = server.journal.events();
    assert_eq!(events.iter().filter(|event| event.kind().name() == "continuation_end").count(), 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiting_continuations_of_one_http_2_connection_hold_up_no_answer() {
    let gate = Gate::closed();
    let server = Server::start(held(&gate)).await;
    let mut client = Http2::connect(server.address).await;
    for request in 0..1000 {
        let path = if request % 2 == 0 { "/" } else { "/finishes" };
        assert_eq!(client.get(path).await.unwrap().body, b"hello");
    }
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_continuations_do_not_starve_the_foreground() {
    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let busy = async move || {
        let work = async move {
            while !stop.load(Ordering::Relaxed) {
                yield_now().await;
            }
        };
        (Continuation::new(work), "hello")
    };
    let server = Server::start(Router::new().route("/", get(busy))).await;
    for _ in 0..100 {
        fetch(server.address, 1).await;
    }
    over.store(true, Ordering::Relaxed);
    server.journal.ended(100).await;
}
