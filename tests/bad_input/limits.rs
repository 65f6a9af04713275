//! Zero and absurd limits.

use std::{future::pending, time::Duration};

use axum::{Router, body::Body, extract::Request, response::IntoResponse, routing::get};
use http::StatusCode;
use tower::ServiceExt;
use tower_epilogue::{Continuation, EarlyCloseLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{SECOND, SHORT, settled, told},
    support::{Notes, Server, h2client::Http2, streamed},
};

const NANOSECOND: Duration = Duration::from_nanos(1);
const HOUR: Duration = Duration::from_secs(3600);

fn ask() -> Request {
    Request::new(Body::empty())
}

#[tokio::test(start_paused = true)]
async fn zero_and_too_long_are_no_limit() {
    for limit in [Duration::ZERO, Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(u64::MAX / 1000)] {
        for layer in [TimeLimitLayer::new(limit), TimeLimitLayer::busy(limit)] {
            let app = Router::new().route("/", get(|| tokio::time::sleep(HOUR))).layer(layer);
            assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::OK, "{layer:?}");
        }
        let handler = async move |lifecycle: Lifecycle| {
            lifecycle.set_time_limit(SECOND);
            lifecycle.set_time_limit(limit);
            assert_eq!(lifecycle.time_left(), None, "{limit:?}");
            tokio::time::sleep(HOUR).await;
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(SECOND));
        assert_eq!(app.oneshot(ask()).await.unwrap().status(), StatusCode::OK, "{limit:?}");
    }
}

#[tokio::test]
async fn a_handler_that_waits_for_longer_than_a_nanosecond_is_answered_with_503() {
    for busy in [false, true] {
        let notes = Notes::default();
        let layer = if busy { TimeLimitLayer::busy(NANOSECOND) } else { TimeLimitLayer::new(NANOSECOND) };
        let app = Router::new().route("/", get(pending::<()>)).layer((layer, ShutdownHookLayer::new(told(&notes))));
        let server = Server::start(app).await;
        assert_eq!(server.get("/").await.status, 503);
        assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().status, 503);
        server.journal.ended(2).await;
        assert_eq!(notes.all(), ["hook: TIMEOUT, Flushed"].repeat(2), "busy: {busy}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_nanosecond_set_by_the_handler_is_answered_with_503() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.set_time_limit(NANOSECOND);
        pending::<()>().await;
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.status, 503);
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().status, 503);
    server.journal.ended(2).await;
    assert!(server.stop().await.is_clean());
}

