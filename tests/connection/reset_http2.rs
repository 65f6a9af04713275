//! HTTP/2 streams that are reset when nobody looks: behind their request, while a handler keeps its thread, with the end of
//! their upload.

use std::{
    io,
    sync::{Arc, Mutex, mpsc},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::{ConnectionStatus, Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, Sent};

use crate::{
    common::Plain,
    frames::{DATA, END_STREAM, GOAWAY, RST_STREAM, RawHttp2, SETTINGS, frame, request},
    support::{Gate, Notes, Server, ends, soon},
};

/// A method, and what its handler answers.
const ANSWERS: [(&str, &str); 7] = [
    ("GET", "body"),
    ("HEAD", "body"),
    ("GET", "204"),
    ("GET", "empty"),
    ("GET", "stream"),
    ("GET", "trailers"),
    ("GET", "only trailers"),
];

fn answer(name: &str) -> Response {
    let frames = |frames: Vec<Frame<Bytes>>| {
        Body::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, io::Error>)))).into_response()
    };
    match name {
        "body" => "body".into_response(),
        "204" => StatusCode::NO_CONTENT.into_response(),
        "empty" => ().into_response(),
        "stream" => frames(vec![Frame::data("body".into())]),
        "trailers" => frames(vec![Frame::data("body".into()), Frame::trailers(HeaderMap::new())]),
        "only trailers" => frames(vec![Frame::trailers(HeaderMap::new())]),
        _ => unreachable!("there is no answer {name}"),
    }
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// A client that the server has begun to speak HTTP/2 with.
async fn connect(server: &Server) -> RawHttp2 {
    let mut client = RawHttp2::connect(server.address).await;
    client.until(|frame| frame.kind == SETTINGS).await;
    client
}

const ABORTED: (ConnectionStatus, Sent) = (ConnectionStatus::ABORTED, Sent::Aborted);

/// Of a response without a body nothing tells that it was thrown away, but that nothing was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_while_its_handler_keeps_the_thread_has_aborted_whatever_is_answered() {
    for (method, name) in ANSWERS {
        let (go, wait) = mpsc::channel::<()>();
        let (wait, notes, (layer, mut ends)) = (Arc::new(Mutex::new(wait)), Notes::default(), ends());
        let theirs = notes.clone();
        let handler = async move || {
            theirs.add("began");
            tokio::task::block_in_place(|| wait.lock().unwrap().recv().unwrap());
            (Continuation::new(async move { theirs.add("continuation") }), answer(name))
        };
        let server = Server::start(Router::new().route("/", any(handler)).layer(layer)).await;
        let mut client = connect(&server).await;
        client.send(&request(method, "/", 1, true)).await;
        notes.seen("began").await;
        client.send(&reset(1)).await;
        client.ping().await;
        go.send(()).unwrap();
        assert_eq!(soon("its end", ends.recv()).await.unwrap(), ABORTED, "{method} {name}");
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["began", "continuation"], "{method} {name}");
        tokio::spawn(client.read_on());
        assert!(server.stop().await.is_clean());
    }
}

/// With what may follow it: nothing, the end of the connection, or both in order.
#[tokio::test]
async fn a_stream_that_is_reset_right_behind_its_request_has_aborted_whatever_is_answered() {
    let answers = ANSWERS.into_iter().flat_map(|answer| [(answer, false), (answer, true)]);
    for (((method, name), waits), fin) in answers.flat_map(|answer| [(answer, false), (answer, true)]) {
        let cell = format!("{method} {name}, waits: {waits}, with a FIN: {fin}");
        let (layer, mut ends) = ends();
        let handler = async move || {
            if waits {
                std::future::pending::<()>().await;
            }
            (Continuation::new(async {}), answer(name))
        };
        let server = Server::start(Router::new().route("/", any(handler)).layer(layer)).await;
        let mut client = connect(&server).await;
        client.send(&[request(method, "/", 1, true), reset(1)].concat()).await;
        if fin {
            client.stream.shutdown().await.unwrap();
        } else {
            client.ping().await;
        }
        assert_eq!(soon("its end", ends.recv()).await.unwrap(), ABORTED, "{cell}");
        server.journal.ended(1).await;
        let lines = server.journal.lines();
        let count = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
        assert_eq!((count("aborted"), count("flushed"), count("ended")), (1, 0, 1), "{cell}: {lines:?}");
        assert_eq!(count("continuation_start"), usize::from(!waits), "{cell}: {lines:?}");
        tokio::spawn(client.read_on());
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn what_is_given_to_finish_for_a_stream_that_was_reset_is_aborted_too() {
    for (method, name) in ANSWERS {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let sent = lifecycle.finish(answer(name)).await.unwrap();
            theirs.add(format!("{sent:?}, {:?}", lifecycle.status()));
        };
        let server = Server::start(Router::new().route("/", any(handler))).await;
        let mut client = connect(&server).await;
        client.send(&[request(method, "/", 1, true), reset(1)].concat()).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["Aborted, ABORTED"], "{method} {name}");
        tokio::spawn(client.read_on());
        assert!(server.stop().await.is_clean());
    }
}

