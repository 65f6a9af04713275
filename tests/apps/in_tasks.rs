//! Beside middleware that runs the handler, or an attempt, in a task of its own.

use std::{
    convert::Infallible,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{Route, get},
};
use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use http::StatusCode;
use tower::{Service, layer::layer_fn, retry::RetryLayer, service_fn};
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    beside::copy,
    common::{SECOND, SHORT},
    routes::{hook, waits_for_a_limit, work},
    stacks::Again,
    support::{Gate, Notes, Server, h2client::Http2},
};

/// When so many have begun, and the gate is open, it sets a limit, and waits for that.
async fn is_limited(lifecycle: Lifecycle, notes: &Notes, gate: &Gate, begun: usize) {
    let _dropped = notes.on_drop("handler is over");
    notes.add("handler");
    notes.count(begun).await;
    gate.passed().await;
    waits_for_a_limit(&lifecycle).await;
}

/// Calls what is inside twice, each in a task of its own, and answers when there are so many notes.
async fn in_two_tasks(notes: Notes, begun: usize, request: Request, next: Next) -> StatusCode {
    drop([tokio::spawn(next.clone().run(copy(&request))), tokio::spawn(next.run(request))]);
    notes.count(begun).await;
    StatusCode::ACCEPTED
}

/// Its middleware is polled all the time meanwhile. With one layer in the task, or with one directly around another.
#[tokio::test]
async fn the_limit_ends_a_handler_in_a_task() {
    for nested in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("handler is over");
            waits_for_a_limit(&lifecycle).await;
        };
        let ticks = from_fn(|request: Request, next: Next| async move {
            let mut task = tokio::spawn(next.run(request));
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            loop {
                tokio::select! {
                    response = &mut task => return response.unwrap(),
                    _ = tick.tick() => {}
                }
            }
        });
        let (app, limit) = (Router::new().route("/", get(handler)), TimeLimitLayer::new(60 * SECOND));
        let app = if nested { app.layer((limit, IgnoreAbortLayer::new())) } else { app.layer(limit) };
        let server = Server::start(app.layer(ticks).layer(hook(&notes))).await;
        assert_eq!(server.get("/").await.status, 503);
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["handler is over", "hook: GET / TIMEOUT Flushed"], "{nested}");
        assert!(server.stop().await.is_clean());
    }
}

/// Whether the middleware waits for them, or has answered.
#[tokio::test]
async fn the_limit_ends_each_of_two_in_tasks() {
    for waits in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| is_limited(lifecycle, &theirs, &opens, 2).await;
        let theirs = notes.clone();
        let both = from_fn(move |request: Request, next: Next| {
            let notes = theirs.clone();
            async move {
                let first = tokio::spawn(next.clone().run(copy(&request)));
                notes.count(1).await;
                let second = tokio::spawn(next.run(request));
                notes.count(2).await;
                if waits {
                    let _ = tokio::join!(first, second);
                }
                StatusCode::ACCEPTED
            }
        });
        let limit = TimeLimitLayer::new(60 * SECOND);
        let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new()).layer(limit).layer(both);
        let server = Server::start(app.layer(hook(&notes))).await;
        if waits {
            gate.open();
        }
        assert_eq!(server.get("/").await.status, if waits { 503 } else { 202 });
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(notes.all()[2..], ["handler is over", "handler is over", "hook: GET / TIMEOUT Flushed"]);
        assert!(server.stop().await.is_clean());
    }
}

