//! HTTP/2 clients that do not answer, and those that want too much.

use std::{future::pending, time::Duration};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::Continuation;

use crate::{
    common::Work,
    frames::{ACK, GOAWAY, MAX_CONCURRENT_STREAMS, PING, RST_STREAM, RawHttp2, SETTINGS, frame, request},
    support::{Gate, MemoryServer, Notes, Server, soon},
};

const SECOND: Duration = Duration::from_secs(1);

const SHORT: Duration = Duration::from_millis(100);
const REFUSED_STREAM: u32 = 7;

fn app(notes: &Notes) -> Router {
    let notes = notes.clone();
    let handler = async move || {
        let work = Work::begin(&notes);
        pending::<()>().await;
        work.end();
    };
    Router::new().route("/", get(handler)).route("/ping", get(async || "pong"))
}

/// Reads, and answers nothing, to the end of the connection.
async fn reads_to_the_end(client: &mut RawHttp2) -> usize {
    soon("the server gives up", async {
        let mut pings = 0;
        while let Ok(Some(frame)) = client.next(64 * 1024).await {
            pings += usize::from(frame.kind == PING);
        }
        pings
    })
    .await
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_disconnected() {
    let server = Server::with(app(&Notes::default()), |builder| builder.http2_keep_alive(SHORT, SHORT)).await;
    let mut client = RawHttp2::connect(server.address).await;
    assert!(reads_to_the_end(&mut client).await >= 1);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn what_a_client_that_does_not_answer_pings_asked_for_is_aborted() {
    let notes = Notes::default();
    let server = Server::with(app(&notes), |builder| builder.http2_keep_alive(SHORT, SHORT)).await;
    let mut client = RawHttp2::connect(server.address).await;
    client.send(&request("GET", "/", 1, true)).await;
    assert!(reads_to_the_end(&mut client).await >= 1);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["started", "dropped"]);
    // A machine that does not answer is a client that is gone, as with the write stall.
    assert_eq!(server.journal.lines(), ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_client_that_answers_pings_lives_on() {
    let server = Server::with(app(&Notes::default()), |builder| builder.http2_keep_alive(SHORT, 20 * SHORT)).await;
    let mut client = RawHttp2::connect(server.address).await;
    for _ in 0..5 {
        let ping = client.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await;
        client.send(&frame(PING, ACK, 0, &ping.payload)).await;
    }
    client.send(&request("GET", "/ping", 1, true)).await;
    client.until(|frame| frame.stream == 1 && frame.ends_its_stream()).await;
    client.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    client.stream.shutdown().await.unwrap();
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn no_client_has_more_streams_than_it_may() {
    let (gate, notes) = (Gate::closed(), Notes::default());
    let (held, theirs) = (gate.clone(), notes.clone());
    let handler = async move || {
        theirs.add("began");
        held.passed().await;
    };
    let app = Router::new().route("/", get(handler));
    let server = Server::with(app, |builder| builder.http2_max_streams(5)).await;
    let mut client = RawHttp2::connect(server.address).await;
    let settings = client.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).await;
    assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(5));
    // The limit counts once the client has said that it knows it.
    client.send(&frame(SETTINGS, ACK, 0, &[])).await;
    for stream in 0..6 {
        client.send(&request("GET", "/", 1 + 2 * stream, true)).await;
    }
    let refused = client.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!((refused.stream, refused.payload), (11, REFUSED_STREAM.to_be_bytes().to_vec()));
    notes.count(5).await;
    gate.open();
    for _ in 0..5 {
        assert_ne!(client.until(crate::frames::Frame::ends_its_stream).await.stream, 11);
    }
    // One that comes now is served.
    client.send(&request("GET", "/", 13, true)).await;
    client.until(|frame| frame.stream == 13 && frame.ends_its_stream()).await;
    server.journal.ended(6).await;
    tokio::spawn(client.read_on());
    assert!(server.stop().await.is_clean());
}

/// The default is 200.
#[tokio::test]
async fn the_number_of_streams_is_bounded_by_default() {
    let server = Server::start(app(&Notes::default())).await;
    let mut client = RawHttp2::connect(server.address).await;
    let settings = client.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).await;
    assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(200));
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// For ever, as some say it.
#[tokio::test]
async fn pings_and_answers_that_are_too_far_away_to_reckon_with_never_come() {
    for (every, within) in [(Duration::MAX, SHORT), (SHORT / 10, Duration::MAX), (Duration::MAX, Duration::MAX)] {
        let server = Server::with(app(&Notes::default()), |builder| builder.http2_keep_alive(every, within)).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.send(&request("GET", "/ping", 1, true)).await;
        client.until(|frame| frame.stream == 1 && frame.ends_its_stream()).await;
        if every < SHORT {
            // Nobody answers it.
            client.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await;
        }
        client.send(&request("GET", "/ping", 3, true)).await;
        client.until(|frame| frame.stream == 3 && frame.ends_its_stream()).await;
    }
}

/// Its end comes when what is before it waits for a reader that has stopped: the patience counts from then on.
#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_before_the_end_of_a_stream_is_given_up_on() {
    let handler = async || {
        let pieces = stream::unfold(true, async |first| {
            if !first {
                tokio::time::sleep(SECOND).await;
            }
            first.then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 50_000])), false))
        });
        (Continuation::new(async {}), Body::from_stream(pieces))
    };
    let app = Router::new().route("/", get(handler));
    let server = MemoryServer::with(app, |builder| builder.patience(10 * SECOND));
    let mut client = RawHttp2::on(server.connect_narrow(1024).stream).await;
    client.send(&request("GET", "/", 1, true)).await;
    server.ended(1).await;
    let events = server.journal.events();
    let started = events.iter().find(|event| event.kind().name() == "continuation_start").unwrap();
    assert_eq!(started.at().as_secs(), 11);
    drop(client);
    assert!(server.stop().await.is_clean());
}
