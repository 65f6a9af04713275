//! Rows of the PHP table: which time a limit counts, and what it ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use support::{MemoryServer, Server, at, ends, is_about, logs, soon};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::sleep,
};
use tower_epilogue::{ConnectionStatus, Lifecycle, Sent, TimeLimitLayer};

const SECOND: Duration = Duration::from_secs(1);
const TIMED_OUT: (ConnectionStatus, Sent) = (ConnectionStatus::TIMEOUT, Sent::Flushed);
const NORMAL: (ConnectionStatus, Sent) = (ConnectionStatus::NORMAL, Sent::Flushed);

fn spin(time: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Uses the CPU without end, a millisecond between two awaits.
async fn turns() {
    while std::hint::black_box(true) {
        spin(Duration::from_millis(1));
        yield_now().await;
    }
}

// === which time counts ===

#[tokio::test(start_paused = true)]
async fn s9_a_wall_limit_counts_waiting() {
    let (hook, mut ended) = ends();
    let late = get(async || {
        sleep(3 * SECOND).await;
        "late"
    });
    let server = MemoryServer::start(Router::new().route("/", late).layer((TimeLimitLayer::new(SECOND), hook)));
    let reply = server.get("/").await;
    assert_eq!(reply.status, 503);
    server.ended(1).await;
    is_about(at(&server.journal, "handler_dropped"), SECOND);
    let flushed = format!("flushed:{}/2", reply.body.len());
    let life = ["handler_start/0", "handler_dropped/2", &flushed, "hook_start:0/2", "hook_end:0/2", "ended/2"];
    assert_eq!(server.journal.lines(), life);
    assert_eq!(ended.recv().await, Some(TIMED_OUT));
}

#[tokio::test(start_paused = true)]
async fn s9_a_busy_limit_does_not_count_waiting() {
    let (hook, mut ended) = ends();
    let patient = get(async |lifecycle: Lifecycle| {
        sleep(3 * SECOND).await;
        assert_eq!(lifecycle.time_left(), Some(SECOND));
        "not late"
    });
    let server = MemoryServer::start(Router::new().route("/", patient).layer((TimeLimitLayer::busy(SECOND), hook)));
    assert_eq!(server.get("/").await.text(), "not late");
    server.ended(1).await;
    is_about(at(&server.journal, "handler_end"), 3 * SECOND);
    assert_eq!(ended.recv().await, Some(NORMAL));
}

#[tokio::test]
async fn s9_a_busy_limit_counts_the_polls() {
    let (hook, mut ended) = ends();
    let limit = TimeLimitLayer::busy(Duration::from_millis(50));
    let server = Server::start(Router::new().route("/", get(turns)).layer((limit, hook))).await;
    assert_eq!(server.get("/").await.status, 503);
    assert_eq!(soon("it is told", ended.recv()).await, Some(TIMED_OUT));
    server.journal.ended(1).await;
    let fired = at(&server.journal, "handler_dropped");
    assert!(fired >= Duration::from_millis(50), "{fired:?}: what was used cannot be more than what has passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s31_a_wall_limit_fires_on_time_while_others_use_all_of_the_cpu() {
    let over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    spin(Duration::from_millis(1));
                    yield_now().await;
                }
            })
        })
        .collect();
    let limit = Duration::from_millis(200);
    let server = Server::start(Router::new().route("/", get(turns)).layer(TimeLimitLayer::new(limit))).await;
    assert_eq!(server.get("/").await.status, 503);
    server.journal.ended(1).await;
    let fired = at(&server.journal, "handler_dropped");
    // Of its own CPU time the handler has had a fraction of the limit. The bound is generous for slow machines.
    assert!(fired >= limit && fired < 10 * limit, "{fired:?}");
    over.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
}

// === no limit ===

