//! The abort matrix on HTTP/1: how a client leaves, what it left behind, and who notices. Beside us stands plain axum,
//! so that this suite tells when hyper changes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tower_epilogue::TrackedIo;

use crate::{
    common::{Began, Leave, Plain, SOON, Work, the_server_has_looked},
    support::{Client, Gate, Notes, Server, soon},
};

/// What the server is at, and what it has not read, when the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NoBody,
    /// 64 KB of upload, all of it read by the handler.
    ReadUpload,
    /// An upload, all of it sent, that the handler does not read.
    Unread(usize),
    /// More than the receive window takes.
    FullWindow,
    Pipelined,
    StrayByte,
    IdleStream,
    BusyStream,
    IdleStreamPipelined,
}
use State::*;

/// What happens to the handler, or to the body's producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is dropped as soon as the client has left.
    Dropped,
    /// It runs on unaware; ours learns of it when the upload in front of the FIN is read.
    RunsOn,
}
use Fate::*;

/// The state; what becomes of the work with us, and under plain axum, after a FIN, a close and a reset.
const MATRIX: [(State, [Fate; 3], [Fate; 3]); 10] = [
    (NoBody, [Dropped; 3], [Dropped; 3]),
    (ReadUpload, [Dropped; 3], [Dropped; 3]),
    (Unread(5), [Dropped; 3], [Dropped; 3]),
    (Unread(64 * 1024), [Dropped; 3], [RunsOn; 3]),
    // The one blind spot: nobody sees a FIN that waits behind a full window. A reset does not wait.
    (FullWindow, [RunsOn, RunsOn, Dropped], [RunsOn; 3]),
    (Pipelined, [Dropped; 3], [RunsOn; 3]),
    (StrayByte, [Dropped; 3], [RunsOn; 3]),
    (IdleStream, [Dropped; 3], [Dropped; 3]),
    (BusyStream, [Dropped; 3], [Dropped; 3]),
    (IdleStreamPipelined, [Dropped; 3], [RunsOn; 3]),
];

fn cells(ours: bool) -> impl Iterator<Item = (State, Leave, Fate)> {
    MATRIX.into_iter().flat_map(move |(state, with_us, plain)| {
        let fates = if ours { with_us } else { plain };
        Leave::ALL.into_iter().zip(fates).map(move |(leave, fate)| (state, leave, fate))
    })
}

impl State {
    fn is_stream(self) -> bool {
        matches!(self, IdleStream | BusyStream | IdleStreamPipelined)
    }

