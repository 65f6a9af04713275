//! HTTP/2: what the server throws away of a response has not left, whenever it does so; and what others take of it was not
//! thrown away.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, header},
    response::Redirect,
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tower::Service as _;
use tower_epilogue::{TrackedIo, test_util::Journal};

use crate::{
    common::{ends_aborted, while_it_serves},
    frames::{ACK, DATA, Frame, HEADERS, PING, RST_STREAM, RawHttp2, SETTINGS, frame, request},
    support::{MemoryServer, Server, soon},
};

const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// What a client takes of a stream that it has not made room for.
const WINDOW: usize = 65_535;

fn app() -> Router {
    let stream = || async { Body::from_stream(stream::iter([Ok::<_, io::Error>("some")])) };
    Router::new()
        .route("/stream", get(stream))
        .route("/some", get(async || vec![b'x'; 2000]))
        .route("/more", get(async || vec![b'x'; WINDOW + 1]))
        .route("/short", get(async || "short"))
        .route("/none", get(async || ()))
        .route("/moved", get(async || Redirect::to("/there")))
        .route("/same", get(async || (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"one\"")])))
}

/// Once, and in another thread.
type Work = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// How many writes take nothing yet.
type Refused = Arc<AtomicUsize>;

/// An IO that hands everything on, and has something done when bytes have come.
struct Meanwhile<IO> {
    io: IO,
    work: Work,
    refused: Refused,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Meanwhile<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            if let Some(work) = self.work.lock().unwrap().take() {
                std::thread::spawn(work).join().unwrap();
            }
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Meanwhile<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let refuses = |refused: usize| refused.checked_sub(1);
        if self.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuses).is_ok() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Connection = h2::server::Connection<TrackedIo<Meanwhile<TcpStream>>, Bytes>;
type Answered = (Journal, RawHttp2, Connection, Response<Body>, h2::server::SendResponse<Bytes>);

/// A request for `path` that our service has answered, and of which nothing is sent yet.
async fn answered(path: &str) -> Answered {
    answered_over(path, &Work::default(), &Refused::default()).await
}

async fn answered_over(path: &str, work: &Work, refused: &Refused) -> Answered {
    let journal = Journal::new();
    let epilogue = journal.epilogue().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = RawHttp2::connect(listener.local_addr().unwrap()).await;
    client.send(&request("GET", path, 1, true)).await;
    let (io, work, refused) = (listener.accept().await.unwrap().0, work.clone(), refused.clone());
    let io = TrackedIo::new(Meanwhile { io, work, refused });
    let mut service = epilogue.wrap(&io, app());
    let mut server = h2::server::handshake(io).await.unwrap();
    let (request, respond) = server.accept().await.unwrap().unwrap();
    let request = Request::from_parts(request.into_parts().0, Body::empty());
    let response = service.call(request).await.unwrap();
    (journal, client, server, response, respond)
}

/// The same, which has begun to be sent.
struct Served {
    journal: Journal,
    client: RawHttp2,
    server: Connection,
    body: Body,
    send: h2::SendStream<Bytes>,
    meanwhile: Work,
    refused: Refused,
}

impl Served {
    async fn begin(path: &str) -> Self {
        let (meanwhile, refused) = (Work::default(), Refused::default());
        let (journal, client, server, response, mut respond) = answered_over(path, &meanwhile, &refused).await;
        let (head, body) = response.into_parts();
        // As a server asks.
        assert!(!http_body::Body::is_end_stream(&body));
        let send = respond.send_response(Response::from_parts(head, ()), false).unwrap();
        Self { journal, client, server, body, send, meanwhile, refused }
    }

    /// The body's next frame of data, while the server goes on.
    async fn data(&mut self) -> Bytes {
        let frame = while_it_serves(&mut self.server, soon("a frame", self.body.frame())).await;
        frame.unwrap().unwrap().into_data().unwrap()
    }

    /// The end of the body is sent, too, and all of it has left.
    async fn ends_whole(mut self) {
        let end = self.data().await;
        self.send.send_data(end, true).unwrap();
        drop(self.body);
        while_it_serves(&mut self.server, self.client.until(Frame::ends_its_stream)).await;
        while_it_serves(&mut self.server, soon("the request ends", self.journal.ended(1))).await;
        self.journal.only().assert_flushed();
        self.journal.only().assert_contract();
    }

    /// The server reads, writes and flushes what there is.
    async fn turn(&mut self) {
        while_it_serves(&mut self.server, self.client.ping()).await;
    }
}