/// It never waits, so that no await is there at which it could be dropped. What it gives may be cut, but never so
/// that it looks whole.
#[tokio::test]
async fn an_answer_within_a_nanosecond_is_whole_or_visibly_broken() {
    for busy in [false, true] {
        let notes = Notes::default();
        let layer = if busy { TimeLimitLayer::busy(NANOSECOND) } else { TimeLimitLayer::new(NANOSECOND) };
        let handlers = Router::new()
            .route("/known", get(async || (Continuation::new(pending()), "hello")))
            .route("/streamed", get(async || (Continuation::new(pending()), streamed(&["hel", "lo"]))));
        let server = Server::start(handlers.layer((layer, ShutdownHookLayer::new(told(&notes))))).await;
        for path in ["/known", "/streamed"] {
            let reply = server.get(path).await;
            let text = reply.dechunked().unwrap_or(reply.body.clone());
            let whole = text == b"hello" && (reply.status, reply.error.is_none()) == (200, true);
            let broken = reply.status == 0 || (reply.status == 200 && reply.dechunked().is_none() && text != b"hello");
            assert!(whole || broken || reply.status == 503, "{path}, busy: {busy}: {reply:?}");
            match Http2::connect(server.address).await.get(path).await {
                Ok(whole) => assert!(whole.status == 503 || whole.body == b"hello", "{path}: {whole:?}"),
                Err(error) => assert!(error.is_reset(), "{path}: {error}"),
            }
        }
        server.journal.ended(4).await;
        let all = notes.all();
        assert!(all.len() == 4 && all.iter().all(|hook| hook.starts_with("hook: TIMEOUT")), "{all:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn patience_of_any_length_runs_the_continuation_once() {
    for patience in [Duration::ZERO, NANOSECOND, Duration::MAX] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move || {
            let notes = theirs.clone();
            (Continuation::new(async move { notes.add("continuation") }), vec![b'x'; 1 << 20])
        };
        let server = Server::with(Router::new().route("/", get(handler)), |builder| builder.patience(patience)).await;
        assert_eq!(server.get("/").await.body.len(), 1 << 20);
        assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body.len(), 1 << 20);
        server.journal.ended(2).await;
        assert_eq!(notes.all(), ["continuation", "continuation"], "{patience:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn hooks_without_time_run_up_to_their_first_await() {
    for limit in [Duration::ZERO, NANOSECOND] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let (first, second) = (theirs.clone(), theirs.clone());
            lifecycle
                .on_shutdown(async move |_| {
                    let _dropped = first.on_drop("dropped");
                    pending::<()>().await;
                })
                .unwrap();
            lifecycle.on_shutdown(async move |_| second.add("second")).unwrap();
        };
        let server = Server::with(Router::new().route("/", get(handler)), |builder| builder.hook_limit(limit)).await;
        assert_eq!(server.get("/").await.status, 200);
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["dropped", "second"], "{limit:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn hooks_with_all_the_time_there_is_run() {
    let notes = Notes::default();
    let app = Router::new().route("/", get(async || "hello")).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::with(app, |builder| builder.hook_limit(Duration::MAX).drain_deadline(Duration::MAX)).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_drain_without_time_cuts_at_once() {
    for deadline in [Duration::ZERO, NANOSECOND] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move || {
            let notes = theirs.clone();
            Continuation::new(async move {
                notes.add("here");
                pending::<()>().await;
            })
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::with(app, |builder| builder.drain_deadline(deadline)).await;
        assert_eq!(server.get("/").await.status, 200);
        notes.seen("here").await;
        assert_eq!(server.stop().await.stragglers().len(), 1, "{deadline:?}");
        assert_eq!(notes.all(), ["here", "hook: TIMEOUT, Flushed"]);
    }
}

#[tokio::test]
async fn an_early_close_of_any_size_and_patience_gives_the_whole_body() {
    for bytes in [0, 1, 9, 10, 11, usize::MAX] {
        for patience in [Duration::ZERO, NANOSECOND, SHORT, Duration::MAX] {
            let layer = EarlyCloseLayer::new().buffer_limit(bytes).patience(patience);
            let handler = async || {
                let parts = futures_util::stream::unfold(0, async |part| {
                    tokio::task::yield_now().await;
                    (part < 5).then_some((Ok::<_, std::io::Error>("ab"), part + 1))
                });
                Body::from_stream(parts)
            };
            let server = Server::start(Router::new().route("/", get(handler)).layer(layer)).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let reply = client.response(false).await;
            assert_eq!(reply.text(), "ababababab", "{bytes} {patience:?}");
            if bytes >= 10 && patience >= SHORT {
                assert_eq!(reply.header("content-length"), Some("10"), "{bytes} {patience:?}");
            }
            assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"ababababab");
            drop(client);
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_shield_too_many_costs_that_request_only() {
    let notes = Notes::default();
    let handler = async |lifecycle: Lifecycle| {
        let shields: Vec<_> = (0..4095).map(|_| lifecycle.shield()).collect();
        let one_more = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lifecycle.shield())));
        let message = one_more.unwrap_err().downcast::<&str>().unwrap();
        drop(shields);
        assert!(!lifecycle.ignores_abort(), "all are given back");
        message.to_string().into_response()
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let body = app.oneshot(ask()).await.unwrap().into_body();
    let body = axum::body::to_bytes(body, 100).await.unwrap();
    assert_eq!(body, "a request has at most 4,095 shields at a time");
    settled().await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
}
