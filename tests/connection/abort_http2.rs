//! The abort matrix on HTTP/2, plain axum beside us.

use std::{io, net::SocketAddr, time::Instant};

use axum::{
    Router,
    body::Body,
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{Began, Plain, SOON, Work, reset_when_dropped},
    frames::{DATA, END_STREAM, GOAWAY, RST_STREAM, RawHttp2, frame, request},
    support::{Notes, Server},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// It cancels its stream (RFC 9113, section 6.4).
    ResetStream,
    /// It loses the connection: a TCP reset.
    LoseConnection,
    /// It closes in order: GOAWAY (section 6.8) and a FIN.
    CloseInOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NoBody,
    ReadUpload,
    /// An upload of which so much is sent, and nobody reads it.
    Unread(usize),
    IdleStream,
    BusyStream,
}

const LEAVES: [Leave; 3] = [Leave::ResetStream, Leave::LoseConnection, Leave::CloseInOrder];
const STATES: [State; 6] = [
    State::NoBody,
    State::ReadUpload,
    State::Unread(5),
    // What a stream's window takes.
    State::Unread(65_535),
    State::IdleStream,
    State::BusyStream,
];

fn app(state: State, notes: &Notes, began: &Began) -> Router {
    let (notes, began) = (notes.clone(), began.clone());
    let handler = async move |mut body: Body| {
        began.now();
        if state == State::ReadUpload {
            while let Some(frame) = body.frame().await {
                frame.unwrap();
            }
        }
        if matches!(state, State::IdleStream | State::BusyStream) {
            return streaming(state, &notes);
        }
        let work = Work::begin(&notes);
        std::future::pending::<()>().await;
        work.end();
        Body::empty()
    };
    Router::new().route("/", any(handler)).route("/ping", get(async || "pong"))
}

fn streaming(state: State, notes: &Notes) -> Body {
    let notes = notes.clone();
    let chunks = stream::unfold(None, move |work: Option<Work>| {
        let notes = notes.clone();
        async move {
            let chunk = Bytes::from_static(&[b'x'; 16 * 1024]);
            let Some(work) = work else {
                return Some((Ok::<_, io::Error>(chunk), Some(Work::begin(&notes))));
            };
            if state == State::IdleStream {
                std::future::pending::<()>().await;
            }
            Some((Ok(chunk), Some(work)))
        }
    });
    Body::from_stream(chunks)
}

/// A client with a request under way, of which the server has begun the work.
async fn ask(address: SocketAddr, state: State, notes: &Notes) -> RawHttp2 {
    let mut client = RawHttp2::connect(address).await;
    match state {
        State::ReadUpload | State::Unread(_) => {
            let length = if let State::Unread(length) = state { length } else { 64_000 };
            client.send(&request("POST", "/", 1, false)).await;
            for part in vec![b'x'; length].chunks(16 * 1024) {
                client.send(&frame(DATA, 0, 1, part)).await;
            }
            if state == State::ReadUpload {
                client.send(&frame(DATA, END_STREAM, 1, b"")).await;
            }
        }
        _ => client.send(&request("GET", "/", 1, true)).await,
    }
    notes.seen("started").await;
    if matches!(state, State::IdleStream | State::BusyStream) {
        client.until(|frame| frame.kind == DATA).await;
    }
    client
}

/// Leaves; what is left of the client goes on reading.
async fn leave(mut client: RawHttp2, leave: Leave) {
    match leave {
        Leave::ResetStream => client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await,
        Leave::LoseConnection => return reset_when_dropped(&client.stream),
        Leave::CloseInOrder => {
            client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
            client.stream.shutdown().await.unwrap();
        }
    }
    tokio::spawn(client.read_on());
}

fn cells() -> impl Iterator<Item = (State, Leave)> {
    STATES.into_iter().flat_map(|state| LEAVES.into_iter().map(move |leave| (state, leave)))
}

#[tokio::test]
async fn an_abort_is_noticed_at_once_on_http2() {
    for (state, how) in cells() {
        let cell = format!("HTTP/2, {state:?}, {how:?}");
        let (notes, began) = (Notes::default(), Began::default());
        let server = Server::start(app(state, &notes, &began)).await;
        let client = ask(server.address, state, &notes).await;
        let left_at = Instant::now();
        leave(client, how).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["started", "dropped"], "{cell}");
        let lines = server.journal.lines();
        if matches!(state, State::IdleStream | State::BusyStream) {
            assert_eq!(lines[..4], ["handler_start/0", "handler_end/0", "aborted/1", "body_dropped/1"], "{cell}");
        } else {
            assert_eq!(lines[..3], ["handler_start/0", "aborted/1", "handler_dropped/1"], "{cell}");
        }
        let after = began.noticed_after(left_at, &server.journal);
        println!("{cell}: {after:?}");
        assert!(after < SOON, "{cell}: noticed after {after:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn plain_axum_drops_them_on_http2_too() {
    for (state, how) in cells() {
        let notes = Notes::default();
        let server = Plain::start(app(state, &notes, &Began::default())).await;
        let client = ask(server.address, state, &notes).await;
        leave(client, how).await;
        notes.count(2).await;
        assert_eq!(notes.all(), ["started", "dropped"], "HTTP/2, {state:?}, {how:?}: hyper has changed");
    }
}
