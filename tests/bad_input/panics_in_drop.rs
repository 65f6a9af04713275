//! Panics of destructors, where work is dropped: at an abort, at a limit, at a drain.

use std::{convert::Infallible, future::pending};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SHORT, told},
    support::{
        Gate, Notes, Server,
        h2client::{Http2, read},
        soon,
    },
};

/// Panics when it is dropped.
struct Bomb(Notes);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.add("dropped");
        if !std::thread::panicking() {
            panic!("the destructor panics, as this test wants it");
        }
    }
}

fn waits(gate: &Gate) -> Router {
    let gate = gate.clone();
    Router::new().route(
        "/waits",
        get(async move || {
            gate.passed().await;
            "waited"
        }),
    )
}

async fn handler(what: &str, notes: Notes, lifecycle: Lifecycle) -> Response {
    let bomb = Bomb(notes.clone());
    let waiting = async move {
        let _bomb = bomb;
        notes.add("here");
        pending::<()>().await;
    };
    match what {
        "handler" => {
            waiting.await;
            StatusCode::OK.into_response()
        }
        "body" => {
            let frames = futures_util::stream::once(async move {
                waiting.await;
                Ok::<_, Infallible>("never")
            });
            Body::from_stream(frames).into_response()
        }
        "continuation" => Continuation::new(waiting).into_response(),
        "hook" => {
            lifecycle.on_shutdown(async move |_| waiting.await).unwrap();
            "hello".into_response()
        }
        _ => panic!("no such place: {what}"),
    }
}

#[tokio::test]
async fn at_an_abort_it_costs_that_request_only() {
    for what in ["handler", "body"] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let app = Router::new()
            .route("/", get(move |lifecycle| handler(what, theirs.clone(), lifecycle)))
            .layer(ShutdownHookLayer::new(told(&notes)))
            .merge(waits(&gate));
        let server = Server::start(app).await;
        let mut client = Http2::connect(server.address).await;
        let other = client.start("GET", "/waits").await;
        let response = client.start("GET", "/").await;
        notes.seen("here").await;
        drop(response);
        notes.count(3).await;
        assert_eq!(notes.all(), ["here", "dropped", "hook: ABORTED, Aborted"], "{what}");
        gate.open();
        let other = soon("the other stream", async { read(other.await.unwrap()).await.unwrap() }).await;
        assert_eq!(other.body, b"waited");
        // On HTTP/1 the connection goes with its client; the request ends all the same.
        for leave in [Leave::Close, Leave::Reset, Leave::HalfClose] {
            let before = notes.all().len();
            let client = Asked::get(&server, leave).await;
            notes.count(before + 1).await;
            let _left = client.leave(leave).await;
            notes.count(before + 3).await;
            assert_eq!(notes.all()[before..], ["here", "dropped", "hook: ABORTED, Aborted"], "{what} {leave:?}");
        }
        server.journal.ended(5).await;
        assert!(server.stop().await.is_clean());
    }
}

/// It is what stands between our layers, and not the handler, that panics: its future holds ours.
#[tokio::test]
async fn of_a_middleware_between_our_layers_it_costs_that_request_only() {
    for leave in Leave::ALL {
        let notes = Notes::default();
        let (theirs, between) = (notes.clone(), notes.clone());
        let handler = async move || {
            theirs.add("here");
            pending::<()>().await;
        };
        let app = Router::new().route("/", get(handler)).layer((
            ShutdownHookLayer::new(told(&notes)),
            axum::middleware::from_fn(move |request: Request, next: Next| {
                let bomb = Bomb(between.clone());
                async move {
                    let _bomb = bomb;
                    next.run(request).await
                }
            }),
            IgnoreAbortLayer::off(),
        ));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("here").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["here", "dropped", "hook: ABORTED, Aborted"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn at_the_limit_it_costs_that_request_only() {
    for what in ["handler", "body", "continuation"] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let app = Router::new()
            .route("/", get(move |lifecycle| handler(what, theirs.clone(), lifecycle)))
            .layer((TimeLimitLayer::new(SHORT), ShutdownHookLayer::new(told(&notes))))
            .merge(waits(&gate));
        let server = Server::start(app).await;
        let mut client = Http2::connect(server.address).await;
        let other = client.start("GET", "/waits").await;
        let status = client.get("/").await.ok().map(|whole| whole.status);
        let (expected, sent) = match what {
            "handler" => (Some(503), "Flushed"),
            "body" => (None, "BrokenOff"),
            _ => (Some(200), "Flushed"),
        };
        assert_eq!(status, expected, "{what}");
        notes.count(3).await;
        assert_eq!(notes.all(), ["here".to_owned(), "dropped".into(), format!("hook: TIMEOUT, {sent}")], "{what}");
        gate.open();
        let other = soon("the other stream", async { read(other.await.unwrap()).await.unwrap() }).await;
        assert_eq!(other.body, b"waited");
        server.journal.ended(2).await;
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn of_a_hook_at_its_limit_the_next_hook_runs() {
    let notes = Notes::default();
    let (theirs, second) = (notes.clone(), notes.clone());
    let app = Router::new().route(
        "/",
        get(async move |lifecycle: Lifecycle| {
            let response = handler("hook", theirs.clone(), lifecycle.clone()).await;
            let second = second.clone();
            lifecycle.on_shutdown(async move |_| second.add("second")).unwrap();
            response
        }),
    );
    let server = Server::with(app, |builder| builder.hook_limit(SHORT)).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["here", "dropped", "second"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn at_a_drains_deadline_it_costs_that_request_only() {
    for what in ["handler", "body", "continuation", "hook"] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let app = Router::new().route("/", get(move |lifecycle| handler(what, theirs.clone(), lifecycle)));
        let server = Server::with(app, |builder| builder.drain_deadline(SHORT).hook_limit(SHORT * 4)).await;
        let client = Asked::get(&server, Leave::Close).await;
        notes.seen("here").await;
        let journal = server.journal.clone();
        assert_eq!(server.stop().await.stragglers().len(), 1, "{what}");
        assert_eq!(notes.all(), ["here", "dropped"], "{what}");
        assert!(journal.lines().last().unwrap().starts_with("ended/"), "{what}: {:?}", journal.lines());
        drop(client);
    }
}

/// A hook or a continuation that never ran is dropped too.
#[tokio::test]
async fn of_what_never_ran_it_costs_nothing() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| std::ops::ControlFlow::Break(())).unwrap();
        let bomb = Bomb(theirs.clone());
        lifecycle
            .on_shutdown(async move |_| {
                let _bomb = bomb;
            })
            .unwrap();
        let bomb = Bomb(theirs.clone());
        drop(Continuation::new(async move {
            let _bomb = bomb;
        }));
        lifecycle.finish("finished").await.unwrap();
        let bomb = Bomb(theirs.clone());
        let refused = Body::from_stream(futures_util::stream::once(async move {
            let _bomb = bomb;
            Ok::<_, Infallible>("never")
        }));
        assert!(lifecycle.finish(refused).await.unwrap_err().is_finished_twice());
        theirs.add("rest");
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["dropped", "dropped", "rest", "dropped"]);
    assert!(server.stop().await.is_clean());
}
