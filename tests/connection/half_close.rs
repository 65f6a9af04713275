//! Clients that shut their sending side and stay to read.

use std::time::Duration;

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::{io::AsyncWriteExt as _, net::TcpSocket};
use tower_epilogue::{EpilogueBuilder, HalfClose, IgnoreAbortLayer, Tracking};

use crate::{
    common::{Leave, Work, reset_when_dropped, the_server_has_looked},
    frames::{DATA, INITIAL_WINDOW_SIZE, RawHttp2, SETTINGS, frame, request},
    support::{Client, Gate, MemoryServer, Notes, Reply, Server, soon},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
const TEN_MB: usize = 10_000_000;

/// Reads what its client sends, waits at the gate, and answers with 10 MB.
fn app(notes: &Notes, gate: &Gate) -> Router {
    let (notes, gate) = (notes.clone(), gate.clone());
    let handler = async move |body: Body| {
        let work = Work::begin(&notes);
        let _ = body.collect().await;
        gate.passed().await;
        work.end();
        Bytes::from(vec![b'x'; TEN_MB])
    };
    Router::new().route("/", any(handler)).route("/ping", any(async || "pong"))
}

async fn serving(app: Router, half_close: HalfClose) -> Server {
    Server::with(app, |builder| builder.tracking(Tracking::new().half_close(half_close))).await
}

/// When the FIN comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// Right behind the request, as `nc -N` does it.
    WithTheRequest,
    WhileTheHandlerWaits,
}

/// Sends `request` and a FIN, lets the handler go on once the server has seen them, and reads to the end.
async fn half_closed(server: &Server, request: &str, fin: Fin, notes: &Notes, gate: &Gate) -> Reply {
    let mut client = server.connect().await;
    client.send(request).await;
    if fin == Fin::WhileTheHandlerWaits {
        notes.seen("started").await;
    }
    client.half_close().await;
    the_server_has_looked(server.address).await;
    gate.open();
    client.reply().await
}

/// What the journal says of the requests of `/`.
fn lines(server: &Server) -> Vec<String> {
    server.journal.lines_of(server.journal.requests()[0])
}

