//! HTTP/2: a client's windows without any room, in which the server keeps the last piece in hand; and a kernel that takes nothing.

use std::time::Duration;

use axum::{Router, body::Body, http::StatusCode, response::IntoResponse as _, routing::get};
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::{EarlyCloseLayer, End, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    frames::{DATA, INITIAL_WINDOW_SIZE, RST_STREAM, RawHttp2, SETTINGS, frame, request},
    last_piece::app,
    support::{MemoryServer, Notes, Server, h2client::Http2},
};

const SECOND: Duration = Duration::from_secs(1);
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// Asks without any room for the answer, has the server take some turns, and sends `last`.
async fn asks(server: &Server, last: &[u8]) {
    let mut client = RawHttp2::connect(server.address).await;
    let settings = [INITIAL_WINDOW_SIZE.to_be_bytes().as_slice(), &0_u32.to_be_bytes()].concat();
    client.send(&frame(SETTINGS, 0, 0, &settings)).await;
    client.send(&request("GET", "/", 1, true)).await;
    for _ in 0..4 {
        client.ping().await;
    }
    client.send(last).await;
    tokio::spawn(client.read_on());
    server.journal.ended(1).await;
}

async fn has_aborted() {
    for ends in [false, true] {
        let notes = Notes::default();
        let server = Server::start(app(&notes)).await;
        // Its stream, or by an error (a DATA frame without a stream) its connection.
        asks(&server, &if ends { frame(DATA, 0, 0, b"x") } else { frame(RST_STREAM, 0, 1, &CANCEL) }).await;
        let all = notes.all();
        assert_eq!(all[0], "continuation", "{ends}: {all:?}");
        assert!(!all[1].contains("flushed"), "{ends}: {all:?}");
        assert!(ends || all[1] == "ABORTED, aborted", "{all:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn who_resets_its_stream_without_room_for_a_byte_has_aborted() {
    has_aborted().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resets_its_stream_without_room_for_a_byte_has_aborted_in_threads() {
    has_aborted().await;
}

fn told(notes: &Notes) -> ShutdownHookLayer<impl FnOnce(End) -> std::future::Ready<()> + Clone + Send + 'static> {
    let notes = notes.clone();
    ShutdownHookLayer::new(move |end: End| {
        notes.add(format!("{}, {}", end.status(), end.sent()));
        std::future::ready(())
    })
}

/// Whether it has a body, or is a head alone.
#[tokio::test(start_paused = true)]
async fn what_is_queued_whole_when_the_limit_passes_is_given_up_on() {
    for body in ["", "text"] {
        let notes = Notes::default();
        let handler = async move || {
            let long = [("x-long", "y".repeat(3_000))];
            if body.is_empty() { (StatusCode::NO_CONTENT, long).into_response() } else { (long, body).into_response() }
        };
        let app = Router::new().route("/", get(handler)).layer(told(&notes)).layer(TimeLimitLayer::new(SECOND));
        let server = MemoryServer::start(app);
        let mut client = RawHttp2::on(server.connect_narrow(512).stream).await;
        client.ping().await;
        client.send(&request("GET", "/", 1, true)).await;
        server.ended(1).await;
        assert_eq!(notes.all(), ["TIMEOUT, given up"], "{body:?}");
        let end =
            client.until(|frame| frame.stream == 1 && (frame.kind == RST_STREAM || frame.ends_its_stream())).await;
        assert_ne!(end.kind, RST_STREAM, "{body:?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// On any protocol, and whatever the first of them does.
#[tokio::test(start_paused = true)]
async fn all_hooks_of_one_that_was_given_up_on_see_the_same() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.ignore_abort(true);
        for _ in 0..2 {
            let (notes, handle) = (theirs.clone(), lifecycle.clone());
            let hook = async move |end: End| {
                notes.add(format!("{}, {}", end.status(), end.sent()));
                handle.ignore_abort(false);
            };
            lifecycle.on_shutdown(hook).unwrap();
        }
        Body::from(vec![b'x'; 100_000])
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| builder.patience(SECOND));
    let mut client = server.connect_narrow(1_000);
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    // A paused clock goes on when nobody has anything to do: it is queued.
    tokio::time::sleep(SECOND / 10).await;
    client.stream.shutdown().await.unwrap();
    server.ended(1).await;
    assert_eq!(notes.all(), ["ABORTED, given up", "ABORTED, given up"]);
}

/// The piece before its last is on its way, and is written behind the reset.
#[tokio::test(start_paused = true)]
async fn who_resets_its_stream_without_room_for_the_last_piece_has_aborted() {
    const FIRST: u32 = 16_384;
    let notes = Notes::default();
    let app = Router::new().route("/", get(async || vec![b'x'; FIRST as usize + 100])).layer(told(&notes));
    let server = MemoryServer::start(app);
    let mut client = RawHttp2::on(server.connect_narrow(2_000).stream).await;
    client.ping().await;
    let settings = [INITIAL_WINDOW_SIZE.to_be_bytes().as_slice(), &FIRST.to_be_bytes()].concat();
    client.send(&frame(SETTINGS, 0, 0, &settings)).await;
    client.ping().await;
    client.send(&request("GET", "/", 1, true)).await;
    // A paused clock goes on when nobody has anything to do: it is queued, and then the reset is read.
    tokio::time::sleep(SECOND).await;
    client.send(&frame(RST_STREAM, 0, 1, &CANCEL)).await;
    tokio::time::sleep(SECOND).await;
    tokio::spawn(client.read_on());
    server.ended(1).await;
    assert_eq!(notes.all(), ["ABORTED, aborted"]);
}

/// The window has no room for the last piece, and what comes before it is let go of, since it was written, when that is queued.
#[tokio::test]
async fn who_makes_room_for_the_last_piece_has_all_of_it() {
    const WINDOW: usize = 65_535;
    let sizes = [WINDOW + 1, WINDOW + 250, 255 + 65_536 + 1, 300 + 65_536 + 1];
    let pieces = |size: usize| {
        let pieces = [vec![b'x'; 255], vec![b'x'; size - 256], vec![b'x']].map(Ok::<_, std::io::Error>);
        Body::from_stream(futures_util::stream::iter(pieces))
    };
    let app = sizes.into_iter().fold(Router::new(), |app, size| {
        app.route(&format!("/{size}"), get(async move || vec![b'x'; size]))
            .route(&format!("/{size}/pieces"), get(async move || pieces(size)))
    });
    let server = Server::start(app.layer(EarlyCloseLayer::new())).await;
    let mut client = Http2::connect(server.address).await;
    for size in sizes {
        for path in [format!("/{size}"), format!("/{size}/pieces")] {
            assert_eq!(client.get(&path).await.unwrap().body.len(), size);
        }
    }
    server.journal.ended(8).await;
    for lines in server.journal.requests().into_iter().map(|request| server.journal.lines_of(request)) {
        assert!(lines.iter().any(|line| line.starts_with("flushed")), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/0");
    }
    client.abort();
    assert!(server.stop().await.is_clean());
}
