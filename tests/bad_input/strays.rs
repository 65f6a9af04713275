//! Continuations that go astray: never returned, returned twice over, in responses that nobody sends.

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use http::StatusCode;
use tower::ServiceExt;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{settled, told},
    support::{Notes, Server, logs},
};

fn continuation(notes: &Notes, note: &'static str) -> Continuation {
    let notes = notes.clone();
    Continuation::new(async move { notes.add(note) })
}

#[tokio::test]
async fn one_that_is_never_returned_does_not_run_and_a_warning_says_so() {
    let logs = logs();
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let _span = tracing::info_span!("never_returned").entered();
        drop(continuation(&theirs, "never"));
        "hello"
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    let lines = logs.with("never_returned");
    assert!(lines.len() == 1 && lines[0].contains("does not run") && lines[0].contains("WARN"), "{lines:#?}");
}

#[tokio::test]
async fn several_in_one_response_run_in_their_order() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let mut response = (continuation(&theirs, "first"), continuation(&theirs, "second"), "hello").into_response();
        continuation(&theirs, "third").attach(&mut response);
        let blocking = theirs.clone();
        Continuation::blocking(move || blocking.add("fourth")).attach_to(response.extensions_mut());
        response
    };
    let outer = notes.clone();
    let app = Router::new()
        .route("/", get(handler))
        .layer(IgnoreAbortLayer::new())
        // What a middleware outside adds comes behind them.
        .layer(from_fn(move |request: Request, next: Next| {
            let notes = outer.clone();
            async move { (continuation(&notes, "fifth"), next.run(request).await) }
        }));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first", "second", "third", "fourth", "fifth"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_hundred_in_one_response_run_in_their_order() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let mut response = StatusCode::OK.into_response();
        for number in 0..100 {
            let notes = theirs.clone();
            Continuation::new(async move { notes.add(number.to_string()) }).attach(&mut response);
        }
        response
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.status, 200);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn one_in_any_kind_of_response_runs() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let error = async move || {
        Err::<(), _>((StatusCode::BAD_REQUEST, continuation(&theirs, "of an error"), "bad").into_response())
    };
    let (theirs, alone) = (notes.clone(), notes.clone());
    let app = Router::new()
        .route("/error", get(error))
        .route("/redirect", get(async move || (continuation(&theirs, "of a redirect"), Redirect::to("/"))))
        .route("/alone", get(async move || continuation(&alone, "of nothing")));
    let server = Server::start(app).await;
    for (path, status, note) in
        [("/error", 400, "of an error"), ("/redirect", 303, "of a redirect"), ("/alone", 200, "of nothing")]
    {
        assert_eq!(server.get(path).await.status, status);
        notes.seen(note).await;
    }
    server.journal.ended(3).await;
    assert_eq!(notes.all().len(), 3);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn one_in_a_response_that_finish_refused_runs() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.finish("finished").await.unwrap();
        let refused = lifecycle.finish((continuation(&theirs, "of the refused"), "second")).await;
        assert!(refused.unwrap_err().is_finished_twice());
        theirs.add("rest");
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["rest", "of the refused", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// The response was made, and dropped, in the handler itself.
#[tokio::test]
async fn one_in_a_response_that_its_handler_threw_away_runs_with_its_request() {
    for waits in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move || {
            let response = (continuation(&theirs, "of the thrown away"), "hello").into_response();
            if waits {
                tokio::task::yield_now().await;
            }
            drop(response);
            "another"
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        assert_eq!(server.get("/").await.text(), "another");
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["of the thrown away", "hook: NORMAL, Flushed"], "waits: {waits}");
        assert!(server.stop().await.is_clean());
    }
}

/// No request is being polled there: it runs on its own, and a log says so.
#[tokio::test]
async fn one_in_a_response_that_a_spawned_task_threw_away_runs_on_its_own() {
    let logs = logs();
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        let task = tokio::spawn(async move {
            let _span = tracing::info_span!("of_a_spawned_task").entered();
            drop((continuation(&notes, "of a spawned task"), "hello").into_response());
        });
        task.await.unwrap();
        "hello"
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "hello");
    notes.seen("of a spawned task").await;
    server.journal.ended(1).await;
    assert_eq!(notes.all().len(), 1);
    let lines = logs.with("of_a_spawned_task");
    assert!(lines.iter().any(|line| line.contains("runs on its own")), "{lines:#?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn one_in_cloned_extensions_runs_once() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = Router::new()
        .route("/", get(async move || (continuation(&theirs, "once"), "hello")))
        .layer(from_fn(async |request: Request, next: Next| {
            let response = next.run(request).await;
            let mut copy = Response::new(Body::from("copy"));
            *copy.extensions_mut() = response.extensions().clone();
            drop(response);
            copy
        }))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    settled().await;
    assert_eq!(notes.all(), ["once", "hook: NORMAL, Flushed"]);
}

/// What a handler says to a middleware around our layers, beside its continuation.
#[tokio::test]
async fn what_else_is_in_the_extensions_stays_with_its_response() {
    #[derive(Clone)]
    struct Said(String);
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |request: Request| {
        let said = request.uri().query().map(|query| axum::Extension(Said(query.to_owned())));
        (said, continuation(&theirs, "continuation"), "hello")
    };
    let hears = async |request: Request, next: Next| {
        let response = next.run(request).await;
        let said = response.extensions().get().map_or("nothing", |Said(said)| said).to_owned();
        ([("said", said)], response)
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes))).layer(from_fn(hears));
    let server = Server::start(app).await;
    for said in ["one", "two", "", "three", ""] {
        let path = if said.is_empty() { "/".to_owned() } else { format!("/?{said}") };
        let heard = if said.is_empty() { "nothing" } else { said };
        assert_eq!(server.get(&path).await.header("said"), Some(heard), "{path}");
    }
    server.journal.ended(5).await;
    assert!(server.stop().await.is_clean());
    assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"].repeat(5));
}

#[tokio::test(start_paused = true)]
async fn one_that_panics_on_its_own_harms_nobody() {
    drop((Continuation::new(async { panic!("as this test wants it") }), "hello").into_response());
    drop((Continuation::blocking(|| panic!("as this test wants it")), "hello").into_response());
    let notes = Notes::default();
    drop((continuation(&notes, "another"), "hello").into_response());
    notes.seen("another").await;
}

#[tokio::test]
async fn one_that_went_astray_before_an_app_inside_was_asked_is_not_that_apps() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        drop((continuation(&theirs, "of the outer request"), "thrown away").into_response());
        // An app of its own, with a request of its own, in the same poll.
        let inner = Router::new().route("/", get(async || "inside")).layer(IgnoreAbortLayer::new());
        inner.oneshot(Request::new(Body::empty())).await.unwrap()
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "inside");
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert!(lines.contains(&"continuation_start/0".to_owned()), "{lines:?}");
    assert!(server.stop().await.is_clean());
    assert_eq!(notes.all(), ["of the outer request", "hook: NORMAL, Flushed"]);
}
