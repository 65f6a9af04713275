//! Past the limit a body streams on, framed as its version wants it; nothing is lost or sent twice.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use http::{Method, StatusCode, header};
use http_body::Frame;
use tower::service_fn;
use tower_epilogue::EarlyCloseLayer;

use crate::support::{Client, Reply, Server, h2client::Http2, soon};

const PIECES: [usize; 7] = [1, 8192, 8191, 0, 70_000, 5, 300];

/// Every byte tells its place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

fn whole() -> Vec<u8> {
    pattern(PIECES.iter().sum())
}

/// In pieces, of a length that nobody knows.
fn streamed() -> Body {
    let (mut rest, mut pieces) = (whole(), Vec::new());
    for length in PIECES {
        let later = rest.split_off(length);
        pieces.push(Ok::<_, std::io::Error>(std::mem::replace(&mut rest, later)));
    }
    Body::from_stream(stream::iter(pieces))
}

fn app(layer: EarlyCloseLayer) -> Router {
    Router::new().route("/", get(async || streamed())).layer(layer)
}

async fn ask(server: &Server, version: &str) -> Reply {
    let mut client = server.connect().await;
    client.send(&format!("GET / HTTP/{version}\r\nhost: test\r\n\r\n")).await;
    client.reply().await
}

/// The limits around the body's length, and whether the body is then measured.
fn limits() -> [(usize, bool); 6] {
    let length = whole().len();
    [(0, false), (1, false), (length / 2, false), (length - 1, false), (length, true), (length + 1, true)]
}

#[tokio::test]
async fn on_http_1_1_past_the_limit_it_is_chunked() {
    for (limit, measured) in limits() {
        let server = Server::start(app(EarlyCloseLayer::new().buffer_limit(limit))).await;
        let reply = ask(&server, "1.1").await;
        assert_eq!(reply.header("connection"), Some("close"), "{limit}");
        let length = whole().len().to_string();
        let framing = (reply.header("content-length"), reply.header("transfer-encoding"));
        if measured {
            assert_eq!(framing, (Some(&*length), None), "{limit}");
            assert!(reply.body == whole(), "{limit}");
        } else {
            assert_eq!(framing, (None, Some("chunked")), "{limit}");
            assert!(reply.dechunked().unwrap() == whole(), "{limit}");
        }
        server.journal.ended(1).await;
        assert!(server.journal.lines().contains(&format!("flushed:{length}/0")), "{:?}", server.journal.lines());
    }
}

#[tokio::test]
async fn on_http_1_0_past_the_limit_it_ends_with_its_connection() {
    for (limit, measured) in limits() {
        let server = Server::start(app(EarlyCloseLayer::new().buffer_limit(limit))).await;
        let reply = ask(&server, "1.0").await;
        assert_eq!(reply.header("content-length").is_some(), measured, "{limit}");
        assert_eq!(reply.header("transfer-encoding"), None);
        assert!(reply.error.is_none() && reply.body == whole(), "{limit}");
    }
}

#[tokio::test]
async fn on_http_2_past_the_limit_it_ends_with_its_stream() {
    for (limit, measured) in limits() {
        let server = Server::start(app(EarlyCloseLayer::new().buffer_limit(limit))).await;
        let reply = Http2::connect(server.address).await.get("/").await.unwrap();
        assert_eq!(reply.headers.contains_key(header::CONTENT_LENGTH), measured, "{limit}");
        assert!(!reply.headers.contains_key(header::CONNECTION));
        assert!(reply.body == whole(), "{limit}");
    }
}

#[tokio::test]
async fn kept_alive_the_next_request_follows_whatever_the_framing() {
    for (limit, measured) in limits() {
        let server = Server::start(app(EarlyCloseLayer::new().buffer_limit(limit).keep_alive())).await;
        let mut client = server.connect().await;
        for _ in 0..3 {
            client.send_get("/").await;
            let reply = client.response(false).await;
            assert_eq!(reply.header("content-length").is_some(), measured, "{limit}");
            assert_eq!(reply.header("connection"), None);
            assert!(reply.body == whole(), "{limit}");
        }
        // HTTP/1.0 with `keep-alive` has it only for what was measured.
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        let reply = client.response(false).await;
        assert!(reply.body == whole(), "{limit}");
        let kept = reply.header("connection").is_some_and(|value| value == "keep-alive");
        assert_eq!(kept, measured, "{limit}: {}", reply.head);
        assert_eq!(reply.header("connection") == Some("close"), !measured, "{limit}: {}", reply.head);
    }
}

