//! A test that fails says where and why, and none holds because nothing has happened yet.

use std::{convert::Infallible, panic::AssertUnwindSafe, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::get,
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::Notify;
use tower_epilogue::{
    ConnectionStatus, Continuation,
    test_util::{Story, TestServer},
};

/// What a test would fail with.
async fn failure<T>(test: impl Future<Output = T>) -> String {
    let Err(payload) = AssertUnwindSafe(test).catch_unwind().await else { panic!("this must fail") };
    *payload.downcast::<String>().expect("a message with its reason")
}

#[track_caller]
fn fails(story: &Story, assertion: impl FnOnce(&Story)) -> String {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| assertion(story)));
    *outcome.expect_err("this does not hold").downcast::<String>().expect("a message that shows the story")
}

fn never() -> Router {
    Router::new().route("/never", get(std::future::pending::<()>)).route("/", get(async || "hello"))
}

fn soon() -> TestServer {
    TestServer::builder().patience(Duration::from_millis(200)).in_memory(never())
}

#[tokio::test]
async fn what_does_not_come_is_told_with_the_line_what_came_and_the_story() {
    let server = soon();
    let mut client = server.connect().await;
    client.send("GET /never HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let line = line!() + 1;
    let waits = failure(client.response()).await;
    assert!(waits.contains("a response comes") && waits.contains(&format!("{}:{line}:", file!())), "{waits}");
    assert!(waits.contains("GET /never") && waits.contains("handler_start"), "{waits}");

    // The end of a response to a HEAD is not that of one to a GET.
    let mut client = server.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let head = failure(client.response()).await;
    assert!(head.contains("HTTP/1.1 200 OK") && head.contains("content-length: 5"), "{head}");

    for message in [
        failure(client.read(1000)).await,
        failure(client.read_until("no such")).await,
        failure(client.stop_response_at(1000, tower_epilogue::test_util::Leave::Close)).await,
        failure(server.get("/never")).await,
        failure(server.settled()).await,
    ] {
        assert!(message.contains(file!()) && message.contains("handler_start"), "{message}");
    }
}

#[tokio::test]
async fn a_journal_is_not_waited_for_without_end() {
    let server = soon();
    for message in [
        failure(server.journal().begun(1)).await,
        failure(server.journal().ended(1)).await,
        failure(server.journal().until(|stories| !stories.is_empty())).await,
    ] {
        assert!(message.contains("it did not happen within 200ms") && message.contains(file!()), "{message}");
    }
    let server = TestServer::in_memory(never());
    let mut client = server.connect().await;
    client.send_get("/").await;
    server.journal().clone().ended(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_the_end_is_not_said_before_it() {
    let gate = std::sync::Arc::new(Notify::new());
    let opened = gate.clone();
    let work = async move || {
        let opened = opened.clone();
        (Continuation::new(async move { opened.notified().await }), "hello")
    };
    let server = TestServer::in_memory(Router::new().route("/", get(work)));
    server.get("/").await.assert_whole();
    let story = server.journal().only();
    for message in [
        fails(&story, |story| story.assert_status(ConnectionStatus::NORMAL)),
        fails(&story, |story| story.assert_continuations(0)),
        fails(&story, |story| story.assert_hooks(0)),
    ] {
        assert!(message.contains("has not ended") && message.contains("flushed"), "{message}");
    }
    gate.notify_one();
    server.settled().await;
    let story = server.journal().only();
    story.assert_status(ConnectionStatus::NORMAL);
    story.assert_continuations(1);
    story.assert_hooks(0);
    fails(&story, |story| story.assert_order(&["flushed", "flushed"]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_event_has_holds_for_nothing() {
    let server = TestServer::in_memory(never());
    server.get("/").await.assert_whole();
    server.settled().await;
    let story = server.journal().only();
    assert_eq!((story.count("flushed"), story.count("aborted")), (1, 0));
    for message in [
        fails(&story, |story| assert_eq!(story.count("panics"), 0)),
        fails(&story, |story| story.assert_order(&["flushed", "panics"])),
    ] {
        assert!(message.contains("\"panics\"") && message.contains("continuation_start"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_panicked_has_not_run_to_its_end() {
    let broken = async || -> &'static str { panic!("the handler is broken") };
    let mail = async || (Continuation::new(async { panic!("the mail is broken") }), "hello");
    let app = Router::new().route("/broken", get(broken)).route("/mail", get(mail));
    let server = TestServer::in_memory(app);
    server.get("/broken").await.assert_whole();
    server.settled().await;
    let message = fails(&server.journal().last(), Story::assert_handler_ended);
    assert!(message.contains("panicked (handler)"), "{message}");
    server.get("/mail").await.assert_whole();
    server.settled().await;
    server.journal().last().assert_handler_ended();
    let message = fails(&server.journal().last(), |story| story.assert_continuations(1));
    assert!(message.contains("panicked (continuation)"), "{message}");
    server.journal().assert_contract();
}

#[tokio::test(start_paused = true)]
async fn a_client_takes_no_more_than_it_reads() {
    let server = TestServer::in_memory(Router::new().route("/", get(async || vec![b'x'; 900])));
    let mut client = server.connect_narrow(1000).await;
    client.send_get("/").await;
    client.read(1).await;
    // Whatever the server can do without its client.
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.journal().only().assert_not_flushed();
    let response = client.read_to_end().await;
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_long_stream_that_comes_in_small_pieces_is_read_within_the_patience() {
    const PIECES: usize = 20_000;
    let piece = || Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1000]));
    let stream = async move || Body::from_stream(stream::iter(0..PIECES).map(move |_| piece()));
    let whole = async || vec![b'x'; PIECES * 1000];
    let server = TestServer::in_memory(Router::new().route("/stream", get(stream)).route("/whole", get(whole)));
    for path in ["/stream", "/whole"] {
        let mut client = server.connect_narrow(1000).await;
        client.send_get(path).await;
        assert_eq!(client.response().await.body.len(), PIECES * 1000, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_far_behind_is_found_within_the_patience_wherever_it_is_cut() {
    const BEFORE: usize = 5_000_000;
    let marked = async || [vec![b'x'; BEFORE].as_slice(), b"xxyxxyz", b"behind"].concat();
    let server = TestServer::in_memory(Router::new().route("/", get(marked)));
    for narrow in [1000, 1001, 1002] {
        let mut client = server.connect_narrow(narrow).await;
        client.send_get("/").await;
        let read = client.read_until("xxyz").await;
        let body = read.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(read[body..].starts_with(b"xxxx") && read[body + BEFORE..].starts_with(b"xxyxxyz"));
    }
}

#[tokio::test]
async fn a_client_that_the_server_does_not_accept_any_more_is_not_waited_for() {
    let app = || Router::new().route("/", get(async || "hello"));
    // Which it hears of first is left to chance.
    for _ in 0..20 {
        for mut server in [TestServer::in_memory(app()), TestServer::on_socket(app()).await] {
            // The server has had no turn to accept it.
            let client = server.connect().await;
            server.begin_drain();
            server.settled().await;
            drop(client);
            server.settled().await;
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_in_memory_may_need_its_epilogue() {
    let app = async |epilogue: &tower_epilogue::Epilogue| {
        let epilogue = epilogue.clone();
        Router::new().route("/", get(async move || epilogue.running().to_string()))
    };
    let server = TestServer::builder().in_memory_with(app).await;
    assert_eq!(server.get("/").await.text(), "0");
}