#[tokio::test(start_paused = true)]
async fn s11_none_is_no_limit_also_for_a_request_already_under_one() {
    const LONG: Duration = Duration::from_secs(100_000);
    async fn long(lifecycle: Lifecycle) -> &'static str {
        assert_eq!(lifecycle.time_left(), None);
        sleep(LONG).await;
        "at last"
    }
    async fn lifts(lifecycle: Lifecycle, limit: Duration) -> &'static str {
        sleep(SECOND / 2).await;
        assert_eq!(lifecycle.time_left().unwrap().as_millis(), 500);
        lifecycle.set_time_limit(limit);
        long(lifecycle).await
    }
    let one = TimeLimitLayer::new(SECOND);
    let cases: [(&str, Router); 5] = [
        ("no layer", Router::new().route("/", get(long))),
        ("off", Router::new().route("/", get(long)).layer(TimeLimitLayer::off())),
        ("off within one", Router::new().route("/", get(long)).layer(TimeLimitLayer::off()).layer(one)),
        ("lifted", Router::new().route("/", get(async |lifecycle| lifts(lifecycle, Duration::ZERO).await)).layer(one)),
        ("too long", Router::new().route("/", get(async |lifecycle| lifts(lifecycle, Duration::MAX).await)).layer(one)),
    ];
    for (case, app) in cases {
        let (hook, mut ended) = ends();
        let server = MemoryServer::start(app.layer(hook));
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
        let end = tokio::time::timeout(2 * LONG, ended.recv()).await.expect(case);
        assert_eq!(end, Some(NORMAL), "{case}");
        assert_eq!(client.reply().await.text(), "at last", "{case}");
        server.ended(1).await;
        assert!(at(&server.journal, "handler_end") >= LONG, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn s11_a_limit_can_be_set_where_there_was_none() {
    let handler = async |lifecycle: Lifecycle| {
        sleep(10 * SECOND).await;
        lifecycle.set_time_limit(SECOND);
        pending::<()>().await;
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)));
    assert_eq!(server.get("/").await.status, 503);
    server.ended(1).await;
    is_about(at(&server.journal, "handler_dropped"), 11 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn setting_the_limit_restarts_it() {
    let handler = async |lifecycle: Lifecycle| {
        sleep(25 * SECOND).await;
        lifecycle.set_time_limit(20 * SECOND);
        pending::<()>().await;
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(TimeLimitLayer::default()));
    assert_eq!(server.get("/").await.status, 503);
    server.ended(1).await;
    is_about(at(&server.journal, "handler_dropped"), 45 * SECOND);
}

// === what it ends ===

/// Runs `work` in a handler under a limit on a real clock; whatever follows it must not run.
async fn is_ended<F>(work: fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (hook, mut ended) = ends();
    let (reached, mut follows) = mpsc::unbounded_channel();
    let handler = async move || {
        work().await;
        reached.send(()).unwrap();
        "it went on"
    };
    let limit = TimeLimitLayer::new(Duration::from_millis(100));
    let server = Server::start(Router::new().route("/", get(handler)).layer((limit, hook))).await;
    let reply = server.get("/").await;
    assert_eq!((reply.status, reply.text().contains("went on")), (503, false));
    assert_eq!(soon("it is told", ended.recv()).await, Some(TIMED_OUT));
    assert!(follows.try_recv().is_err());
    server.journal.ended(1).await;
    assert!(at(&server.journal, "handler_dropped") >= Duration::from_millis(100));
}

#[tokio::test]
async fn timeout_variation_0_a_limit_ends_a_busy_loop() {
    is_ended(turns).await;
}

#[tokio::test]
async fn timeout_variation_7_a_limit_ends_a_loop_of_calls() {
    async fn called() {
        spin(Duration::from_millis(1));
        yield_now().await;
    }
    async fn calls() {
        for _ in 0..u64::MAX {
            called().await;
        }
    }
    is_ended(calls).await;
}

#[tokio::test]
async fn timeout_variation_8_a_limit_ends_a_loop_in_a_called_function() {
    is_ended(|| Box::pin(async { Box::pin(turns()).await })).await;
}

#[tokio::test(start_paused = true)]
async fn timeout_variation_9_a_limit_ends_a_loop_that_sleeps() {
    let (reached, mut follows) = mpsc::unbounded_channel();
    let handler = async move || {
        for _ in 0..100 {
            sleep(SECOND / 4).await;
        }
        reached.send(()).unwrap();
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(SECOND)));
    assert_eq!(server.get("/").await.status, 503);
    server.ended(1).await;
    is_about(at(&server.journal, "handler_dropped"), SECOND);
    assert!(follows.try_recv().is_err());
}

#[tokio::test]
async fn a_poll_that_overstays_is_reported_with_its_route() {
    let logs = logs();
    let stuck = get(async || {
        yield_now().await;
        spin(Duration::from_millis(150));
        yield_now().await;
        "not reached"
    });
    let limit = TimeLimitLayer::new(Duration::from_millis(50));
    let server = Server::start(Router::new().route("/overstays/{id}", stuck).layer(limit)).await;
    assert_eq!(server.get("/overstays/7").await.status, 503);
    server.journal.ended(1).await;
    let told = logs.with("GET /overstays/{id}");
    assert_eq!(told.iter().filter(|line| line.contains("WARN") && line.contains("stuck")).count(), 1, "{told:#?}");
}

#[tokio::test]
async fn a_handler_that_waits_for_a_stuck_call_is_answered_for_at_the_limit() {
    let (hook, mut ended) = ends();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(Some(held)));
    let handler = async move || {
        let held = held.lock().unwrap().take().unwrap();
        let (done, native) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = held.recv();
            let _ = done.send(());
        });
        native.await.unwrap();
    };
    let limit = TimeLimitLayer::new(Duration::from_millis(100));
    let server = Server::start(Router::new().route("/", get(handler)).layer((limit, hook))).await;
    assert_eq!(server.get("/").await.status, 503);
    assert_eq!(soon("it is told", ended.recv()).await, Some(TIMED_OUT));
    assert!(release.send(()).is_ok(), "the call was stuck until now");
}
