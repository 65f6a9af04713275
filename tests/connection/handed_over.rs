//! HTTP/2 servers that have sent the end of a response before they let go of its body: its client may have left by then.

use std::time::Duration;

use axum::{Router, body::Body, http::StatusCode, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, Request, Response, body::Frame};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::Service as _;
use tower_epilogue::{ConnectionStatus, Epilogue, TrackedIo, test_util::Journal};

use crate::{
    common::{ends_aborted, while_it_serves},
    frames::{DATA, GOAWAY, RST_STREAM, RawHttp2, SETTINGS, frame, request},
    support::soon,
};

fn app() -> Router {
    let trailers = || async {
        let frames = [Frame::data(Bytes::from("some")), Frame::trailers(HeaderMap::new())];
        Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>))))
    };
    let fails = || async {
        let frames = [Ok(Bytes::from("some")), Err(std::io::Error::other("the upstream broke off"))];
        Body::from_stream(stream::iter(frames))
    };
    // Of a known length, and only its end tells that it has ended.
    let nothing =
        || async { ([("content-length", "0")], Body::from_stream(stream::empty::<std::io::Result<Bytes>>())) };
    let open = || async {
        let some = stream::iter([Ok::<_, std::io::Error>("some")]).chain(stream::pending());
        ([("content-length", "4")], Body::from_stream(some))
    };
    Router::new()
        .route("/empty", get(async || StatusCode::NO_CONTENT))
        .route("/trailers", get(trailers))
        .route("/fails", get(fails))
        .route("/nothing", get(nothing))
        .route("/open", get(open))
}

/// Reads a whole response, and closes the connection at once, with or without a GOAWAY.
async fn ask(client: TcpStream, path: &str, says_so: bool) {
    let (mut send, connection) = h2::client::handshake(client).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get(format!("http://test{path}")).body(()).unwrap();
    let mut body = send.send_request(request, true).unwrap().0.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        drop(data.unwrap());
    }
    drop(body.trailers().await.unwrap());
    drop((body, send));
    if !says_so {
        connection.abort();
    }
    drop(connection.await);
}

/// A request of a [client](ask) that reads it all, which our service has answered, on a connection that goes on by itself.
struct Asked {
    journal: Journal,
    client: JoinHandle<()>,
    response: Response<Body>,
    respond: h2::server::SendResponse<Bytes>,
    connection: JoinHandle<()>,
}

impl Asked {
    async fn by(path: &'static str, says_so: bool) -> Self {
        let journal = Journal::new();
        let epilogue = journal.epilogue().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = tokio::spawn(ask(client, path, says_so));
        let (mut server, response, respond) = served(&epilogue, listener).await;
        let connection = tokio::spawn(async move { while server.accept().await.is_some_and(|next| next.is_ok()) {} });
        Self { journal, client, response, respond, connection }
    }
}

type Server = h2::server::Connection<TrackedIo<TcpStream>, Bytes>;

/// Accepts a connection, and has our service answer its first request.
async fn served(
    epilogue: &Epilogue,
    listener: TcpListener,
) -> (Server, Response<Body>, h2::server::SendResponse<Bytes>) {
    let io = TrackedIo::new(listener.accept().await.unwrap().0);
    let mut service = epilogue.wrap(&io, app());
    let mut server = h2::server::handshake(io).await.unwrap();
    let (request, respond) = server.accept().await.unwrap().unwrap();
    let request = Request::from_parts(request.into_parts().0, Body::empty());
    (server, service.call(request).await.unwrap(), respond)
}

