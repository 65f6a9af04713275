//! HTTP/2: a short last piece takes the end of its stream along, and may have to wait for room in its client's window
//! (RFC 9113, section 6.9).

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, http::Request, routing::get};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tower_epilogue::{Continuation, End, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::reset_when_dropped,
    frames::{DATA, Frame, INITIAL_WINDOW_SIZE, RST_STREAM, RawHttp2, SETTINGS, WINDOW_UPDATE, frame, request},
    support::{Gate, MemoryServer, Notes, Server, soon},
};

const SECOND: Duration = Duration::from_secs(1);
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// Two bytes more than the window of those who [ask](ask) for it.
pub fn app(notes: &Notes) -> Router {
    let (notes, hooks) = (notes.clone(), notes.clone());
    let small = async move || {
        let notes = notes.clone();
        (Continuation::new(async move { notes.add("continuation") }), "small")
    };
    let hook = ShutdownHookLayer::new(async move |end: End| hooks.add(format!("{}, {}", end.status(), end.sent())));
    Router::new().route("/", get(small)).layer(hook)
}

/// Asks with a window of three bytes for every stream, reads those, and has the server take some turns.
async fn ask<S>(client: &mut RawHttp2<S>) -> Frame
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(3_u32.to_be_bytes());
    client.send(&frame(SETTINGS, 0, 0, &settings)).await;
    client.send(&request("GET", "/", 1, true)).await;
    let first = client.until(|frame| frame.kind == DATA).await;
    for _ in 0..3 {
        client.ping().await;
    }
    first
}

fn more() -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 1, &100_u32.to_be_bytes())
}

