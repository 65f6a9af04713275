//! What had left when a connection ends reaches its client all the same, also one that sends on; and what is cut never looks
//! whole.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{any, get},
};
use futures_util::stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
    time::sleep,
};
use tower_epilogue::Continuation;

use crate::{
    frames::{ACK, DATA, Frame, GOAWAY, PING, RST_STREAM, RawHttp2, WINDOW_UPDATE, frame, request},
    support::{Client, Gate, Notes, Server, soon},
};

const MILLI: Duration = Duration::from_millis(1);
const FLUSHED: usize = 512 * 1024;
/// RFC 9113, section 7.
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;

fn flushed() -> Vec<u8> {
    (0..FLUSHED).map(|place| (place % 251) as u8).collect()
}

/// `/flushed` answers when the gate opens, `/endless` with a stream that never ends, `/stalls` with one that stalls; both tell
/// when it is dropped. None of them reads its upload.
fn app(gate: &Gate, notes: &Notes) -> Router {
    let (gate, one, other) = (gate.clone(), notes.clone(), notes.clone());
    let flushed = async move || {
        gate.passed().await;
        flushed()
    };
    let piece = || Ok::<_, io::Error>(Bytes::from_static(&[b'e'; 16 * 1024]));
    let endless = move |notes: &Notes, stalls: bool| {
        let pieces = stream::unfold((0, notes.on_drop("dropped")), move |(count, dropped)| async move {
            match stalls && count == 1 {
                true => std::future::pending().await,
                false => tokio::task::yield_now().await,
            }
            Some((piece(), (count + 1, dropped)))
        });
        Body::from_stream(pieces)
    };
    Router::new()
        .route("/flushed", get(flushed))
        .route("/endless", any(async move || (Continuation::new(async {}), endless(&one, false))))
        .route("/stalls", any(async move || endless(&other, true)))
        .route("/waits", any(std::future::pending::<()>))
}

/// A client that takes little of what it does not read: the rest waits in the server's kernel.
async fn narrow(server: &Server) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Client { stream }
}

/// Sends such a piece each millisecond, and twenty more when the server has dropped what it was at; or until it cannot.
async fn sends_on(client: &mut (impl AsyncWrite + Unpin), piece: &[u8], notes: &Notes) {
    let mut more = 20;
    while more > 0 && client.write_all(piece).await.is_ok() && client.flush().await.is_ok() {
        more -= usize::from(notes.has("dropped"));
        sleep(MILLI).await;
    }
}

