//! The busy clock: what counts on it, and from when on.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, routing::get};
use futures_util::FutureExt as _;
use tokio::task::{spawn_blocking, yield_now};
use tower_epilogue::{Continuation, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{SECOND, told},
    support::{MemoryServer, Notes},
};

const MILLI: Duration = Duration::from_millis(1);

/// Computes for so long, on the paused clock.
fn computes(time: Duration) {
    // It has passed when that waits, which is not for anything.
    let _ = tokio::time::advance(time).now_or_never();
}

/// While the sender lives, tokio's clock jumps to no timer: it does not know of threads that are not its own.
fn stand_still() -> mpsc::Sender<()> {
    let (over, waits) = mpsc::channel();
    spawn_blocking(move || waits.recv());
    over
}

/// As on the wall clock: what was used before is forgotten, also of the poll that restarts it.
#[tokio::test(start_paused = true)]
async fn what_a_poll_used_before_it_restarted_the_limit_does_not_count() {
    let handler = async |lifecycle: Lifecycle| {
        for _part in 0..3 {
            lifecycle.set_time_limit(SECOND);
            computes(800 * MILLI);
        }
        yield_now().await;
        format!("{:?}", lifecycle.time_left())
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::busy(SECOND));
    let server = MemoryServer::start(app);
    let reply = server.get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "Some(200ms)".to_owned()));
}

/// So that work which has no `.await` in it can stop in time.
#[tokio::test(start_paused = true)]
async fn what_is_left_is_less_with_each_step_of_a_poll() {
    let handler = async |lifecycle: Lifecycle| {
        yield_now().await;
        let mut steps = Vec::new();
        while let Some(left) = lifecycle.time_left().filter(|left| *left > 300 * MILLI) {
            steps.push(left.as_millis());
            computes(200 * MILLI);
            assert!(steps.len() < 10, "it never ends");
        }
        format!("{steps:?}")
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::busy(SECOND));
    let reply = MemoryServer::start(app).get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "[1000, 800, 600, 400]".to_owned()));
}

/// Behind a router, another of our services is polled inside of the first.
#[tokio::test(start_paused = true)]
async fn what_services_that_nest_use_counts_once() {
    let handler = async |lifecycle: Lifecycle| {
        computes(400 * MILLI);
        yield_now().await;
        format!("{:?}", lifecycle.time_left())
    };
    let inner = get(handler).layer(ShutdownHookLayer::new(async |_| ()));
    let app = Router::new().route("/", inner).layer(TimeLimitLayer::busy(SECOND));
    let reply = MemoryServer::start(app).get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "Some(600ms)".to_owned()));
}

/// Our services nest, and only the outermost measures: the one that drops the work knows all the same.
#[tokio::test(start_paused = true)]
async fn what_used_its_time_up_is_dropped_at_its_next_await_though_it_waits_for_nothing() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        yield_now().await;
        computes(800 * MILLI);
        lifecycle.set_time_limit(SECOND);
        computes(800 * MILLI);
        yield_now().await;
        theirs.add("is not over");
        computes(200 * MILLI);
        yield_now().await;
        theirs.add("is over");
    };
    let layers = (TimeLimitLayer::busy(SECOND), ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(layers));
    assert_eq!(server.get("/").await.status, 503);
    server.ended(1).await;
    assert_eq!(notes.all(), ["is not over", "hook: TIMEOUT, Flushed"]);
}

/// One clock for all of a request's continuations.
#[tokio::test(start_paused = true)]
async fn what_a_blocking_continuation_used_the_next_one_has_not() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let stands_still = stand_still();
    let handler = async move |lifecycle: Lifecycle| {
        let (first, second) = (lifecycle.clone(), lifecycle);
        let (one, other) = (theirs.clone(), theirs);
        (
            Continuation::blocking(|| computes(3 * SECOND)),
            // A limit that it sets counts from then on.
            Continuation::blocking(move || {
                computes(4 * SECOND);
                one.add(format!("{:?}", first.time_left()));
                first.set_time_limit(10 * SECOND);
                computes(4 * SECOND);
            }),
            Continuation::blocking(|| computes(SECOND)),
            Continuation::new(async move { other.add(format!("{:?}", second.time_left())) }),
            "hello",
        )
    };
    let layers = (TimeLimitLayer::busy(10 * SECOND), ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(layers));
    assert_eq!(server.get("/").await.text(), "hello");
    server.ended(1).await;
    drop(stands_still);
    assert_eq!(notes.all(), ["Some(7s)", "Some(5s)", "hook: NORMAL, Flushed"]);
}

/// What waits for a thread is not busy.
#[tokio::test(start_paused = true)]
async fn the_wait_for_a_thread_is_no_busy_time() {
    let notes = Notes::default();
    let (release, released) = mpsc::channel::<()>();
    let (begins, begun) = mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    let keeps = async move || {
        let (begins, released) = (begins.clone(), released.clone());
        let work = move || {
            begins.send(()).unwrap();
            let _ = released.lock().unwrap().recv();
        };
        (Continuation::blocking(work), "hello")
    };
    let theirs = notes.clone();
    let waits = async move || {
        let notes = theirs.clone();
        (Continuation::blocking(move || notes.add("has its thread")), "hello")
    };
    let layers = (TimeLimitLayer::busy(SECOND), ShutdownHookLayer::new(told(&notes)));
    let app = Router::new().route("/waits", get(waits).layer(layers)).route("/keeps", get(keeps));
    let server = MemoryServer::with(app, |builder| builder.max_blocking(1));
    assert_eq!(server.get("/keeps").await.text(), "hello");
    spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
    assert_eq!(server.get("/waits").await.text(), "hello");
    tokio::time::sleep(60 * SECOND).await;
    let before = notes.all();
    let stands_still = stand_still();
    drop(release);
    server.ended(2).await;
    drop(stands_still);
    assert!(before.is_empty(), "{before:?}");
    assert_eq!(notes.all(), ["has its thread", "hook: NORMAL, Flushed"]);
}