/// The first attempt has ended in a task; the second, in the middleware's own future, is the handler all the same.
async fn second_inline(notes: &Notes, gate: &Gate) -> Server {
    let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| -> Response {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        let _dropped = theirs.on_drop("second is over");
        theirs.add("second");
        opens.passed().await;
        if !lifecycle.is_aborted() {
            let sent = lifecycle.finish("second").await;
            theirs.add(format!("second: {sent:?}"));
        }
        work(&theirs, "second").into_response()
    };
    let twice = from_fn(|request: Request, next: Next| async move {
        let first = tokio::spawn(next.clone().run(copy(&request))).await.unwrap();
        if first.status().is_success() { first } else { next.run(request).await }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(twice);
    Server::start(app.layer((hook(notes), IgnoreAbortLayer::new()))).await
}

#[tokio::test]
async fn an_attempt_behind_one_in_a_task_may_finish() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = second_inline(&notes, &gate).await;
    gate.open();
    assert_eq!(server.get("/").await.text(), "second");
    server.journal.ended(1).await;
    let rest = ["second: Ok(Flushed)", "second is over", "work: second", "hook: GET / NORMAL Flushed"];
    assert_eq!(notes.all()[1..], rest);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn an_attempt_behind_one_in_a_task_goes_on_without_its_client() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = second_inline(&notes, &gate).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("second").await;
    drop(response);
    server.journal.seen("aborted").await;
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[1..], ["second is over", "work: second", "hook: GET / ABORTED Aborted"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// From a task of its own: the abort that comes later does not end it.
#[tokio::test]
async fn what_goes_on_without_its_client_may_finish_from_a_task() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let shield = lifecycle.shield();
        theirs.add("shielded");
        opens.passed().await;
        let finishes = lifecycle.clone();
        let sent = tokio::spawn(async move { finishes.finish("nobody reads this").await });
        theirs.add(format!("{:?}", sent.await.unwrap()));
        drop(shield);
        tokio::task::yield_now().await;
        theirs.add("rest");
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND));
    let server = Server::start(app.layer(hook(&notes))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("shielded").await;
    drop(response);
    server.journal.seen("aborted").await;
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[1..], ["Ok(Aborted)", "rest", "hook: GET / ABORTED Aborted"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// Two attempts at once, each of which is woken by itself: a task of the first one finishes when the second is over. With one
/// layer in each, or two.
#[tokio::test]
async fn a_task_of_the_first_of_two_may_finish() {
    for two_layers in [false, true] {
        a_task_of_the_first_finishes(two_layers).await;
    }
}

async fn a_task_of_the_first_finishes(two_layers: bool) {
    let (notes, asked) = (Notes::default(), Arc::new(AtomicUsize::new(0)));
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| -> Response {
        if asked.fetch_add(1, Ordering::SeqCst) == 1 {
            let _dropped = theirs.on_drop("second is over");
            // It waits, and so is the last that is to be woken.
            tokio::task::yield_now().await;
            return StatusCode::BAD_GATEWAY.into_response();
        }
        let notes = theirs.clone();
        let finishes = async move {
            notes.seen("second is over").await;
            lifecycle.finish("first").await
        };
        let sent = tokio::spawn(finishes).await.unwrap();
        theirs.add(format!("first: {sent:?}"));
        "rest".into_response()
    };
    let both = from_fn(|request: Request, next: Next| async move {
        let mut attempts = FuturesUnordered::from_iter([next.clone().run(copy(&request)), next.run(request)]);
        let mut last = StatusCode::NOT_FOUND.into_response();
        while let Some(response) = attempts.next().await {
            last = response;
        }
        last
    });
    let route = if two_layers { get(handler).layer(IgnoreAbortLayer::off()) } else { get(handler) };
    let app = Router::new().route("/", route).layer(TimeLimitLayer::new(60 * SECOND)).layer(both);
    let server = Server::start(app.layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.text(), "first");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["second is over", "first: Ok(Flushed)", "hook: GET / NORMAL Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// What has begun inside of a middleware that goes on without its client, which then puts it into a task, and returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn hooks_wait_for_what_was_moved_out_of_what_goes_on_alone() {
    for limited in [false, true] {
        what_was_moved_out_of_what_goes_on_alone(limited).await;
    }
}

async fn what_was_moved_out_of_what_goes_on_alone(limited: bool) {
    let (notes, gate, ends) = (Notes::default(), Gate::closed(), Gate::closed());
    let (theirs, opens, may_end) = (notes.clone(), gate.clone(), ends.clone());
    let handler = async move |lifecycle: Lifecycle| {
        if limited {
            return is_limited(lifecycle, &theirs, &opens, 0).await;
        }
        let _dropped = theirs.on_drop("handler is over");
        theirs.add("handler");
        may_end.passed().await;
    };
    let (theirs, opens) = (notes.clone(), gate.clone());
    let moves = from_fn(move |request: Request, next: Next| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        async move {
            notes.add("begun");
            gate.passed().await;
            let mut handler = Box::pin(next.run(request));
            assert!(futures_util::poll!(&mut handler).is_pending());
            tokio::spawn(handler);
            StatusCode::ACCEPTED
        }
    });
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new()).layer(moves);
    let app = app.layer((hook(&notes), TimeLimitLayer::new(60 * SECOND), IgnoreAbortLayer::new()));
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("begun").await;
    drop(response);
    server.journal.seen("aborted").await;
    gate.open();
    notes.seen("handler").await;
    // Hooks that do not wait have the time to run.
    tokio::time::sleep(SHORT).await;
    ends.open();
    server.journal.ended(1).await;
    let status = if limited { "ABORTED | TIMEOUT" } else { "ABORTED" };
    assert_eq!(notes.all()[1..], ["handler", "handler is over", &format!("hook: GET / {status} Aborted")]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// In each of two tasks, whose first attempts have failed.
#[tokio::test]
async fn the_limit_ends_what_is_tried_again_in_tasks() {
    let (notes, gate, asked) = (Notes::default(), Gate::closed(), Arc::new(AtomicUsize::new(0)));
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| -> Response {
        if asked.fetch_add(1, Ordering::SeqCst) < 2 {
            theirs.add("handler");
            theirs.count(2).await;
            return StatusCode::BAD_GATEWAY.into_response();
        }
        is_limited(lifecycle, &theirs, &opens, 4).await;
        "nobody reads this".into_response()
    };
    let theirs = notes.clone();
    let both = from_fn(move |request: Request, next: Next| in_two_tasks(theirs.clone(), 4, request, next));
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new()).layer(RetryLayer::new(Again(1)));
    let server = Server::start(app.layer(TimeLimitLayer::new(60 * SECOND)).layer(both).layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.status, 202);
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[4..], ["handler is over", "handler is over", "hook: GET / TIMEOUT Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// Its body is watched once.
#[tokio::test]
async fn a_stream_from_a_task_is_one() {
    let notes = Notes::default();
    let handler = async || Body::from_stream(stream::iter(["a", "b"].map(Ok::<_, Infallible>)));
    let spawns = from_fn(|request: Request, next: Next| async { tokio::spawn(next.run(request)).await.unwrap() });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(spawns);
    let server = Server::start(app.layer(hook(&notes))).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/").await.unwrap().body, b"ab");
    server.journal.ended(1).await;
    let ends = server.journal.lines().into_iter().filter(|line| line.starts_with("body_end")).count();
    assert_eq!((ends, notes.all()), (1, vec!["hook: GET / NORMAL Flushed".to_owned()]));
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// In the same moment, on two threads: each has a layer of ours around what they call.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_limit_ends_each_of_two_that_begin_at_once() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| is_limited(lifecycle, &theirs, &opens, 2).await;
    let meet = Arc::new(Barrier::new(2));
    let meets = layer_fn(move |inner: Route| {
        let meet = meet.clone();
        service_fn(move |request: Request| {
            tokio::task::block_in_place(|| meet.wait());
            inner.clone().call(request)
        })
    });
    let theirs = notes.clone();
    let both = from_fn(move |request: Request, next: Next| in_two_tasks(theirs.clone(), 2, request, next));
    let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(60 * SECOND), meets)).layer(both);
    let server = Server::start(app.layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.status, 202);
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[2..], ["handler is over", "handler is over", "hook: GET / TIMEOUT Flushed"]);
    assert!(server.stop().await.is_clean());
}
