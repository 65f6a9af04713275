//! `finish(response)` lets the response leave and resolves with its fate, while the handler goes on as its own
//! continuation, which an abort no longer drops.

use std::{future::pending, pin::pin};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{FutureExt, future::join};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, LifecycleError, Phase, Sent, ShutdownHookLayer,
};
use tower_http::compression::CompressionLayer;

use crate::{
    common::{Asked, HoldBack, Leave, held_back, settled, streamed, told},
    support::{
        Gate, Notes, Server,
        h2client::{Http2, read},
        soon,
    },
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
    assert_eq!(notes.all(), ["the response has been finished already: call `finish` once a request"]);
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

/// By another task, in the moment in which the handler returns: taken or refused, what came with the response runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finish_beside_a_handler_that_returns_loses_nothing() {
    let (notes, requests) = (Notes::default(), 500);
    for request in 0..requests {
        let notes = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            tokio::spawn(async move {
                let (theirs, kept) = (notes.clone(), lifecycle.clone());
                let work = Continuation::new(async move {
                    theirs.add("ran");
                    drop(kept);
                });
                let refused = lifecycle.finish((work, "finished")).await.is_err();
                notes.add(if refused { "refused" } else { "taken" });
            });
            (0..request * 4).for_each(|_| std::hint::spin_loop());
            "returned"
        };
        let app: Router = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::off());
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        let _ = response.into_body().collect().await.unwrap();
    }
    notes.count(2 * requests).await;
    let all = notes.all();
    let [ran, refused, taken] = ["ran", "refused", "taken"].map(|what| all.iter().filter(|note| *note == what).count());
    assert!(ran == requests && refused + taken == requests, "{ran} ran, {refused} were refused, {taken} taken");
}
