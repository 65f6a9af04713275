//! Abort, not ignored: the handler future, or the body producer, is dropped as soon as the connection knows, also
//! with an unread or pipelined request; the status says ABORTED; hooks run.

use std::future::pending;

use axum::{
    Router,
    body::Body,
    routing::{any, get},
};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{Asked, Leave, held_back, settled, told},
    support::{Client, Gate, Notes, Server, h2client::Http2},
};

/// What a client has sent besides its head when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// A body, all of it, that nobody reads.
    UnreadBody,
    /// The half of a body that nobody reads.
    HalfABody,
    /// The half of a body, of which the first frame is read.
    ReadInPart,
    /// Another request behind its own.
    Pipelined,
}

/// More than a server reads ahead.
const BODY: usize = 100_000;

async fn http1(server: &Server, sent: Sent) -> Client {
    let mut client = server.connect().await;
    match sent {
        Sent::Nothing => client.send_get("/").await,
        Sent::Pipelined => client.send(&"GET / HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2)).await,
        Sent::UnreadBody | Sent::HalfABody | Sent::ReadInPart => {
            client.send(&format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {BODY}\r\n\r\n")).await;
            let length = if sent == Sent::UnreadBody { BODY } else { BODY / 2 };
            client.send(&"x".repeat(length)).await;
        }
    }
    client
}

async fn leave_http1(client: Client, leave: Leave) -> Option<Client> {
    let mut client = client;
    match leave {
        Leave::Close => client.close(),
        Leave::Reset => client.reset(),
        _ => {
            client.half_close().await;
            return Some(client);
        }
    }
    None
}

const HTTP1: [Leave; 3] = [Leave::Close, Leave::Reset, Leave::HalfClose];
const ALL_SENT: [Sent; 5] = [Sent::Nothing, Sent::UnreadBody, Sent::HalfABody, Sent::ReadInPart, Sent::Pipelined];

fn pairs(sent: &[Sent]) -> impl Iterator<Item = (Leave, Sent)> {
    HTTP1.into_iter().flat_map(move |leave| sent.iter().map(move |sent| (leave, *sent)))
}

#[tokio::test]
async fn the_handler_is_dropped_as_soon_as_the_connection_knows_on_http1() {
    for (leave, sent) in pairs(&ALL_SENT) {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |mut body: Body| {
            let _dropped = theirs.on_drop("dropped");
            if sent == Sent::ReadInPart {
                body.frame().await.unwrap().unwrap();
            }
            theirs.add("started");
            pending::<()>().await;
        };
        let app = Router::new().route("/", any(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let client = http1(&server, sent).await;
        notes.seen("started").await;
        let _left = leave_http1(client, leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["started", "dropped", "hook: ABORTED, Aborted"], "{leave:?} {sent:?}");
        assert_eq!(server.journal.lines()[1..3], ["aborted/1", "handler_dropped/1"], "{leave:?} {sent:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Its client had left while the request before it was served, which ignores that. There is a third one, behind which the
/// server does not look for the end of input.
#[tokio::test]
async fn so_is_one_whose_request_is_begun_when_its_client_has_left() {
    for leave in [Leave::Close, Leave::HalfClose] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let first = async move |lifecycle: Lifecycle| {
            lifecycle.aborted().await;
            theirs.add("first");
            opens.passed().await;
        };
        let app = Router::new()
            .route("/first", get(first).layer(IgnoreAbortLayer::new()))
            .route("/", get(pending::<()>))
            .layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        let ask = |path| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        client.send(&[ask("/first"), ask("/"), ask("/")].concat()).await;
        let _left = leave_http1(client, leave).await;
        notes.seen("first").await;
        gate.open();
        server.journal.ended(2).await;
        assert_eq!(notes.all(), ["first", "hook: ABORTED, Flushed", "hook: ABORTED, Aborted"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Nothing of it waits but the kernel, and another request keeps the server from reading.
#[tokio::test]
async fn so_is_a_response_whose_client_takes_nothing_of_it() {
    let notes = Notes::default();
    let app = Router::new().route("/", get(async || vec![b'x'; 20_000_000]));
    let server = Server::start(app.layer(ShutdownHookLayer::new(told(&notes)))).await;
    let client = http1(&server, Sent::Pipelined).await;
    server.journal.seen("handler_end").await;
    let _left = leave_http1(client, Leave::HalfClose).await;
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: ABORTED, Aborted"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_handler_that_is_reading_the_body_learns_of_it_from_its_read_or_is_dropped() {
    for leave in HTTP1 {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |body: Body| {
            let _over = theirs.on_drop("over");
            theirs.add("started");
            assert!(body.collect().await.is_err(), "the body is not whole");
        };
        let app = Router::new().route("/", any(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let client = http1(&server, Sent::HalfABody).await;
        notes.seen("started").await;
        let _left = leave_http1(client, leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["started", "over", "hook: ABORTED, Aborted"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_handler_is_dropped_as_soon_as_the_connection_knows_on_http2() {
    for (leave, upload) in
        [Leave::ResetStream, Leave::LoseConnection].into_iter().flat_map(|leave| [(leave, false), (leave, true)])
    {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |_body: Body| {
            let _dropped = theirs.on_drop("dropped");
            theirs.add("started");
            pending::<()>().await;
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(ShutdownHookLayer::new(told(&notes)))
            .route("/ping", get(async || "pong"));
        let server = Server::start(app).await;
        let mut client = Http2::connect(server.address).await;
        let request = http::Request::post("http://test/").body(()).unwrap();
        let (response, mut body) = client.send.clone().ready().await.unwrap().send_request(request, !upload).unwrap();
        if upload {
            body.send_data("x".repeat(BODY).into(), false).unwrap();
        }
        notes.seen("started").await;
        if leave == Leave::ResetStream {
            body.send_reset(h2::Reason::CANCEL);
        } else {
            client.abort();
            client = Http2::connect(server.address).await;
        }
        notes.count(3).await;
        assert_eq!(notes.all(), ["started", "dropped", "hook: ABORTED, Aborted"], "{leave:?} {upload}");
        let first = server.journal.requests()[0];
        assert_eq!(server.journal.lines_of(first)[1..3], ["aborted/1", "handler_dropped/1"]);
        // The rest of the connection lives on.
        assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
        drop(response);
        assert!(server.stop().await.is_clean());
    }
}

fn producing(notes: &Notes) -> Router {
    let (theirs, never) = (notes.clone(), Gate::closed());
    Router::new()
        .route("/", any(async move || held_back(&theirs, &never, "first", "second")))
        .layer(ShutdownHookLayer::new(told(notes)))
}

#[tokio::test]
async fn the_body_producer_is_dropped_as_soon_as_the_connection_knows_on_http1() {
    for (leave, sent) in pairs(&[Sent::Nothing, Sent::UnreadBody, Sent::HalfABody, Sent::Pipelined]) {
        let notes = Notes::default();
        let server = Server::start(producing(&notes)).await;
        let mut client = http1(&server, sent).await;
        client.read_until("first").await;
        notes.seen("producing").await;
        let _left = leave_http1(client, leave).await;
        notes.seen("body dropped").await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "body dropped", "hook: ABORTED, Aborted"], "{leave:?} {sent:?}");
        let first = server.journal.requests()[0];
        assert_eq!(server.journal.lines_of(first)[2..4], ["aborted/1", "body_dropped/1"], "{leave:?} {sent:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_body_producer_is_dropped_as_soon_as_the_connection_knows_on_http2() {
    for leave in [Leave::ResetStream, Leave::LoseConnection] {
        let notes = Notes::default();
        let server = Server::start(producing(&notes)).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("producing").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "body dropped", "hook: ABORTED, Aborted"], "{leave:?}");
        assert_eq!(server.journal.lines()[2..4], ["aborted/1", "body_dropped/1"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// A body of which an early close holds the head back is dropped with it.
#[tokio::test]
async fn a_body_that_is_being_measured_is_dropped_too() {
    for leave in Leave::ALL {
        let notes = Notes::default();
        let layer = EarlyCloseLayer::new().patience(std::time::Duration::from_secs(60));
        let server = Server::start(producing(&notes).layer(layer)).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("producing").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "body dropped", "hook: ABORTED, Aborted"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_body_reads_as_an_abort_without_a_server_of_ours() {
    let notes = Notes::default();
    let request = http::Request::new(Body::empty());
    let mut body = producing(&notes).oneshot(request).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(body);
    settled().await;
    assert_eq!(notes.all(), ["body dropped", "hook: ABORTED, Aborted"]);
}
