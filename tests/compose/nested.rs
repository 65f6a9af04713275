//! Three levels of setting: a layer on the router, a layer on a route, the handle in the handler. The inner one
//! wins.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    routing::{MethodRouter, get},
};
use futures_util::stream;
use http::StatusCode;
use tower::ServiceExt;
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    run::settled,
    stack::request,
    support::{Gate, Notes, Server, h2client::Http2},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// `outer` around `inner` around the route `/`, in every way in which one can stand in the other.
macro_rules! nested {
    ($outer:expr, $inner:expr, $route:expr) => {{
        let route: MethodRouter = $route;
        [
            ("a route in a router", Router::new().route("/", route.clone().layer($inner)).layer($outer)),
            ("a tuple", Router::new().route("/", route.clone()).layer(($outer, $inner))),
            ("a tuple around a route", Router::new().route("/", route.clone().layer(($outer, $inner)))),
            ("a router in a router", Router::new().merge(Router::new().route("/", route).layer($inner)).layer($outer)),
        ]
    }};
}

#[tokio::test]
async fn the_inner_ignore_abort_wins() {
    for (inner, goes_on) in [(IgnoreAbortLayer::off(), false), (IgnoreAbortLayer::new(), true)] {
        let outer = if goes_on { IgnoreAbortLayer::off() } else { IgnoreAbortLayer::new() };
        for (http2, which) in [false, true].into_iter().flat_map(|http2| (0..4).map(move |which| (http2, which))) {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (theirs, opens) = (notes.clone(), gate.clone());
            let handler = get(async move || {
                theirs.add("started");
                opens.passed().await;
                theirs.add("went on");
            });
            let (how, router) = nested!(outer, inner, handler).into_iter().nth(which).unwrap();
            leave(Server::start(router).await, &notes, &gate, http2).await;
            assert_eq!(notes.has("went on"), goes_on, "{how}");
        }
    }
}

