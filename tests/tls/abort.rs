//! A client that leaves is noticed under TLS too, whatever of it waits unread.

use std::{
    io,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request, routing::any};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    server::{Encrypted, Tls, connect, socket},
    support::{Notes, soon},
};

/// An abort is noticed in a millisecond or so. This is for a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(1);

/// What the server is at, and what it has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NoBody,
    Unread(usize),
    Pipelined,
    IdleStream,
    BusyStream,
}
use State::*;

const STATES: [State; 6] = [NoBody, Unread(5), Unread(64 * 1024), Pipelined, IdleStream, BusyStream];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// `close_notify` and FIN; the client stays to read.
    Notify,
    /// A FIN without a word (RFC 8446, section 6.1), or a reset where bytes of the server wait unread.
    Close,
    Reset,
}

fn app(state: State, notes: &Notes) -> Router {
    let notes = notes.clone();
    let handler = async move |_body: Body| {
        let dropped = notes.on_drop("dropped");
        notes.add("started");
        match state {
            IdleStream | BusyStream => {
                let chunks = stream::unfold((true, dropped), move |(first, dropped)| async move {
                    if !first && state == IdleStream {
                        std::future::pending::<()>().await;
                    }
                    Some((Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 16 * 1024])), (false, dropped)))
                });
                Body::from_stream(chunks)
            }
            _ => {
                std::future::pending::<()>().await;
                drop(dropped);
                Body::empty()
            }
        }
    };
    Router::new().route("/", any(handler))
}

async fn send(state: State, client: &mut Encrypted) {
    let get = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let text = match state {
        NoBody | IdleStream | BusyStream => get.to_owned(),
        Unread(length) => {
            format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length))
        }
        Pipelined => get.repeat(2),
    };
    client.write_all(text.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    if matches!(state, IdleStream | BusyStream) {
        client.read_exact(&mut [0; 10_000]).await.unwrap();
    }
}

#[tokio::test]
async fn http1_clients_that_leave_are_noticed_at_once() {
    for state in STATES {
        for leave in [Leave::Notify, Leave::Close, Leave::Reset] {
            let cell = format!("{state:?}, {leave:?}");
            let notes = Notes::default();
            let server = Tls::start(app(state, &notes)).await;
            let mut client = connect(server.address, "http/1.1", None).await;
            send(state, &mut client).await;
            notes.seen("started").await;
            let left_at = Instant::now();
            let mut stays = None;
            match leave {
                Leave::Notify => {
                    client.shutdown().await.unwrap();
                    // One that stays to read a busy stream reads it.
                    stays = Some(tokio::spawn(async move {
                        let mut bytes = vec![0; 64 * 1024];
                        while matches!(client.read(&mut bytes).await, Ok(1..)) {}
                    }));
                }
                Leave::Close => drop(client),
                Leave::Reset => {
                    socket2::SockRef::from(socket(&client)).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(client);
                }
            }
            notes.seen("dropped").await;
            let after = left_at.elapsed();
            assert!(after < SOON, "{cell}: noticed after {after:?}");
            server.journal.until("an end", |events| events.iter().any(|event| event.kind().name() == "ended")).await;
            let lines = server.journal.lines_of(server.journal.requests()[0]);
            assert!(lines.contains(&"aborted/1".to_owned()), "{cell}: {lines:?}");
            assert_eq!(lines.last().unwrap(), "ended/1", "{cell}");
            if let Some(stays) = stays {
                stays.abort();
            }
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn http2_streams_that_are_reset_and_connections_that_are_lost_are_noticed_at_once() {
    for state in [NoBody, IdleStream, BusyStream] {
        for reset in [true, false] {
            let notes = Notes::default();
            let server = Tls::start(app(state, &notes)).await;
            let client = connect(server.address, "h2", None).await;
            let (send, connection) = h2::client::handshake(client).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::get("https://localhost/").body(()).unwrap();
            let (response, mut stream) = send.clone().ready().await.unwrap().send_request(request, true).unwrap();
            notes.seen("started").await;
            let left_at = Instant::now();
            if reset {
                stream.send_reset(h2::Reason::CANCEL);
            } else {
                connection.abort();
            }
            notes.seen("dropped").await;
            assert!(left_at.elapsed() < SOON, "{state:?}, reset: {reset}: after {:?}", left_at.elapsed());
            soon("the end", server.journal.ended(1)).await;
            assert_eq!(server.journal.lines().last().unwrap(), "ended/1", "{state:?}, reset: {reset}");
            connection.abort();
            drop((response, stream, send));
            assert!(server.stop().await.is_clean());
        }
    }
}
