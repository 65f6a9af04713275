//! Clients that are slow to read, and clients that are slow to ask.

use std::time::Duration;

use axum::{Router, body::Body, extract::Path, routing::get};
use bytes::Bytes;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use tower_epilogue::{EventKind, TimeLimitLayer, TrackedIo, TrackedSocket, Tracking};

use crate::{
    frames::{RawHttp2, request},
    support::{Journal, MemoryClient, MemoryServer, Server, h2client::read},
};

const SECOND: Duration = Duration::from_secs(1);
const LARGE: usize = 20_000_000;

fn app() -> Router {
    Router::new().route("/{size}", get(async |Path(size): Path<usize>| Body::from(Bytes::from(vec![b'x'; size]))))
}

fn head(size: usize) -> String {
    format!("GET /{size} HTTP/1.1\r\nhost: test\r\n\r\n")
}

#[tokio::test]
async fn a_reader_that_stops_has_aborted_when_the_write_stall_is_over() {
    let stall = Duration::from_millis(200);
    for http2 in [false, true] {
        let server = Server::with(app(), |builder| builder.tracking(Tracking::new().write_stall(stall))).await;
        let path = format!("/{LARGE}");
        let (mut one, mut two);
        if http2 {
            two = RawHttp2::connect(server.address).await;
            two.send(&request("GET", &path, 1, true)).await;
        } else {
            one = server.connect().await;
            one.send_get(&path).await;
        }
        server.journal.ended(1).await;
        let lines = server.journal.lines();
        assert_eq!(lines, ["handler_start/0", "handler_end/0", "aborted/1", "ended/1"], "HTTP/2: {http2}");
        let aborted = server.journal.seen("aborted").await;
        println!("HTTP/2: {http2}: aborted at {:?}", aborted.at());
        assert!(aborted.at() >= stall, "{aborted:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Linux counts a closed window as it does a machine that is gone: so the shorter of the two is what counts.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_reader_that_stops_has_aborted_when_what_it_does_not_take_was_unacknowledged_for_too_long() {
    let tracking = Tracking::new().write_stall(None).unacknowledged(2 * SECOND);
    let server = Server::with(app(), |builder| builder.tracking(tracking)).await;
    let mut client = server.connect().await;
    client.send_get(&format!("/{LARGE}")).await;
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), ["handler_start/0", "handler_end/0", "aborted/1", "ended/1"]);
    let aborted = server.journal.seen("aborted").await;
    assert!(aborted.at() >= 2 * SECOND, "{aborted:?}");
    assert!(server.stop().await.is_clean());
}