#[tokio::test]
async fn it_leaves_in_one_frame() {
    let sizes = [1, 5, 255, 256, 300, 16_384, 16_385, 16_384 + 256];
    let app = sizes
        .into_iter()
        .fold(Router::new(), |app, size| app.route(&format!("/{size}"), get(async move || vec![b'x'; size])));
    let server = Server::start(app).await;
    let mut client = RawHttp2::connect(server.address).await;
    for (number, size) in (0..).zip(sizes) {
        let stream = 1 + 2 * number;
        client.send(&request("GET", &format!("/{size}"), stream, true)).await;
        let mut lengths = Vec::new();
        loop {
            let next = client.until(|frame| frame.stream == stream && frame.kind == DATA).await;
            lengths.push(next.payload.len());
            if next.ends_its_stream() {
                break;
            }
        }
        assert_eq!(lengths.iter().sum::<usize>(), size);
        // What is short no client is sent without its end, nor an end without it.
        assert!(lengths.iter().all(|length| *length >= 256) || *lengths.last().unwrap() < 256, "{lengths:?}");
        assert_eq!(lengths.contains(&0), (size % 16_384) >= 256 || size % 16_384 == 0, "{lengths:?}");
    }
    server.journal.ended(sizes.len()).await;
    let flushed = server.journal.events().iter().filter(|event| event.kind().name() == "flushed").count();
    assert_eq!(flushed, sizes.len());
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// Rust's h2 counts short frames that do not end their stream and are not read yet; and has a window of 64 KiB here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_nobody_has_read_yet_end_no_connection() {
    let server = Server::start(Router::new().route("/", get(async || "small"))).await;
    let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (send, connection) = client.adaptive_window(true).handshake::<_, Body>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut responses = Vec::new();
    for _ in 0..190 {
        let request = Request::get("http://test/").body(Body::empty()).unwrap();
        responses.push(tokio::spawn(send.clone().send_request(request)));
    }
    // All of them have left before the first is read.
    server.journal.seen_times("flushed", 190).await;
    for (number, response) in responses.into_iter().enumerate() {
        let body = async { response.await.unwrap()?.into_body().collect().await };
        let body = soon("a response", body).await.unwrap_or_else(|error| panic!("{number}: {error:?}"));
        assert_eq!(body.to_bytes(), "small");
    }
    drop(send);
    soon("the connection ends", connection).await.unwrap().unwrap();
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn it_counts_as_flushed_when_its_client_has_made_room_for_it() {
    let notes = Notes::default();
    let server = Server::start(app(&notes)).await;
    let mut client = RawHttp2::connect(server.address).await;
    let first = ask(&mut client).await;
    assert_eq!((first.payload, first.flags), (b"sma".to_vec(), 0));
    assert_eq!(server.journal.lines(), ["handler_start/0", "handler_end/0"]);
    client.send(&more()).await;
    let last = client.until(|frame| frame.kind == DATA).await;
    assert!(last.ends_its_stream() && last.payload == b"ll");
    server.journal.ended(1).await;
    assert!(server.journal.lines().contains(&"flushed:5/0".to_owned()), "{:?}", server.journal.lines());
    assert_eq!(notes.all(), ["continuation", "NORMAL, flushed"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn who_leaves_without_making_room_for_it_has_aborted() {
    for how in 0..3 {
        let notes = Notes::default();
        let server = Server::start(app(&notes)).await;
        let mut client = RawHttp2::connect(server.address).await;
        ask(&mut client).await;
        match how {
            0 => {
                client.send(&frame(RST_STREAM, 0, 1, &CANCEL)).await;
                tokio::spawn(client.read_on());
            }
            1 => {
                reset_when_dropped(&client.stream);
                drop(client);
            }
            _ => drop(client),
        }
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["continuation", "ABORTED, aborted"], "{how}: {:?}", server.journal.lines());
        assert!(server.stop().await.is_clean());
    }
}

/// Nothing takes it back: at the limit its request waits for it no longer. And nothing is done meanwhile: or the paused clock
/// would stand still.
#[tokio::test(start_paused = true)]
async fn at_the_limit_it_is_given_up_on_and_may_still_leave() {
    for leaves in [true, false] {
        let notes = Notes::default();
        let server = MemoryServer::start(app(&notes).layer(TimeLimitLayer::new(10 * SECOND)));
        let mut client = RawHttp2::on(server.connect_narrow(64 * 1024).stream).await;
        ask(&mut client).await;
        server.ended(1).await;
        assert_eq!(notes.all(), ["continuation", "TIMEOUT, given up"]);
        let ended = server.journal.events().last().unwrap().at();
        assert_eq!(ended.as_secs(), 10);
        client.send(&if leaves { more() } else { frame(RST_STREAM, 0, 1, &CANCEL) }).await;
        if leaves {
            let last = client.until(|frame| frame.kind == DATA).await;
            assert!(last.ends_its_stream() && last.payload == b"ll");
        }
        client.ping().await;
        // It has ended, and nothing is told behind that.
        assert_eq!(server.journal.lines().last().unwrap(), "ended/2");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// It may still leave, or its client: no hook is told something else than those before it.
#[tokio::test(start_paused = true)]
async fn what_becomes_of_it_while_the_hooks_run_changes_nothing() {
    for leaves in [true, false] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (hooks, held) = (notes.clone(), gate.clone());
        let waits = ShutdownHookLayer::new(async move |end: End| {
            hooks.add(format!("first, {}", end.status()));
            held.passed().await;
        });
        let server = MemoryServer::start(app(&notes).layer(waits).layer(TimeLimitLayer::new(10 * SECOND)));
        let mut client = RawHttp2::on(server.connect_narrow(64 * 1024).stream).await;
        ask(&mut client).await;
        tokio::time::sleep(11 * SECOND).await;
        client.send(&if leaves { frame(RST_STREAM, 0, 1, &CANCEL) } else { more() }).await;
        for _ in 0..3 {
            client.ping().await;
        }
        gate.open();
        server.ended(1).await;
        assert_eq!(notes.all(), ["continuation", "first, TIMEOUT", "TIMEOUT, given up"]);
        assert_eq!(server.journal.lines().last().unwrap(), "ended/2");
        assert!(!server.journal.lines().iter().any(|line| line.starts_with("flushed")));
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// One piece, which says that it is the last, and comes when the limit has passed, in another thread.
struct Late {
    lifecycle: Lifecycle,
    polls: u8,
}

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.polls += 1;
        if self.polls == 1 {
            // Whoever waits for it waits for the limit, too.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while !self.lifecycle.status().is_timeout() {}
        Poll::Ready((self.polls == 2).then(|| Ok(http_body::Frame::data(Bytes::from_static(b"small")))))
    }

    fn is_end_stream(&self) -> bool {
        self.polls > 1
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(if self.is_end_stream() { 0 } else { 5 })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_comes_behind_the_limit_is_broken_off() {
    let notes = Notes::default();
    let hooks = notes.clone();
    let hook = ShutdownHookLayer::new(async move |end: End| hooks.add(format!("{}, {}", end.status(), end.sent())));
    let late = get(async |lifecycle: Lifecycle| Body::new(Late { lifecycle, polls: 0 }));
    let app = Router::new().route("/", late).layer(TimeLimitLayer::new(SECOND / 20)).layer(hook);
    let server = Server::start(app).await;
    let mut client = RawHttp2::connect(server.address).await;
    client.send(&request("GET", "/", 1, true)).await;
    let end = client.until(|frame| frame.stream == 1 && (frame.kind == RST_STREAM || frame.ends_its_stream())).await;
    assert_eq!(end.kind, RST_STREAM);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["TIMEOUT, broken off"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_cuts_it_off_says_so() {
    let notes = Notes::default();
    let server = MemoryServer::with(app(&notes), |builder| builder.patience(100 * SECOND).drain_deadline(SECOND));
    let mut client = RawHttp2::on(server.connect_narrow(64 * 1024).stream).await;
    ask(&mut client).await;
    let report = tokio::spawn(server.stop());
    client.read_on().await;
    let report = report.await.unwrap();
    assert!(!report.is_clean(), "{report}");
    let all = notes.all();
    assert!(all.len() == 2 && all[1].starts_with("TIMEOUT"), "{all:?}");
    assert!(!all[1].ends_with("flushed"), "{all:?}");
}