    /// Sends the request, and what goes with it.
    async fn send(self, client: &mut Client) {
        let get = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
        let post = |length| format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
        match self {
            NoBody | IdleStream | BusyStream => client.send(get).await,
            ReadUpload => client.send(&(post(64 * 1024) + &"x".repeat(64 * 1024))).await,
            Unread(length) => client.send(&(post(length) + &"x".repeat(length))).await,
            Pipelined | IdleStreamPipelined => {
                client.send(&format!("{get}GET /ping HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            }
            StrayByte => client.send(&format!("{get}G")).await,
            FullWindow => {
                client.send(&post(100_000_000)).await;
                // Until the kernel takes no more.
                let bytes = vec![b'x'; 1024 * 1024];
                while let Ok(written) =
                    tokio::time::timeout(Duration::from_millis(100), client.stream.write(&bytes)).await
                {
                    written.unwrap();
                }
            }
        }
    }

    /// Reads what a stream has for its client before that leaves.
    async fn read(self, client: &mut Client) {
        match self {
            IdleStream | IdleStreamPipelined => drop(client.read_until("first").await),
            BusyStream => {
                let mut bytes = vec![0; 256 * 1024];
                soon("a busy stream", client.stream.read_exact(&mut bytes)).await.unwrap();
            }
            _ => {}
        }
    }
}

fn app(state: State, reads_in_the_end: bool, notes: &Notes, gate: &Gate, began: &Began) -> Router {
    let (notes, gate, began) = (notes.clone(), gate.clone(), began.clone());
    let handler = async move |mut body: Body| {
        began.now();
        if state.is_stream() {
            return streaming(state, &notes, &gate);
        }
        if state == ReadUpload {
            assert_eq!(body.frame_count().await, 64 * 1024);
        }
        let work = Work::begin(&notes);
        gate.passed().await;
        if reads_in_the_end {
            body.frame_count().await;
            std::future::pending::<()>().await;
        }
        work.end();
        Body::empty()
    };
    Router::new().route("/", any(handler)).route("/ping", get(async || "pong"))
}

trait Count {
    /// Reads to the end, or to an error; the bytes read.
    async fn frame_count(&mut self) -> usize;
}

impl Count for Body {
    async fn frame_count(&mut self) -> usize {
        let mut count = 0;
        while let Some(Ok(frame)) = self.frame().await {
            count += frame.data_ref().map_or(0, Bytes::len);
        }
        count
    }
}

fn streaming(state: State, notes: &Notes, gate: &Gate) -> Body {
    let (notes, gate) = (notes.clone(), gate.clone());
    let chunks = stream::unfold(None, move |work: Option<Work>| {
        let (notes, gate) = (notes.clone(), gate.clone());
        async move {
            let chunk = match (state, work) {
                (_, None) => (Bytes::from_static(b"first"), Work::begin(&notes)),
                (BusyStream, Some(work)) => (Bytes::from_static(&[b'x'; 16 * 1024]), work),
                (_, Some(work)) => {
                    gate.passed().await;
                    work.end();
                    return None;
                }
            };
            Some((Ok::<_, io::Error>(chunk.0), Some(chunk.1)))
        }
    });
    Body::from_stream(chunks)
}

/// Leaves; a client that stays to read a busy stream reads it.
async fn leave(state: State, leave: Leave, client: Client) -> Option<tokio::task::JoinHandle<TcpStream>> {
    let left = leave.leave(client.stream).await?;
    Some(tokio::spawn(async move {
        let mut left = left;
        if state == BusyStream {
            let mut bytes = vec![0; 64 * 1024];
            while matches!(left.read(&mut bytes).await, Ok(1..)) {}
        }
        left
    }))
}

#[tokio::test]
async fn an_abort_is_noticed_at_once_whatever_waits_unread() {
    for (state, how, fate) in cells(true) {
        let cell = format!("{state:?}, {how:?}");
        let (notes, gate, began) = (Notes::default(), Gate::closed(), Began::default());
        let server = Server::start(app(state, fate == RunsOn, &notes, &gate, &began)).await;
        let mut client = server.connect().await;
        state.send(&mut client).await;
        state.read(&mut client).await;
        notes.seen("started").await;

        let left_at = Instant::now();
        let left = leave(state, how, client).await;
        if fate == RunsOn {
            the_server_has_looked(server.address).await;
            assert_eq!(notes.all(), ["started"], "{cell}: the blind spot is gone? Then say so in the manual");
            gate.open();
        }
        notes.seen("dropped").await;
        server
            .journal
            .until("the request ends", |events| events.iter().any(|event| event.kind().name() == "ended"))
            .await;
        assert_eq!(notes.all(), ["started", "dropped"], "{cell}");

        let lines = server.journal.lines_of(server.journal.requests()[0]);
        if state.is_stream() {
            assert_eq!(lines[..4], ["handler_start/0", "handler_end/0", "aborted/1", "body_dropped/1"], "{cell}");
        } else {
            assert_eq!(lines[..3], ["handler_start/0", "aborted/1", "handler_dropped/1"], "{cell}");
        }
        let after = began.noticed_after(left_at, &server.journal);
        println!("{cell}: {}", if fate == Dropped { format!("{after:?}") } else { "when it was read".to_owned() });
        assert!(fate == RunsOn || after < SOON, "{cell}: noticed after {after:?}");
        drop(left);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn plain_axum_drops_a_handler_only_while_nothing_waits_unread() {
    for (state, how, fate) in cells(false) {
        let cell = format!("{state:?}, {how:?}");
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = Plain::start(app(state, false, &notes, &gate, &Began::default())).await;
        let mut client = Client::connect(server.address).await;
        state.send(&mut client).await;
        state.read(&mut client).await;
        notes.seen("started").await;
        let left = leave(state, how, client).await;
        if fate == RunsOn {
            the_server_has_looked(server.address).await;
            gate.open();
        }
        notes.count(2).await;
        let end = if fate == RunsOn { "ended" } else { "dropped" };
        assert_eq!(notes.all(), ["started", end], "{cell}: hyper has changed");
        drop(left);
    }
}

/// A socket tells of a reset once, and then of an end, as Linux has it.
struct Resets(u8);

impl AsyncRead for Resets {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0 += 1;
        match self.0 {
            1 => buf.put_slice(b"a request"),
            2 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => {}
        }
        Poll::Ready(Ok(()))
    }
}

/// The server has its turn with the request that came before it, and then it is told of a reset, and of no mere end.
#[tokio::test]
async fn a_reset_right_behind_a_request_is_one_for_the_server_too() {
    let mut io = TrackedIo::new(Resets(0));
    assert_eq!(io.read(&mut [0; 100]).await.unwrap(), 9);
    let error = io.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