#[tokio::test]
async fn what_says_that_it_streams_is_not_held_back() {
    let streams = [("content-type", "multipart/x-mixed-replace; boundary=a"), ("x-accel-buffering", "no")];
    for header in streams {
        let handler = async move || ([header], streamed());
        let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new());
        let server = Server::start(app).await;
        let mut client = Client::connect(server.address).await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        let framing = (reply.header("content-length"), reply.header("transfer-encoding"), reply.header("connection"));
        assert_eq!(framing, (None, Some("chunked"), None), "{header:?}");
        assert!(reply.body == whole());

        // HTTP/1.0 has it end with its connection, which is not to be promised to live on.
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        let reply = client.reply().await;
        assert!(reply.body == whole());
        assert_eq!(reply.sorted_head()[0], "HTTP/1.0 200 OK");
        assert_eq!(reply.header("connection"), None, "{header:?}");
    }
}

/// They name the headers that go no further than this connection, `Upgrade` for one (RFC 9110, sections 7.6.1 and 7.8).
#[tokio::test]
async fn the_other_options_of_the_connection_stay() {
    for (said, sent) in [
        ("Upgrade", "Upgrade, close"),
        ("x-hop, keep-alive", "x-hop, close"),
        ("close, x-hop ,", "x-hop, close"),
        ("keep-alive", "close"),
        ("Close", "close"),
    ] {
        let headers = [(header::CONNECTION, said), (header::UPGRADE, "websocket")];
        let app = Router::new()
            .route("/", get(async move || (StatusCode::UPGRADE_REQUIRED, headers, "WebSockets only")))
            .layer(EarlyCloseLayer::new());
        let server = Server::start(app).await;
        for version in ["1.0", "1.1"] {
            let reply = ask(&server, version).await;
            assert_eq!((reply.status, reply.header("connection")), (426, Some(sent)), "{said}, {version}");
        }
        let reply = Http2::connect(server.address).await.get("/").await.unwrap();
        assert!(!reply.headers.contains_key(header::CONNECTION));
    }
}

#[tokio::test]
async fn what_was_said_of_a_connection_that_lives_on_goes_with_its_option() {
    let headers = [("connection", "keep-alive"), ("keep-alive", "timeout=5")];
    for (layer, kept) in [(EarlyCloseLayer::new(), None), (EarlyCloseLayer::new().keep_alive(), Some("timeout=5"))] {
        let app = Router::new().route("/", get(async move || (headers, "hello"))).layer(layer);
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        let connection = if kept.is_some() { "keep-alive" } else { "close" };
        assert_eq!((reply.header("connection"), reply.header("keep-alive")), (Some(connection), kept));
    }
}

