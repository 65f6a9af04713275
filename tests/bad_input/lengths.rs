//! Lengths that are declared wrong.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::header;
use http_body::{Frame, SizeHint};
use tower_epilogue::{Continuation, EarlyCloseLayer, ShutdownHookLayer};

use crate::{
    common::told,
    support::{Notes, Server, h2client::Http2, streamed},
};

/// `hello` with a declared length; its real one is known beforehand, or not.
fn declared(length: &'static str, known: bool) -> Response {
    let body = if known { Body::from("hello") } else { streamed(&["hel", "lo"]) };
    ([(header::CONTENT_LENGTH, length)], body).into_response()
}

fn app(notes: &Notes, early_close: bool, response: impl Fn() -> Response + Clone + Send + Sync + 'static) -> Router {
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        (Continuation::new(async move { notes.add("continuation") }), response())
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(notes)));
    if early_close { app.layer(EarlyCloseLayer::new()) } else { app }
}

#[tokio::test]
async fn an_early_close_corrects_it() {
    for (length, known) in ["2", "9", "none"].into_iter().flat_map(|length| [(length, false), (length, true)]) {
        let notes = Notes::default();
        let server = Server::start(app(&notes, true, move || declared(length, known))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("5"), "hello"), "{length} {known}");
        let whole = Http2::connect(server.address).await.get("/").await.unwrap();
        assert_eq!((&whole.headers["content-length"], &whole.body[..]), (&"5".parse().unwrap(), &b"hello"[..]));
        server.journal.ended(2).await;
        assert_eq!(notes.all().iter().filter(|note| *note == "hook: NORMAL, Flushed").count(), 2);
        assert!(server.stop().await.is_clean());
    }
}

/// What was read of it shows that it is wrong, also where its end was not waited for.
#[tokio::test]
async fn of_a_body_that_streams_on_an_early_close_declares_none_that_is_too_short() {
    for length in ["2", "none", "+9", "5, 5", "5 and 9", "9 and 5"] {
        let notes = Notes::default();
        let handler = move || {
            let (length, other) = length.split_once(" and ").unwrap_or((length, ""));
            let mut response = declared(length, false);
            response.headers_mut().insert(header::CONTENT_LANGUAGE, "en".parse().unwrap());
            if !other.is_empty() {
                response.headers_mut().append(header::CONTENT_LENGTH, other.parse().unwrap());
            }
            response
        };
        let app = app(&notes, false, handler).layer(EarlyCloseLayer::new().buffer_limit(3));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (None, "hello"), "{length}");
        assert_eq!(reply.header("content-language"), Some("en"), "{length}");
        let whole = Http2::connect(server.address).await.get("/").await.unwrap();
        assert_eq!((whole.headers.get("content-length"), &whole.body[..]), (None, &b"hello"[..]), "{length}");
        server.journal.ended(2).await;
        assert_eq!(notes.all().iter().filter(|note| *note == "hook: NORMAL, Flushed").count(), 2);
        assert!(server.stop().await.is_clean());
    }
}

/// Nothing that was read of it says so.
#[tokio::test]
async fn of_a_body_that_streams_on_an_early_close_keeps_one_that_may_be_right() {
    for (length, right) in [("5", true), ("9", false)] {
        let notes = Notes::default();
        let handler = move || {
            let mut response = declared(length, false);
            // It excludes a length.
            response.headers_mut().insert(header::TRANSFER_ENCODING, "chunked".parse().unwrap());
            response
        };
        let server = Server::start(app(&notes, false, handler).layer(EarlyCloseLayer::new().buffer_limit(3))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.reply().await;
        let came = (reply.header("content-length"), reply.text().len());
        assert!(came == (Some("5"), 5) || (!right && (came.0 == Some("9") || reply.status == 0)), "{reply:?}");
        assert_eq!(Http2::connect(server.address).await.get("/").await.is_ok(), right, "{length}");
        assert!(server.stop().await.is_clean());
    }
}

/// Without it, what a client reads is between the handler and the server; the rest of the contract holds.
#[tokio::test]
async fn without_an_early_close_the_request_ends_all_the_same() {
    for (length, known) in ["2", "9"].into_iter().flat_map(|length| [(length, false), (length, true)]) {
        let notes = Notes::default();
        let server = Server::start(app(&notes, false, move || declared(length, known))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        // Declared longer than it is, it must not look whole.
        if length == "9" {
            let reply = client.reply().await;
            assert!(reply.body.len() < 9, "{reply:?}");
        }
        server.journal.ended(1).await;
        let all = notes.all();
        assert_eq!((all.len(), all[0].as_str()), (2, "continuation"), "{length}, known: {known}: {all:?}");
        assert!(all[1].starts_with("hook: NORMAL, "), "{length}, known: {known}: {all:?}");
        if length == "9" {
            assert_eq!(all[1], "hook: NORMAL, BrokenOff", "known: {known}");
        }
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn without_an_early_close_the_other_streams_of_the_connection_live_on() {
    for (length, known) in ["2", "9"].into_iter().flat_map(|length| [(length, false), (length, true)]) {
        let notes = Notes::default();
        let app = app(&notes, false, move || declared(length, known)).route("/ping", get(async || "pong"));
        let server = Server::start(app).await;
        let mut client = Http2::connect(server.address).await;
        assert!(client.get("/").await.is_err(), "the client takes it for whole: {length}, known: {known}");
        notes.count(2).await;
        assert_eq!(notes.all()[0], "continuation");
        assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
        assert!(server.stop().await.is_clean());
    }
}

/// A body that says it has ten bytes, and has five.
struct Liar(Option<Bytes>);

impl http_body::Body for Liar {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(10)
    }
}

#[tokio::test]
async fn a_body_that_is_shorter_than_it_says_is_broken_off() {
    for early_close in [false, true] {
        let notes = Notes::default();
        let response = || Body::new(Liar(Some(Bytes::from_static(b"hello")))).into_response();
        let server = Server::start(app(&notes, early_close, response)).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.reply().await;
        assert!(reply.status == 0 || (reply.header("content-length"), reply.text().as_str()) == (Some("10"), "hello"));
        let http2 = Http2::connect(server.address).await.get("/").await;
        assert!(http2.is_err(), "{http2:?}");
        server.journal.ended(2).await;
        let all = notes.all();
        assert_eq!(all.iter().filter(|note| *note == "continuation").count(), 2, "{all:?}");
        assert!(!all.iter().any(|note| note.starts_with("hook: ABORTED")), "{all:?}");
        assert!(server.stop().await.is_clean());
    }
}
