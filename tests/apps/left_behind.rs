//! An attempt that a middleware gives up on when its client has left, which is ignored: it goes on by itself, and is still the
//! request's, whatever the next attempt comes to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tokio::sync::Notify;
use tower::retry::RetryLayer;
use tower_epilogue::{EpilogueBuilder, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    beside::{asks_and_leaves, copy, twice},
    common::SECOND,
    routes::{hook, work},
    stacks::Again,
    support::{Client, Gate, Notes, Server, h2client::Http2},
};

/// How the second attempt ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    Returns,
    /// With a limit that ends the first.
    Limits,
    Continues,
    Panics,
}

const ALL: [Second; 4] = [Second::Returns, Second::Limits, Second::Continues, Second::Panics];

struct LeftBehind {
    notes: Notes,
    gate: Gate,
    server: Server,
    client: Client,
}

impl LeftBehind {
    /// The first waits at its gate, and the second has been answered.
    async fn new(second: Second, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Self {
        let (notes, gate, over) = (Notes::default(), Gate::closed(), Arc::new(Notify::new()));
        let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
        let handler = async move |lifecycle: Lifecycle| -> Response {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                let dropped = theirs.on_drop("first is over");
                theirs.add("first");
                opens.passed().await;
                drop(dropped);
                return (work(&theirs, "first"), "first").into_response();
            }
            match second {
                Second::Returns => {}
                Second::Limits => lifecycle.set_time_limit(Duration::from_millis(50)),
                Second::Continues => return (work(&theirs, "second"), "second").into_response(),
                Second::Panics => panic!("as this test wants it"),
            }
            "second".into_response()
        };
        let gives_up = over.clone();
        let impatient = from_fn(move |request: Request, next: Next| {
            let over = gives_up.clone();
            async move {
                tokio::select! {
                    response = next.run(request) => response,
                    () = over.notified() => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
        });
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(impatient);
        let app = app.layer((hook(&notes), IgnoreAbortLayer::new(), RetryLayer::new(Again(1))));
        let server = Server::with(app, setup).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("first").await;
        client.half_close().await;
        server.journal.seen("aborted").await;
        over.notify_one();
        let status = if second == Second::Panics { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        assert_eq!(client.reply().await.status, status, "{second:?}");
        Self { notes, gate, server, client }
    }
}

#[tokio::test]
async fn its_request_ends_behind_it() {
    for second in ALL {
        let LeftBehind { notes, gate, server, client } = LeftBehind::new(second, |builder| builder).await;
        if second == Second::Limits {
            notes.seen("first is over").await;
        } else {
            if second == Second::Continues {
                notes.seen("work: second").await;
            }
            gate.open();
        }
        server.journal.ended(1).await;
        let middle = match second {
            Second::Limits => ["first is over"].as_slice(),
            Second::Continues => &["work: second", "first is over", "work: first"],
            Second::Returns | Second::Panics => &["first is over", "work: first"],
        };
        let status = if second == Second::Limits { "ABORTED | TIMEOUT" } else { "ABORTED" };
        let all = notes.all();
        let (last, rest) = all.split_last().unwrap();
        assert_eq!(rest, [&["first"], middle].concat(), "{second:?}");
        assert!(last.starts_with(&format!("hook: GET / {status} ")), "{second:?}: {last}");
        let ends = server.journal.lines().into_iter().filter(|line| line.starts_with("handler_"));
        let end = if second == Second::Limits { "handler_dropped" } else { "handler_end" };
        assert_eq!(
            ends.map(|line| line.split('/').next().unwrap().to_owned()).collect::<Vec<_>>(),
            ["handler_start", end]
        );
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_drain_names_and_cuts_it() {
    let setup = |builder: EpilogueBuilder| builder.drain_deadline(Duration::from_millis(30));
    let LeftBehind { notes, gate: _gate, server, client } = LeftBehind::new(Second::Returns, setup).await;
    drop(client);
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    let all = notes.all();
    assert_eq!(all[..2], ["first", "first is over"]);
    assert!(all[2].starts_with("hook: GET / ABORTED | TIMEOUT "), "{all:?}");
}

/// It no longer ignores the abort, when one of the two has finished: that is the end of the other.
#[tokio::test]
async fn what_one_finishes_keeps_no_abort_from_the_other() {
    for finishes in [0, 1] {
        let (notes, gates, over) = (Notes::default(), [Gate::closed(), Gate::closed()], Arc::new(Notify::new()));
        let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
        let handler = async move |lifecycle: Lifecycle| {
            let attempt = asked.fetch_add(1, Ordering::SeqCst);
            let _dropped = theirs.on_drop(["first is over", "second is over"][attempt]);
            let shield = (attempt == 0).then(|| lifecycle.shield());
            theirs.add(["first", "second"][attempt]);
            if attempt == finishes {
                opens[0].passed().await;
                let begun = tokio::time::timeout(Duration::ZERO, lifecycle.finish("early"));
                let _ = begun.await;
                theirs.add("finished");
            } else if attempt == 0 {
                theirs.seen("finished").await;
            }
            drop(shield);
            opens[1].passed().await;
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND));
        let server = Server::start(app.layer(from_fn(twice(&over))).layer(hook(&notes))).await;
        let client = asks_and_leaves(&server, &notes).await;
        over.notify_one();
        notes.seen("second").await;
        gates[0].open();
        let mut over = ["first is over", "second is over"];
        if finishes == 0 {
            over.reverse();
        }
        notes.seen(over[0]).await;
        gates[1].open();
        server.journal.ended(1).await;
        let all = notes.all();
        assert_eq!(all[2..5], ["finished", over[0], over[1]]);
        assert!(all[5].starts_with("hook: GET / ABORTED"), "{all:?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// It calls that with what the other one has given it.
#[tokio::test]
async fn the_finish_of_another_request_is_that_requests() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let (gives, given) = tokio::sync::oneshot::channel();
    let (gives, given) = (Arc::new(Mutex::new(Some(gives))), Arc::new(Mutex::new(Some(given))));
    let (theirs, opens) = (notes.clone(), gates[0].clone());
    let leader = async move || {
        theirs.add("leader");
        opens.passed().await;
        let given = given.lock().unwrap().take().unwrap();
        let follower: Lifecycle = given.await.unwrap();
        let sent = follower.finish("done").await;
        theirs.add(format!("leader: {sent:?}"));
    };
    let (theirs, opens) = (notes.clone(), gates[1].clone());
    let follower = async move |lifecycle: Lifecycle| {
        let gives = gives.lock().unwrap().take().unwrap();
        gives.send(lifecycle).unwrap();
        theirs.add("follower");
        opens.passed().await;
    };
    let app = Router::new().route("/leader", get(leader)).route("/follower", get(follower));
    let server = Server::start(app.layer(IgnoreAbortLayer::new())).await;
    let mut client = Http2::connect(server.address).await;
    drop(client.start("GET", "/leader").await);
    notes.seen("leader").await;
    server.journal.seen("aborted").await;
    let opens = async {
        notes.seen("follower").await;
        gates[0].open();
    };
    let (reply, ()) = tokio::join!(server.get("/follower"), opens);
    assert_eq!(reply.text(), "done");
    gates[1].open();
    server.journal.ended(2).await;
    assert_eq!(notes.all(), ["leader", "follower", "leader: Ok(Flushed)"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

/// Nobody waits for its answer: what a middleware around the handler gets is what that returns.
#[tokio::test]
async fn what_is_finished_does_not_go_back_through_its_middleware() {
    let (notes, gates, over) = (Notes::default(), [Gate::closed(), Gate::closed()], Arc::new(Notify::new()));
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let sent = tokio::time::timeout(Duration::ZERO, lifecycle.finish((StatusCode::CREATED, "early"))).await;
        theirs.add(format!("handler: {sent:?}"));
        StatusCode::ACCEPTED
    };
    let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let between = from_fn(move |request: Request, next: Next| {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        let (notes, gate) = (theirs.clone(), opens[attempt].clone());
        async move {
            notes.add(["first", "second"][attempt]);
            gate.passed().await;
            if attempt == 1 {
                return "second".into_response();
            }
            let response = next.run(request).await;
            notes.add(format!("middleware: {}", response.status()));
            response
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(between);
    let app = app.layer(TimeLimitLayer::new(60 * SECOND)).layer(from_fn(twice(&over)));
    let server = Server::start(app.layer((hook(&notes), IgnoreAbortLayer::new()))).await;
    let mut client = asks_and_leaves(&server, &notes).await;
    over.notify_one();
    notes.seen("second").await;
    gates[0].open();
    notes.seen("middleware: 202 Accepted").await;
    gates[1].open();
    assert_eq!(client.reply().await.text(), "second");
    server.journal.ended(1).await;
    assert_eq!(notes.all().len(), 5, "{:?}", notes.all());
    assert!(server.stop().await.is_clean());
}

/// The client is gone, and all of the handler is over, before its middleware has answered.
#[tokio::test]
async fn a_middleware_that_answers_last_keeps_no_hook_waiting() {
    let (notes, over, asked) = (Notes::default(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let gates = [Gate::closed(), Gate::closed(), Gate::closed()];
    let (theirs, opens) = (notes.clone(), gates.clone());
    let handler = async move |lifecycle: Lifecycle| -> Response {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        lifecycle.ignore_abort(true);
        theirs.add(["first", "second"][attempt]);
        opens[attempt].passed().await;
        if attempt == 0 {
            let mut finish = std::pin::pin!(lifecycle.finish("nobody reads this"));
            assert!(futures_util::poll!(&mut finish).is_pending());
            theirs.add("finished");
            theirs.add(format!("{:?}", finish.await));
            return work(&theirs, "first").into_response();
        }
        // That ends this attempt alone.
        lifecycle.ignore_abort(false);
        std::future::pending().await
    };
    let (theirs, opens, gives_up) = (notes.clone(), gates[2].clone(), over.clone());
    let impatient = from_fn(move |request: Request, next: Next| {
        let (notes, gate, over) = (theirs.clone(), opens.clone(), gives_up.clone());
        async move {
            tokio::select! {
                _ = next.clone().run(copy(&request)) => unreachable!("it waits"),
                () = over.notified() => {}
            }
            let response = next.run(request).await;
            notes.add("middleware");
            gate.passed().await;
            response
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(impatient);
    let server = Server::start(app.layer(hook(&notes))).await;
    let _client = asks_and_leaves(&server, &notes).await;
    over.notify_one();
    notes.seen("second").await;
    gates[0].open();
    notes.seen("finished").await;
    gates[1].open();
    notes.seen("middleware").await;
    notes.seen("work: first").await;
    gates[2].open();
    server.journal.ended(1).await;
    assert_eq!(notes.all().last().unwrap(), "hook: GET / ABORTED Aborted");
    assert!(server.stop().await.is_clean());
}
