//! Rows of the PHP table: what belongs to a request reaches its hooks and its continuation, and no other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use support::{Gate, MemoryServer, Server, logs};
use tokio::{sync::mpsc, task::yield_now};
use tower_epilogue::{Continuation, End, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};
use tracing::Instrument;

/// What hooks say, in order.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    fn say(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Says when it is dropped.
struct Kept(Said, &'static str);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.say(format!("{} dropped", self.1));
    }
}

#[tokio::test]
async fn bug20240_hooks_run_before_what_they_were_given_is_dropped() {
    let said = Said::default();
    let given = said.clone();
    let handler = async move |lifecycle: Lifecycle| {
        for name in ["one", "two"] {
            let kept = Kept(given.clone(), name);
            lifecycle
                .on_shutdown(async move |_| {
                    yield_now().await;
                    kept.0.say(format!("{} used", kept.1));
                })
                .unwrap();
        }
        lifecycle.on_shutdown(async move |_| ControlFlow::Break(())).unwrap();
        let skipped = Kept(given.clone(), "skipped");
        lifecycle.on_shutdown(async move |_| skipped.0.say("never")).unwrap();
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    server.get("/").await;
    server.journal.ended(1).await;
    assert_eq!(said.all(), ["one used", "one dropped", "two used", "two dropped", "skipped dropped"]);
}

tokio::task_local! {
    static TENANT: String;
}

#[tokio::test]
async fn s25_context_reaches_hooks_by_value() {
    let directory = std::env::current_dir().unwrap();
    let said = Said::default();
    let hook = said.clone();
    let handler = async move |lifecycle: Lifecycle, request: Request| {
        let path = request.uri().path().to_owned();
        let work = hook.clone();
        lifecycle
            .on_shutdown(async move |end: End| {
                hook.say(format!("hook of {}, {path}, {}", TENANT.get(), end.route()));
            })
            .unwrap();
        (Continuation::new(async move { work.say(format!("work of {}", TENANT.get())) }), "hello")
    };
    let scoped = async |request: Request, next: Next| TENANT.scope("acme".to_owned(), next.run(request)).await;
    let app = Router::new()
        .route("/of/{id}", get(handler))
        // What is in scope around the innermost of our layers goes along.
        .layer(IgnoreAbortLayer::off())
        .layer(middleware::from_fn(scoped));
    let server = Server::with(app, |builder| builder.carry(&TENANT)).await;
    server.get("/of/7").await;
    server.journal.ended(1).await;
    assert_eq!(said.all(), ["work of acme", "hook of acme, /of/7, GET /of/{id}"]);
    assert_eq!(std::env::current_dir().unwrap(), directory);
}

#[tokio::test]
async fn log_bm_what_a_hook_logs_is_attributed_to_its_request() {
    let logs = logs();
    let handler = async |lifecycle: Lifecycle| {
        lifecycle
            .on_shutdown(async |end: End| {
                tracing::info!("logged by the hook of {}", end.route());
                yield_now().await;
                tracing::info!("logged later by the hook of {}", end.route());
            })
            .unwrap();
        let id = lifecycle.id();
        let work = async move { tracing::info!("logged by the continuation for the log-bm of {id}") };
        (Continuation::new(work), "hello")
    };
    let spanned = async |lifecycle: Lifecycle, request: Request, next: Next| {
        let id = request.uri().query().unwrap_or_default();
        let span = tracing::info_span!("request", id, request = lifecycle.id().to_string());
        next.run(request).instrument(span).await
    };
    let app = Router::new().route("/log-bm", get(handler)).layer(middleware::from_fn(spanned));
    let server = Server::start(app).await;
    let (first, second) = tokio::join!(server.get("/log-bm?id-41"), server.get("/log-bm?id-42"));
    assert_eq!((first.status, second.status), (200, 200));
    server.journal.ended(2).await;
    for id in ["id-41", "id-42"] {
        let told = logs.with(&format!("request{{id=\"{id}\""));
        for message in ["logged by the hook of GET /log-bm", "logged later by the hook of GET /log-bm"] {
            assert_eq!(told.iter().filter(|line| line.contains(message)).count(), 1, "{id}, {message}: {told:#?}");
        }
        // The continuation's span is not inside of the request's; the request's number is in both.
        let request = told[0].split("request=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let told = logs.with(&format!("continuation{{route=\"GET /log-bm\" request={request}}}"));
        let message = format!("logged by the continuation for the log-bm of {request}");
        assert_eq!(told.iter().filter(|line| line.contains(&message)).count(), 1, "{id}: {told:#?}");
    }
}

// === locks ===

/// A middleware that holds the session's lock while its handler answers.
async fn session(lock: Arc<tokio::sync::Mutex<()>>, request: Request, next: Next) -> Response {
    let _session = lock.lock_owned().await;
    next.run(request).await
}

#[tokio::test]
async fn the_session_lock_is_released_before_the_continuation() {
    let gate = Gate::closed();
    let (lock, returning, finishing) = (Arc::default(), gate.clone(), gate.clone());
    let routes = Router::new()
        .route("/returns", get(async move || (Continuation::new(async move { returning.passed().await }), "returned")))
        .route(
            "/finishes",
            get(async move |lifecycle: Lifecycle| {
                lifecycle.finish("finished").await.unwrap();
                finishing.passed().await;
            }),
        )
        // What is finished leaves through what is outside of the innermost layer.
        .layer(ShutdownHookLayer::new(async |_| {}))
        .layer(middleware::from_fn(move |request, next| session(Arc::clone(&lock), request, next)));
    let server = Server::start(routes).await;
    for (path, text) in [("/returns", "returned"), ("/finishes", "finished"), ("/returns", "returned")] {
        assert_eq!(server.get(path).await.text(), text, "while those before still work");
    }
    assert!(!gate.is_open());
    gate.open();
    server.journal.ended(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_the_handler_itself_is_released_before_its_continuation() {
    let lock = Arc::new(tokio::sync::Mutex::new(()));
    let session = lock.clone();
    let handler = async move || {
        let _session = session.clone().lock_owned().await;
        let work = async move {
            assert!(session.try_lock().is_ok());
        };
        (Continuation::new(work), "hello")
    };
    let (sender, mut panics) = mpsc::unbounded_channel();
    let hook = async move |end: End| sender.send(end.panic()).unwrap();
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(hook));
    let server = MemoryServer::start(app);
    server.get("/").await;
    assert_eq!(panics.recv().await, Some(None));
}
