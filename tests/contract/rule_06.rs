//! One clock from the request's arrival to the continuation's end.

use std::{future::pending, time::Duration};

use axum::{Router, extract::Request, response::IntoResponse, routing::get};
use futures_util::FutureExt as _;
use http::StatusCode;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_epilogue::{Continuation, EarlyCloseLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{SECOND, SHORT, told},
    support::{Gate, MemoryServer, Notes, Server, h2client::Http2, logs},
};

fn ask() -> Request {
    Request::new(axum::body::Body::empty())
}

#[tokio::test(start_paused = true)]
async fn setting_the_limit_restarts_it() {
    let began = Instant::now();
    let handler = async |lifecycle: Lifecycle| {
        tokio::time::sleep(25 * SECOND).await;
        assert_eq!(lifecycle.time_left(), Some(5 * SECOND));
        lifecycle.set_time_limit(20 * SECOND);
        assert_eq!(lifecycle.time_left(), Some(20 * SECOND));
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(30 * SECOND));
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let (took, expected) = (began.elapsed(), 45 * SECOND);
    // A timer of tokio's is exact to the millisecond.
    assert!(took >= expected && took < expected + Duration::from_millis(2), "25 s + 20 s = 45 s: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn zero_lifts_it() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.set_time_limit(Duration::ZERO);
        assert_eq!(lifecycle.time_left(), None);
        tokio::time::sleep(3600 * SECOND).await;
        "after an hour"
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::default());
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn it_can_be_set_without_a_layer() {
    let handler = async |lifecycle: Lifecycle| {
        assert_eq!(lifecycle.time_left(), None);
        lifecycle.set_time_limit(SECOND);
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(async |_| ()));
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// What its destructor sees when it asks for more time.
struct AsksForMore(Lifecycle, Notes);

impl Drop for AsksForMore {
    fn drop(&mut self) {
        self.0.set_time_limit(3600 * SECOND);
        self.1.add(format!("left: {:?}", self.0.time_left()));
    }
}

#[tokio::test(start_paused = true)]
async fn once_it_has_ended_the_work_or_the_request_is_over_it_cannot_be_restarted() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let waits = async move |lifecycle: Lifecycle| {
        let _asks = AsksForMore(lifecycle, theirs.clone());
        pending::<()>().await;
    };
    let (keeps, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let ends = async move |lifecycle: Lifecycle| keeps.send(lifecycle).unwrap();
    let app = Router::new().route("/waits", get(waits)).route("/ends", get(ends));
    let server = MemoryServer::start(app.layer(TimeLimitLayer::new(SECOND)));
    assert_eq!(server.get("/waits").await.status, 503);
    assert_eq!(server.get("/ends").await.status, 200);
    server.ended(2).await;
    assert_eq!(notes.all(), ["left: Some(0ns)"]);
    let kept = kept.recv().await.unwrap();
    let left = kept.time_left();
    kept.set_time_limit(3600 * SECOND);
    assert_eq!(kept.time_left(), left);
}

/// It computes for longer than it may, and nobody can have noticed.
#[tokio::test(start_paused = true)]
async fn without_an_await_it_can_be_restarted_also_after_its_time() {
    let handler = async |lifecycle: Lifecycle| {
        let _ = tokio::time::advance(2 * SECOND).now_or_never();
        lifecycle.set_time_limit(SECOND);
        tokio::time::sleep(SECOND / 2).await;
        "whole"
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(SECOND));
    assert_eq!(MemoryServer::start(app).get("/").await.text(), "whole");
}

/// From another task, while the handler waits with a longer one.
#[tokio::test(start_paused = true)]
async fn it_can_be_set_from_elsewhere() {
    let began = Instant::now();
    let handler = async |lifecycle: Lifecycle| {
        tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            lifecycle.set_time_limit(SECOND);
        });
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(3600 * SECOND));
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn it_counts_from_the_requests_arrival_to_the_continuations_end() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        tokio::time::sleep(6 * SECOND).await;
        let notes = theirs.clone();
        let continuation = Continuation::new(async move {
            notes.add(format!("left: {:?}", lifecycle.time_left().unwrap()));
            let _dropped = notes.on_drop("continuation dropped");
            tokio::time::sleep(6 * SECOND).await;
            notes.add("continuation ended");
        });
        (continuation, "hello")
    };
    let layers = (TimeLimitLayer::new(10 * SECOND), ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(layers));
    assert_eq!(server.get("/").await.text(), "hello");
    server.ended(1).await;
    assert_eq!(notes.all()[1..], ["continuation dropped", "hook: TIMEOUT, Flushed"]);
    let events = server.journal.events();
    let dropped = events.iter().find(|event| event.kind().name() == "continuation_dropped").unwrap();
    assert!(dropped.at() >= 10 * SECOND && dropped.at() < 11 * SECOND, "{dropped:?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn sleeping_does_not_count_as_busy_time() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        tokio::time::sleep(3600 * SECOND).await;
        let continuation = Continuation::new(async move {
            tokio::time::sleep(3600 * SECOND).await;
            theirs.add("continuation");
        });
        (continuation, "after an hour")
    };
    let layers = (TimeLimitLayer::busy(SECOND), ShutdownHookLayer::new(told(&notes)));
    let app = Router::new().route("/", get(handler)).layer(layers);
    let response = app.oneshot(ask()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    tokio::time::sleep(2 * 3600 * SECOND).await;
    assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"]);
}