/// A router declares the length of what it was given. That of a 304 is not that of the 200 that it stands for, and a 204 has
/// none (RFC 9110, section 8.6).
#[tokio::test]
async fn what_has_no_body_declares_no_length_but_one_that_its_handler_knows() {
    let app = Router::new()
        .route("/304", get(async || StatusCode::NOT_MODIFIED))
        .route("/304-known", get(async || (StatusCode::NOT_MODIFIED, [(header::CONTENT_LENGTH, "5000")])))
        .route("/204-body", get(async || (StatusCode::NO_CONTENT, "not to be sent")))
        // A router leaves this one's body on its HEAD.
        .fallback_service(service_fn(async |_: axum::extract::Request| {
            Ok::<_, Infallible>((StatusCode::NO_CONTENT, "not to be sent").into_response())
        }));
    for app in [app.clone(), app.layer(EarlyCloseLayer::new())] {
        let server = Server::start(app).await;
        for method in [Method::GET, Method::HEAD] {
            for path in ["/304", "/304-known", "/204-body", "/204-other"] {
                let mut lengths = Vec::new();
                let mut client = server.connect().await;
                client.send(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
                lengths.push(client.response(true).await.header("content-length").map(ToOwned::to_owned));
                let mut client = Http2::connect(server.address).await;
                let head = soon("a head", client.start(method.as_str(), path).await).await.unwrap();
                let length = head.headers().get(header::CONTENT_LENGTH);
                lengths.push(length.map(|length| length.to_str().unwrap().to_owned()));
                let known = (path == "/304-known").then(|| "5000".to_owned());
                // hyper leaves it out for a GET on HTTP/1.
                let expected = [known.clone().filter(|_| method == Method::HEAD), known];
                assert_eq!(lengths, expected, "{method} {path}");
            }
        }
    }
}

/// A body that was taken off is at its end, and does not say how long it was. Of a `HEAD` nothing follows in any case, and a
/// declared length ends what follows: so the connection can live on, also on HTTP/1.0 (RFC 9112, section 9.3).
#[tokio::test]
async fn on_http_1_0_a_connection_lives_on_where_its_client_knows_the_end() {
    let handler = async || ([(header::CONTENT_LENGTH, whole().len())], streamed());
    let events = async || {
        (
            [(header::CONTENT_LENGTH, whole().len().to_string()), (header::CONTENT_TYPE, "text/event-stream".into())],
            streamed(),
        )
    };
    let app = Router::new()
        .route("/", get(handler))
        .route("/events", get(events))
        .route(
            "/taken-off",
            get(handler).layer(map_response(async |response: Response| response.map(|_| Body::new(TakenOff)))),
        )
        .route("/no-events", get(async || ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(TakenOff))))
        .layer(EarlyCloseLayer::new().buffer_limit(1).keep_alive());
    let server = Server::start(app).await;
    for (method, path) in [("GET", "/"), ("GET", "/events"), ("HEAD", "/taken-off"), ("HEAD", "/no-events")] {
        let mut client = server.connect().await;
        client.send(&format!("{method} {path} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")).await;
        let reply = client.response(method == "HEAD").await;
        assert_eq!(reply.header("connection"), Some("keep-alive"), "{method} {path}: {}", reply.head);
        let length = (path != "/no-events").then(|| whole().len().to_string());
        assert_eq!(reply.header("content-length"), length.as_deref(), "{method} {path}");
    }
}

struct TakenOff;

impl http_body::Body for TakenOff {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// One piece of a length that nobody knows beforehand, whose end is known with it: as of what an HTTP/2 server sent in one frame.
struct Last(Option<Bytes>);

impl http_body::Body for Last {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[tokio::test]
async fn past_the_limit_too_the_length_is_declared_of_what_has_ended_with_that() {
    let body = async || Body::new(Last(Some(Bytes::from_static(b"hello"))));
    let app = Router::new()
        .route("/", get(body))
        .route("/wrong", get(async move || ([(header::CONTENT_LENGTH, "2")], body().await)))
        .layer(EarlyCloseLayer::new().buffer_limit(3).keep_alive());
    let server = Server::start(app).await;
    for (path, version) in ["/wrong", "/"].into_iter().flat_map(|path| [(path, "1.0"), (path, "1.1")]) {
        for method in ["GET", "HEAD"] {
            let mut client = server.connect().await;
            client
                .send(&format!("{method} {path} HTTP/{version}\r\nhost: test\r\nconnection: keep-alive\r\n\r\n"))
                .await;
            let reply = client.response(method == "HEAD").await;
            let body = if method == "HEAD" { "" } else { "hello" };
            let seen = (reply.header("content-length"), reply.text());
            assert_eq!(seen, (Some("5"), body.to_owned()), "{method} {path} {version}: {}", reply.head);
            assert_ne!(reply.header("connection"), Some("close"), "{method} {path} {version}");
        }
        let whole = Http2::connect(server.address).await.get(path).await.unwrap();
        assert_eq!((&whole.headers["content-length"], &whole.body[..]), (&"5".parse().unwrap(), &b"hello"[..]));
    }
}
