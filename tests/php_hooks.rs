//! Rows of the PHP table: shutdown functions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use http::StatusCode;
use support::{Gate, Server, logs, soon};
use tokio::{sync::mpsc, task::yield_now};
use tower_epilogue::{ConnectionStatus, Continuation, End, Lifecycle, Sent, ShutdownHookLayer, TimeLimitLayer};

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

fn fail(message: &str) {
    panic!("{message}");
}

// === order ===

#[tokio::test]
async fn s13a_hooks_run_first_in_first_out_and_nested_ones_are_appended() {
    let said = Said::default();
    let (outer, inner, handler) = (said.clone(), said.clone(), said.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let nesting = handler.clone();
        let first = async move |end: End| {
            nesting.say("first");
            let (nested, twice) = (nesting.clone(), nesting.clone());
            end.on_shutdown(async move |end: End| {
                nested.say("nested");
                end.on_shutdown(async move |_| twice.say("nested twice")).unwrap();
            })
            .unwrap();
            yield_now().await;
            nesting.say("first's end");
        };
        lifecycle.on_shutdown(first).unwrap();
        for argument in ["a", "b", "a"] {
            let said = handler.clone();
            lifecycle.on_shutdown(async move |_| said.say(format!("argument {argument}"))).unwrap();
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(ShutdownHookLayer::new(async move |_| inner.say("inner layer")))
        .layer(ShutdownHookLayer::new(async move |_| outer.say("outer layer")));
    let server = Server::start(app).await;
    server.get("/").await;
    server.journal.ended(1).await;
    assert_eq!(
        said.all(),
        [
            "outer layer",
            "inner layer",
            "first",
            "first's end",
            "argument a",
            "argument b",
            "argument a",
            "nested",
            "nested twice"
        ],
        "duplicates run as often as they were registered"
    );
    let lines = server.journal.lines();
    let hooks: Vec<_> = lines.iter().filter(|line| line.starts_with("hook_")).cloned().collect();
    let expected: Vec<_> =
        (0..8).flat_map(|hook| [format!("hook_start:{hook}/0"), format!("hook_end:{hook}/0")]).collect();
    assert_eq!(hooks, expected, "one after the other, each once");
    assert_eq!(lines.last().unwrap(), "ended/0");
}

#[tokio::test]
async fn func_005_hooks_run_after_the_body_and_after_the_continuation() {
    let (gate, said) = (Gate::closed(), Said::default());
    let (work, hook) = (said.clone(), said.clone());
    let held = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle
            .on_shutdown(async move |end: End| hook.say(format!("hook after {} bytes", end.body_bytes())))
            .unwrap();
        let continuation = Continuation::new(async move {
            held.passed().await;
            work.say("continuation");
        });
        (continuation, "hello")
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "hello");
    assert!(said.all().is_empty());
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(said.all(), ["continuation", "hook after 5 bytes"]);
    assert_eq!(
        server.journal.lines(),
        [
            "handler_start/0",
            "handler_end/0",
            "flushed:5/0",
            "continuation_start/0",
            "continuation_end/0",
            "hook_start:0/0",
            "hook_end:0/0",
            "ended/0"
        ]
    );
}

#[tokio::test]
async fn hooks_neither_delay_nor_change_the_response() {
    let (gate, held) = (Gate::closed(), Gate::closed());
    let (hook_gate, started) = (gate.clone(), held.clone());
    let hook = async move |_| {
        started.open();
        hook_gate.passed().await;
    };
    let app = Router::new()
        .route("/", get(async || Body::from_stream(tokio_stream::iter([Ok::<_, std::io::Error>("hello")]))))
        .layer(ShutdownHookLayer::new(hook));
    let server = Server::start(app).await;
    let reply = server.get("/").await;
    held.passed().await;
    assert!(!gate.is_open());
    assert_eq!(reply.dechunked().as_deref(), Some(&b"hello"[..]));
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn a_hook_that_breaks_skips_the_rest() {
    let said = Said::default();
    let (first, exits, never) = (said.clone(), said.clone(), said.clone());
    let app = Router::new()
        .route("/", get(async || "hello"))
        .layer(ShutdownHookLayer::new(async move |_| never.say("never")))
        .layer(ShutdownHookLayer::new(async move |_| {
            exits.say("exit");
            ControlFlow::Break(())
        }))
        .layer(ShutdownHookLayer::new(async move |_| first.say("first")));
    let server = Server::start(app).await;
    server.get("/").await;
    server.journal.ended(1).await;
    assert_eq!(said.all(), ["first", "exit"]);
    assert_eq!(server.journal.lines().last().unwrap(), "ended/0");
}

#[tokio::test]
async fn a_hook_that_panics_is_logged_and_the_rest_run() {
    let (logs, said) = (logs(), Said::default());
    let rest = said.clone();
    let app = Router::new()
        .route("/bad-hook", get(async || "hello"))
        .layer(ShutdownHookLayer::new(async move |end: End| rest.say(format!("after: {:?}", end.panic()))))
        // Before its first await, after it, and while it is made into a future.
        .layer(ShutdownHookLayer::new(async |_| fail("third")))
        .layer(ShutdownHookLayer::new(async |_| {
            yield_now().await;
            fail("second");
        }))
        .layer(ShutdownHookLayer::new(|_| {
            fail("first");
            std::future::ready(())
        }));
    let server = Server::start(app).await;
    assert_eq!(server.get("/bad-hook").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(said.all(), [r#"after: Some("first")"#]);
    let told = logs.with("GET /bad-hook");
    for message in ["first", "second", "third"] {
        let lines = told.iter().filter(|line| line.contains("a hook panicked") && line.contains(message)).count();
        assert_eq!(lines, 1, "{message}: {told:#?}");
    }
    assert_eq!(server.get("/bad-hook").await.status, 200, "the server serves on");
}

#[tokio::test]
async fn a_hook_that_comes_too_late_is_an_error_value_and_does_not_run() {
    let (sender, mut handles) = mpsc::unbounded_channel();
    let handler = async move |lifecycle: Lifecycle| sender.send(lifecycle).unwrap();
    let server = Server::start(Router::new().route("/", get(handler))).await;
    server.get("/").await;
    server.journal.ended(1).await;
    let lifecycle = soon("it is told", handles.recv()).await.unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let runs = ran.clone();
    let refused = lifecycle.on_shutdown(async move |_| runs.store(1, Ordering::SeqCst)).unwrap_err();
    assert!(refused.is_too_late());
    assert_eq!(Arc::strong_count(&ran), 1, "it was dropped");
    server.epilogue.events_delivered().await;
    assert_eq!((ran.load(Ordering::SeqCst), server.journal.lines().last().unwrap().as_str()), (0, "ended/0"));
}

// === failures ===

/// What the only hook saw of a request, and what its client got.
async fn failing(app: Router) -> (u16, ConnectionStatus, Sent, Option<String>) {
    let (sender, mut ends) = mpsc::unbounded_channel();
    let hook = async move |end: End| sender.send((end.status(), end.sent(), end.panic())).unwrap();
    let server = Server::start(app.layer(ShutdownHookLayer::new(hook))).await;
    let reply = server.get("/").await;
    let (status, sent, panic) = soon("the hook", ends.recv()).await.unwrap();
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert_eq!(lines.iter().filter(|line| line.starts_with("hook_start")).count(), 1, "{lines:?}");
    (reply.status, status, sent, panic)
}

const NORMAL: ConnectionStatus = ConnectionStatus::NORMAL;

#[tokio::test]
async fn s14_hooks_run_after_an_error_response() {
    let app = Router::new().route("/", get(async || Err::<(), _>(StatusCode::INTERNAL_SERVER_ERROR)));
    assert_eq!(failing(app).await, (500, NORMAL, Sent::Flushed, None));
    let app = Router::new();
    assert_eq!(failing(app).await, (404, NORMAL, Sent::Flushed, None));
}

#[tokio::test]
async fn s14_hooks_run_after_a_panic_and_can_read_it() {
    async fn text() {
        panic!("no more paper")
    }
    let app = Router::new().route("/", get(text));
    assert_eq!(failing(app).await, (500, NORMAL, Sent::Flushed, Some("no more paper".to_owned())));
}

#[tokio::test]
async fn bug60909_hooks_run_after_failures_of_several_kinds() {
    let app = Router::new().route("/", get(async || fail(&format!("tray {} is empty", 7))));
    assert_eq!(failing(app).await.3.as_deref(), Some("tray 7 is empty"));
    async fn a_value() {
        std::panic::panic_any(7)
    }
    let app = Router::new().route("/", get(a_value));
    let (status, connection, sent, panic) = failing(app).await;
    assert_eq!((status, connection, sent, panic.is_some()), (500, NORMAL, Sent::Flushed, true));
    let app = Router::new().route(
        "/",
        get(async || {
            let numbers: Vec<u8> = Vec::new();
            yield_now().await;
            numbers[std::hint::black_box(3)].to_string()
        }),
    );
    assert!(failing(app).await.3.unwrap().contains("index out of bounds"));
}

#[tokio::test]
async fn bug61767_hooks_run_after_failures_in_several_places() {
    let middleware = Router::new().route("/", get(async || "hello")).layer(middleware::from_fn(
        async |request: Request, next: Next| -> Response {
            let _answer = next.run(request).await;
            panic!("in the middleware")
        },
    ));
    let (status, connection, _, panic) = failing(middleware).await;
    assert_eq!((status, connection, panic.as_deref()), (500, NORMAL, Some("in the middleware")));

    let body = || {
        Body::from_stream(futures_util::stream::poll_fn(|_| -> std::task::Poll<Option<Result<&str, std::io::Error>>> {
            panic!("in the body")
        }))
    };
    let (_, connection, sent, panic) = failing(Router::new().route("/", get(async move || body()))).await;
    assert_eq!((connection, sent, panic.as_deref()), (NORMAL, Sent::BrokenOff, Some("in the body")));

    let work = || (Continuation::new(async { panic!("in the continuation") }), "hello");
    let (status, connection, sent, panic) = failing(Router::new().route("/", get(async move || work()))).await;
    assert_eq!((status, connection, sent, panic.as_deref()), (200, NORMAL, Sent::Flushed, Some("in the continuation")));

    let work = || (Continuation::blocking(|| panic!("on the thread")), "hello");
    let (status, connection, sent, panic) = failing(Router::new().route("/", get(async move || work()))).await;
    assert_eq!((status, connection, sent, panic.as_deref()), (200, NORMAL, Sent::Flushed, Some("on the thread")));

    let finished = async |lifecycle: Lifecycle| {
        lifecycle.finish("hello").await.unwrap();
        fail("after the finish");
    };
    let (status, connection, sent, panic) = failing(Router::new().route("/", get(finished))).await;
    assert_eq!((status, connection, sent, panic.as_deref()), (200, NORMAL, Sent::Flushed, Some("after the finish")));
}

#[tokio::test]
async fn a_failure_after_the_response_costs_no_other_request() {
    let work = async || (Continuation::new(async { panic!("in the continuation") }), "hello");
    let server = Server::start(Router::new().route("/", get(work))).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send_get("/").await;
        assert_eq!(client.reply_by_length(false).await.text(), "hello");
    }
    server.journal.ended(3).await;
}

// === the answer ===

/// PHP's `http_response_code()` in a shutdown function.
#[tokio::test]
async fn hooks_see_the_status_that_was_answered() {
    let (sender, mut ends) = mpsc::unbounded_channel();
    let hook = async move |end: End| sender.send((end.route(), end.response_status())).unwrap();
    let finished = async |lifecycle: Lifecycle| {
        lifecycle.finish(StatusCode::ACCEPTED).await.unwrap();
        StatusCode::BAD_GATEWAY
    };
    let app = Router::new()
        .route("/made", get(async || StatusCode::CREATED))
        .route("/finished", get(finished))
        .route("/panics", get(async || fail("no more paper")))
        .route("/changed", get(async || "ok").layer(middleware::map_response(async |_: Response| StatusCode::GONE)))
        .route("/waits", get(std::future::pending::<()>))
        .route("/slow", get(std::future::pending::<()>).layer(TimeLimitLayer::new(Duration::from_millis(1))))
        .layer(ShutdownHookLayer::new(hook));
    let server = Server::start(app).await;
    let answers =
        [("/made", 201), ("/finished", 202), ("/panics", 500), ("/changed", 410), ("/slow", 503), ("/nowhere", 404)];
    for (path, status) in answers {
        assert_eq!(server.get(path).await.status, status, "{path}");
        let seen = soon("the hook", ends.recv()).await.unwrap();
        assert_eq!(seen, (format!("GET {path}"), StatusCode::from_u16(status).ok()));
    }
    let mut client = server.connect().await;
    client.send_get("/waits").await;
    server.journal.seen_times("handler_start", answers.len() + 1).await;
    client.close();
    let (route, status) = soon("the hook", ends.recv()).await.unwrap();
    assert_eq!(route, "GET /waits");
    // The server may take the answer yet, or be the first to know.
    assert!(status.is_none_or(|status| status == 499), "{status:?}");
}
