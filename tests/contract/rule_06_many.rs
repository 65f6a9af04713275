//! The limits of many requests, which have one timer: each is exact all the same.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future as _, pending, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use axum::{Router, extract::Path, extract::Request, response::Response, routing::get};
use futures_util::future::join_all;
use http::StatusCode;
use tokio::{runtime, time::Instant};
use tower::{Layer as _, Service as _, ServiceExt, service_fn};
use tower_epilogue::{Epilogue, IgnoreAbortLayer, Lifecycle, TimeLimitLayer, TrackedIo};

use crate::{
    common::SECOND,
    support::{Gate, soon},
};

fn ask(path: &str) -> Request {
    Request::get(path).body(axum::body::Body::empty()).unwrap()
}

/// Before and behind its own, others are set, moved, lifted, passed, and no longer wanted.
#[tokio::test(start_paused = true)]
async fn each_has_its_own_limit_to_the_millisecond_whatever_those_of_others_are() {
    let handler = async |Path((how, millis)): Path<(String, u64)>, lifecycle: Lifecycle| {
        let limit = Duration::from_millis(millis);
        match how.as_str() {
            // What is longer, shorter, or none, before the one that counts.
            "shortened" => lifecycle.set_time_limit(1000 * limit),
            "lengthened" => lifecycle.set_time_limit(limit / 2),
            _ => lifecycle.set_time_limit(limit),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        match how.as_str() {
            "lifted" => {
                lifecycle.set_time_limit(Duration::ZERO);
                tokio::time::sleep(2 * limit).await;
            }
            "in time" => tokio::time::sleep(limit / 2).await,
            _ => {
                lifecycle.set_time_limit(limit);
                pending::<()>().await;
            }
        }
    };
    let app = Router::new().route("/{how}/{millis}", get(handler)).layer(TimeLimitLayer::new(3600 * SECOND));
    let hows = ["set", "shortened", "lengthened", "lifted", "in%20time"];
    let asked = (0_u64..1000).map(|number| {
        let (how, millis) = (hows[usize::try_from(number % 5).unwrap()], 4100 - (number * 7919) % 4000);
        let answer = app.clone().oneshot(ask(&format!("/{how}/{millis}")));
        async move {
            let began = Instant::now();
            let status = answer.await.unwrap().status();
            (how, Duration::from_millis(millis), status, began.elapsed())
        }
    });
    for (how, limit, status, took) in soon("all of them end", join_all(asked)).await {
        let (expected, ends) = match how {
            "lifted" => (StatusCode::OK, 2 * limit),
            "in%20time" => (StatusCode::OK, limit / 2),
            _ => (StatusCode::SERVICE_UNAVAILABLE, limit),
        };
        let late = took.checked_sub(ends + Duration::from_millis(1));
        assert_eq!(status, expected, "{how}, {limit:?}");
        assert!(late.is_some_and(|late| late <= Duration::from_millis(2)), "{how}, {limit:?}: after {took:?}");
    }
}

/// As with a runtime for each thread, or with one after the other.
#[test]
fn the_limit_of_a_request_passes_in_its_own_runtime_whichever_other_ends() {
    let app = Router::new().route("/", get(pending::<()>)).layer(TimeLimitLayer::new(SECOND / 4));
    let hours = Router::new().route("/", get(pending::<()>)).layer(TimeLimitLayer::new(3600 * SECOND));
    let build = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for same_thread in [false, true] {
        let other = build();
        other.block_on(async {
            tokio::spawn(hours.clone().oneshot(ask("/")));
            tokio::spawn(app.clone().oneshot(ask("/")));
            tokio::task::yield_now().await;
        });
        let (app, hours) = (app.clone(), hours.clone());
        let (began, has_begun) = mpsc::channel();
        let (ended, has_ended) = mpsc::channel();
        let asks = move |meanwhile: &dyn Fn()| {
            build().block_on(async {
                tokio::spawn(hours.oneshot(ask("/")));
                let mut answer = Box::pin(app.oneshot(ask("/")));
                assert!(futures_util::poll!(answer.as_mut()).is_pending());
                began.send(()).unwrap();
                meanwhile();
                has_ended.recv().unwrap();
                soon("the limit passes", answer).await.unwrap().status()
            })
        };
        let ends = move || {
            has_begun.recv().unwrap();
            other.shutdown_background();
            ended.send(()).unwrap();
        };
        let status = if same_thread {
            let ends = Cell::new(Some(ends));
            asks(&|| ends.take().unwrap()())
        } else {
            let thread = std::thread::spawn(move || asks(&|| {}));
            ends();
            thread.join().unwrap()
        };
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "on the same thread: {same_thread}");
    }
}

