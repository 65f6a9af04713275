//! A retry of what a handler has given to `finish`: the rest of that attempt is still the request's.

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use tower::retry::RetryLayer;
use tower_epilogue::{EpilogueBuilder, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    common::SECOND,
    routes::{hook, waits_for_a_limit, work},
    stacks::Again,
    support::{Gate, Notes, Server, h2client::Http2},
};

/// Its first attempt finishes with an error, and goes on to the gate, behind which it may set a limit and wait for that; its
/// second one answers at once.
async fn server(
    notes: &Notes,
    gate: &Gate,
    limits: bool,
    setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
) -> Server {
    let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| -> Response {
        if asked.fetch_add(1, Ordering::SeqCst) > 0 {
            return (work(&theirs, "second"), "second").into_response();
        }
        let dropped = theirs.on_drop("first is over");
        let sent = lifecycle.finish(StatusCode::BAD_GATEWAY).await.unwrap();
        theirs.add(format!("first: {sent:?}"));
        opens.passed().await;
        if limits {
            waits_for_a_limit(&lifecycle).await;
        }
        drop(dropped);
        work(&theirs, "first").into_response()
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND));
    Server::with(app.layer(RetryLayer::new(Again(1))).layer(hook(notes)), setup).await
}

async fn asked(server: &Server, http2: bool) -> String {
    match http2 {
        true => String::from_utf8(Http2::connect(server.address).await.get("/").await.unwrap().body).unwrap(),
        false => server.get("/").await.text(),
    }
}

#[tokio::test]
async fn hooks_wait_for_the_rest_of_an_attempt_that_finished() {
    for http2 in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = server(&notes, &gate, false, |builder| builder).await;
        assert_eq!(asked(&server, http2).await, "second");
        notes.seen("first: Flushed").await;
        notes.seen("work: second").await;
        gate.open();
        server.journal.ended(1).await;
        let mut all = notes.all();
        // Beside each other.
        all[..2].sort_unstable();
        let last = ["first is over", "work: first", "hook: GET / NORMAL Flushed"];
        assert_eq!(all, [&["first: Flushed", "work: second"][..], &last].concat(), "http2: {http2}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_limit_ends_the_rest_of_an_attempt_that_finished() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let server = server(&notes, &gate, true, |builder| builder).await;
    assert_eq!(asked(&server, false).await, "second");
    notes.count(2).await;
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[2..], ["first is over", "hook: GET / TIMEOUT Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_drain_names_and_cuts_the_rest_of_an_attempt_that_finished() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let setup = |builder: EpilogueBuilder| builder.drain_deadline(Duration::from_millis(30));
    let server = server(&notes, &gate, false, setup).await;
    assert_eq!(asked(&server, true).await, "second");
    notes.seen("work: second").await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(notes.all()[2..], ["first is over", "hook: GET / TIMEOUT Flushed"]);
}

/// Both attempts wait: the first at its gate, when it has finished, and the second at its own. Behind that it may set a limit.
async fn both_wait(notes: &Notes, gates: &[Gate; 2], ignores: IgnoreAbortLayer, limits: bool) -> Server {
    let (theirs, gates, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        let _dropped = theirs.on_drop(["first is over", "second is over"][attempt]);
        if attempt == 0 {
            let begun = lifecycle.finish(StatusCode::BAD_GATEWAY);
            let _ = tokio::time::timeout(Duration::ZERO, begun).await;
        }
        theirs.add(["first", "second"][attempt]);
        gates[attempt].passed().await;
        if limits {
            waits_for_a_limit(&lifecycle).await;
        }
    };
    let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(60 * SECOND), ignores));
    Server::start(app.layer(RetryLayer::new(Again(1))).layer(hook(notes))).await
}