/// All bytes have left, and the client wants no more of a stream whose end it was not told.
#[tokio::test]
async fn who_resets_its_stream_before_its_end_leaves_has_aborted() {
    for busy in [false, true] {
        let mut served = Served::begin("/stream").await;
        let data = served.data().await;
        served.send.send_data(data, false).unwrap();
        let end = served.data().await;
        assert!(end.is_empty());
        let Served { journal, mut client, server, body, mut send, .. } = served;
        client.until(|frame| frame.kind == SETTINGS).await;
        client.until(|frame| frame.kind == DATA).await;
        let mut bytes = frame(RST_STREAM, 0, 1, &CANCEL);
        if busy {
            // The server has something to write in the same turn.
            bytes.extend(frame(PING, 0, 0, b"a turn.."));
        }
        client.send(&bytes).await;
        // The runtime looks at its sockets, so that the server reads before it writes.
        tokio::task::yield_now().await;
        send.send_data(end, true).unwrap();
        drop(body);
        ends_aborted(server, &journal).await;
    }
}

/// The last byte waits for room that its client does not make, and is thrown away when that has not answered a ping.
#[tokio::test]
async fn who_is_given_up_on_before_the_last_byte_has_room_has_aborted() {
    let short = Duration::from_millis(100);
    let server = Server::with(app(), |builder| builder.http2_keep_alive(short, short)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    stream.write_all(&[preface, frame(SETTINGS, 0, 0, &[]), request("GET", "/more", 1, true)].concat()).await.unwrap();
    let mut client = RawHttp2::reads(stream);
    let mut read = 0;
    let all = async {
        while let Ok(Some(frame)) = client.next(64 * 1024).await {
            read += if frame.kind == DATA { frame.payload.len() } else { 0 };
        }
    };
    soon("the server gives up", all).await;
    assert_eq!(read, WINDOW);
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert_eq!(lines.last().unwrap(), "ended/1", "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("flushed")), "{lines:?}");
    assert!(server.stop().await.is_clean());
}

/// As some clients do, it asks whether the server is there as well: which can not be answered as long as nobody reads what is
/// on its way.
#[tokio::test(start_paused = true)]
async fn who_resets_its_stream_and_pings_while_nothing_can_be_written_has_aborted() {
    for ping_first in [false, true] {
        let server = MemoryServer::start(app());
        let mut client = RawHttp2::on(server.connect_narrow(1024).stream).await;
        client.send(&request("GET", "/more", 1, true)).await;
        client.until(|frame| frame.kind == HEADERS).await;
        // All is handed over, and the server waits for its reader.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (reset, ping) = (frame(RST_STREAM, 0, 1, &CANCEL), frame(PING, 0, 0, b"are you?"));
        client.send(&if ping_first { [ping, reset].concat() } else { [reset, ping].concat() }).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.until(|frame| frame.kind == PING && frame.flags & ACK != 0).await;
        server.ended(1).await;
        let lines = server.journal.lines();
        assert!(!lines.iter().any(|line| line.starts_with("flushed")), "{ping_first}: {lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/1", "{ping_first}: {lines:?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// A middleware around our service copies what it is given, in another thread, while the server reads.
#[tokio::test]
async fn what_somebody_copies_while_the_server_reads_was_not_thrown_away() {
    let mut served = Served::begin("/stream").await;
    let data = served.data().await;
    let copy = Bytes::copy_from_slice(&data);
    assert!(futures_util::poll!(std::pin::pin!(served.body.frame())).is_pending(), "its end is held back");
    *served.meanwhile.lock().unwrap() = Some(Box::new(move || drop(data)));
    served.turn().await;
    served.send.send_data(copy, false).unwrap();
    served.ends_whole().await;
}

/// The connection can be written to again while the server is at the answer to a ping: its client has asked when nothing
/// could be.
#[tokio::test]
async fn what_is_written_when_a_ping_found_nothing_to_write_to_was_not_thrown_away() {
    let mut served = Served::begin("/some").await;
    let data = served.data().await;
    served.turn().await;
    assert!(futures_util::poll!(std::pin::pin!(served.body.frame())).is_pending(), "its end is held back");
    served.refused.store(usize::MAX, Ordering::SeqCst);
    served.send.send_data(data, false).unwrap();
    let refused = served.refused.clone();
    // The answer, and not the data behind it.
    *served.meanwhile.lock().unwrap() = Some(Box::new(move || refused.store(1, Ordering::SeqCst)));
    served.turn().await;
    served.ends_whole().await;
}

/// What leaves with a reset in the same turn is another response.
#[tokio::test]
async fn a_head_that_is_thrown_away_beside_another_response_has_not_left() {
    for (path, method) in [("/none", "GET"), ("/moved", "GET"), ("/same", "GET"), ("/more", "HEAD")] {
        let server = Server::start(app()).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.until(|frame| frame.kind == SETTINGS).await;
        let both = [request(method, path, 1, true), frame(RST_STREAM, 0, 1, &CANCEL), request("GET", "/none", 3, true)];
        client.send(&both.concat()).await;
        let next = client.until(|frame| frame.stream != 0).await;
        assert_eq!((next.stream, next.ends_its_stream()), (3, true), "{method} {path}");
        server.journal.ended(2).await;
        let lines = server.journal.requests().into_iter().map(|request| server.journal.lines_of(request));
        let mut ends: Vec<_> = lines.map(|lines| lines.last().unwrap().clone()).collect();
        ends.sort();
        assert_eq!(ends, ["ended/0", "ended/1"], "{method} {path}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// The server has queued it when it reads of the reset, and answers a ping in the same turn.
#[tokio::test]
async fn a_head_that_is_thrown_away_when_it_was_queued_has_not_left() {
    for path in ["/none", "/moved", "/same"] {
        let (journal, mut client, server, response, mut respond) = answered(path).await;
        client.until(|frame| frame.kind == SETTINGS).await;
        client.send(&[frame(RST_STREAM, 0, 1, &CANCEL), frame(PING, 0, 0, b"a turn..")].concat()).await;
        // The runtime looks at its sockets, so that the server reads before it writes.
        tokio::task::yield_now().await;
        let (head, body) = response.into_parts();
        assert!(http_body::Body::is_end_stream(&body));
        drop(respond.send_response(Response::from_parts(head, ()), true).unwrap());
        drop(body);
        ends_aborted(server, &journal).await;
    }
}

/// Its values are those that it was given, and it has left when it is flushed: no other turn of the server is waited for.
#[tokio::test]
async fn a_head_has_left_with_its_flush() {
    for (path, name, value) in
        [("/none", "content-length", "0"), ("/moved", "location", "/there"), ("/same", "etag", "\"one\"")]
    {
        let (journal, mut client, mut server, response, mut respond) = answered(path).await;
        let (head, body) = response.into_parts();
        assert_eq!(head.headers[name], value);
        assert!(http_body::Body::is_end_stream(&body));
        drop(respond.send_response(Response::from_parts(head, ()), true).unwrap());
        drop(body);
        assert!(futures_util::poll!(std::pin::pin!(server.accept())).is_pending());
        soon("the request ends", journal.ended(1)).await;
        journal.only().assert_flushed();
        client.until(|frame| frame.kind == HEADERS && frame.ends_its_stream()).await;
        journal.only().assert_contract();
    }
}

/// A middleware around our service keeps a copy of every head, or has its own idea of a length; one may ask for the end, and
/// read on all the same.
#[tokio::test]
async fn a_head_that_a_middleware_copies_or_changes_is_flushed_all_the_same() {
    for (changes, polls) in [(false, false), (true, false), (true, true)] {
        let (journal, mut client, mut server, response, mut respond) = answered("/none").await;
        let (mut head, mut body) = response.into_parts();
        let copy = (!changes).then(|| head.headers.clone());
        if changes && !polls {
            head.headers.clear();
        }
        assert!(http_body::Body::is_end_stream(&body));
        if polls {
            head.headers.clear();
            assert!(body.frame().await.is_none());
        }
        drop(respond.send_response(Response::from_parts(head, ()), true).unwrap());
        drop(body);
        let reads = async { client.until(|frame| frame.kind == HEADERS && frame.ends_its_stream()).await };
        let ends = soon("the request ends", journal.ended(1));
        while_it_serves(&mut server, async { tokio::join!(reads, ends) }).await;
        journal.only().assert_flushed();
        journal.only().assert_contract();
        drop(copy);
    }
}

/// hyper has taken the last piece when its connection, in another thread, reads of the reset: it cannot queue that any more, and
/// lets go of it and of the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_resets_its_stream_while_its_server_has_the_last_piece_in_hand_has_aborted() {
    let (journal, mut client, mut server, response, mut respond) = answered("/short").await;
    let server = tokio::spawn(async move { while server.accept().await.is_some_and(|next| next.is_ok()) {} });
    let (head, mut body) = response.into_parts();
    assert!(!http_body::Body::is_end_stream(&body));
    let mut send = respond.send_response(Response::from_parts(head, ()), false).unwrap();
    let piece = soon("a frame", body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(http_body::Body::is_end_stream(&body), "it carries the end");
    client.send(&frame(RST_STREAM, 0, 1, &CANCEL)).await;
    client.ping().await;
    send.send_data(piece, true).unwrap_err();
    drop(body);
    soon("the request ends", journal.ended(1)).await;
    journal.only().assert_aborted();
    journal.only().assert_contract();
    drop((client, send, respond));
    soon("the connection ends", server).await.unwrap();
}
