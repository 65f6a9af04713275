//! How long connections linger that a drain's deadline closes: within the bounds of lingering, and never longer than the
//! drain may take.

use std::{future::pending, time::Duration};

use axum::{Router, extract::Request, http::Method, routing::any};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, time::Instant};
use tower_epilogue::{DrainReport, EarlyCloseLayer, Linger, Tracking};

use crate::{
    frames::{DATA, GOAWAY, RawHttp2, frame, request},
    support::{MemoryServer, logs},
};

const SECOND: Duration = Duration::from_secs(1);
/// When what is left is cut, and each half of what then is given to hooks.
const DEADLINE: Duration = Duration::from_secs(10);
const HALF: Duration = Duration::from_secs(4);

/// What the client does when the server has closed its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Closes,
    Stays,
    /// A frame each second.
    SendsOn,
}

fn server(tracking: Tracking) -> MemoryServer {
    let answers = any(async || "answered at once").layer(EarlyCloseLayer::new());
    let app = Router::new().route("/waits", any(pending::<()>)).route("/answers", answers);
    MemoryServer::with(app, |builder| builder.drain_deadline(DEADLINE).hook_limit(HALF).tracking(tracking))
}

/// How long a server takes to stop that has an HTTP/2 client which answers no ping, so that nothing but the server ends its
/// connection.
async fn stops_after(linger: impl Into<Option<Linger>>, then: Then) -> Duration {
    let server = server(Tracking::new().linger(linger));
    let mut client = RawHttp2::on(server.connect().stream).await;
    client.send(&request("POST", "/waits", 1, false)).await;
    server.journal.seen("handler_start").await;
    let client = tokio::spawn(async move {
        if then == Then::SendsOn {
            while client.stream.write_all(&frame(DATA, 0, 1, b"more")).await.is_ok() {
                tokio::time::sleep(SECOND).await;
            }
            return;
        }
        let mut told = 0;
        while let Ok(Some(next)) = client.next(1024).await {
            told += usize::from(next.kind == GOAWAY);
        }
        assert_eq!(told, 1);
        if then == Then::Stays {
            pending::<()>().await;
        }
    });
    let began = Instant::now();
    assert_eq!(server.stop().await.stragglers().len(), 1);
    let took = began.elapsed();
    client.abort();
    took
}

#[track_caller]
fn assert_about(took: Duration, expected: Duration) {
    // A drain looks every ten milliseconds.
    assert!(took >= expected && took < expected + Duration::from_millis(30), "{took:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_waited_for_within_the_idle_time() {
    assert_about(stops_after(Linger::new(), Then::Stays).await, DEADLINE + HALF + 2 * SECOND);
    assert_about(stops_after(Linger::new().idle(SECOND), Then::Stays).await, DEADLINE + HALF + SECOND);
    assert_about(stops_after(Linger::new().total(SECOND), Then::Stays).await, DEADLINE + HALF + SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_on_holds_nobody_up_beyond_the_end_of_the_drain() {
    assert_about(stops_after(Linger::new().total(3 * SECOND), Then::SendsOn).await, DEADLINE + HALF + 3 * SECOND);
    assert_about(stops_after(Linger::new(), Then::SendsOn).await, DEADLINE + 2 * HALF);
    assert_about(stops_after(Linger::new().idle(Duration::MAX), Then::Stays).await, DEADLINE + 2 * HALF);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_who_closes_or_without_lingering() {
    assert_about(stops_after(Linger::new(), Then::Closes).await, DEADLINE + HALF);
    assert_about(stops_after(None, Then::Stays).await, DEADLINE + HALF);
    assert_about(stops_after(Linger::new().at_once(0), Then::Stays).await, DEADLINE + HALF);
}

/// The time of one that lingers already goes on.
#[tokio::test(start_paused = true)]
async fn one_that_lingered_before_is_given_no_new_time() {
    for (total, expected) in [(16, 16 * SECOND), (1000, DEADLINE + 2 * HALF)] {
        let linger = Linger::new().total(total * SECOND).idle(1000 * SECOND);
        let server = server(Tracking::new().linger(linger));
        let mut client = server.connect();
        client.send("POST /answers HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n").await;
        assert_eq!(client.reply().await.text(), "answered at once");
        let began = Instant::now();
        server.stop().await;
        assert_about(began.elapsed(), expected);
    }
}

/// Gives back what comes over what a request was upgraded to.
async fn echo(mut request: Request) {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        // Whether the client or the server ends it.
        let _ = tokio::io::copy(&mut reads, &mut writes).await;
    });
}

/// The report of a drain, and how long it took, of a server whose only connection an upgraded stream keeps open.
async fn drained_with_an_upgraded_stream(hook_limit: Duration) -> (DrainReport, Duration) {
    let app = Router::new().route("/echo", any(echo)).layer(EarlyCloseLayer::new());
    let server = MemoryServer::with(app, |builder| builder.drain_deadline(DEADLINE).hook_limit(hook_limit));
    let (send, connection) = h2::client::handshake(server.connect().stream).await.unwrap();
    tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    while !send.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let request = http::Request::builder().method(Method::CONNECT).uri("http://test/echo");
    let request = request.extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap();
    let (response, mut stream) = send.send_request(request, false).unwrap();
    let mut echoed = response.await.unwrap().into_body();
    stream.send_data("before".into(), false).unwrap();
    assert_eq!(echoed.data().await.unwrap().unwrap(), "before");

    let began = Instant::now();
    let report = server.stop().await;
    assert!(echoed.data().await.is_none_or(|data| data.is_err()));
    (report, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_only_an_upgraded_stream_keeps_open_is_closed_and_counted() {
    // Without time for hooks it is ended at once.
    for hook_limit in [HALF, Duration::ZERO] {
        let logs = logs();
        let (report, took) = drained_with_an_upgraded_stream(hook_limit).await;
        assert!(took >= DEADLINE + hook_limit, "its request has ended, and it is waited for all the same");
        assert_eq!((report.closed_connections(), report.stragglers().len(), report.is_clean()), (1, 0, false));
        assert_eq!(report.to_string(), "drained: every request ended by itself (1 connection was closed)");
        // Nothing was cut, and yet not everything had ended.
        let passed = logs.with("the drain's deadline has passed");
        assert!(passed.iter().any(|line| line.contains("WARN") && line.contains("connections=1")), "{passed:#?}");
        assert!(!passed.iter().any(|line| line.contains("everything ended by itself")), "{passed:#?}");
    }
}
