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
use support::{Journal, MemoryServer, Server, ends, logs, soon};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};
use tower_epilogue::{ConnectionStatus, Continuation, End, Lifecycle, Sent, TimeLimitLayer};

const SECOND: Duration = Duration::from_secs(1);
const TIMED_OUT: (ConnectionStatus, Sent) = (ConnectionStatus::TIMEOUT, Sent::Flushed);
const NORMAL: (ConnectionStatus, Sent) = (ConnectionStatus::NORMAL, Sent::Flushed);

/// When the only request's first event of that name came.
fn at(journal: &Journal, name: &str) -> Duration {
    let event = journal.events().into_iter().find(|event| event.kind().name() == name);
    event.unwrap_or_else(|| panic!("{name}: {:?}", journal.lines())).at()
}

/// A timer's resolution later at most.
fn is_about(time: Duration, expected: Duration) {
    assert!(time >= expected && time < expected + Duration::from_millis(10), "{time:?}, not {expected:?}");
}

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
    assert!(logs.with("GET /dawdles").iter().any(|line| line.contains("a hook ran past its own limit")));
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