/// As hyper does, whose stream has a task of its own: that may be held up between these steps, in another thread.
#[tokio::test]
async fn who_leaves_with_the_whole_response_has_not_aborted() {
    for (path, says_so) in [("/empty", false), ("/empty", true), ("/trailers", false), ("/trailers", true)] {
        let Asked { journal, client, response, mut respond, mut connection } = Asked::by(path, says_so).await;
        let (head, mut body) = response.into_parts();
        let is_empty = http_body::Body::is_end_stream(&body);
        assert_eq!(is_empty, path == "/empty");
        let mut send = respond.send_response(Response::from_parts(head, ()), is_empty).unwrap();
        if path == "/trailers" {
            let trailers = loop {
                match soon("a frame", body.frame()).await.unwrap().unwrap().into_data() {
                    Ok(data) => send.send_data(data, false).unwrap(),
                    Err(frame) => break frame.into_trailers().unwrap(),
                }
            };
            send.send_trailers(trailers).unwrap();
        }
        soon("the client leaves", client).await.unwrap();
        // The server's turns, in which it finds out; with a GOAWAY they are its last.
        let turns = tokio::time::timeout(Duration::from_millis(50), &mut connection).await;
        drop(body);
        if turns.is_err() {
            soon("the connection ends", connection).await.unwrap();
        }
        soon("the request ends", journal.ended(1)).await;
        let story = journal.only();
        story.assert_flushed();
        story.assert_status(ConnectionStatus::NORMAL);
        story.assert_contract();
    }
}

/// A request for `path`, served up to what `last` takes of its body.
struct Served {
    journal: Journal,
    client: RawHttp2,
    server: Server,
    body: Body,
    send: h2::SendStream<Bytes>,
}

impl Served {
    async fn begin(path: &str) -> Self {
        let journal = Journal::new();
        let epilogue = journal.epilogue().build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = RawHttp2::connect(listener.local_addr().unwrap()).await;
        client.send(&request("GET", path, 1, true)).await;
        let (server, response, mut respond) = served(&epilogue, listener).await;
        let (head, body) = response.into_parts();
        // As a server asks.
        assert!(!http_body::Body::is_end_stream(&body));
        let send = respond.send_response(Response::from_parts(head, ()), false).unwrap();
        Self { journal, client, server, body, send }
    }

    /// Sends the body's data, and gives what comes behind it: when it comes, the data was flushed, or is about to be.
    async fn behind_the_data(&mut self) -> Result<HeaderMap, axum::Error> {
        soon("what comes behind the data", async {
            loop {
                let frame = while_it_serves(&mut self.server, self.body.frame()).await.unwrap()?;
                match frame.into_data() {
                    Ok(data) => self.send.send_data(data, false).unwrap(),
                    Err(frame) => return Ok(frame.into_trailers().unwrap()),
                }
            }
        })
        .await
    }
}