/// Reads so many times, a kilobyte each, so far apart.
async fn reads_slowly(client: &mut MemoryClient, times: usize, apart: Duration) {
    let mut bytes = [0; 1024];
    for _ in 0..times {
        client.stream.read_exact(&mut bytes).await.unwrap();
        tokio::time::sleep(apart).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_never_stops_is_not_cut() {
    const KILOBYTES: usize = 50;
    let server = MemoryServer::start(app());
    let mut client = server.connect_narrow(1024);
    client.send(&head(KILOBYTES * 1024)).await;
    // Half an hour in all; a write stalls after 60 s.
    reads_slowly(&mut client, KILOBYTES, 40 * SECOND).await;
    server.ended(1).await;
    assert!(server.journal.events().iter().any(|event| matches!(event.kind(), EventKind::Flushed { .. })));
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_write_stall_counts_from_the_last_byte_that_was_taken() {
    let server = MemoryServer::start(app());
    let mut client = server.connect_narrow(1024);
    client.send(&head(1_000_000)).await;
    let began = Instant::now();
    reads_slowly(&mut client, 10, 40 * SECOND).await;
    let last_read = began.elapsed() - 40 * SECOND;
    server.ended(1).await;
    assert_eq!(server.journal.lines().last().unwrap(), "ended/1");
    let aborted = server.journal.events().into_iter().find(|event| *event.kind() == EventKind::Aborted).unwrap();
    let stalled = aborted.at().abs_diff(last_read);
    assert!(stalled.abs_diff(60 * SECOND) < SECOND, "{stalled:?}");
    assert!(server.stop().await.is_clean());
}

/// Waits until the server closes the connection; how long that took, and what it said.
async fn closed_after(client: &mut MemoryClient) -> (Duration, String) {
    let (began, mut said) = (Instant::now(), Vec::new());
    tokio::time::timeout(1000 * SECOND, client.stream.read_to_end(&mut said)).await.expect("it is closed").unwrap();
    (began.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

fn assert_about(elapsed: Duration, expected: Duration, what: &str) {
    let late = elapsed.saturating_sub(expected);
    assert!(elapsed >= expected && late < Duration::from_millis(10), "{what}: {elapsed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_a_head_is_disconnected() {
    let heads = ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HT", "GET / HTTP/1.1\r\nhost: test\r\nx: "];
    for head in heads {
        let server = MemoryServer::start(app());
        let mut client = server.connect();
        client.send(head).await;
        let (elapsed, said) = closed_after(&mut client).await;
        assert_about(elapsed, 30 * SECOND, head);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_late_all_the_same() {
    let server = MemoryServer::with(app(), |builder| builder.header_read_timeout(5 * SECOND));
    let (mut read, mut write) = tokio::io::split(server.connect().stream);
    let began = Instant::now();
    tokio::spawn(async move {
        let head = "GET /100 HTTP/1.1\r\n".bytes().chain("x: y\r\n".repeat(100).into_bytes());
        for byte in head {
            tokio::time::sleep(Duration::from_millis(400)).await;
            if write.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let _ = tokio::time::timeout(100 * SECOND, read.read_to_end(&mut said)).await.expect("it is closed");
    // It counts from the connection's beginning, or from the first byte.
    let elapsed = began.elapsed();
    assert!(elapsed >= 5 * SECOND && elapsed <= 6 * SECOND, "{elapsed:?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn each_head_has_its_own_time() {
    let server = MemoryServer::start(app());
    let mut client = server.connect();
    let (half, rest) = ("GET /3 HTTP/1.1\r\nho", "st: test\r\n\r\n");
    for _ in 0..3 {
        client.send(half).await;
        tokio::time::sleep(29 * SECOND).await;
        client.send(rest).await;
        client.read_until("\r\n\r\nxxx").await;
    }
    client.send(half).await;
    assert_about(closed_after(&mut client).await.0, 30 * SECOND, "the last head");
    assert!(server.stop().await.is_clean());
}

/// The time for a head counts from when the server begins to wait for it.
#[tokio::test(start_paused = true)]
async fn a_connection_may_idle_between_its_requests_as_long_as_a_head_may_take() {
    let server = MemoryServer::start(app());
    let mut client = server.connect();
    for _ in 0..3 {
        client.send(&head(3)).await;
        client.read_until("\r\n\r\nxxx").await;
        tokio::time::sleep(29 * SECOND).await;
    }
    assert_eq!(client.reply().await.status, 0);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn without_the_timeout_nobody_is_disconnected() {
    let server = MemoryServer::with(app(), |builder| builder.header_read_timeout(None));
    let mut client = server.connect();
    client.send("GET /3 HTTP/1.1\r\nho").await;
    tokio::time::sleep(24 * 3600 * SECOND).await;
    client.send("st: test\r\n\r\n").await;
    client.read_until("\r\n\r\nxxx").await;
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// From its first request on it is the pings that tell.
#[tokio::test(start_paused = true)]
async fn an_http2_client_between_two_requests_is_not_late() {
    let server = MemoryServer::with(app(), |builder| builder.header_read_timeout(5 * SECOND));
    let (mut client, connection) = h2::client::handshake(server.connect().stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let request = http::Request::get("http://test/3").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(read(response.await.unwrap()).await.unwrap().body, b"xxx");
        tokio::time::sleep(3600 * SECOND).await;
    }
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// As over TLS, where all of a response may have been written, and waits in a buffer of the session's.
#[tokio::test]
async fn a_reader_is_as_slow_when_all_is_written_to_a_buffer_above_its_socket() {
    const SIZE: usize = 12_000_000;
    for (stops, stall) in [(true, SECOND / 5), (false, SECOND)] {
        let journal = Journal::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let tracking = Tracking::new().write_stall(stall);
        let socket = TrackedSocket::new(listener.accept().await.unwrap().0, &tracking);
        let below = socket.handle();
        let io = TrackedIo::over(tokio::io::BufWriter::with_capacity(2 * SIZE, socket), &below, &tracking);
        let service = TowerToHyperService::new(journal.epilogue().build().wrap(&io, app()));
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service));
        client.write_all(head(SIZE).as_bytes()).await.unwrap();
        if !stops {
            // It takes longer for all of it, but never so long for some.
            let (mut bytes, mut read) = (vec![0; SIZE / 20], 0);
            while read < SIZE {
                read += client.read(&mut bytes).await.unwrap();
                tokio::time::sleep(SECOND / 10).await;
            }
        }
        journal.ended(1).await;
        let last = if stops { "aborted/1".to_owned() } else { format!("flushed:{SIZE}/0") };
        assert_eq!(journal.lines()[2..], [last, format!("ended/{}", u8::from(stops))]);
    }
}

/// Linux takes no more than 32,767 s; what is asked for beside it is set all the same.
#[tokio::test]
async fn a_keep_alive_of_a_day_does_not_cost_the_other_settings() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let socket = socket2::SockRef::from(&tcp).try_clone().unwrap();
    let _io = TrackedIo::with(tcp, &Tracking::new().keep_alive(24 * 3600 * SECOND).unacknowledged(7 * SECOND));
    assert!(socket.keepalive().unwrap());
    #[cfg(target_os = "linux")]
    {
        assert_eq!(socket.tcp_keepalive_time().unwrap(), 32_767 * SECOND);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(7 * SECOND));
    }
}

/// Not even an encryption that nothing is known of below, whose buffer all of it fits into.
#[tokio::test(start_paused = true)]
async fn no_reader_keeps_a_response_beyond_its_limit() {
    let journal = Journal::default();
    let (mut client, io) = tokio::io::duplex(1024);
    let app = app().layer(TimeLimitLayer::new(20 * SECOND));
    let io = TrackedIo::new(tokio::io::BufWriter::with_capacity(64 * 1024, io));
    let service = TowerToHyperService::new(journal.epilogue().build().wrap(&io, app));
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
    let serving = tokio::spawn(serving);
    client.write_all(head(32 * 1024).as_bytes()).await.unwrap();
    let ended = async {
        while !journal.lines().iter().any(|line| line.starts_with("ended")) {
            tokio::time::sleep(SECOND).await;
        }
    };
    tokio::time::timeout(1000 * SECOND, ended).await.expect("it ends at its limit");
    assert_eq!(journal.lines(), ["handler_start/0", "handler_end/0", "ended/2"]);
    let cut = tokio::time::timeout(1000 * SECOND, serving).await.expect("its connection is closed");
    assert!(cut.unwrap().is_err());
}