/// All frames that still come.
async fn frames<S: AsyncRead + AsyncWrite + Unpin>(client: &mut RawHttp2<S>) -> (Vec<Frame>, io::Result<()>) {
    let mut frames = Vec::new();
    let end = soon("the end of the connection", async {
        loop {
            match client.next(64 * 1024).await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    let end = end.await;
    (frames, end)
}

fn of(frames: &[Frame], stream: u32) -> impl Iterator<Item = &Frame> {
    frames.iter().filter(move |frame| frame.stream == stream)
}

fn ended(frames: &[Frame], stream: u32) -> bool {
    of(frames, stream).any(Frame::ends_its_stream)
}

#[track_caller]
fn assert_came_whole(frames: &[Frame], stream: u32) {
    let data = of(frames, stream).filter(|frame| frame.kind == DATA);
    let body: Vec<u8> = data.flat_map(|frame| frame.payload.iter().copied()).collect();
    assert!(body == flushed(), "{} of {FLUSHED} bytes came", body.len());
    assert!(ended(frames, stream), "its end did not come");
}

fn number(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

/// The last stream and the code.
fn goaway(frame: &Frame) -> (u32, u32) {
    assert_eq!(frame.kind, GOAWAY);
    (number(&frame.payload, 0), number(&frame.payload, 4))
}

/// Reads on until the server has said which stream is its last, having answered its ping, as clients do.
async fn is_told_to_go(client: &mut RawHttp2, last: u32) {
    let first = client.until(|frame| frame.kind == GOAWAY).await;
    assert_eq!(goaway(&first), (0x7fff_ffff, NO_ERROR), "RFC 9113, section 6.8");
    let ping = client.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await;
    client.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let second = client.until(|frame| frame.kind == GOAWAY).await;
    assert_eq!(goaway(&second), (last, NO_ERROR));
}

#[tokio::test]
async fn on_http2_an_uploading_client_reads_it_from_a_connection_that_is_closed_after_the_deadline() {
    let (gate, notes) = (Gate::closed(), Notes::default());
    gate.open();
    let mut server =
        Server::with(app(&gate, &notes), |builder| builder.drain_deadline(20 * MILLI).hook_limit(1500 * MILLI)).await;
    let mut client = RawHttp2::over(narrow(&server).await.stream).await;
    client.send(&request("GET", "/flushed", 1, true)).await;
    server.journal.seen("flushed").await;
    client.send(&request("POST", "/waits", 3, false)).await;
    client.send(&request("GET", "/endless", 5, true)).await;
    server.begin_drain();
    // It answers no ping, and takes no byte: so the connection does not end by itself.
    sends_on(&mut client.stream, &frame(DATA, 0, 3, b"more"), &notes).await;
    let (frames, end) = frames(&mut client).await;
    end.expect("closed in order");
    assert_came_whole(&frames, 1);
    assert!(!ended(&frames, 5), "what was cut looks whole");
    // If the kernel had room for it, before the stream that never ends had filled it.
    let mut told = frames.iter().filter(|frame| frame.kind == GOAWAY).map(goaway);
    assert!(told.all(|told| told == (0x7fff_ffff, NO_ERROR)));
    drop(client);
    assert_eq!(server.drained().await.stragglers().len(), 2);
}

#[tokio::test]
async fn on_http2_an_uploading_client_reads_it_from_a_connection_whose_streams_the_deadline_has_reset() {
    let (gate, notes) = (Gate::closed(), Notes::default());
    let mut server = Server::with(app(&gate, &notes), |builder| builder.drain_deadline(None)).await;
    let mut client = RawHttp2::over(narrow(&server).await.stream).await;
    client.send(&request("GET", "/flushed", 1, true)).await;
    client.send(&request("POST", "/stalls", 3, false)).await;
    client.until(|frame| frame.stream == 3 && frame.kind == DATA).await;
    server.begin_drain();
    is_told_to_go(&mut client, 3).await;
    gate.open();
    server.journal.seen("flushed").await;
    server.epilogue.cut();
    sends_on(&mut client.stream, &frame(DATA, 0, 3, b"more"), &notes).await;
    let (frames, end) = frames(&mut client).await;
    end.expect("closed in order");
    assert_came_whole(&frames, 1);
    let reset = of(&frames, 3).find(|frame| frame.kind == RST_STREAM).expect("the other is reset");
    assert_eq!(number(&reset.payload, 0), INTERNAL_ERROR, "as hyper tells of a body that fails");
    assert!(!ended(&frames, 3));
    drop(client);
    assert_eq!(server.drained().await.stragglers().len(), 1);
}

/// It has nothing to upload; but it tells what it has read.
#[tokio::test]
async fn on_http2_a_slow_reader_reads_it_from_a_connection_that_is_closed_in_order() {
    let (gate, notes) = (Gate::closed(), Notes::default());
    let mut server = Server::start(app(&gate, &notes)).await;
    let mut client = RawHttp2::over(narrow(&server).await.stream).await;
    client.send(&request("GET", "/flushed", 1, true)).await;
    server.journal.seen("handler_start").await;
    server.begin_drain();
    is_told_to_go(&mut client, 1).await;
    gate.open();
    server.journal.seen("flushed").await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let mut frames = Vec::new();
    while let Ok(Some(next)) = soon("a frame", client.next(4 * 1024)).await {
        let length = u32::try_from(next.payload.len()).unwrap();
        let acknowledges = frame(WINDOW_UPDATE, 0, 0, &length.max(1).to_be_bytes());
        frames.push(next);
        if client.stream.write_all(&acknowledges).await.is_err() {
            break;
        }
    }
    assert_came_whole(&frames, 1);
    drop(client);
    assert!(server.drained().await.is_clean());
}

#[tokio::test]
async fn on_http1_a_pipelining_client_reads_what_came_before_the_response_that_was_cut() {
    let (gate, notes) = (Gate::closed(), Notes::default());
    gate.open();
    let mut server = Server::with(app(&gate, &notes), |builder| builder.drain_deadline(None)).await;
    let mut client = narrow(&server).await;
    client.send_get("/flushed").await;
    server.journal.seen("flushed").await;
    client.send_get("/stalls").await;
    server.journal.until("both are begun", |events| count(events, "handler_end") == 2).await;
    // More than the server takes while it answers.
    client.send(&format!("POST /waits HTTP/1.1\r\nhost: test\r\ncontent-length: 40000\r\n\r\n{:40000}", "")).await;
    server.begin_drain();
    let cut = async {
        while !notes.has("dropped") {
            server.epilogue.cut();
            tokio::task::yield_now().await;
        }
    };
    soon("it is cut", cut).await;
    sends_on(&mut client.stream, b"more", &notes).await;
    let reply = client.reply().await;
    let length: usize = reply.header("content-length").unwrap().parse().unwrap();
    assert_eq!((reply.status, length), (200, FLUSHED));
    assert!(reply.body.starts_with(&flushed()), "{} of {FLUSHED} bytes came", reply.body.len());
    assert!(!reply.body.ends_with(b"0\r\n\r\n"), "what was cut looks whole");
    drop(client);
    assert_eq!(server.drained().await.stragglers().len(), 1);
}

fn count(events: &[tower_epilogue::Event], name: &str) -> usize {
    events.iter().filter(|event| event.kind().name() == name).count()
}

/// A body in one piece that does not say how long it is.
struct Unsized(Option<Bytes>);

impl http_body::Body for Unsized {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.0.take().map(|piece| Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Its reader was given up on, its continuation and hooks ran, and so nothing is left of it that the deadline could cut.
#[tokio::test]
async fn a_response_that_is_on_its_way_still_when_connections_are_closed_never_looks_whole() {
    const LENGTH: usize = 16 * 1024 * 1024;
    let body = || Body::new(Unsized(Some(Bytes::from(vec![b'u'; LENGTH]))));
    let app = Router::new().route("/", get(async move || (Continuation::new(async {}), body())));
    for version in ["1.0", "1.1"] {
        let server = Server::with(app.clone(), |builder| {
            builder.patience(20 * MILLI).drain_deadline(20 * MILLI).hook_limit(100 * MILLI)
        })
        .await;
        let mut client = narrow(&server).await;
        client.send(&format!("GET / HTTP/{version}\r\nhost: test\r\n\r\n")).await;
        server.journal.ended(1).await;
        let report = server.stop().await;
        let reply = client.reply().await;
        let looks_whole = match version {
            "1.0" => reply.error.is_none(),
            _ => reply.dechunked().is_some(),
        };
        assert!(!looks_whole && reply.body.len() < LENGTH, "HTTP/{version}: {} {report}", reply.body.len());
    }
}