fn burn(time: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn burning_counts_as_busy_time() {
    for phase in ["handler", "continuation"] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move || {
            let burning = async move {
                let _dropped = theirs.on_drop("dropped");
                loop {
                    burn(SHORT / 10);
                    tokio::task::yield_now().await;
                }
            };
            if phase == "continuation" {
                return Continuation::new(burning).into_response();
            }
            burning.await;
            StatusCode::OK.into_response()
        };
        let layers = (TimeLimitLayer::busy(SHORT), ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(Router::new().route("/", get(handler)).layer(layers)).await;
        assert_eq!(server.get("/").await.status, if phase == "handler" { 503 } else { 200 });
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["dropped", "hook: TIMEOUT, Flushed"], "{phase}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_poll_that_overstays_is_reported_as_stuck_with_its_route() {
    let logs = logs();
    for (route, limit) in
        [("/overstays-wall", TimeLimitLayer::new(SHORT)), ("/overstays-busy", TimeLimitLayer::busy(SHORT))]
    {
        let handler = async || {
            burn(SHORT * 2);
            pending::<()>().await;
        };
        let server = Server::start(Router::new().route(route, get(handler)).layer(limit)).await;
        assert_eq!(server.get(route).await.status, 503);
        server.journal.ended(1).await;
        let lines = logs.with(route);
        let stuck = lines.iter().filter(|line| line.contains("stuck")).count();
        assert_eq!(stuck, 1, "{lines:#?}");
        assert!(server.stop().await.is_clean());
    }
}

/// A handler that answers in a poll which ends past the limit was not dropped: there was no await. Whichever
/// answer its client gets, it is a whole one, and the same on both versions.
#[tokio::test]
async fn an_answer_that_comes_too_late_to_be_dropped_is_whole_or_a_503() {
    for limit in [TimeLimitLayer::new(SHORT), TimeLimitLayer::busy(SHORT)] {
        for early_close in [false, true] {
            let handler = async || {
                burn(SHORT * 2);
                "late"
            };
            let app = Router::new().route("/", get(handler)).layer(limit);
            let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
            let server = Server::start(app).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let http1 = client.response(false).await;
            let http2 = Http2::connect(server.address).await.get("/").await.unwrap();
            for (status, body) in [(http1.status, http1.body), (http2.status, http2.body)] {
                assert!(status == 503 || (status, &body[..]) == (200, b"late"), "{status} {body:?}");
            }
            assert_eq!(http1.status, http2.status, "{limit:?}, early close: {early_close}");
            server.journal.ended(2).await;
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn blocking_work_has_ended_at_the_limit_for_the_contract_and_its_thread_is_counted_and_named() {
    let logs = logs();
    for (route, limit) in [("/blocks-wall", TimeLimitLayer::new(SHORT)), ("/blocks-busy", TimeLimitLayer::busy(SHORT))]
    {
        let notes = Notes::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (begins, begun) = std::sync::mpsc::channel::<()>();
        let work = std::sync::Arc::new(std::sync::Mutex::new(Some((notes.clone(), begins, released))));
        let handler = async move || {
            let (notes, begins, released) = work.lock().unwrap().take().unwrap();
            let blocking = Continuation::blocking(move || {
                begins.send(()).unwrap();
                released.recv().unwrap();
                notes.add("thread ended");
            });
            (blocking, "hello")
        };
        let app = Router::new().route(route, get(handler)).layer((limit, ShutdownHookLayer::new(told(&notes))));
        let server = Server::start(app).await;
        assert_eq!(server.get(route).await.text(), "hello");
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["hook: TIMEOUT, Flushed"]);
        assert!(server.journal.lines().contains(&"continuation_dropped/2".to_owned()));
        assert_eq!(server.epilogue.stuck(), 1);
        let epilogue = server.epilogue.clone();
        // For a drain it is over too, as it has a thread by now.
        begun.recv().unwrap();
        assert!(server.stop().await.is_clean());
        release.send(()).unwrap();
        notes.seen("thread ended").await;
        let lines = logs.with(route);
        assert!(lines.iter().any(|line| line.contains("stuck")), "{lines:#?}");
        // The count goes down right after that note.
        crate::support::soon("the thread is no longer counted", async {
            while epilogue.stuck() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn blocking_work_within_the_limit_is_not_stuck() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || Continuation::blocking(move || theirs.add("continuation"));
    let layers = (TimeLimitLayer::default(), ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(Router::new().route("/", get(handler)).layer(layers)).await;
    assert_eq!(server.get("/").await.status, 200);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"]);
    assert_eq!(server.epilogue.stuck(), 0);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn work_is_dropped_at_its_next_await_and_not_before() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let _dropped = theirs.on_drop("dropped");
        lifecycle.set_time_limit(SHORT);
        burn(SHORT * 2);
        theirs.add("past the limit");
        gate.passed().await;
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.status, 503);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["past the limit", "dropped", "hook: TIMEOUT, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// Also where that is over at once, and nobody has looked at the clock since the limit passed.
#[tokio::test(start_paused = true)]
async fn work_that_ran_past_the_limit_is_dropped_at_its_first_await_though_it_waits_for_nothing() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        // A poll that takes so long: the clock has moved when that waits, which is not for anything.
        let _ = tokio::time::advance(2 * SECOND).now_or_never();
        theirs.add("past the limit");
        tokio::task::yield_now().await;
        theirs.add("behind its first await");
    };
    let layers = (TimeLimitLayer::new(SECOND), ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(layers));
    assert_eq!(server.get("/").await.status, 503);
    server.ended(1).await;
    assert_eq!(notes.all(), ["past the limit", "hook: TIMEOUT, Flushed"]);
}

/// A thread counts as one long poll, and the limit that it sets itself is the one that holds.
#[tokio::test]
async fn blocking_work_can_lift_and_restart_its_limit_on_the_busy_clock() {
    for (before, set, outlasts) in
        [(SECOND, Duration::ZERO, SECOND + SECOND / 5), (3600 * SECOND, SHORT, Duration::ZERO)]
    {
        let (notes, (done, waits)) = (Notes::default(), std::sync::mpsc::channel::<()>());
        let waits = std::sync::Arc::new(std::sync::Mutex::new(waits));
        let handler = async move |lifecycle: Lifecycle| {
            let runtime = tokio::runtime::Handle::current();
            let work = Continuation::blocking(move || {
                // The runtime's only thread has another task's turn: so the poll that began to time this one is over.
                let (tells, told) = std::sync::mpsc::channel();
                runtime.spawn(async move { tells.send(()) });
                told.recv().unwrap();
                lifecycle.set_time_limit(set);
                if outlasts.is_zero() {
                    // Until it was given up.
                    let _ = waits.lock().unwrap().recv();
                } else {
                    // The work: longer than the limit that was lifted.
                    std::thread::sleep(outlasts);
                }
            });
            (work, "hello")
        };
        let layers = (TimeLimitLayer::busy(before), ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(Router::new().route("/", get(handler)).layer(layers)).await;
        assert_eq!(server.get("/").await.text(), "hello");
        server.journal.ended(1).await;
        drop(done);
        let status = if set.is_zero() { "NORMAL" } else { "TIMEOUT" };
        assert_eq!(notes.all(), [format!("hook: {status}, Flushed")]);
    }
}

/// The request waited in a middleware, before a limit was set that had passed by then.
#[tokio::test(start_paused = true)]
async fn a_handler_that_begins_late_is_not_reported_as_stuck() {
    let logs = logs();
    let app = Router::new().route("/begins-late", get(async || "hello")).layer(TimeLimitLayer::new(SHORT)).layer(
        axum::middleware::from_fn(async |request: Request, next: axum::middleware::Next| {
            tokio::time::sleep(2 * SHORT).await;
            next.run(request).await
        }),
    );
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/begins-late").await.text(), "hello");
    server.ended(1).await;
    let lines = logs.with("begins-late");
    assert!(!lines.iter().any(|line| line.contains("stuck")), "{lines:#?}");
}