/// One of them is in service, or both are in tasks of their own.
#[tokio::test]
async fn the_limit_ends_both_attempts() {
    for leaves in [false, true] {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = both_wait(&notes, &gates, IgnoreAbortLayer::new(), true).await;
        let mut client = Http2::connect(server.address).await;
        let response = client.start("GET", "/").await;
        notes.seen("first").await;
        notes.seen("second").await;
        if leaves {
            drop(response);
            server.journal.seen("aborted").await;
            gates[1].open();
        } else {
            gates[1].open();
            assert_eq!(response.await.unwrap().status(), 503);
        }
        server.journal.ended(1).await;
        let last = if leaves { "hook: GET / ABORTED | TIMEOUT Aborted" } else { "hook: GET / TIMEOUT Flushed" };
        let all = notes.all();
        assert_eq!((all.len(), all.last().unwrap().as_str()), (5, last), "{all:?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_end_of_the_first_attempt_is_not_that_of_the_second() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let server = both_wait(&notes, &gates, IgnoreAbortLayer::new(), false).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("first").await;
    notes.seen("second").await;
    gates[0].open();
    notes.seen("first is over").await;
    drop(response);
    server.journal.seen("aborted").await;
    gates[1].open();
    server.journal.ended(1).await;
    assert_eq!(notes.all()[2..], ["first is over", "second is over", "hook: GET / ABORTED Aborted"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// What the first attempt has finished does not keep the second one from being ended, whether it still goes on or not.
#[tokio::test]
async fn an_abort_that_is_not_ignored_ends_the_attempt_that_has_not_finished() {
    for (first_is_over, half_closes) in [(false, false), (false, true), (true, false), (true, true)] {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = both_wait(&notes, &gates, IgnoreAbortLayer::off(), false).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("first").await;
        notes.seen("second").await;
        let mut ends = ["second is over", "first is over"];
        if first_is_over {
            ends.reverse();
            gates[0].open();
            notes.seen("first is over").await;
        }
        if half_closes {
            client.half_close().await;
        } else {
            client.close();
        }
        notes.seen("second is over").await;
        assert_eq!(notes.has("first is over"), first_is_over);
        gates[0].open();
        server.journal.ended(1).await;
        assert_eq!(notes.all()[2..], [ends[0], ends[1], "hook: GET / ABORTED Aborted"]);
        assert!(server.stop().await.is_clean());
    }
}

/// Not even once, in a task of its own, to see that it is to end.
#[tokio::test]
async fn an_attempt_that_an_abort_ends_goes_nowhere_else() {
    let (notes, asked) = (Notes::default(), Arc::new(AtomicUsize::new(0)));
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            let begun = lifecycle.finish(StatusCode::BAD_GATEWAY);
            let _ = tokio::time::timeout(Duration::ZERO, begun).await;
            return;
        }
        let _dropped = theirs.on_drop("second is over");
        let here = tokio::task::id();
        theirs.add("second");
        poll_fn(|_| {
            if tokio::task::id() != here {
                theirs.add("polled elsewhere");
            }
            Poll::<()>::Pending
        })
        .await;
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND));
    let server = Server::start(app.layer(RetryLayer::new(Again(1))).layer(hook(&notes))).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("second").await;
    drop(response);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["second", "second is over", "hook: GET / ABORTED Aborted"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// It is the same attempt's: what the middleware has finished protects what it goes on with.
#[tokio::test]
async fn an_abort_does_not_end_a_handler_behind_the_finish_of_its_middleware() {
    for nested in [false, true] {
        for calls in [Calls::Inline, Calls::InATask, Calls::AndReturns] {
            behind_the_finish_of_its_middleware(calls, nested).await;
        }
    }
}

/// How a middleware runs what is inside of it.
#[derive(Clone, Copy)]
enum Calls {
    Inline,
    InATask,
    /// In a task which it does not wait for.
    AndReturns,
}

/// With one layer inside of it, or with one directly around another.
async fn behind_the_finish_of_its_middleware(calls: Calls, nested: bool) {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move || {
        let _dropped = theirs.on_drop("handler is over");
        theirs.add("handler");
        opens.passed().await;
        theirs.add("handler has ended");
    };
    let ack_first = move |lifecycle: Lifecycle, request: Request, next: Next| async move {
        let body = Body::from_stream(stream::once(async { Ok::<_, Infallible>("first") }).chain(stream::pending()));
        let _ = tokio::time::timeout(Duration::ZERO, lifecycle.finish(Response::new(body))).await;
        match calls {
            Calls::Inline => next.run(request).await,
            Calls::InATask => tokio::spawn(next.run(request)).await.unwrap(),
            Calls::AndReturns => {
                tokio::spawn(next.run(request));
                "nobody reads this".into_response()
            }
        }
    };
    let (route, limit) = (get(handler), TimeLimitLayer::new(60 * SECOND));
    let route = if nested { route.layer((limit, limit)) } else { route.layer(limit) };
    let app = Router::new().route("/", route).layer(from_fn(ack_first)).layer(IgnoreAbortLayer::off());
    let server = Server::start(app.layer(hook(&notes))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("first").await;
    notes.seen("handler").await;
    client.close();
    server.journal.seen("aborted").await;
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["handler", "handler has ended", "handler is over", "hook: GET / ABORTED Aborted"]);
    assert!(server.stop().await.is_clean());
}
