//! Flushed means that the kernel took a response; acknowledged, that the client's machine confirmed it.
#![cfg(all(feature = "acknowledged", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod support;

use std::{io, time::Duration};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::stream;
use socket2::SockRef;
use support::{Client, Gate, Journal, Server, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, UnixListener, UnixStream},
};
use tower_epilogue::{
    Acknowledged, ConnectionStatus, Continuation, EarlyCloseLayer, Lifecycle, LifecycleError, TimeLimitLayer,
};

/// More than a client of [`slow_client`] takes without reading, and less than the server's kernel does.
const SIZE: usize = 200_000;
const LONG: Duration = Duration::from_secs(60);

fn after(deadline: Duration) -> Router {
    let handler = move || async move { (Continuation::new(async {}).after_acknowledged(deadline), vec![b'x'; SIZE]) };
    Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new())
}

/// One whose machine confirms few bytes before it reads them.
async fn slow_client(server: &Server) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    Client { stream: soon("a connection", socket.connect(server.address)).await.unwrap() }
}

#[tokio::test]
async fn the_continuation_waits_for_a_stopped_reader_to_go_on() {
    let server = Server::start(after(LONG)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    let flushed = server.journal.seen("flushed").await;
    assert!(server.journal.lines().iter().all(|line| !line.starts_with("continuation")));
    assert_eq!(client.reply().await.body.len(), SIZE);
    let started = server.journal.seen("continuation_start").await;
    assert!(started.at() > flushed.at());
    server.journal.ended(1).await;
    assert_eq!(server.journal.events().last().unwrap().status(), ConnectionStatus::NORMAL);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn the_continuation_starts_at_the_deadline_for_a_reader_that_never_goes_on() {
    let deadline = Duration::from_millis(150);
    let server = Server::start(after(deadline)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    let flushed = server.journal.seen("flushed").await;
    let started = server.journal.seen("continuation_start").await;
    assert!(started.at() - flushed.at() >= deadline);
    assert_eq!(started.status(), ConnectionStatus::NORMAL);
    server.journal.ended(1).await;
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_reset_before_the_acknowledgement_is_an_abort() {
    let server = Server::start(after(LONG)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    client.reset();
    let started = server.journal.seen("continuation_start").await;
    assert_eq!(started.status(), ConnectionStatus::ABORTED);
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

/// Also those who await that, and not the end of the request.
#[tokio::test]
async fn whoever_awaits_the_abort_is_told_of_it_while_the_continuation_runs() {
    let (gate, told) = (Gate::closed(), Gate::closed());
    let (opens, tells) = (gate.clone(), told.clone());
    let handler = async move |lifecycle: Lifecycle| {
        tokio::spawn(async move {
            lifecycle.aborted().await;
            tells.open();
        });
        (Continuation::new(async move { opens.passed().await }).after_acknowledged(LONG), vec![b'x'; SIZE])
    };
    let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new());
    let server = Server::start(app).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    client.reset();
    server.journal.seen("continuation_start").await;
    soon("the abort is told", told.passed()).await;
    gate.open();
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

/// Its response is flushed long before that.
#[tokio::test]
async fn it_is_waited_for_no_longer_than_to_the_requests_limit() {
    let limit = Duration::from_millis(500);
    let server = Server::start(after(LONG).layer(TimeLimitLayer::new(limit))).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    server.journal.ended(1).await;
    let end = server.journal.events().pop().unwrap();
    assert_eq!(end.status(), ConnectionStatus::TIMEOUT);
    assert!(end.at() >= limit, "{end:?}");
    drop(client);
    assert!(server.stop().await.is_clean());
}

fn finishing(results: tokio::sync::mpsc::UnboundedSender<Acknowledged>) -> Router {
    let handler = move |lifecycle: Lifecycle| async move {
        results.send(lifecycle.finish(vec![b'x'; SIZE]).acknowledged().await?).unwrap();
        Ok::<_, LifecycleError>(())
    };
    Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new())
}

#[tokio::test]
async fn a_finish_resolves_with_the_acknowledgement() {
    let (results, mut known) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(finishing(results)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    assert!(known.try_recv().is_err(), "most of it is still in the kernel's queue");
    assert_eq!(client.reply().await.body.len(), SIZE);
    assert_eq!(soon("an acknowledgement", known.recv()).await, Some(Acknowledged::Yes));
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_finish_resolves_with_the_reset() {
    let (results, mut known) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(finishing(results)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    client.reset();
    assert_eq!(soon("an acknowledgement", known.recv()).await, Some(Acknowledged::Aborted));
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

/// Nothing of it will be confirmed: its socket is not kept for the continuation, and its client sees the connection's end.
#[tokio::test]
async fn a_broken_response_ends_its_connection_while_the_continuation_runs() {
    for several in [false, true] {
        let gate = Gate::closed();
        let theirs = gate.clone();
        let handler = async move || {
            let fails = stream::iter([Ok("begun".to_owned()), Err(io::Error::other("as this test wants it"))]);
            let first = Continuation::new(async move { theirs.passed().await });
            let first = if several { first } else { first.after_acknowledged(LONG) };
            (first, Continuation::new(async {}).after_acknowledged(LONG), Body::from_stream(fails))
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        server.journal.seen("continuation_start").await;
        let reply = client.reply().await;
        assert_eq!(reply.error.map(|error| error.kind()), Some(io::ErrorKind::ConnectionReset), "several: {several}");
        assert!(!gate.is_open());
        gate.open();
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
    }
}

/// It is looked at from time to time: what came first counts, and not what is seen first.
#[tokio::test]
async fn a_reset_after_the_acknowledgement_is_none() {
    let (results, mut known) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |lifecycle: Lifecycle| async move {
        results.send(lifecycle.finish("small").acknowledged().await?).unwrap();
        Ok::<_, LifecycleError>(())
    };
    let server = Server::start(Router::new().route("/", get(handler)).route("/other", get("other"))).await;
    for _ in 0..10 {
        let mut client = server.connect().await;
        // Whoever asks and is answered so often confirms with the next request, or after 40 ms.
        for _ in 0..20 {
            client.send_get("/other").await;
            client.reply_by_length(false).await;
        }
        client.send_get("/").await;
        client.reply_by_length(false).await;
        // Now: tcp(7).
        SockRef::from(&client.stream).set_tcp_quickack(true).unwrap();
        client.reset();
        assert_eq!(soon("what became of it", known.recv()).await, Some(Acknowledged::Yes));
    }
}

/// The place that was kept for it is its own until it starts, also when its handler has ended.
#[tokio::test]
async fn a_continuation_that_waits_for_it_keeps_its_place() {
    let gate = Gate::closed();
    let theirs = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let work = Continuation::new(async {}).after_acknowledged(LONG);
        lifecycle.finish((work, vec![b'x'; SIZE])).await?;
        theirs.passed().await;
        Ok::<_, LifecycleError>(())
    };
    let app = Router::new().route("/", get(handler)).route("/other", get(async || "hello"));
    let server = Server::with(app, |builder| builder.max_running(1).max_waiting(0)).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    server.journal.seen("flushed").await;
    assert_eq!(server.get("/other").await.status, 503);
    gate.open();
    server.journal.seen("handler_end").await;
    assert_eq!(server.get("/other").await.status, 503);
    assert_eq!(client.reply_by_length(false).await.body.len(), SIZE);
    server.journal.ended(3).await;
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.reserved, load.over), (0, 0, 0, 0));
}

/// A socket that is closed throws away what was not read of it: its queue is empty then, too.
#[tokio::test]
async fn on_a_unix_socket_who_closes_without_reading_has_confirmed_nothing() {
    let (results, mut known) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |lifecycle: Lifecycle| async move {
        results.send(lifecycle.finish(vec![b'x'; 50_000]).acknowledged().await?).unwrap();
        Ok::<_, LifecycleError>(())
    };
    let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new());
    let journal = Journal::default();
    let path = std::env::temp_dir().join(format!("epilogue-acknowledged-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(journal.epilogue().build().serve(listener, app).into_future());
    for (count, (reads, expected)) in
        [(false, Acknowledged::Aborted), (true, Acknowledged::Yes)].into_iter().cycle().take(20).enumerate()
    {
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        journal.seen_times("flushed", count + 1).await;
        assert!(known.try_recv().is_err(), "nothing was read yet");
        if reads {
            soon("a response", client.read_to_end(&mut Vec::new())).await.unwrap();
        }
        drop(client);
        assert_eq!(soon("what became of it", known.recv()).await, Some(expected));
    }
    serving.abort();
    std::fs::remove_file(path).unwrap();
}

/// Waits until so many continuations have started, and lets the server act on whatever it can beside.
async fn started(server: &Server, count: usize) -> usize {
    server.journal.seen_times("continuation_start", count).await;
    server.get("/other").await;
    server.journal.events().iter().filter(|event| event.kind().name() == "continuation_start").count()
}

/// Each for its own time: that the first did not wait as long says nothing of what the client has.
#[tokio::test]
async fn of_several_continuations_each_waits_for_it() {
    let handler = async || {
        let short = Continuation::new(async {}).after_acknowledged(Duration::from_millis(50));
        (short, Continuation::new(async {}).after_acknowledged(LONG), vec![b'x'; SIZE])
    };
    let app = Router::new().route("/", get(handler)).route("/other", get(async || "hello"));
    let server = Server::start(app.layer(EarlyCloseLayer::new())).await;
    let mut client = slow_client(&server).await;
    client.send_get("/").await;
    assert_eq!(started(&server, 1).await, 1);
    assert_eq!(client.reply().await.body.len(), SIZE);
    assert_eq!(started(&server, 2).await, 2);
    server.journal.ended(3).await;
    assert!(server.stop().await.is_clean());
}

/// Its handler returns it, or loses it with another response, when the response has left already.
#[tokio::test]
async fn one_that_comes_behind_a_finish_waits_for_it() {
    for is_lost in [false, true] {
        let handler = async move |lifecycle: Lifecycle| {
            lifecycle.finish(vec![b'x'; SIZE]).await?;
            let response = Continuation::new(async {}).after_acknowledged(LONG).into_response();
            Ok::<_, LifecycleError>(if is_lost { Response::default() } else { response })
        };
        let app = Router::new().route("/", get(handler)).route("/other", get(async || "hello"));
        let server = Server::start(app).await;
        let mut client = slow_client(&server).await;
        client.send_get("/").await;
        server.journal.seen("handler_end").await;
        assert_eq!(started(&server, 0).await, 0, "is_lost: {is_lost}");
        assert_eq!(client.reply_by_length(false).await.body.len(), SIZE);
        assert_eq!(started(&server, 1).await, 1);
        server.journal.ended(3).await;
        assert!(server.stop().await.is_clean());
    }
}
