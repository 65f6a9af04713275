//! What a handler does beside its `finish` and behind it: it produces the body, returns, panics, or waits for ever.

use std::future::pending;

use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
use futures_util::future::join;
use http::{StatusCode, header};
use tower::{Layer, ServiceExt};
use tower_epilogue::{Continuation, Lifecycle, Sent, ShutdownHookLayer};

use crate::{
    common::told,
    support::{
        Gate, Notes, Server,
        h2client::{Http2, read},
        soon, streamed,
    },
};

#[tokio::test]
async fn nothing_written_late_can_reach_this_or_another_request() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.finish("finished").await.unwrap();
        opens.passed().await;
        let late = streamed(&["late ", "body"]);
        theirs.add("returns");
        (StatusCode::IM_A_TEAPOT, [(header::SET_COOKIE, "late=1")], late)
    };
    let app = Router::new().route("/", get(handler)).route("/next", get(async || "next"));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let reply = client.response(false).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.header("set-cookie")), (200, "finished", None));
    gate.open();
    server.journal.ended(1).await;
    client.send_get("/next").await;
    let reply = client.response(false).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.header("set-cookie")), (200, "next", None));
    assert_eq!(notes.all(), ["returns"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn continuations_in_both_responses_run() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let continuation = |note: &'static str| {
            let notes = theirs.clone();
            Continuation::new(async move { notes.add(note) })
        };
        lifecycle.finish((continuation("of the finished"), "finished")).await.unwrap();
        (continuation("of the returned"), "late")
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["of the finished", "of the returned"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_panic_in_the_rest_reaches_the_hooks_and_nobody_else() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async |lifecycle: Lifecycle| -> () {
        lifecycle.finish("finished").await.unwrap();
        panic!("the rest panics, as this test wants it");
    };
    let app = Router::new()
        .route("/", get(handler))
        .route("/next", get(async || "next"))
        .layer(ShutdownHookLayer::new(async move |end: tower_epilogue::End| theirs.add(format!("{:?}", end.panic()))));
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/").await.unwrap().body, b"finished");
    notes.count(1).await;
    assert_eq!(client.get("/next").await.unwrap().body, b"next");
    notes.count(2).await;
    assert_eq!(notes.all(), [r#"Some("the rest panics, as this test wants it")"#, "None"]);
    assert!(server.stop().await.is_clean());
}

/// The body comes from the handler itself, which goes on meanwhile.
#[tokio::test]
async fn a_handler_can_produce_the_body_that_it_finished_with() {
    for http2 in [false, true] {
        let handler = async |lifecycle: Lifecycle| {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
            let produce = async move {
                for part in ["one ", "two ", "three"] {
                    sender.send(Ok::<_, std::io::Error>(part)).await.unwrap();
                }
            };
            let (sent, ()) = join(lifecycle.finish(body), produce).await;
            assert_eq!(sent, Ok(Sent::Flushed));
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        if http2 {
            let mut client = Http2::connect(server.address).await;
            let response = client.start("GET", "/").await;
            let whole = soon("a response", async { read(response.await.unwrap()).await.unwrap() }).await;
            assert_eq!(whole.body, b"one two three");
        } else {
            let mut client = server.connect().await;
            client.send_get("/").await;
            assert_eq!(client.response(false).await.text(), "one two three");
        }
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_rest_of_a_handler_that_waits_for_ever_is_what_a_drain_cuts() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.finish("finished").await.unwrap();
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler));
    let server = Server::with(app, |builder| builder.drain_deadline(crate::common::SHORT)).await;
    assert_eq!(server.get("/").await.text(), "finished");
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!((report.stragglers()[0].route(), report.stragglers()[0].phase()), ("GET /", "continuing"));
}

/// Polled once, it has begun: what the handler does in the same moment comes too late for its response.
#[tokio::test]
async fn what_was_given_to_finish_leaves_although_the_handler_fails_in_the_same_moment() {
    for panics in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let service = tower::service_fn(move |request: Request| {
            let (notes, lifecycle) = (theirs.clone(), request.extensions().get::<Lifecycle>().unwrap().clone());
            async move {
                let work = Continuation::new(async move { notes.add("continuation") });
                let mut finish = Box::pin(lifecycle.finish((work, streamed(&["fini", "shed"]))));
                assert!(futures_util::poll!(&mut finish).is_pending());
                assert!(!panics, "the handler panics, as this test wants it");
                Err::<Response, _>(std::io::Error::other("the handler fails, as this test wants it"))
            }
        });
        let service = ShutdownHookLayer::new(told(&notes)).layer(service).map_err(|_| -> std::convert::Infallible {
            panic!("the response has left");
        });
        let server = Server::start(Router::new().route_service("/", service)).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        assert_eq!(client.response(false).await.text(), "finished");
        server.journal.ended(1).await;
        assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"finished");
        server.journal.ended(2).await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"].repeat(2));
    }
}
