//! Each assertion holds where it should, and fails with the story where it should not.

use std::{panic::catch_unwind, time::Duration};

use axum::{Router, body::Body, routing::get};
use tower_epilogue::{
    ConnectionStatus, Continuation, End, ShutdownHookLayer, TimeLimitLayer,
    test_util::{Leave, Story, TestServer},
};

fn app() -> Router {
    let wait = async || tokio::time::sleep(Duration::from_secs(10)).await;
    let stream = || async {
        let frames = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        Body::from_stream(frames)
    };
    Router::new()
        .route("/plain", get(async || "plain"))
        .route("/work", get(async || (Continuation::new(async {}), "work")))
        .route("/wait", get(wait))
        .route("/limit", get(wait).layer(TimeLimitLayer::new(Duration::from_secs(1))))
        .route("/stream", get(stream))
        .layer(ShutdownHookLayer::new(async |_: End| {}))
}

async fn story(path: &str, leaves: bool) -> Story {
    let server = TestServer::in_memory(app());
    let mut client = server.connect().await;
    client.send_get(path).await;
    if leaves {
        server.journal().begun(1).await;
        client.leave(Leave::Close).await;
    } else {
        client.response().await.assert_whole();
    }
    server.settled().await;
    server.journal().only()
}

/// What an assertion says when it fails; `None` if it holds.
fn failure(assertion: impl FnOnce() + std::panic::UnwindSafe) -> Option<String> {
    let payload = catch_unwind(assertion).err()?;
    Some(*payload.downcast::<String>().expect("a message that shows the story"))
}

#[track_caller]
fn holds(assertion: impl FnOnce() + std::panic::UnwindSafe) {
    assert_eq!(failure(assertion), None);
}

#[track_caller]
fn fails(assertion: impl FnOnce() + std::panic::UnwindSafe) {
    let message = failure(assertion).expect("this does not hold");
    assert!(message.contains("request ") && message.contains("  ended"), "the story is shown: {message}");
}

#[tokio::test(start_paused = true)]
async fn of_a_plain_response() {
    let story = &story("/plain", false).await;
    assert_eq!(
        story.names(),
        ["arrived", "handler_start", "handler_end", "handed_over", "flushed", "hook_start", "hook_end", "ended"]
    );
    holds(|| story.assert_contract());
    holds(|| story.assert_flushed());
    fails(|| story.assert_not_flushed());
    fails(|| story.assert_aborted());
    holds(|| story.assert_handler_ended());
    fails(|| story.assert_handler_dropped());
    fails(|| story.assert_flushed_before_continuation());
    holds(|| story.assert_continuations(0));
    fails(|| story.assert_continuations(1));
    holds(|| story.assert_hooks(1));
    fails(|| story.assert_hooks(2));
    holds(|| story.assert_status(ConnectionStatus::NORMAL));
    fails(|| story.assert_status(ConnectionStatus::ABORTED));
    holds(|| story.assert_order(&["handler_start", "flushed", "ended"]));
    fails(|| story.assert_order(&["flushed", "handler_start"]));
    fails(|| story.assert_order(&["handler_start", "aborted"]));
}

#[tokio::test(start_paused = true)]
async fn of_a_continuation() {
    let story = &story("/work", false).await;
    holds(|| story.assert_flushed_before_continuation());
    holds(|| story.assert_continuations(1));
    fails(|| story.assert_continuations(0));
    holds(|| story.assert_contract());
}

#[tokio::test(start_paused = true)]
async fn of_a_client_that_left() {
    for path in ["/wait", "/stream"] {
        let story = &story(path, true).await;
        holds(|| story.assert_aborted());
        holds(|| story.assert_status(ConnectionStatus::ABORTED));
        holds(|| story.assert_not_flushed());
        fails(|| story.assert_flushed());
        holds(|| story.assert_contract());
        let dropped = failure(|| story.assert_handler_dropped()).is_none();
        assert!(dropped || path == "/stream", "{story}");
        assert_eq!(story.count("body_dropped"), usize::from(!dropped), "{story}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_limit_that_passed() {
    let story = &story("/limit", false).await;
    holds(|| story.assert_status(ConnectionStatus::TIMEOUT));
    holds(|| story.assert_handler_dropped());
    fails(|| story.assert_handler_ended());
    assert!(story.events().last().unwrap().at() >= Duration::from_secs(1), "{story}");
}

#[tokio::test(start_paused = true)]
async fn the_contract_is_not_kept_by_a_request_that_has_not_ended() {
    let server = TestServer::in_memory(app());
    let mut client = server.connect().await;
    client.send_get("/wait").await;
    server.journal().begun(1).await;
    let story = server.journal().only();
    assert!(!story.has_ended());
    let message = failure(|| story.assert_contract()).expect("it has not ended");
    assert!(message.contains("handler_start"), "{message}");
    let journal = server.journal().clone();
    assert!(failure(std::panic::AssertUnwindSafe(move || journal.assert_contract())).is_some());
}

#[tokio::test(start_paused = true)]
async fn stories_come_in_the_order_of_arrival() {
    let server = TestServer::in_memory(app());
    for path in ["/plain", "/work", "/plain"] {
        server.get(path).await.assert_whole();
    }
    server.settled().await;
    let stories = server.journal().stories();
    assert_eq!(stories.iter().map(|story| story.count("continuation_end")).collect::<Vec<_>>(), [0, 1, 0]);
    assert!(stories.is_sorted_by_key(Story::request));
    assert_eq!(server.journal().last().request(), stories[2].request());
    assert_eq!(server.journal().story(stories[1].request()).names(), stories[1].names());
    let journal = server.journal().clone();
    assert!(failure(std::panic::AssertUnwindSafe(move || drop(journal.only()))).is_some(), "there are three");
}

#[tokio::test(start_paused = true)]
async fn a_story_tells_which_class_a_continuation_is_of() {
    let mail = async || (Continuation::new(async {}).class("mail"), "mail");
    let server = TestServer::in_memory(Router::new().route("/", get(mail)));
    server.get("/").await.assert_whole();
    server.settled().await;
    let story = server.journal().only().to_string();
    assert!(story.contains("continuation_start [mail]\n") && story.contains("handler_start\n"), "{story}");
}
