//! Beside middleware that answers in another's place, asks twice, queues, keeps copies, or changes bodies.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    error_handling::HandleErrorLayer,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, response::Parts};
use tower::ServiceBuilder;
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SECOND, told},
    routes::{hook, work},
    support::{Gate, Notes, Server, h2client::Http2},
};

// === retries ===

/// So often, after an error of the server.
#[derive(Clone)]
pub struct Again(pub usize);

impl tower::retry::Policy<Request, Response, Infallible> for Again {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request, result: &mut Result<Response, Infallible>) -> Option<Ready<()>> {
        let fails = result.as_ref().is_ok_and(|response| response.status().is_server_error());
        (fails && self.0 > 0).then(|| {
            self.0 -= 1;
            ready(())
        })
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        let mut copy = Request::new(Body::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

#[tokio::test]
async fn a_retry_runs_the_continuations_of_all_attempts_after_the_one_response() {
    for inside in [false, true] {
        for http2 in [false, true] {
            let notes = Notes::default();
            let (theirs, asked) = (notes.clone(), Arc::new(AtomicUsize::new(0)));
            let handler = async move || {
                theirs.add("handler");
                let status = match asked.fetch_add(1, Ordering::SeqCst) {
                    2 => StatusCode::OK,
                    _ => StatusCode::BAD_GATEWAY,
                };
                tokio::task::yield_now().await;
                (status, work(&theirs, "attempt"), "body")
            };
            let app = Router::new().route("/", get(handler));
            let app = if inside { app.layer((IgnoreAbortLayer::new(), EarlyCloseLayer::new())) } else { app };
            let app = app.layer(tower::retry::RetryLayer::new(Again(5))).layer(hook(&notes));
            let server = Server::start(app).await;
            let text = if http2 {
                String::from_utf8(Http2::connect(server.address).await.get("/").await.unwrap().body).unwrap()
            } else {
                server.get("/").await.text()
            };
            assert_eq!(text, "body");
            server.journal.ended(1).await;
            let works = ["work: attempt"; 3];
            let expected = [&["handler"; 3][..], &works, &["hook: GET / NORMAL Flushed"]].concat();
            assert_eq!(notes.all(), expected, "inside: {inside}, http2: {http2}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// The limit answers with a 503, which is what it retries.
#[tokio::test]
async fn a_retry_does_not_begin_anew_when_the_limit_has_passed() {
    for http2 in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move || {
            theirs.add("handler");
            std::future::pending::<()>().await;
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(Duration::from_millis(20)));
        let app = app.layer(tower::retry::RetryLayer::new(Again(5))).layer(hook(&notes));
        let server = Server::start(app).await;
        let status = if http2 {
            Http2::connect(server.address).await.get("/").await.unwrap().status
        } else {
            server.get("/").await.status
        };
        assert_eq!(status, 503);
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["handler", "hook: GET / TIMEOUT Flushed"], "http2: {http2}");
        assert!(server.stop().await.is_clean());
    }
}

// === copies ===

/// A cache of heads and bodies, extensions and all.
#[derive(Clone, Default)]
struct Cache(Arc<Mutex<Option<(Parts, Bytes)>>>);

impl Cache {
    fn kept(&self) -> Option<Response> {
        let kept = self.0.lock().unwrap();
        kept.as_ref().map(|(parts, bytes)| Response::from_parts(parts.clone(), Body::from(bytes.clone())))
    }

    async fn answer(self, request: Request, next: Next) -> Response {
        if let Some(response) = self.kept() {
            return response;
        }
        let (parts, body) = next.run(request).await.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        *self.0.lock().unwrap() = Some((parts.clone(), bytes.clone()));
        Response::from_parts(parts, Body::from(bytes))
    }
}

#[tokio::test]
async fn what_a_cached_response_is_given_belongs_to_its_own_request() {
    let (notes, gate, cache) = (Notes::default(), Gate::closed(), Cache::default());
    let theirs = notes.clone();
    let handler = async move || (work(&theirs, "of the handler"), "hello");
    let (held, passes) = (notes.clone(), gate.clone());
    let app = Router::new()
        .route("/", get(handler))
        .layer(from_fn(move |request: Request, next: Next| cache.clone().answer(request, next)))
        .layer(from_fn(move |request: Request, next: Next| {
            let (notes, gate) = (held.clone(), passes.clone());
            async move {
                let slow = request.headers().contains_key("x-slow");
                let mut response = next.run(request).await;
                if slow {
                    work(&notes, "of the slow one").attach(&mut response);
                    notes.add("held");
                    gate.passed().await;
                }
                response
            }
        }))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    let mut slow = server.connect().await;
    slow.send("GET / HTTP/1.1\r\nhost: test\r\nx-slow: yes\r\n\r\n").await;
    notes.seen("held").await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(2).await;
    let hooked = "hook: NORMAL, Flushed";
    assert_eq!(notes.all(), ["work: of the handler", hooked, "held", hooked]);
    gate.open();
    assert_eq!(slow.response(false).await.text(), "hello");
    server.journal.ended(3).await;
    assert_eq!(notes.all()[4..], ["work: of the slow one", hooked]);
    assert!(server.stop().await.is_clean());
}

/// Its extensions replace those of a response that has one of its own.
#[tokio::test]
async fn merged_extensions_lose_no_continuation() {
    let notes = Notes::default();
    let (theirs, outer) = (notes.clone(), notes.clone());
    let app = Router::new()
        .route("/", get(async move || (work(&theirs, "inner"), "hello")))
        .layer(from_fn(move |request: Request, next: Next| {
            let notes = outer.clone();
            async move {
                let (parts, body) = next.run(request).await.into_parts();
                let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                (parts, (work(&notes, "outer"), bytes)).into_response()
            }
        }))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    let mut all = notes.all();
    assert_eq!(all.pop().unwrap(), "hook: NORMAL, Flushed");
    all.sort();
    assert_eq!(all, ["work: inner", "work: outer"]);
    assert!(server.stop().await.is_clean());
}

// === queues ===

/// It waits behind a worker of its own, which calls it, and not polls it.
#[tokio::test]
async fn a_handler_behind_a_buffer_goes_on_without_its_client() {
    for leave in Leave::FOR_GOOD {
        for ignored in [false, true] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (theirs, passes) = (notes.clone(), gate.clone());
            let handler = async move || {
                let _dropped = theirs.on_drop("dropped");
                theirs.add("begun");
                passes.passed().await;
                theirs.add("went on");
                (work(&theirs, "of nobody"), "hello")
            };
            let layer = if ignored { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
            let errors = HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE);
            let stack = ServiceBuilder::new().layer(hook(&notes)).layer(errors).load_shed().buffer(4).layer(layer);
            let app = Router::new().route("/", get(handler)).layer(stack.concurrency_limit(1).timeout(10 * SECOND));
            let server = Server::start(app).await;
            let client = Asked::get(&server, leave).await;
            notes.seen("begun").await;
            let left = client.leave(leave).await;
            server.journal.seen("aborted").await;
            gate.open();
            server.journal.ended(1).await;
            drop(left);
            let mut all = notes.all();
            // The kernel may take what is written to a client that has only closed.
            let hooked = all.pop().unwrap();
            assert!(hooked.starts_with("hook: GET / ABORTED"), "{leave:?}: {hooked}");
            let expected: &[&str] = match ignored {
                true => &["begun", "went on", "dropped", "work: of nobody"],
                false => &["begun", "dropped"],
            };
            assert_eq!(all, expected, "{leave:?}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// A permit that stands outside of our innermost layer is given back with the response.
#[tokio::test]
async fn a_continuation_holds_no_permit_and_the_shed_is_told() {
    let (notes, gate, work) = (Notes::default(), Gate::closed(), Gate::closed());
    let (theirs, passes, works) = (notes.clone(), gate.clone(), work.clone());
    let handler = async move || {
        theirs.add("begun");
        passes.passed().await;
        let works = works.clone();
        (Continuation::new(async move { works.passed().await }), "served")
    };
    let shed = notes.clone();
    let errors = HandleErrorLayer::new(move |error: BoxError| {
        let is_shed = error.is::<tower::load_shed::error::Overloaded>();
        let continuation = crate::routes::work(&shed, "of the shed");
        async move { (StatusCode::TOO_MANY_REQUESTS, continuation, is_shed.to_string()) }
    });
    let stack =
        ServiceBuilder::new().layer(errors).load_shed().layer(tower::limit::GlobalConcurrencyLimitLayer::new(1));
    let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new()).layer(stack).layer(hook(&notes));
    let server = Server::start(app).await;
    let mut first = server.connect().await;
    first.send_get("/").await;
    notes.seen("begun").await;
    let refused = server.get("/").await;
    assert_eq!((refused.status, refused.text().as_str()), (429, "true"));
    notes.seen("work: of the shed").await;
    gate.open();
    assert_eq!(first.response(false).await.text(), "served");
    // Its continuation runs still.
    assert_eq!(server.get("/").await.text(), "served");
    work.open();
    server.journal.ended(3).await;
    assert!(server.stop().await.is_clean());
}

// === parts ===

/// axum drops the parts behind one that cannot be made.
#[tokio::test]
async fn one_behind_a_part_that_cannot_be_made_was_not_returned() {
    let notes = Notes::default();
    let (first, behind) = (notes.clone(), notes.clone());
    let invalid = [("no header", "of this name")];
    let app = Router::new()
        .route("/first", get(async move || (work(&first, "first"), invalid, "hello")))
        .route("/behind", get(async move || (invalid, work(&behind, "behind"), "hello")));
    let server = Server::start(app).await;
    for path in ["/first", "/behind"] {
        assert_eq!(server.get(path).await.status, 500);
    }
    server.journal.ended(2).await;
    assert!(server.stop().await.is_clean());
    assert_eq!(notes.all(), ["work: first"]);
}
