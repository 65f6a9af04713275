//! Which span is current where, and when it closes.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::sync::Notify;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, Output, OutputError, TimeLimitLayer};
use tracing::{Instrument as _, Span, info, info_span};

use super::recorder::Recorder;
use crate::support::MemoryServer;

/// As a `TraceLayer` does: a span for each request.
async fn spanned(request: Request, next: Next) -> Response {
    let span = info_span!("request");
    next.run(request).instrument(span).await
}

fn app<H, T>(handler: H) -> Router
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    Router::new()
        .route("/things/{id}", get(handler))
        .layer(TimeLimitLayer::new(Duration::from_secs(60)))
        .layer(middleware::from_fn(spanned))
}

/// One request, to its end.
async fn run(app: Router) -> Recorder {
    let (recorder, _guard) = Recorder::install();
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/things/7?secret=1").await.status, 200);
    server.ended(1).await;
    server.stop().await;
    recorder
}

const NEW: &str = "new continuation < - {route=\"GET /things/{id}\"}";
const NEW_MAIL: &str = "new continuation < - {route=\"GET /things/{id}\" class=\"mail\"}";

#[tokio::test(start_paused = true)]
async fn a_continuation_has_a_span_of_its_own_that_follows_from_the_requests_which_closes_before_it() {
    let handler = async || {
        let work = async {
            info!("begins");
            tokio::time::sleep(Duration::from_secs(10)).await;
            info!("goes on");
        };
        (Continuation::new(work).class("mail"), "hello")
    };
    let seen = run(app(handler)).await;
    let places = [
        "new request < - {}",
        NEW_MAIL,
        "continuation follows request",
        "close request",
        "in continuation: begins",
        "in continuation: goes on",
        "continuation: outcome=\"ended\"",
        "close continuation",
    ]
    .map(|line| seen.place(line));
    assert!(places.is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn hooks_run_in_the_requests_span() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle
            .on_shutdown(async |_| {
                info!("hook begins");
                tokio::task::yield_now().await;
                info!("hook goes on");
            })
            .unwrap();
        (Continuation::new(async { info!("work") }), "hello")
    };
    let seen = run(app(handler)).await;
    let places = [
        "in continuation: work",
        "close continuation",
        "in request: hook begins",
        "in request: hook goes on",
        "close request",
    ]
    .map(|line| seen.place(line));
    assert!(places.is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn of_several_none_keeps_the_requests_span_open_while_another_runs() {
    let handler = async || {
        let slow = async {
            info!("the first begins");
            tokio::time::sleep(Duration::from_secs(10)).await;
            info!("the first ends");
        };
        (Continuation::new(slow), Continuation::new(async { info!("the second") }).class("mail"), "hello")
    };
    let seen = run(app(handler)).await;
    let places = [NEW, NEW_MAIL, "close request", "in continuation: the first begins", "in continuation: the second"];
    let places = places.map(|line| seen.place(line));
    assert!(places.is_sorted(), "{:#?}", seen.lines());
    let count = |line: &str| seen.lines().iter().filter(|other| *other == line).count();
    assert_eq!((count("continuation follows request"), count("close continuation")), (2, 2), "{:#?}", seen.lines());
}

#[tokio::test]
async fn blocking_ones_have_a_span_too() {
    let handler = async || {
        // The recorder is that of the test's thread.
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        let work = move || {
            tracing::dispatcher::with_default(&dispatch, || {
                assert_eq!(Span::current().metadata().map(tracing::Metadata::name), Some("continuation"));
            });
        };
        (Continuation::blocking(work), "hello")
    };
    let seen = run(app(handler)).await;
    let places = [NEW, "close request", "continuation: outcome=\"ended\""].map(|line| seen.place(line));
    assert!(places.is_sorted(), "{:#?}", seen.lines());
    assert!(!seen.lines().iter().any(|line| line.contains("panicked")), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn errors_and_panics_are_logged_in_it() {
    let handler = async || {
        let failing = Continuation::try_new(async { Err::<(), _>("no") });
        (failing, Continuation::new(async { panic!("boom") }), "hello")
    };
    let seen = run(app(handler)).await;
    seen.place("in continuation: a continuation failed");
    seen.place("in continuation: a continuation panicked");
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_at_its_limit_says_so() {
    let handler = async || (Continuation::new(std::future::pending()), "hello");
    let seen = run(app(handler)).await;
    let places = [
        "in continuation: a continuation was dropped before its end",
        "continuation: outcome=\"dropped\"",
        "close continuation",
    ];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn a_span_of_the_users_takes_the_place_of_ours() {
    let handler = async || {
        let work = Continuation::new(async { info!("work") }.instrument(info_span!("inner")));
        (work.in_span(info_span!(parent: None, "mine")), "hello")
    };
    let seen = run(app(handler)).await;
    assert!(!seen.lines().iter().any(|line| line.starts_with("new continuation")), "{:#?}", seen.lines());
    let places = ["new mine < - {}", "mine follows request", "in inner: work", "close mine"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
    // Made in the handler, the inner one is a child of the request's, and keeps it open.
    let places = ["new inner < request {}", "in inner: work", "close inner", "close request"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn the_requests_own_span_can_be_asked_for() {
    let handler = async || (Continuation::new(async { info!("work") }).in_span(Span::current()), "hello");
    let seen = run(app(handler)).await;
    let places = ["new request < - {}", "in request: work", "close request"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
    assert!(!seen.lines().iter().any(|line| line.contains("follows")), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn spans_that_are_made_inside_of_the_work_are_children_of_its_own() {
    let handler = async || {
        let work = async { async { info!("work") }.instrument(info_span!("inner")).await };
        (Continuation::new(work), "hello")
    };
    let seen = run(app(handler)).await;
    let places =
        ["close request", "new inner < continuation {}", "in inner: work", "close inner", "close continuation"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_handler_that_finished_is_its_own_continuation() {
    let handler = async |lifecycle: Lifecycle| {
        info!("handles");
        lifecycle.finish("hello").await.unwrap();
        info!("goes on");
        tokio::time::sleep(Duration::from_secs(10)).await;
    };
    let seen = run(app(handler)).await;
    let places = [
        "in request: handles",
        NEW,
        "continuation follows request",
        "close request",
        "in continuation: goes on",
        "continuation: outcome=\"ended\"",
        "close continuation",
    ];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());

    let never = async |lifecycle: Lifecycle| {
        lifecycle.finish("hello").await.unwrap();
        std::future::pending::<()>().await;
    };
    let seen = run(app(never).layer(TimeLimitLayer::new(Duration::from_secs(5)))).await;
    let places = ["continuation: outcome=\"dropped\"", "close continuation"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_goes_on_without_its_client_is_still_the_requests() {
    let (begun, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (theirs, gone) = (begun.clone(), left.clone());
    let handler = async move || {
        theirs.notify_one();
        gone.notified().await;
        info!("goes on");
        "hello"
    };
    let (seen, _guard) = Recorder::install();
    let server = MemoryServer::start(app(handler).layer(IgnoreAbortLayer::new()));
    let mut client = server.connect();
    client.send("GET /things/7 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    begun.notified().await;
    drop(client);
    server.journal.seen("aborted").await;
    left.notify_one();
    server.ended(1).await;
    server.stop().await;
    let places = ["in request: goes on", "close request"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
    assert!(!seen.lines().iter().any(|line| line.contains("continuation")), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn without_a_subscriber_work_runs_in_no_span() {
    let handler = async || {
        let work = async { assert!(Span::current().is_none()) };
        (Continuation::new(work), "hello")
    };
    let _guard = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
    let server = MemoryServer::start(app(handler));
    assert_eq!(server.get("/things/7").await.status, 200);
    server.ended(1).await;
    assert_eq!(server.epilogue.panicked(), 0);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_producer_that_finished_is_its_own_continuation() {
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.output(async |mut output: Output| {
            info!("writes");
            output.write("hello").await?;
            output.finish().await?;
            tokio::time::sleep(Duration::from_secs(10)).await;
            info!("goes on");
            Ok::<_, OutputError>(())
        })
    };
    let seen = run(app(handler)).await;
    let places = [
        "in request: writes",
        NEW,
        "continuation follows request",
        "close request",
        "in continuation: goes on",
        "continuation: outcome=\"ended\"",
        "close continuation",
    ];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{:#?}", seen.lines());
}

#[tokio::test(start_paused = true)]
async fn one_that_runs_on_its_own_tells_its_outcome_too() {
    let (seen, _guard) = Recorder::install();
    for work in
        [Continuation::new(async { info!("work") }), Continuation::new(async { panic!("as this test wants it") })]
    {
        drop((work, "hello").into_response());
    }
    // They have no journal. This clock goes on only when nothing is left to run, so by then they are over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lines = seen.lines();
    let count = |line: &str| lines.iter().filter(|other| *other == line).count();
    assert_eq!(count("continuation: outcome=\"ended\""), 2, "{lines:#?}");
    assert_eq!(count("close continuation"), 2, "{lines:#?}");
}
