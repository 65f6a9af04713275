//! A continuation starts when the stated patience with a slow reader is over.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::AsyncReadExt;
use tower::ServiceExt as _;
use tower_epilogue::{Continuation, ShutdownHookLayer};

use crate::{
    common::{Asked, Leave, SECOND, told},
    support::{Gate, MemoryServer, Notes, Server, soon},
};

const SIZE: usize = 20_000_000;
const PATIENCE: Duration = Duration::from_millis(100);

/// 20 MB at once.
fn large(notes: &Notes, gate: &Gate) -> Router {
    let (notes, gate) = (notes.clone(), gate.clone());
    let hook = ShutdownHookLayer::new(told(&notes));
    let handler = async move || {
        let continuation = Continuation::new(async move {
            notes.add("continuation");
            gate.passed().await;
        });
        (continuation, Bytes::from(vec![b'x'; SIZE]))
    };
    Router::new().route("/", get(handler)).layer(hook)
}

#[tokio::test]
async fn it_starts_when_the_stated_patience_with_a_slow_reader_is_over() {
    for leave in [Leave::Close, Leave::ResetStream] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        gate.open();
        let server = Server::with(large(&notes, &gate), |builder| builder.patience(PATIENCE)).await;
        // This client reads nothing.
        let client = Asked::get(&server, leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, GivenUp"], "{leave:?}");
        let events = server.journal.events();
        let started = events.iter().find(|event| event.kind().name() == "continuation_start").unwrap();
        assert!(started.at() >= PATIENCE, "{started:?}");
        // The response is on its way all the same.
        match client {
            Asked::Http1(mut client) => assert_eq!(client.response(false).await.body.len(), SIZE),
            Asked::Http2(_connection, response) => {
                let read = async { crate::support::h2client::read(response.await.unwrap()).await.unwrap() };
                assert_eq!(soon("the whole of it", read).await.body.len(), SIZE);
            }
        }
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_response_that_was_given_up_on_may_still_be_flushed() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = Server::with(large(&notes, &gate), |builder| builder.patience(PATIENCE)).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("continuation").await;
    assert_eq!(client.response(false).await.body.len(), SIZE);
    server.journal.seen("flushed").await;
    gate.open();
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert_eq!(lines[2..5], ["continuation_start/0", "flushed:20000000/0", "continuation_end/0"]);
    assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// The producer of a body that nobody reads has not ended: the hooks wait for it.
#[tokio::test]
async fn a_client_that_was_given_up_on_and_leaves_has_aborted() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let endless = || stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 65_536])));
    let handler = async move || {
        let continuation = Continuation::new(async move { theirs.add("continuation") });
        (continuation, Body::from_stream(endless()))
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    for leave in [Leave::Close, Leave::ResetStream] {
        let server = Server::with(app.clone(), |builder| builder.patience(PATIENCE)).await;
        let client = Asked::get(&server, leave).await;
        server.journal.seen("continuation_end").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
    }
    assert_eq!(notes.all(), ["continuation", "hook: ABORTED, Aborted"].repeat(2));
}

#[tokio::test(start_paused = true)]
async fn it_does_not_lose_patience_while_the_body_is_produced() {
    let notes = Notes::default();
    let (theirs, slow) = (notes.clone(), notes.clone());
    let frames = move || {
        let notes = slow.clone();
        stream::unfold(0, move |frame| {
            let notes = notes.clone();
            async move {
                tokio::time::sleep(10 * SECOND).await;
                notes.add(format!("frame {frame}"));
                (frame < 3).then(|| (Ok::<_, std::io::Error>("frame"), frame + 1))
            }
        })
    };
    let handler = async move || {
        let continuation = Continuation::new(async move { theirs.add("continuation") });
        (continuation, Body::from_stream(frames()))
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::with(app, |builder| builder.patience(SECOND));
    assert_eq!(server.get("/").await.dechunked().unwrap(), b"frameframeframe");
    server.ended(1).await;
    let all = ["frame 0", "frame 1", "frame 2", "frame 3", "continuation", "hook: NORMAL, Flushed"];
    assert_eq!(notes.all(), all);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_reader_within_the_patience() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let continuation = Continuation::new(async move { theirs.add("continuation") });
        (continuation, Bytes::from(vec![b'x'; 1_000_000]))
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    // 30 s is the default.
    let server = MemoryServer::start(app);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    client.read_until("xxx").await;
    tokio::time::sleep(29 * SECOND).await;
    notes.add("29 s later");
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).await.unwrap();
    server.ended(1).await;
    assert_eq!(notes.all(), ["29 s later", "continuation", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// It is the time of one wait, and not of all together.
#[tokio::test(start_paused = true)]
async fn it_has_its_patience_anew_when_more_was_produced() {
    const PIECES: usize = 4;
    // More than hyper takes before it has sent some.
    const PIECE: usize = 1_000_000;
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let pieces = stream::unfold(0, async |piece| {
            tokio::time::sleep(SECOND / 10).await;
            (piece < PIECES).then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; PIECE])), piece + 1))
        });
        let continuation = Continuation::new(async move { theirs.add("continuation") });
        (continuation, Body::from_stream(pieces))
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::with(app, |builder| builder.patience(SECOND));
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    for _ in 0..PIECES {
        tokio::time::sleep(SECOND * 4 / 5).await;
        client.stream.read_exact(&mut vec![0; PIECE]).await.unwrap();
    }
    notes.add("read");
    client.reply().await;
    server.ended(1).await;
    assert_eq!(notes.all(), ["read", "continuation", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// A few bytes.
fn small(notes: &Notes) -> Router {
    let theirs = notes.clone();
    let handler = async move || (Continuation::new(async move { theirs.add("continuation") }), "the body");
    Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(notes)))
}

/// The server does not even ask for the body's first frame.
#[tokio::test(start_paused = true)]
async fn it_starts_also_where_an_http2_client_lets_nothing_of_the_body_come() {
    let notes = Notes::default();
    let server = MemoryServer::with(small(&notes), |builder| builder.patience(10 * SECOND));
    let mut builder = h2::client::Builder::new();
    let (send, connection) =
        builder.initial_window_size(0).handshake::<_, Bytes>(server.connect().stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://test/").body(()).unwrap();
    let response = send.ready().await.unwrap().send_request(request, true).unwrap().0.await.unwrap();
    let began = tokio::time::Instant::now();
    server.ended(1).await;
    assert_eq!(notes.all(), ["continuation", "hook: NORMAL, GivenUp"]);
    assert_eq!(began.elapsed().as_secs(), 10);
    drop(response);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn it_starts_also_where_nobody_asks_for_the_body() {
    let notes = Notes::default();
    let began = tokio::time::Instant::now();
    let response = small(&notes).oneshot(http::Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    tokio::time::sleep(29 * SECOND).await;
    assert_eq!(notes.all(), Vec::<String>::new());
    notes.seen("hook: NORMAL, GivenUp").await;
    assert_eq!((notes.all()[0].as_str(), began.elapsed().as_secs()), ("continuation", 30));
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "the body");
}
