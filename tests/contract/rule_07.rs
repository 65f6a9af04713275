//! `finish(response)` lets the response leave and resolves with its fate; from then on no abort drops the handler.

use std::pin::pin;

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{
    Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, LifecycleError, Phase, Sent, ShutdownHookLayer,
};
use tower_http::compression::CompressionLayer;

use crate::{
    common::{Asked, HoldBack, Leave, held_back, settled, told},
    support::{Gate, Notes, Server, h2client::Http2, soon},
};

#[tokio::test]
async fn the_response_leaves_and_the_handler_goes_on() {
    for early_close in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let sent = lifecycle.finish("finished").await?;
            theirs.add(format!("{sent:?}, {:?}", lifecycle.phase()));
            opens.passed().await;
            theirs.add("rest");
            Ok::<_, LifecycleError>(())
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        assert_eq!(client.response(false).await.text(), "finished");
        let mut http2 = Http2::connect(server.address).await;
        assert_eq!(http2.get("/").await.unwrap().body, b"finished");
        // Both are in front of a handler that goes on.
        notes.count(2).await;
        gate.open();
        server.journal.ended(2).await;
        let rest = ["rest", "hook: NORMAL, Flushed"].repeat(2);
        let mut all = notes.all();
        all[2..].sort_unstable();
        assert_eq!(
            all[..2],
            [format!("Flushed, {:?}", Phase::Continuing), format!("Flushed, {:?}", Phase::Continuing)]
        );
        assert_eq!(all[2..], [rest[1], rest[1], rest[0], rest[0]]);
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn it_resolves_with_aborted_when_the_client_leaves_before_the_flush_and_the_rest_runs() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, never) = (notes.clone(), Gate::closed());
        let handler = async move |lifecycle: Lifecycle| {
            let _dropped = theirs.on_drop("over");
            // This body does not end before its client leaves.
            let sent = lifecycle.finish(held_back(&theirs, &never, "first", "second")).await.unwrap();
            theirs.add(format!("{sent:?}, aborted: {}", lifecycle.is_aborted()));
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            theirs.add("rest");
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("producing").await;
        let _left = client.leave(leave).await;
        gate.open();
        server.journal.ended(1).await;
        let all: Vec<_> = notes.all().into_iter().filter(|note| note != "body dropped").collect();
        let expected = ["producing", "Aborted, aborted: true", "rest", "over", "hook: ABORTED, Aborted"];
        assert_eq!(all, expected, "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Something outside holds the finished response back, and its client leaves.
#[tokio::test]
async fn an_abort_between_finish_and_the_head_does_not_drop_the_rest() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            theirs.add(format!("{:?}", lifecycle.finish("finished").await.unwrap()));
            tokio::task::yield_now().await;
            theirs.add("rest");
        };
        let app = Router::new()
            .route("/", get(handler))
            .layer(ShutdownHookLayer::new(told(&notes)))
            .layer(HoldBack::new(&notes, &gate));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("answered").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["answered", "Aborted", "rest", "hook: ABORTED, Aborted"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// `finish` was called from elsewhere, and the handler has not been polled since.
#[tokio::test(start_paused = true)]
async fn an_abort_right_after_finish_does_not_drop_the_rest() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    let handler = async move |lifecycle: Lifecycle| {
        let _over = theirs.on_drop("over");
        sender.send(lifecycle).unwrap();
        opens.passed().await;
        theirs.add("rest");
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let mut response = Box::pin(app.oneshot(Request::new(Body::empty())));
    assert!(futures_util::poll!(&mut response).is_pending());
    let lifecycle = receiver.recv().unwrap();
    let theirs = notes.clone();
    let continuation = Continuation::new(async move { theirs.add("continuation") });
    let mut finish = pin!(lifecycle.finish((continuation, "finished")));
    assert!(futures_util::poll!(&mut finish).is_pending());
    drop(response);
    assert_eq!(soon("finish", finish).await, Ok(Sent::Aborted));
    gate.open();
    settled().await;
    let mut all = notes.all();
    assert_eq!(all.pop().unwrap(), "hook: ABORTED, Aborted");
    all.sort_unstable();
    assert_eq!(all, ["continuation", "over", "rest"]);
}

#[tokio::test]
async fn a_client_that_left_before_finish_is_aborted_and_the_rest_runs() {
    for leave in Leave::FOR_GOOD {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            theirs.add("started");
            lifecycle.aborted().await;
            let sent = lifecycle.finish("finished").await.unwrap();
            // The last bytes may have gone to a socket whose other end had just been closed.
            assert!(matches!(sent, Sent::Aborted | Sent::Flushed), "{sent:?}");
            tokio::task::yield_now().await;
            theirs.add("rest");
        };
        let app = Router::new()
            .route("/", get(handler))
            .layer((IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes))));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all()[..2], ["started", "rest"], "{leave:?}");
        assert!(notes.all()[2].starts_with("hook: ABORTED, "), "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_second_finish_is_an_error_value_and_the_first_counts() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        assert_eq!(lifecycle.finish("first").await, Ok(Sent::Flushed));
        let error = lifecycle.finish("second").await.unwrap_err();
        assert!(error.is_finished_twice() && !error.is_too_late() && !error.is_already_answered());
        theirs.add(error.to_string());
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "first");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["the response has been finished already: call `finish` only once per request"]);
    assert!(server.stop().await.is_clean());
}

async fn marked(mut response: Response) -> Response {
    response.headers_mut().insert("x-outer", HeaderValue::from_static("seen"));
    response
}

#[tokio::test]
async fn the_response_passes_through_the_middleware_outside_our_innermost_layer() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.finish((StatusCode::CREATED, "finished ".repeat(100))).await.unwrap();
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer((CompressionLayer::new(), ShutdownHookLayer::new(async |_| ())))
        .layer(map_response(marked));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
    let reply = client.response(false).await;
    assert_eq!((reply.status, reply.header("x-outer")), (201, Some("seen")));
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    assert!(reply.body.len() < 100, "compressed");
    server.journal.ended(1).await;
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn without_a_server_of_ours_it_resolves_when_the_body_was_read() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        theirs.add(format!("{:?}", lifecycle.finish("finished").await.unwrap()));
        // Nobody aborts a handler that has finished.
        assert!(lifecycle.aborted().now_or_never().is_none());
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    settled().await;
    assert!(notes.all().is_empty());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "finished");
    settled().await;
    assert_eq!(notes.all(), ["Flushed", "hook: NORMAL, Flushed"]);
}

#[tokio::test(start_paused = true)]
async fn a_finish_that_is_never_polled_does_nothing() {
    let handler = async |lifecycle: Lifecycle| {
        drop(lifecycle.finish("finished"));
        "returned".into_response()
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(async |_| ()));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "returned");
}
