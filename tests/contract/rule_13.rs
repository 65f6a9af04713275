//! Nothing is silent: what is cut is logged once, with its route.

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode, routing::get};
use tower_epilogue::{
    Bound, Continuation, IgnoreAbortLayer, Lifecycle, LifecycleError, TimeLimitLayer, test_util::TestServer,
};
use tower_http::timeout::TimeoutLayer;

use crate::{
    common::{Asked, Leave},
    support::{Gate, Notes, Server, logs, soon},
};

#[tokio::test(start_paused = true)]
async fn a_limit_that_passed_is_logged_once_with_its_route() {
    let logs = logs();
    let app = Router::new()
        .route("/limit-in-the-handler", get(pending::<()>))
        .route(
            "/limit-in-the-body",
            get(async || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>())),
        )
        .layer(TimeLimitLayer::new(Duration::from_secs(1)));
    let server = TestServer::in_memory(app);
    for (route, phase) in [("/limit-in-the-handler", "handling"), ("/limit-in-the-body", "sending")] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        client.response().await;
        server.settled().await;
        let lines = logs.with(route);
        let passed: Vec<_> = lines.iter().filter(|line| line.contains("the time limit passed")).collect();
        assert_eq!(passed.len(), 1, "{lines:#?}");
        assert!(passed[0].contains("WARN") && passed[0].contains(phase), "{passed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_a_handler_returns_after_finish_is_logged_once_with_its_route() {
    let logs = logs();
    let fails = async |lifecycle: Lifecycle| {
        lifecycle.finish("accepted").await?;
        // As `?` on what the work comes to.
        Ok::<_, LifecycleError>(Err::<(), _>(StatusCode::BAD_GATEWAY))
    };
    let twice = async |lifecycle: Lifecycle| {
        lifecycle.finish("accepted").await?;
        lifecycle.finish("again").await.map(drop)
    };
    let is_not_awaited = async |lifecycle: Lifecycle| {
        let finish = std::pin::pin!(lifecycle.finish("accepted"));
        assert!(futures_util::poll!(finish).is_pending());
        StatusCode::CONFLICT
    };
    let takes_long = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("accepted").await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    };
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(1));
    let goes_well = async |lifecycle: Lifecycle| lifecycle.finish("accepted").await.map(drop);
    let app = Router::new()
        .route("/error-behind/fails", get(fails))
        .route("/error-behind/twice", get(twice))
        .route("/error-behind/not-awaited", get(is_not_awaited))
        .route("/error-behind/timeout", get(takes_long).layer(timeout))
        .route("/error-behind/none", get(goes_well))
        .layer(IgnoreAbortLayer::off());
    let server = TestServer::in_memory(app);
    let expected = [
        ("fails", Some(502)),
        ("twice", Some(500)),
        ("not-awaited", Some(409)),
        ("timeout", Some(504)),
        ("none", None),
    ];
    for (name, status) in expected {
        assert_eq!(server.get(&format!("/error-behind/{name}")).await.text(), "accepted");
        server.settled().await;
        let lines = logs.with(&format!("GET /error-behind/{name}"));
        let errors: Vec<_> = lines.iter().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), usize::from(status.is_some()), "{lines:#?}");
        let told = |status| errors[0].contains(&format!("status={status}"));
        assert!(status.is_none_or(told), "{errors:?}");
    }
}

#[tokio::test]
async fn an_error_of_a_handler_that_went_on_without_its_client_is_logged_once_with_its_route() {
    let logs = logs();
    // Where the response has nowhere to go; at a closed socket it may leave.
    for leave in [Leave::Reset, Leave::ResetStream, Leave::LoseConnection] {
        for (status, logged) in [(StatusCode::BAD_GATEWAY, 1), (StatusCode::CONFLICT, 0), (StatusCode::OK, 0)] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (theirs, opens) = (notes.clone(), gate.clone());
            let handler = async move |lifecycle: Lifecycle| {
                theirs.add("started");
                lifecycle.aborted().await;
                opens.passed().await;
                status
            };
            // The route of its own is what the lines are found by.
            let route = format!("/error-alone/{leave:?}/{}", status.as_u16());
            let app = Router::new().route(&route, get(handler)).layer(IgnoreAbortLayer::new());
            let server = Server::start(app).await;
            let client = Asked::get_at(&server, leave, &route).await;
            notes.seen("started").await;
            let _left = client.leave(leave).await;
            server.journal.seen("aborted").await;
            gate.open();
            server.journal.ended(1).await;
            let lines = logs.with(&format!("GET {route}"));
            let errors: Vec<_> = lines.iter().filter(|line| line.contains("ERROR")).collect();
            assert_eq!(errors.len(), logged, "{lines:#?}");
            assert!(errors.iter().all(|line| line.contains("status=502")), "{errors:?}");
        }
    }
}

/// One has a thread at its limit, and the other waits for its place; nobody waits for either any more.
#[tokio::test]
async fn a_blocking_one_that_panics_after_its_limit_is_logged_with_its_route_and_counted() {
    let logs = logs();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let handler = async move || {
        let released = released.clone();
        let work = move || {
            let _ = released.lock().unwrap().recv();
            panic!("as this test wants it");
        };
        Continuation::blocking(work).class("slow")
    };
    let app = Router::new().route("/panics-late", get(handler)).layer(TimeLimitLayer::new(Duration::from_millis(200)));
    let server = Server::with(app, |builder| builder.class("slow", Bound::new(1))).await;
    for _ in 0..2 {
        assert_eq!(server.get("/panics-late").await.status, 200);
    }
    server.journal.ended(2).await;
    assert_eq!((server.epilogue.stuck(), server.epilogue.panicked()), (2, 0));
    drop(release);
    soon("both have panicked", async {
        while server.epilogue.panicked() < 2 || server.epilogue.stuck() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let told = || logs.with("GET /panics-late").iter().filter(|line| line.contains("panicked")).count();
    soon("both are told of", async {
        while told() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(server.stop().await.is_clean());
}
