//! HTTP/2 clients that shut their sending side, on a connection that is open already: with their request, or before they reset
//! it.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    routing::any,
};
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::{HalfClose, IgnoreAbortLayer, Tracking};

use crate::{
    common::{Work, reset_when_dropped, the_server_has_looked},
    frames::{DATA, END_STREAM, RawHttp2, SETTINGS, frame, request},
    support::{Gate, MemoryServer, Notes, Server, soon},
};

const SECOND: Duration = Duration::from_secs(1);

fn app(notes: &Notes, gate: &Gate) -> Router {
    let (notes, gate) = (notes.clone(), gate.clone());
    let handler = async move || {
        let work = Work::begin(&notes);
        gate.passed().await;
        work.end();
        "body"
    };
    Router::new().route("/", any(handler)).route("/ping", any(async || "pong"))
}

async fn serving(app: Router, half_close: HalfClose) -> Server {
    Server::with(app, |builder| builder.tracking(Tracking::new().half_close(half_close))).await
}

/// The data that comes to the end of the stream, or of the connection.
async fn read(client: &mut RawHttp2) -> Vec<u8> {
    soon("the end", async {
        let mut data = Vec::new();
        while let Ok(Some(frame)) = client.next(64 * 1024).await {
            if frame.kind == DATA {
                data.extend_from_slice(&frame.payload);
            }
            if frame.ends_its_stream() {
                break;
            }
        }
        data
    })
    .await
}

/// The server reads both in one turn, and the request begins in a task of its own.
async fn with_the_request(half_close: HalfClose, ignores: bool, waits: bool) -> (Vec<u8>, Vec<String>) {
    let (notes, gate) = (Notes::default(), Gate::closed());
    if !waits {
        gate.open();
    }
    let layer = if ignores { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
    let server = serving(app(&notes, &gate).layer(layer), half_close).await;
    let mut client = RawHttp2::connect(server.address).await;
    client.until(|frame| frame.kind == SETTINGS).await;
    client.send(&request("GET", "/", 1, true)).await;
    client.stream.shutdown().await.unwrap();
    notes.seen("started").await;
    if waits {
        the_server_has_looked(server.address).await;
    }
    gate.open();
    let data = read(&mut client).await;
    server.journal.ended(if waits { 3 } else { 1 }).await;
    let lines = server.journal.lines_of(server.journal.requests()[0]);
    drop(client);
    assert!(server.stop().await.is_clean());
    (data, lines)
}

#[tokio::test]
async fn one_whose_fin_comes_with_the_request_is_served_where_that_is_set_or_aborts_are_ignored() {
    let (data, lines) = with_the_request(HalfClose::Serve, false, true).await;
    assert_eq!(data, b"body", "{lines:?}");
    assert_eq!(lines, ["handler_start/0", "handler_end/0", "flushed:4/0", "ended/0"]);
    let (data, lines) = with_the_request(HalfClose::Abort, true, true).await;
    assert_eq!(data, b"body", "{lines:?}");
    assert_eq!(lines, ["handler_start/0", "aborted/1", "handler_end/1", "flushed:4/1", "ended/1"]);
    let (data, lines) = with_the_request(HalfClose::Abort, false, true).await;
    assert!(data.is_empty());
    assert_eq!(lines, ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
}

/// As long as it is being read when the FIN comes.
#[tokio::test]
async fn so_is_one_with_an_upload_that_is_read_at_once() {
    for length in [5, 60_000] {
        let handler = async |body: Body| to_bytes(body, 100_000).await.unwrap().len().to_string();
        let server = serving(Router::new().route("/", any(handler)), HalfClose::Serve).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.until(|frame| frame.kind == SETTINGS).await;
        client.send(&request("POST", "/", 1, false)).await;
        for part in vec![b'x'; length].chunks(16_000) {
            client.send(&frame(DATA, 0, 1, part)).await;
        }
        client.send(&frame(DATA, END_STREAM, 1, b"")).await;
        client.stream.shutdown().await.unwrap();
        assert_eq!(read(&mut client).await, length.to_string().as_bytes(), "{:?}", server.journal.lines());
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/0");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// As on HTTP/1: an answer that is there before anybody looks for a FIN is given.
#[tokio::test]
async fn a_handler_that_need_not_wait_answers_one_whose_fin_comes_with_the_request() {
    for (half_close, ignores) in [(HalfClose::Serve, false), (HalfClose::Abort, true), (HalfClose::Abort, false)] {
        let (data, lines) = with_the_request(half_close, ignores, false).await;
        assert_eq!(data, b"body", "{half_close:?}, ignored: {ignores}: {lines:?}");
        assert_eq!(lines, ["handler_start/0", "handler_end/0", "flushed:4/0", "ended/0"]);
    }
}

/// Behind a FIN that is kept from the server nobody reads: the socket tells.
#[tokio::test]
async fn a_reset_after_a_fin_is_an_abort() {
    for ignores in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let layer = if ignores { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
        let server = serving(app(&notes, &gate).layer(layer), HalfClose::Serve).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.send(&request("GET", "/", 1, true)).await;
        notes.seen("started").await;
        client.stream.shutdown().await.unwrap();
        the_server_has_looked(server.address).await;
        assert_eq!(notes.all(), ["started"]);
        reset_when_dropped(&client.stream);
        drop(client);
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(3).await;
        assert_eq!(notes.all(), ["started", if ignores { "ended" } else { "dropped" }]);
        let lines = server.journal.lines_of(server.journal.requests()[0]);
        assert_eq!(lines[..2], ["handler_start/0", "aborted/1"], "{lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/1", "{lines:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// It cannot answer a ping: so it is served as long as one may stay without an answer, or as it likes where there are none.
#[tokio::test(start_paused = true)]
async fn one_that_is_pinged_is_served_until_its_answer_is_overdue() {
    for pings in [true, false] {
        let handler = async || {
            tokio::time::sleep(300 * SECOND).await;
            "late"
        };
        let server = MemoryServer::with(Router::new().route("/", any(handler)), |builder| {
            let builder = builder.tracking(Tracking::new().half_close(HalfClose::Serve));
            builder.http2_keep_alive(pings.then_some(30 * SECOND), 20 * SECOND)
        });
        let mut client = RawHttp2::on(server.connect().stream).await;
        client.until(|frame| frame.kind == SETTINGS).await;
        client.send(&request("GET", "/", 1, true)).await;
        client.stream.shutdown().await.unwrap();
        server.ended(1).await;
        let events = server.journal.events();
        let end = events.last().unwrap();
        let expected = if pings { (50, 1) } else { (300, 0) };
        assert_eq!((end.at().as_secs(), end.status().bits()), expected, "{events:#?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}