/// The upload is whole all the same: whoever has begun to read it reads it to its end.
#[tokio::test]
async fn an_upload_whose_end_comes_with_its_reset_is_read_whole_and_its_client_has_aborted() {
    for (at_once, ignores) in [(false, false), (false, true), (true, false), (true, true)] {
        let cell = format!("at once: {at_once}, ignored: {ignores}");
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, goes_on) = (notes.clone(), gate.clone());
        let handler = async move |body: Body| {
            let dropped = theirs.on_drop("over");
            theirs.add("began");
            theirs.add(format!("{} bytes", to_bytes(body, 100).await.unwrap().len()));
            goes_on.passed().await;
            theirs.add("went on");
            drop(dropped);
            Continuation::new(async {})
        };
        let layer = if ignores { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
        let server = Server::start(Router::new().route("/", any(handler)).layer(layer)).await;
        let mut client = connect(&server).await;
        let (head, rest) = (request("POST", "/", 1, false), [frame(DATA, END_STREAM, 1, b"hello"), reset(1)].concat());
        if at_once {
            client.send(&[head, rest].concat()).await;
        } else {
            client.send(&head).await;
            notes.seen("began").await;
            client.send(&rest).await;
        }
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        let went_on = ["began", "5 bytes", "went on", "over"];
        let expected = if ignores { &went_on[..] } else { &["began", "5 bytes", "over"] };
        assert_eq!(notes.all(), expected, "{cell}");
        let lines = server.journal.lines();
        let started = lines.iter().any(|line| line == "continuation_start/1");
        assert_eq!((started, lines.last().unwrap().as_str()), (ignores, "ended/1"), "{cell}: {lines:?}");
        tokio::spawn(client.read_on());
        assert!(server.stop().await.is_clean());
    }
}

/// What a client says goodbye to is what it will not ask for: what it has asked for it reads (RFC 9113, section 6.8).
#[tokio::test]
async fn a_client_that_says_goodbye_and_reads_on_has_not_aborted() {
    for (method, name) in ANSWERS {
        let (gate, (layer, mut ends)) = (Gate::closed(), ends());
        let goes_on = gate.clone();
        let handler = async move || {
            goes_on.passed().await;
            answer(name)
        };
        let app = Router::new().route("/", any(handler)).layer((layer, EarlyCloseLayer::new()));
        let server = Server::start(app).await;
        let mut client = connect(&server).await;
        client.send(&request(method, "/", 1, true)).await;
        server.journal.seen("handler_start").await;
        client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
        client.ping().await;
        gate.open();
        client.until(crate::frames::Frame::ends_its_stream).await;
        let end = soon("its end", ends.recv()).await.unwrap();
        assert_eq!(end, (ConnectionStatus::NORMAL, Sent::Flushed), "{method} {name}");
        // Nothing is left to wait for: the server ends the connection.
        soon("the connection ends", client.read_on()).await;
        assert!(server.stop().await.is_clean());
    }
}

/// The layers alone, under `axum::serve`: whatever is told of the response, hooks and continuations run once.
#[tokio::test]
async fn without_a_server_of_ours_hooks_and_continuations_run_once_all_the_same() {
    for ((method, name), waits) in ANSWERS.into_iter().flat_map(|answer| [(answer, false), (answer, true)]) {
        let cell = format!("{method} {name}, waits: {waits}");
        let (notes, (layer, mut ends)) = (Notes::default(), ends());
        let theirs = notes.clone();
        let handler = async move || {
            let dropped = theirs.on_drop("dropped");
            if waits {
                std::future::pending::<()>().await;
            }
            drop(dropped);
            (Continuation::new(async move { theirs.add("continuation") }), answer(name))
        };
        let server = Plain::start(Router::new().route("/", any(handler)).layer(layer)).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.until(|frame| frame.kind == SETTINGS).await;
        client.send(&[request(method, "/", 1, true), reset(1)].concat()).await;
        let end = soon("its end", ends.recv()).await.unwrap();
        client.ping().await;
        assert!(ends.try_recv().is_err(), "{cell}");
        assert_eq!(notes.all(), if waits { &["dropped"][..] } else { &["dropped", "continuation"] }, "{cell}");
        // Without a connection a response is whole when it was handed over.
        let is_whole = !waits && matches!((method, name), ("HEAD", _) | (_, "204" | "empty"));
        let expected = if is_whole { (ConnectionStatus::NORMAL, Sent::Flushed) } else { ABORTED };
        assert_eq!(end, expected, "{cell}");
    }
}
