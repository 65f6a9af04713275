//! What is slow is named, and what panics is counted.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use tokio::time::sleep;
use tower_epilogue::{Continuation, Lifecycle, LifecycleError, TimeLimitLayer};

use crate::support::{MemoryServer, Notes, logs};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_handler_and_a_continuation_past_the_threshold_are_named_once() {
    let logs = logs();
    let app = Router::new()
        .route("/slow-handler", get(async || sleep(30 * SECOND).await))
        .route("/slow-continuation", get(async || (Continuation::new(sleep(30 * SECOND)).class("mail"), "accepted")))
        .route("/quick", get(async || (Continuation::new(sleep(SECOND)), "accepted")))
        // A response that is meant to last.
        .route(
            "/stream",
            get(async || {
                Body::from_stream(futures_util::stream::once(async {
                    sleep(30 * SECOND).await;
                    Ok::<_, std::io::Error>("x")
                }))
            }),
        );
    let server = MemoryServer::with(app, |builder| builder.slow_after(5 * SECOND));
    for path in ["/slow-handler", "/slow-continuation", "/quick", "/stream"] {
        server.get(path).await;
    }
    server.ended(4).await;
    let slow: Vec<_> = server.journal.events().into_iter().filter(|event| event.kind().name() == "slow").collect();
    assert_eq!(slow.len(), 2, "{slow:?}");
    assert!(slow.iter().all(|event| (5..7).contains(&event.at().as_secs())), "{slow:?}");
    let named =
        |route: &str| logs.with("takes long").into_iter().filter(|line| line.contains(route)).collect::<Vec<_>>();
    let (handler, continuation) = (named("GET /slow-handler"), named("GET /slow-continuation"));
    assert!(handler.len() == 1 && handler[0].contains("handling"), "{handler:?}");
    assert!(continuation.len() == 1 && continuation[0].contains("continuing"), "{continuation:?}");
    assert!(continuation[0].contains("mail"), "{continuation:?}");
    assert!(named("GET /quick").is_empty() && named("GET /stream").is_empty());
}

#[tokio::test]
async fn a_poll_that_holds_up_its_thread_is_named() {
    let logs = logs();
    let busy = || std::thread::sleep(Duration::from_millis(60));
    for (limit, handler, continuation) in [(0, "/busy-a", "/busy-b"), (60, "/busy-c", "/busy-d")] {
        let app = Router::new()
            .route(handler, get(async move || busy()))
            .route(continuation, get(async move || (Continuation::new(async move { busy() }), "accepted")))
            .layer(TimeLimitLayer::new(limit * SECOND));
        let server = MemoryServer::with(app, |builder| builder.slow_poll(Duration::from_millis(50)));
        for path in [handler, continuation] {
            server.get(path).await;
        }
        server.ended(2).await;
        for (route, what) in [(handler, "handler"), (continuation, "continuation")] {
            let lines = logs.with("held up its thread");
            let lines: Vec<_> = lines.iter().filter(|line| line.contains(route)).collect();
            assert!(lines.len() == 1 && lines[0].contains(&format!("a poll of the {what} ")), "{lines:?}");
        }
    }
}

/// Panics where it is told to, and notes what its hooks see.
async fn panics(lifecycle: Lifecycle, notes: Notes, at: &str) -> Result<axum::response::Response, LifecycleError> {
    use axum::response::IntoResponse as _;

    if at == "hook" {
        lifecycle.on_shutdown(async |end| assert!(end.route().is_empty(), "panic in the hook"))?;
    }
    lifecycle.on_shutdown(async move |end| notes.add(end.panic().unwrap_or_default()))?;
    assert!(at != "handler", "panic in the handler");
    Ok(match at {
        "continuation" => (Continuation::new(async { panic!("panic in the continuation") }), "x").into_response(),
        "body" => Body::from_stream(futures_util::stream::once(async {
            panic!("panic in the body") as Result<String, std::io::Error>
        }))
        .into_response(),
        _ => "x".into_response(),
    })
}

#[tokio::test]
async fn a_panic_anywhere_costs_its_request_is_logged_and_counted_and_hooks_see_it() {
    let (logs, notes) = (logs(), Notes::default());
    let places = ["handler", "body", "continuation", "hook"];
    let mut app = Router::new().route("/fine", get(async || "fine"));
    for place in places {
        let notes = notes.clone();
        let handler = async move |lifecycle: Lifecycle| panics(lifecycle, notes, place).await;
        app = app.route(&format!("/panics-in-{place}"), get(handler));
    }
    let server = MemoryServer::start(app);
    for (count, place) in (1..).zip(places) {
        server.get(&format!("/panics-in-{place}")).await;
        server.ended(2 * count - 1).await;
        assert_eq!(server.epilogue.panicked(), count);
        assert!(notes.has(&format!("panic in the {place}")), "{:?}", notes.all());
        let lines = logs.with(&format!("panic in the {place}"));
        assert!(lines.iter().any(|line| line.contains(&format!("GET /panics-in-{place}"))), "{lines:?}");
        assert_eq!(server.get("/fine").await.text(), "fine");
        server.ended(2 * count).await;
    }
}