/// A client that leaves its handler, and the request to its end.
async fn leave(server: Server, notes: &Notes, gate: &Gate, http2: bool) {
    if http2 {
        let mut client = Http2::connect(server.address).await;
        let response = client.start("GET", "/").await;
        notes.seen("started").await;
        drop(response);
        server.journal.seen("aborted").await;
    } else {
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("started").await;
        client.reset();
        server.journal.seen("aborted").await;
    }
    gate.open();
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_inner_time_limit_wins() {
    let sleeper = |time| get(move || tokio::time::sleep(time));
    let nanosecond = Duration::from_nanos(1);
    for (outer, inner, sleep, status) in [
        (TimeLimitLayer::new(SECOND), TimeLimitLayer::new(MINUTE), 10 * SECOND, StatusCode::OK),
        (TimeLimitLayer::new(SECOND), TimeLimitLayer::off(), 10 * MINUTE, StatusCode::OK),
        (TimeLimitLayer::new(MINUTE), TimeLimitLayer::new(SECOND), 10 * SECOND, StatusCode::SERVICE_UNAVAILABLE),
        (TimeLimitLayer::off(), TimeLimitLayer::new(SECOND), 10 * SECOND, StatusCode::SERVICE_UNAVAILABLE),
        // The kind of the clock is part of it.
        (TimeLimitLayer::busy(nanosecond), TimeLimitLayer::new(MINUTE), 10 * SECOND, StatusCode::OK),
        (TimeLimitLayer::busy(nanosecond), TimeLimitLayer::off(), 10 * SECOND, StatusCode::OK),
        (TimeLimitLayer::new(SECOND), TimeLimitLayer::busy(MINUTE), 10 * SECOND, StatusCode::OK),
    ] {
        for (how, router) in nested!(outer, inner, sleeper(sleep)) {
            let response = router.oneshot(request("GET", "/")).await.unwrap();
            assert_eq!(response.status(), status, "{how}: {inner:?} in {outer:?}");
        }
    }
}

#[tokio::test]
async fn the_inner_time_limit_wins_under_a_server() {
    let short = Duration::from_millis(20);
    for inner in [TimeLimitLayer::new(MINUTE), TimeLimitLayer::off()] {
        for (how, router) in nested!(TimeLimitLayer::new(short), inner, get(move || tokio::time::sleep(2 * short))) {
            let server = Server::start(router).await;
            assert_eq!(server.get("/").await.status, 200, "{how}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// Ten bytes of unknown length.
fn unknown_length() -> Body {
    Body::from_stream(stream::iter(["01234", "56789"].map(Ok::<_, std::io::Error>)))
}

#[tokio::test]
async fn the_inner_early_close_wins() {
    let (close, keep) = (EarlyCloseLayer::new(), EarlyCloseLayer::new().keep_alive());
    for (outer, inner, closes) in [(close.clone(), keep.clone(), false), (keep, close, true)] {
        for (how, router) in nested!(outer.clone(), inner.clone(), get(|| async { unknown_length() })) {
            let server = Server::start(router).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let reply = client.response(false).await;
            assert_eq!(reply.header("content-length"), Some("10"), "{how}");
            assert_eq!(reply.header("connection") == Some("close"), closes, "{how}");
            if closes {
                assert!(client.reply().await.head.is_empty());
            } else {
                client.send_get("/").await;
                assert_eq!(client.response(false).await.text(), "0123456789");
            }
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn what_the_inner_early_close_lets_pass_the_outer_does_not_hold_back() {
    let (small, large) = (EarlyCloseLayer::new().buffer_limit(6), EarlyCloseLayer::new());
    for (outer, inner, length) in [(large.clone(), small.clone(), None), (small, large, Some("10"))] {
        for (how, router) in nested!(outer.clone(), inner.clone(), get(|| async { unknown_length() })) {
            let server = Server::start(router).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let reply = client.response(false).await;
            assert_eq!((reply.header("content-length"), reply.text().as_str()), (length, "0123456789"), "{how}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// What a middleware between them puts in the place of what the inner has shaped is for the outer to shape.
#[tokio::test]
async fn a_response_that_replaces_a_shaped_one_is_shaped() {
    for inner in [EarlyCloseLayer::new(), EarlyCloseLayer::new().keep_alive()] {
        let route = get(|| async { (StatusCode::BAD_GATEWAY, "for nobody") }).layer(inner);
        let replace = axum::middleware::map_response(async |_: axum::response::Response| unknown_length());
        let server = Server::start(Router::new().route("/", route).layer(replace).layer(EarlyCloseLayer::new())).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("10"), "0123456789"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.reply().await.head.is_empty());
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn nested_hooks_all_run_the_outer_first() {
    let notes = Notes::default();
    let hook = |name: &'static str| {
        let notes = notes.clone();
        ShutdownHookLayer::new(async move |_| notes.add(name))
    };
    for (_, router) in nested!(hook("outer"), hook("inner"), get(|| async {})) {
        drop(router.oneshot(request("GET", "/")).await.unwrap());
        settled().await;
    }
    assert_eq!(notes.all(), ["outer", "inner"].repeat(4));
}

#[tokio::test(start_paused = true)]
async fn the_handle_in_the_handler_wins_over_both() {
    let handler = get(async |lifecycle: Lifecycle| {
        assert!(!lifecycle.ignore_abort(false), "the inner layer's setting");
        assert!(!lifecycle.ignores_abort());
        lifecycle.set_time_limit(MINUTE);
        tokio::time::sleep(30 * SECOND).await;
    });
    let outer = (TimeLimitLayer::new(10 * MINUTE), IgnoreAbortLayer::new());
    let inner = (TimeLimitLayer::new(SECOND), IgnoreAbortLayer::off());
    for (how, router) in nested!(outer, inner, handler) {
        assert_eq!(router.oneshot(request("GET", "/")).await.unwrap().status(), 200, "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_routes_layer_is_for_that_route_alone() {
    let sleeper = get(|| tokio::time::sleep(10 * SECOND));
    let app = Router::new()
        .route("/long", sleeper.clone().layer(TimeLimitLayer::new(MINUTE)))
        .route("/short", sleeper)
        .layer(TimeLimitLayer::new(SECOND));
    assert_eq!(app.clone().oneshot(request("GET", "/long")).await.unwrap().status(), 200);
    assert_eq!(app.oneshot(request("GET", "/short")).await.unwrap().status(), 503);
}
