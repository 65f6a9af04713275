//! Rows of the PHP table: a limit behind the response: what it ends of a continuation, and the hooks that run after it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{future::pending, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use support::{MemoryServer, at, ends, is_about, logs, soon};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tower_epilogue::{ConnectionStatus, Continuation, End, Lifecycle, Sent, TimeLimitLayer};

const SECOND: Duration = Duration::from_secs(1);
const TIMED_OUT: (ConnectionStatus, Sent) = (ConnectionStatus::TIMEOUT, Sent::Flushed);
const NORMAL: (ConnectionStatus, Sent) = (ConnectionStatus::NORMAL, Sent::Flushed);

// === in the continuation ===

#[tokio::test(start_paused = true)]
async fn s24_a_limit_covers_the_continuation_and_its_hooks_run() {
    let (hook, mut ended) = ends();
    let handler = async || {
        sleep(SECOND).await;
        (Continuation::new(pending()), "hello")
    };
    let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(3 * SECOND), hook));
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/").await.text(), "hello");
    server.ended(1).await;
    is_about(at(&server.journal, "flushed"), SECOND);
    is_about(at(&server.journal, "continuation_dropped"), 3 * SECOND);
    assert_eq!(
        server.journal.lines()[2..],
        ["flushed:5/0", "continuation_start/0", "continuation_dropped/2", "hook_start:0/2", "hook_end:0/2", "ended/2"]
    );
    assert_eq!(ended.recv().await, Some(TIMED_OUT));
}

#[tokio::test(start_paused = true)]
async fn s24_a_limit_covers_a_handler_that_has_finished_its_response() {
    let (hook, mut ended) = ends();
    let handler = async |lifecycle: Lifecycle| {
        assert_eq!(lifecycle.finish("hello").await, Ok(Sent::Flushed));
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(3 * SECOND), hook));
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/").await.text(), "hello");
    server.ended(1).await;
    is_about(at(&server.journal, "handler_dropped"), 3 * SECOND);
    assert_eq!(ended.recv().await, Some(TIMED_OUT));
}

#[tokio::test(start_paused = true)]
async fn s24_a_continuation_may_set_a_limit_of_its_own() {
    for (work, end) in [(5, NORMAL), (50, TIMED_OUT)] {
        let (hook, mut ended) = ends();
        let handler = async move |lifecycle: Lifecycle| {
            let work = Continuation::new(async move {
                lifecycle.set_time_limit(10 * SECOND);
                sleep(work * SECOND).await;
            });
            (work, "hello")
        };
        let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(SECOND), hook));
        let server = MemoryServer::start(app);
        server.get("/").await;
        server.ended(1).await;
        is_about(at(&server.journal, "ended"), work.min(10) * SECOND);
        assert_eq!(ended.recv().await, Some(end));
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocking_continuation_has_ended_at_the_limit_and_its_thread_is_counted_and_named() {
    let logs = logs();
    let (hook, mut ended) = ends();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(Some(held)));
    let handler = async move || {
        let held = held.lock().unwrap().take().unwrap();
        (Continuation::blocking(move || held.recv().unwrap()), "hello")
    };
    let app = Router::new().route("/stuck-thread", get(handler)).layer((TimeLimitLayer::new(3 * SECOND), hook));
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/stuck-thread").await.text(), "hello");
    assert_eq!(server.epilogue.stuck(), 0);
    server.ended(1).await;
    is_about(at(&server.journal, "continuation_dropped"), 3 * SECOND);
    assert_eq!(ended.recv().await, Some(TIMED_OUT));
    assert_eq!(server.epilogue.stuck(), 1);
    let told = logs.with("GET /stuck-thread");
    assert!(told.iter().any(|line| line.contains("WARN") && line.contains("stuck")), "{told:?}");

    release.send(()).unwrap();
    tokio::time::resume();
    soon("the thread ends", async {
        while server.epilogue.stuck() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

// === hooks after it ===

#[tokio::test(start_paused = true)]
async fn func_005a_a_hook_still_runs_after_the_limit_has_passed() {
    let (sender, mut told) = mpsc::unbounded_channel();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle
            .on_shutdown(async move |end: End| {
                sleep(SECOND).await;
                sender.send((end.status(), end.elapsed())).unwrap();
            })
            .unwrap();
        pending::<()>().await;
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(SECOND)));
    assert_eq!(server.get("/").await.status, 503);
    let (status, elapsed) = told.recv().await.unwrap();
    assert_eq!(status, ConnectionStatus::TIMEOUT);
    is_about(elapsed, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn lang_045_a_hook_that_dawdles_is_itself_ended() {
    let logs = logs();
    let (sender, mut ran) = mpsc::unbounded_channel();
    let handler = async move |lifecycle: Lifecycle| {
        let next = sender.clone();
        lifecycle
            .on_shutdown(async move |_| {
                while !sender.is_closed() {
                    sender.send("turn").unwrap();
                    sleep(SECOND).await;
                }
            })
            .unwrap();
        lifecycle.on_shutdown(async move |_| next.send("next").unwrap()).unwrap();
        pending::<()>().await;
    };
    let app = Router::new().route("/dawdles", get(handler)).layer(TimeLimitLayer::new(SECOND));
    let server = MemoryServer::with(app, |builder| builder.hook_limit(2 * SECOND + SECOND / 2));
    assert_eq!(server.get("/dawdles").await.status, 503);
    server.ended(1).await;
    is_about(at(&server.journal, "hook_end"), 3 * SECOND + SECOND / 2);
    let mut order = Vec::new();
    ran.recv_many(&mut order, 10).await;
    assert_eq!(order, ["turn", "turn", "turn", "next"]);
    assert!(ran.try_recv().is_err(), "it was dropped");
    assert!(logs.with("GET /dawdles").iter().any(|line| line.contains("a hook ran past the hook limit")));
}

#[tokio::test(start_paused = true)]
async fn timeout_variation_10_a_hook_that_sleeps_too_long_is_cut_and_the_rest_run() {
    let (sender, mut ran) = mpsc::unbounded_channel();
    let began = Instant::now();
    let handler = async move |lifecycle: Lifecycle| {
        for (name, time) in [("first", SECOND), ("second", 100 * SECOND), ("third", SECOND)] {
            let sender = sender.clone();
            let hook = async move |_| {
                sleep(time).await;
                sender.send((name, began.elapsed().as_secs())).unwrap();
            };
            lifecycle.on_shutdown(hook).unwrap();
        }
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| builder.hook_limit(2 * SECOND));
    server.get("/").await;
    server.ended(1).await;
    let mut times = Vec::new();
    ran.recv_many(&mut times, 10).await;
    assert_eq!(times, [("first", 1), ("third", 4)]);
    assert!(ran.try_recv().is_err());
}