/// The other stands still, and has a request of its own.
#[test]
fn the_limit_of_a_request_passes_in_the_runtime_of_its_connection_whichever_its_thread_was_in_before() {
    let epilogue = Epilogue::new();
    let app = Router::new().route("/", get(pending::<()>)).layer(TimeLimitLayer::new(SECOND / 20));
    let runtimes = [(); 2].map(|()| runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let [_stands_still, asked] = runtimes.each_ref().map(|runtime| {
        runtime.block_on(async {
            let io = TrackedIo::new(tokio::io::empty());
            let mut answer = Box::pin(epilogue.wrap(&io, app.clone()).call(ask("/")));
            assert!(futures_util::poll!(answer.as_mut()).is_pending());
            (answer, io)
        })
    });
    let response = runtimes[1].block_on(soon("the limit passes", asked.0)).unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// Its layers stand alone: nobody has told them which runtime that is.
#[tokio::test]
async fn a_limit_that_another_runtime_sets_passes_when_that_has_ended() {
    let (sender, handles) = mpsc::channel();
    let gate = Gate::closed();
    let opens = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send(lifecycle).unwrap();
        opens.passed().await;
    };
    let app: Router = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let thread = std::thread::spawn(move || {
        let lifecycle = handles.recv().unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { lifecycle.set_time_limit(Duration::from_millis(50)) });
    });
    let response = soon("the limit passes", app.oneshot(ask("/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    thread.join().unwrap();
}

/// As with a worker of `tower::buffer`: that runtime may have no timers, stand still, or be gone.
#[test]
fn a_limit_passes_in_the_runtime_that_polls_whichever_made_the_future() {
    let build = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (made_in, is_gone) in
        [(runtime::Builder::new_current_thread().build().unwrap(), false), (build(), false), (build(), true)]
    {
        // A router would call it at the first poll.
        let service = service_fn(|_: Request| pending::<Result<Response, Infallible>>());
        let asked = {
            let _entered = made_in.enter();
            TimeLimitLayer::new(SECOND / 20).layer(service).call(ask("/"))
        };
        let made_in = (!is_gone).then_some(made_in);
        let status = build().block_on(soon("the limit passes", asked)).unwrap().status();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        drop(made_in);
    }
}

/// Its layers stand alone, and its response is not read.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_when_nobody_polls_passes_all_the_same() {
    let layers = [TimeLimitLayer::off(), TimeLimitLayer::new(3600 * SECOND)];
    for (layer, by_handler) in layers.into_iter().flat_map(|layer| [(layer, false), (layer, true)]) {
        let (sender, handles) = mpsc::channel();
        let handler = async move |lifecycle: Lifecycle| {
            if by_handler {
                lifecycle.set_time_limit(SECOND);
            }
            sender.send(lifecycle).unwrap();
            axum::body::Body::from_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>())
        };
        let response = Router::new().route("/", get(handler)).layer(layer).oneshot(ask("/")).await.unwrap();
        let lifecycle = handles.recv().unwrap();
        if !by_handler {
            let handle = lifecycle.clone();
            tokio::spawn(async move { handle.set_time_limit(SECOND) }).await.unwrap();
        }
        assert!(!lifecycle.status().is_timeout());
        tokio::time::sleep(SECOND + Duration::from_millis(2)).await;
        assert!(lifecycle.status().is_timeout(), "{layer:?}, by the handler: {by_handler}");
        drop(response);
    }
}

#[tokio::test(start_paused = true)]
async fn setting_the_limit_in_each_poll_wakes_nobody_without_end() {
    let long = 3600 * SECOND;
    let cases = [
        (TimeLimitLayer::busy(long), long),
        (TimeLimitLayer::off(), Duration::ZERO),
        (TimeLimitLayer::off(), long),
        (TimeLimitLayer::new(long), long),
    ];
    for (layer, limit) in cases {
        let polls = Arc::new(AtomicUsize::new(0));
        let counts = polls.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let mut sleep = Box::pin(tokio::time::sleep(SECOND));
            poll_fn(|cx| {
                counts.fetch_add(1, Ordering::Relaxed);
                lifecycle.set_time_limit(limit);
                sleep.as_mut().poll(cx)
            })
            .await;
        };
        let app = Router::new().route("/", get(handler)).layer(layer);
        assert_eq!(app.oneshot(ask("/")).await.unwrap().status(), StatusCode::OK);
        assert!(polls.load(Ordering::Relaxed) < 10, "{layer:?}, {limit:?}: {polls:?} polls");
    }
}

/// What the thread knew of runtimes is gone by then.
#[test]
fn a_runtime_in_a_thread_local_variable_ends_with_its_thread() {
    thread_local! {
        static RUNTIME: runtime::Runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    let thread = std::thread::spawn(|| {
        let app = Router::new().route("/", get(tokio::task::yield_now)).layer(TimeLimitLayer::new(3600 * SECOND));
        RUNTIME.with(|runtime| runtime.block_on(app.oneshot(ask("/")))).unwrap()
    });
    // Its limit is waited for until it has been read.
    let response = thread.join().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