/// A middleware around our service may want all of a body before it hands on the head; if it asks whether there is any, it has to
/// copy.
#[tokio::test]
async fn a_body_may_be_copied_before_its_head_leaves() {
    for (path, expected, asks) in
        [("/nothing", "", false), ("/nothing", "", true), ("/trailers", "some", false), ("/trailers", "some", true)]
    {
        let Asked { journal, client, response, mut respond, connection } = Asked::by(path, true).await;
        let (head, mut body) = response.into_parts();
        if asks {
            // Whether there is one at all, as a server would.
            assert!(!http_body::Body::is_end_stream(&body));
        }
        let mut whole = Vec::new();
        while let Some(frame) = soon(path, body.frame()).await {
            whole.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
        assert_eq!(whole, expected.as_bytes(), "{path}");
        respond.send_response(Response::from_parts(head, ()), false).unwrap().send_data(whole.into(), true).unwrap();
        drop(respond);
        soon("the client has it", client).await.unwrap();
        soon("the connection ends", connection).await.unwrap();
        soon("the request ends", journal.ended(1)).await;
        journal.only().assert_contract();
    }
}

/// A middleware around our service answers in its place, as one with a limit of its own does: its client is there.
#[tokio::test]
async fn a_response_that_never_came_to_the_server_is_no_abort() {
    for path in ["/empty", "/nothing", "/trailers"] {
        let Asked { journal, client, response, mut respond, connection } = Asked::by(path, true).await;
        let mut body = response.into_body();
        while let Some(frame) = soon(path, body.frame()).await {
            drop(frame.unwrap());
        }
        drop(body);
        soon("the request ends", journal.ended(1)).await;
        journal.only().assert_status(ConnectionStatus::NORMAL);
        journal.only().assert_contract();
        let late = Response::builder().status(StatusCode::GATEWAY_TIMEOUT).body(()).unwrap();
        respond.send_response(late, true).unwrap();
        drop(respond);
        soon("the client has it", client).await.unwrap();
        soon("the connection ends", connection).await.unwrap();
    }
}

/// The server reads of the reset only when it has taken them, and throws them away: nothing is written any more.
#[tokio::test]
async fn who_resets_its_stream_before_the_trailers_leave_has_aborted() {
    let mut served = Served::begin("/trailers").await;
    let trailers = served.behind_the_data().await.unwrap();
    let Served { journal, mut client, server, body, mut send } = served;
    client.until(|frame| frame.kind == SETTINGS).await;
    client.until(|frame| frame.kind == DATA).await;
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
    // The runtime looks at its sockets, so that the server reads before it writes.
    tokio::task::yield_now().await;
    send.send_trailers(trailers).unwrap();
    drop(body);
    ends_aborted(server, &journal).await;
}

/// The body has ended without a byte, and waits for its head to leave, which is thrown away.
#[tokio::test]
async fn who_resets_its_stream_before_the_head_of_a_body_without_bytes_leaves_has_aborted() {
    let Served { journal, mut client, mut server, mut body, send } = Served::begin("/nothing").await;
    assert!(futures_util::poll!(std::pin::pin!(body.frame())).is_pending(), "its end is held back");
    client.until(|frame| frame.kind == SETTINGS).await;
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
    // The runtime looks at its sockets, so that the server reads before it writes.
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(std::pin::pin!(server.accept())).is_pending());
    drop((send, body));
    soon("the request ends", journal.ended(1)).await;
    journal.only().assert_aborted();
    journal.only().assert_contract();
}

/// hyper has taken the last chunk, waits for room in the client's windows, and lets go of the chunk and then of the body when
/// it hears of the reset.
#[tokio::test]
async fn who_resets_its_stream_while_the_server_still_has_the_last_chunk_has_aborted() {
    let Served { journal, mut client, mut server, mut body, send } = Served::begin("/open").await;
    let chunk = soon("a chunk", body.frame()).await.unwrap().unwrap();
    assert!(futures_util::poll!(std::pin::pin!(server.accept())).is_pending());
    client.until(|frame| frame.stream == 1).await;
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
    drop(chunk);
    while_it_serves(&mut server, client.ping()).await;
    drop((send, body));
    soon("the request ends", journal.ended(1)).await;
    journal.only().assert_aborted();
    journal.only().assert_contract();
}

/// Its stream is reset by the server, and its client has seen that and left when the server lets go of the body.
#[tokio::test]
async fn who_leaves_after_a_body_has_failed_has_not_aborted() {
    for says_so in [true, false] {
        let mut served = Served::begin("/fails").await;
        served.behind_the_data().await.unwrap_err();
        let Served { journal, mut client, mut server, body, mut send } = served;
        send.send_reset(h2::Reason::INTERNAL_ERROR);
        let serves = async { while server.accept().await.is_some_and(|next| next.is_ok()) {} };
        let leaves = async {
            client.until(|frame| frame.kind == RST_STREAM).await;
            if says_so {
                client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
            }
            drop(client);
        };
        soon("the connection ends", async { tokio::join!(serves, leaves) }).await;
        drop((server, send));
        drop(body);
        soon("the request ends", journal.ended(1)).await;
        let story = journal.only();
        story.assert_not_flushed();
        story.assert_status(ConnectionStatus::NORMAL);
        story.assert_contract();
    }
}
