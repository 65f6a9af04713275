//! Abort, ignored: handler and body producer run on to their end, their output going nowhere; the status is
//! readable and awaitable meanwhile. A guard ignores aborts while it lives.

use std::future::pending;

use axum::{
    Router,
    routing::{MethodRouter, get},
};
use futures_util::FutureExt;
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{Asked, Leave, Left, held_back, told},
    support::{Gate, Notes, Server},
};

/// An app with one route, whose hook notes what it is told.
fn app(notes: &Notes, route: MethodRouter) -> Router {
    Router::new().route("/", route).layer(ShutdownHookLayer::new(told(notes)))
}

/// A client that asks and, once the app has noted `when`, leaves; then `gate` is opened.
async fn asked_and_left(app: Router, notes: &Notes, leave: Leave, when: &str, gate: &Gate) -> (Vec<String>, Left) {
    let server = Server::start(app).await;
    let client = Asked::get(&server, leave).await;
    notes.seen(when).await;
    let mut left = client.leave(leave).await;
    server.journal.seen("aborted").await;
    gate.open();
    server.journal.ended(1).await;
    if let Left::HalfClosed(client) = &mut left {
        // To its end, so that the server's drain need not wait for this client.
        let reply = client.reply().await;
        notes.add(format!("client: {}", reply.text()));
    }
    let lines = server.journal.lines();
    assert!(server.stop().await.is_clean());
    (lines, left)
}

#[tokio::test]
async fn the_handler_runs_on_to_its_end_and_can_read_and_await_the_status() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            assert!(lifecycle.ignores_abort() && !lifecycle.is_aborted());
            assert!(lifecycle.aborted().now_or_never().is_none());
            theirs.add("started");
            lifecycle.aborted().await;
            theirs.add(format!("aborted: {} {}", lifecycle.is_aborted(), lifecycle.status()));
            opens.passed().await;
            theirs.add("went on");
            "answer"
        };
        let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
        let (lines, _left) = asked_and_left(app, &notes, leave, "started", &gate).await;
        let all = notes.all();
        assert_eq!(all[..3], ["started", "aborted: true ABORTED", "went on"], "{leave:?}");
        assert!(all[3].starts_with("hook: ABORTED"), "{leave:?}: {all:?}");
        assert!(lines.contains(&"handler_end/1".to_owned()), "{leave:?}: {lines:?}");
    }
}

#[tokio::test]
async fn while_aborts_are_ignored_writing_goes_on_and_may_still_be_flushed_and_the_bit_stays() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move || {
        theirs.add("started");
        opens.passed().await;
        "answer"
    };
    let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
    let (lines, _left) = asked_and_left(app, &notes, Leave::HalfClose, "started", &gate).await;
    assert_eq!(notes.all(), ["started", "hook: ABORTED, Flushed", "client: answer"]);
    assert_eq!(lines[1..4], ["aborted/1", "handler_end/1", "flushed:6/1"]);
}

#[tokio::test]
async fn a_half_closed_client_gets_the_whole_of_a_streamed_body() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move || held_back(&theirs, &opens, "first", "second");
    let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
    let (lines, _left) = asked_and_left(app, &notes, Leave::HalfClose, "producing", &gate).await;
    let whole = "client: 5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n";
    assert_eq!(notes.all(), ["producing", "produced", "body dropped", "hook: ABORTED, Flushed", whole]);
    assert_eq!(lines[2..5], ["aborted/1", "body_end/1", "flushed:11/1"]);
}

#[tokio::test]
async fn the_producer_of_a_body_whose_reader_left_runs_to_its_end() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move || held_back(&theirs, &opens, "first", "second");
        let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
        let (lines, _left) = asked_and_left(app, &notes, leave, "producing", &gate).await;
        assert_eq!(notes.all()[..3], ["producing", "produced", "body dropped"], "{leave:?}");
        assert!(notes.all()[3].starts_with("hook: ABORTED"), "{leave:?}: {:?}", notes.all());
        assert_eq!(lines[2..4], ["aborted/1", "body_end/1"], "{leave:?}");
    }
}

/// It is polled by nobody but us, and to its end, whatever it gives.
#[tokio::test]
async fn a_handler_that_runs_on_gives_a_body_that_is_produced_too() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        gate.open();
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            theirs.add("started");
            lifecycle.aborted().await;
            held_back(&theirs, &opens, "first", "second")
        };
        let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
        let (lines, _left) = asked_and_left(app, &notes, leave, "started", &gate).await;
        assert_eq!(notes.all()[..4], ["started", "producing", "produced", "body dropped"], "{leave:?}");
        assert_eq!(lines.iter().filter(|line| *line == "body_end/1").count(), 1, "{leave:?}: {lines:?}");
    }
}

