//! A middleware inside of our innermost service has the response with its continuation and waits for something of its own,
//! as one that stores a session or reads a body does.

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::get,
};
use tower::Service;
use tower_epilogue::{Continuation, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SHORT, settled, told},
    support::{Gate, Notes, Server},
};

/// The middleware holds the response back until the gate is open.
fn app(notes: &Notes, gate: &Gate, work: &Gate) -> Router {
    let (theirs, works) = (notes.clone(), work.clone());
    let handler = async move || {
        let (notes, work) = (theirs.clone(), works.clone());
        let one = Continuation::new(async move {
            work.passed().await;
            notes.add("continuation");
        });
        let notes = theirs.clone();
        (one, Continuation::new(async move { notes.add("another") }), "hello")
    };
    let (holds, passes) = (notes.clone(), gate.clone());
    Router::new().route("/", get(handler)).layer(from_fn(move |request: Request, next: Next| {
        let (notes, gate) = (holds.clone(), passes.clone());
        async move {
            let response = next.run(request).await;
            notes.add("held");
            gate.passed().await;
            response
        }
    }))
}

#[tokio::test]
async fn its_continuation_belongs_to_the_request_when_the_client_leaves() {
    for leave in Leave::FOR_GOOD {
        for ours in [false, true] {
            let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
            let app = app(&notes, &gate, &work);
            let app = if ours { app.layer(IgnoreAbortLayer::off()) } else { app };
            let app = app.layer(ShutdownHookLayer::new(told(&notes)));
            let server = Server::start(app).await;
            let client = Asked::get(&server, leave).await;
            notes.seen("held").await;
            let left = client.leave(leave).await;
            server.journal.seen("continuation_start").await;
            work.open();
            server.journal.ended(1).await;
            assert_eq!(notes.all(), ["held", "continuation", "another", "hook: ABORTED, Aborted"], "{leave:?}");
            drop(left);
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn its_continuation_belongs_to_the_request_at_the_limit() {
    let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
    work.open();
    let layers = (TimeLimitLayer::new(SHORT), ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app(&notes, &gate, &work).layer(layers)).await;
    assert_eq!(server.get("/").await.status, 503);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["held", "continuation", "another", "hook: TIMEOUT, Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn its_continuation_comes_after_it_where_aborts_are_ignored() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
        work.open();
        let layers = (IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app(&notes, &gate, &work).layer(layers)).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("held").await;
        let left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        assert_eq!(notes.all(), ["held"], "{leave:?}");
        gate.open();
        server.journal.ended(1).await;
        let all = notes.all();
        assert_eq!(all[..3], ["held", "continuation", "another"], "{leave:?}");
        // What is written to one that has only closed may be taken.
        assert!(all.len() == 4 && all[3].starts_with("hook: ABORTED"), "{leave:?}: {all:?}");
        drop(left);
        assert!(server.stop().await.is_clean());
    }
}

/// At the limit as well, and after it went on without its client.
#[tokio::test]
async fn its_continuation_belongs_to_the_request_when_it_goes_on_alone() {
    let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
    work.open();
    let layers = (IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes)));
    let app = app(&notes, &gate, &work).layer(layers);
    let server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
    let client = Asked::get(&server, Leave::ResetStream).await;
    notes.seen("held").await;
    let left = client.leave(Leave::ResetStream).await;
    server.journal.seen("aborted").await;
    assert!(!server.stop().await.is_clean());
    drop(left);
    notes.seen("hook: ABORTED | TIMEOUT, Aborted").await;
    assert_eq!(notes.all(), ["held", "continuation", "another", "hook: ABORTED | TIMEOUT, Aborted"]);
}

#[tokio::test(start_paused = true)]
async fn its_continuation_belongs_to_the_request_without_a_server_of_ours() {
    let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
    work.open();
    let mut app = app(&notes, &gate, &work).layer(ShutdownHookLayer::new(told(&notes)));
    {
        let mut response = Box::pin(app.call(Request::new(Body::empty())));
        while !notes.has("held") {
            assert!(futures_util::poll!(response.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    settled().await;
    assert_eq!(notes.all(), ["held", "continuation", "another", "hook: ABORTED, Aborted"]);
}

/// A drain waits for it.
#[tokio::test]
async fn a_drain_waits_for_its_continuation() {
    let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
    let mut server = Server::start(app(&notes, &gate, &work)).await;
    let client = Asked::get(&server, Leave::Reset).await;
    notes.seen("held").await;
    client.leave(Leave::Reset).await;
    server.journal.seen("aborted").await;
    server.begin_drain();
    let stopped = server.drained();
    tokio::pin!(stopped);
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        let polled = futures_util::poll!(stopped.as_mut());
        assert!(polled.is_pending(), "the drain did not wait");
    }
    work.open();
    assert!(stopped.await.is_clean());
    assert_eq!(notes.all(), ["held", "continuation", "another"]);
}

tokio::task_local! {
    static TENANT: &'static str;
}

/// Each of them has its own copy of what is carried.
#[tokio::test]
async fn its_continuations_have_what_is_carried() {
    for blocking in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let handler = async move || {
            let one = || {
                let notes = theirs.clone();
                let noted = move || notes.add(TENANT.try_with(|tenant| *tenant).unwrap_or("none"));
                if blocking { Continuation::blocking(noted) } else { Continuation::new(async move { noted() }) }
            };
            (one(), one(), "hello")
        };
        let (holds, passes) = (notes.clone(), gate.clone());
        let app = Router::new()
            .route("/", get(handler))
            .layer(from_fn(move |request: Request, next: Next| {
                let (notes, gate) = (holds.clone(), passes.clone());
                async move {
                    let response = next.run(request).await;
                    notes.add("held");
                    gate.passed().await;
                    response
                }
            }))
            .layer(IgnoreAbortLayer::off())
            .layer(from_fn(|request: Request, next: Next| TENANT.scope("acme", next.run(request))));
        let server = Server::with(app, |builder| builder.carry(&TENANT)).await;
        let client = Asked::get(&server, Leave::ResetStream).await;
        notes.seen("held").await;
        let left = client.leave(Leave::ResetStream).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["held", "acme", "acme"], "blocking: {blocking}");
        drop(left);
        assert!(server.stop().await.is_clean());
    }
}

/// A middleware of tower, which calls what is inside of it at once, has one of its own.
#[tokio::test(start_paused = true)]
async fn that_of_a_middleware_between_our_bare_types_belongs_to_the_request() {
    struct Panics(bool);

    impl Drop for Panics {
        fn drop(&mut self) {
            assert!(!self.0, "a destructor panics");
        }
    }

    for (drops, panics) in [(false, false), (false, true), (true, false)] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let between = tower::util::AndThenLayer::new(move |response: axum::response::Response| {
            let notes = theirs.clone();
            async move {
                let noted = notes.clone();
                let mut response = response;
                Continuation::new(async move { noted.add("continuation") }).attach(&mut response);
                if drops {
                    drop(response);
                    return Ok::<_, std::convert::Infallible>(axum::response::Response::new(Body::from("another")));
                }
                notes.add("held");
                let _panics = Panics(panics);
                std::future::pending::<()>().await;
                Ok(response)
            }
        });
        let layers = tower::ServiceBuilder::new()
            .layer(ShutdownHookLayer::new(told(&notes)))
            .layer(between)
            .layer(IgnoreAbortLayer::off());
        let mut app: Router = Router::new().route("/", get(async || "hello")).layer(layers);
        if drops {
            let response = app.call(Request::new(Body::empty())).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            assert!(notes.all().is_empty(), "its response has not been read: {:?}", notes.all());
            axum::body::to_bytes(response.into_body(), 100).await.unwrap();
            settled().await;
            assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"]);
        } else {
            let mut response = Box::pin(app.call(Request::new(Body::empty())));
            assert!(futures_util::poll!(response.as_mut()).is_pending());
            let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(response)));
            assert_eq!(dropped.is_err(), panics);
            settled().await;
            assert_eq!(notes.all(), ["held", "continuation", "hook: ABORTED, Aborted"], "panics: {panics}");
        }
    }
}