#[tokio::test]
async fn a_half_closed_client_is_served_where_the_listener_serves_them() {
    let post = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for fin in [Fin::WithTheRequest, Fin::WhileTheHandlerWaits] {
        for request in [GET, &post] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let server = serving(app(&notes, &gate), HalfClose::Serve).await;
            let reply = half_closed(&server, request, fin, &notes, &gate).await;
            assert_eq!((reply.status, reply.body.len()), (200, TEN_MB), "{fin:?}");
            // Two of these are the pings.
            server.journal.ended(3).await;
            let flushed = format!("flushed:{TEN_MB}/0");
            assert_eq!(lines(&server), ["handler_start/0", "handler_end/0", &flushed, "ended/0"], "{fin:?}");
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_the_answers_to_all_it_asked() {
    let server = serving(Router::new().route("/", any(async || "one")), HalfClose::Serve).await;
    let mut client = server.connect().await;
    client.send(&GET.repeat(3)).await;
    client.half_close().await;
    let reply = client.reply().await;
    assert!(reply.error.is_none());
    assert_eq!(reply.text().matches("one").count(), 3, "{}", reply.text());
    server.journal.ended(3).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_half_closed_client_is_served_where_aborts_are_ignored() {
    for fin in [Fin::WithTheRequest, Fin::WhileTheHandlerWaits] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = serving(app(&notes, &gate).layer(IgnoreAbortLayer::new()), HalfClose::Abort).await;
        let reply = half_closed(&server, GET, fin, &notes, &gate).await;
        assert_eq!((reply.status, reply.body.len()), (200, TEN_MB), "{fin:?}");
        server.journal.ended(3).await;
        // The bit stays, and what was written all the same was flushed.
        let flushed = format!("flushed:{TEN_MB}/1");
        assert_eq!(lines(&server), ["handler_start/0", "aborted/1", "handler_end/1", &flushed, "ended/1"], "{fin:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_half_closed_client_has_left_otherwise() {
    for fin in [Fin::WithTheRequest, Fin::WhileTheHandlerWaits] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = serving(app(&notes, &gate), HalfClose::Abort).await;
        let reply = half_closed(&server, GET, fin, &notes, &gate).await;
        assert!(reply.head.is_empty(), "{fin:?}: {reply:?}");
        server.journal.ended(3).await;
        assert_eq!(notes.all(), ["started", "dropped"], "{fin:?}");
        assert_eq!(lines(&server), ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"], "{fin:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// An answer that is there before anybody looks for a FIN is given.
#[tokio::test]
async fn a_handler_that_need_not_wait_answers_a_client_that_sends_its_fin_with_the_request() {
    let server = serving(Router::new().route("/", any(async || "at once")), HalfClose::Abort).await;
    for _ in 0..20 {
        let mut client = server.connect().await;
        client.send(GET).await;
        client.half_close().await;
        assert_eq!(client.reply().await.text(), "at once");
    }
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_reset_after_a_fin_is_an_abort() {
    let request = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello";
    let pipelined = format!("{request}{GET}");
    for request in [GET, request, &pipelined] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = serving(app(&notes, &gate), HalfClose::Serve).await;
        let mut client = server.connect().await;
        client.send(request).await;
        notes.seen("started").await;
        client.half_close().await;
        the_server_has_looked(server.address).await;
        assert_eq!(notes.all(), ["started"]);
        drop(Leave::Reset.leave(client.stream).await);
        notes.seen("dropped").await;
        server.journal.seen("aborted").await;
        server.journal.ended(3).await;
        assert_eq!(lines(&server)[..3], ["handler_start/0", "aborted/1", "handler_dropped/1"], "{request}");
        assert!(server.stop().await.is_clean());
    }
}

/// A FIN is all that a client which closes sends, until somebody writes to it.
#[tokio::test]
async fn a_client_that_really_left_shows_when_it_is_written_to() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = serving(app(&notes, &gate), HalfClose::Serve).await;
    let mut client = server.connect().await;
    client.send(GET).await;
    notes.seen("started").await;
    client.close();
    the_server_has_looked(server.address).await;
    assert_eq!(notes.all(), ["started"]);
    gate.open();
    server.journal.ended(3).await;
    assert_eq!(lines(&server)[..3], ["handler_start/0", "handler_end/0", "aborted/1"]);
    assert!(server.stop().await.is_clean());
}

/// A client that half-closes and then stops reading is no different from any other.
#[tokio::test]
async fn a_half_closed_client_that_resets_in_the_middle_of_its_response_has_aborted() {
    for half_close in [HalfClose::Serve, HalfClose::Abort] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = serving(app(&notes, &gate).layer(IgnoreAbortLayer::new()), half_close).await;
        let mut client = Client::connect(server.address).await;
        reset_when_dropped(&client.stream);
        client.send(GET).await;
        notes.seen("started").await;
        client.stream.shutdown().await.unwrap();
        gate.open();
        soon("the response begins", client.read_until("xxx")).await;
        drop(client);
        server.journal.ended(1).await;
        let lines = server.journal.lines();
        assert!(lines.contains(&"aborted/1".to_owned()), "{half_close:?}: {lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("flushed")), "{half_close:?}: {lines:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// An HTTP/2 client that shuts its sending side can widen no window any more, but what its windows take it gets.
#[tokio::test]
async fn a_half_closed_http2_client_is_served_where_that_is_set_or_aborts_are_ignored() {
    let kinds = [(HalfClose::Serve, false, 0), (HalfClose::Abort, true, 1)];
    let fins = [Fin::WithTheRequest, Fin::WhileTheHandlerWaits];
    for ((half_close, ignores, status), fin) in kinds.into_iter().flat_map(|kind| fins.map(|fin| (kind, fin))) {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let layer = if ignores { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
        let app = app(&notes, &gate).layer(layer);
        let server = serving(app, half_close).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.send(&request("GET", "/", 1, true)).await;
        if fin == Fin::WhileTheHandlerWaits {
            notes.seen("started").await;
        }
        client.stream.shutdown().await.unwrap();
        notes.seen("started").await;
        the_server_has_looked(server.address).await;
        gate.open();
        let mut length = 0;
        soon("the response", async {
            while let Some(frame) = client.next(64 * 1024).await.unwrap() {
                if frame.stream == 1 && frame.kind == DATA {
                    length += frame.payload.len();
                }
                if frame.stream == 1 && frame.ends_its_stream() {
                    break;
                }
            }
        })
        .await;
        assert_eq!(length, TEN_MB, "{half_close:?}, {fin:?}");
        server.journal.ended(3).await;
        let flushed = format!("flushed:{TEN_MB}/{status}");
        assert!(lines(&server).contains(&flushed), "{half_close:?}, {fin:?}: {:?}", lines(&server));
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// A stream that is no socket tells of both at once: the server has its turn to begin with what has come.
#[tokio::test(start_paused = true)]
async fn a_request_of_an_http2_client_that_sends_its_fin_with_it_is_begun() {
    let app = Router::new().route("/", any(async || "hello")).layer(IgnoreAbortLayer::new());
    let server = MemoryServer::start(app);
    let mut client = RawHttp2::on(server.connect().stream).await;
    // From here on it is at its streams.
    client.until(|frame| frame.kind == SETTINGS).await;
    client.send(&request("GET", "/", 1, true)).await;
    client.stream.shutdown().await.unwrap();
    server.ended(1).await;
    // Nobody had looked for the FIN by then.
    assert_eq!(server.journal.lines(), ["handler_start/0", "handler_end/0", "flushed:5/0", "ended/0"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// Has every stream's window so wide, and the connection's without bound.
async fn with_windows(client: &mut RawHttp2, bytes: u32) {
    let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    setting.extend(bytes.to_be_bytes());
    client.send(&frame(SETTINGS, 0, 0, &setting)).await;
}

/// Reads so much of a stream, and what else comes in between.
async fn read_data(client: &mut RawHttp2, stream: u32, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        read += client.until(|frame| frame.stream == stream && frame.kind == DATA).await.payload.len();
    }
}

fn opened() -> Gate {
    let gate = Gate::closed();
    gate.open();
    gate
}

#[tokio::test]
async fn beside_a_full_window_a_half_closed_http2_client_gets_what_has_room() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let passed = gate.clone();
    let later = async move || {
        passed.passed().await;
        "later"
    };
    let server = serving(app(&notes, &opened()).route("/later", any(later)), HalfClose::Serve).await;
    let mut client = RawHttp2::connect(server.address).await;
    with_windows(&mut client, 65_535).await;
    client.send(&[request("GET", "/", 1, true), request("GET", "/later", 3, true)].concat()).await;
    client.stream.shutdown().await.unwrap();
    read_data(&mut client, 1, 65_535).await;
    // Longer than windows may stay full where nothing else is on its way.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    gate.open();
    assert_eq!(client.until(|frame| frame.stream == 3 && frame.kind == DATA).await.payload, b"later");
    // Now nothing is.
    server.journal.ended(2).await;
    assert!(lines(&server).contains(&"aborted/1".to_owned()), "{:?}", lines(&server));
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// The turn in which the kernel takes again what it did not take may be the one that fills the windows.
#[tokio::test]
async fn behind_a_window_that_is_full_since_the_kernel_was_an_http2_client_has_left() {
    const WINDOW: u32 = 6_000_000;
    let notes = Notes::default();
    let tracking = Tracking::new().half_close(HalfClose::Serve);
    let setup = |builder: EpilogueBuilder| builder.tracking(tracking).http2_keep_alive(None, Duration::ZERO);
    let server = Server::with(app(&notes, &opened()), setup).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut client = RawHttp2::over(socket.connect(server.address).await.unwrap()).await;
    with_windows(&mut client, WINDOW).await;
    client.send(&request("GET", "/", 1, true)).await;
    client.stream.shutdown().await.unwrap();
    notes.seen("ended").await;
    the_server_has_looked(server.address).await;
    read_data(&mut client, 1, WINDOW as usize).await;
    server.journal.ended(3).await;
    assert!(lines(&server).contains(&"aborted/1".to_owned()), "{:?}", lines(&server));
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_half_closed_http2_client_has_left_otherwise() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = serving(app(&notes, &gate), HalfClose::Abort).await;
    let mut client = RawHttp2::connect(server.address).await;
    client.send(&request("GET", "/", 1, true)).await;
    notes.seen("started").await;
    client.stream.shutdown().await.unwrap();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["started", "dropped"]);
    assert_eq!(lines(&server), ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
    assert!(server.stop().await.is_clean());
}