/// Nobody has asked for it.
#[tokio::test]
async fn the_body_of_a_handler_that_runs_on_for_a_head_is_not_produced() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    gate.open();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        theirs.add("started");
        lifecycle.aborted().await;
        held_back(&theirs, &gate, "first", "second")
    };
    let server = Server::start(app(&notes, get(handler)).layer(IgnoreAbortLayer::new())).await;
    let mut client = server.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    notes.seen("started").await;
    client.reset();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["started", "body dropped", "hook: ABORTED, Aborted"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_guard_ignores_aborts_while_it_lives_and_guards_nest() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("dropped");
            let outer = lifecycle.shield();
            let inner = lifecycle.shield();
            theirs.add("started");
            opens.passed().await;
            assert!(lifecycle.is_aborted());
            drop(inner);
            tokio::task::yield_now().await;
            theirs.add("still in the outer");
            assert!(lifecycle.ignores_abort());
            drop(outer);
            // Up to the next await it runs.
            theirs.add("out of both");
            assert!(!lifecycle.ignores_abort());
            pending::<()>().await;
        };
        let (lines, _left) = asked_and_left(app(&notes, get(handler)), &notes, leave, "started", &gate).await;
        let notes: Vec<_> = notes.all().into_iter().filter(|note| !note.starts_with("client")).collect();
        let all = ["started", "still in the outer", "out of both", "dropped", "hook: ABORTED, Aborted"];
        assert_eq!(notes, all, "{leave:?}");
        assert!(lines.contains(&"handler_dropped/1".to_owned()), "{leave:?}: {lines:?}");
    }
}

#[tokio::test]
async fn after_a_guard_an_abort_is_not_ignored() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("dropped");
            drop(lifecycle.shield());
            theirs.add("started");
            pending::<()>().await;
        };
        asked_and_left(app(&notes, get(handler)), &notes, leave, "started", &gate).await;
        assert_eq!(notes.all()[..3], ["started", "dropped", "hook: ABORTED, Aborted"], "{leave:?}");
    }
}

#[tokio::test]
async fn a_guard_leaves_the_setting_alone() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        assert!(lifecycle.ignore_abort(true));
        let shield = lifecycle.shield();
        assert!(lifecycle.ignore_abort(false) && lifecycle.ignores_abort());
        drop(shield);
        assert!(!lifecycle.ignores_abort() && !lifecycle.ignore_abort(true));
        theirs.add("all true");
    };
    let server = Server::start(app(&notes, get(handler)).layer(IgnoreAbortLayer::new())).await;
    assert_eq!(server.get("/").await.status, 200);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["all true", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn turned_off_after_an_abort_the_work_ends_at_its_next_await() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("dropped");
            theirs.add("started");
            lifecycle.aborted().await;
            tokio::task::yield_now().await;
            theirs.add(format!("ignored before: {}", lifecycle.ignore_abort(false)));
            pending::<()>().await;
        };
        let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
        let (lines, _left) = asked_and_left(app, &notes, leave, "started", &gate).await;
        let expected = ["started", "ignored before: true", "dropped", "hook: ABORTED, Aborted"];
        assert_eq!(notes.all()[..4], expected, "{leave:?}");
        assert!(lines.contains(&"handler_dropped/1".to_owned()), "{leave:?}: {lines:?}");
    }
}

/// From another task, while the handler itself waits for something else.
#[tokio::test]
async fn turned_off_from_elsewhere_it_ends_a_handler_that_waits() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("dropped");
            let (elsewhere, opens) = (lifecycle.clone(), opens.clone());
            tokio::spawn(async move {
                opens.passed().await;
                elsewhere.ignore_abort(false);
            });
            theirs.add("started");
            pending::<()>().await;
        };
        let app = app(&notes, get(handler)).layer(IgnoreAbortLayer::new());
        asked_and_left(app, &notes, leave, "started", &gate).await;
        assert_eq!(notes.all()[..3], ["started", "dropped", "hook: ABORTED, Aborted"], "{leave:?}");
    }
}

#[tokio::test]
async fn a_guard_in_a_body_keeps_its_producer_running() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let shield = lifecycle.shield();
            let body = held_back(&theirs, &opens, "first", "second");
            axum::body::Body::from_stream(futures_util::StreamExt::map(body.into_data_stream(), move |frame| {
                let _held = &shield;
                frame
            }))
        };
        let (lines, _left) = asked_and_left(app(&notes, get(handler)), &notes, leave, "producing", &gate).await;
        assert_eq!(notes.all()[..3], ["producing", "produced", "body dropped"], "{leave:?}");
        assert_eq!(lines[2..4], ["aborted/1", "body_end/1"], "{leave:?}");
    }
}
