//! No user code runs in Drop, in a flush callback or under a lock; a panic anywhere in user code costs that request
//! only (the panics are in the suite `bad_input`).

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::Context,
};

use axum::{Router, routing::get};
use tower_epilogue::{Continuation, Epilogue, Event, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SHORT, told},
    support::{Notes, Server, h2client::Http2},
};

/// What each piece of a request's code says of the task in which it runs.
fn task() -> String {
    tokio::task::try_id().map_or_else(|| "no task".to_owned(), |id| id.to_string())
}

#[tokio::test]
async fn continuations_and_hooks_run_in_a_task_of_their_own() {
    for leave in [Leave::Close, Leave::ResetStream] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let (hook, continuation) = (theirs.clone(), theirs.clone());
            lifecycle.on_shutdown(async move |_| hook.add(task())).unwrap();
            theirs.add(task());
            (Continuation::new(async move { continuation.add(task()) }), "hello")
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        let _client = Asked::get(&server, leave).await;
        server.journal.ended(1).await;
        let tasks = notes.all();
        assert!(!tasks.contains(&"no task".to_owned()), "{tasks:?}");
        assert!(tasks[0] != tasks[1] && tasks[0] != tasks[2], "{leave:?}: {tasks:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Asks and sets everything that a handle can be asked and told, when it is dropped: under a lock of ours that
/// would never end.
struct Meddler(Lifecycle, Notes, &'static str);

impl Drop for Meddler {
    fn drop(&mut self) {
        let Self(lifecycle, notes, name) = self;
        let _ = (lifecycle.status(), lifecycle.phase(), lifecycle.time_left(), lifecycle.ignores_abort());
        lifecycle.ignore_abort(true);
        lifecycle.ignore_abort(false);
        drop(lifecycle.shield());
        lifecycle.set_time_limit(SHORT * 100);
        let hook = notes.clone();
        let registered = lifecycle.on_shutdown(async move |_| hook.add("a hook of a destructor")).is_ok();
        let mut finish = Box::pin(lifecycle.finish("of a destructor"));
        let _ = finish.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        notes.add(format!("{name}: registered {registered}"));
    }
}

/// A destructor of the user's runs where its work is dropped, and may use the request's handle.
#[tokio::test]
async fn destructors_can_use_the_handle() {
    for leave in [Leave::Close, Leave::ResetStream] {
        for what in ["handler", "body", "continuation", "hook"] {
            let notes = Notes::default();
            let theirs = notes.clone();
            let handler = async move |lifecycle: Lifecycle| {
                let meddler = Meddler(lifecycle.clone(), theirs.clone(), what);
                match what {
                    "handler" => {
                        theirs.add("here");
                        pending::<()>().await;
                        drop(meddler);
                        axum::response::Response::default()
                    }
                    "body" => {
                        let body = futures_util::stream::once(async move {
                            let _held = meddler;
                            theirs.add("here");
                            pending::<Result<&str, std::io::Error>>().await
                        });
                        axum::response::Response::new(axum::body::Body::from_stream(body))
                    }
                    "continuation" => {
                        lifecycle.set_time_limit(SHORT);
                        axum::response::IntoResponse::into_response(Continuation::new(async move {
                            let _held = meddler;
                            theirs.add("here");
                            pending::<()>().await;
                        }))
                    }
                    _ => {
                        // The first hook skips the second, which is dropped without having run.
                        lifecycle.on_shutdown(async |_| std::ops::ControlFlow::Break(())).unwrap();
                        lifecycle
                            .on_shutdown(async move |_| {
                                let _held = meddler;
                            })
                            .unwrap();
                        theirs.add("here");
                        axum::response::Response::default()
                    }
                }
            };
            let server = Server::start(Router::new().route("/", get(handler))).await;
            let client = Asked::get(&server, leave).await;
            notes.seen("here").await;
            let _left = if matches!(what, "handler" | "body") {
                client.leave(leave).await
            } else {
                server.journal.ended(1).await;
                client.leave(leave).await
            };
            server.journal.ended(1).await;
            let all = notes.all();
            assert_eq!(all[1], format!("{what}: registered true"), "{leave:?}");
            assert_eq!(all[2], "a hook of a destructor", "{what} {leave:?}: {all:?}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// A waker of the user's, which is called where we wake, does the same.
#[tokio::test]
async fn wakers_can_use_the_handle() {
    struct Waking(Mutex<Option<Lifecycle>>, Notes);

    impl std::task::Wake for Waking {
        fn wake(self: Arc<Self>) {
            if let Some(lifecycle) = self.0.lock().unwrap().take() {
                let notes = self.1.clone();
                lifecycle.on_shutdown(async move |_| notes.add("a hook of a waker")).unwrap();
                lifecycle.ignore_abort(false);
                self.1.add(format!("woken: {}", lifecycle.status()));
            }
        }
    }

    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let waker = Arc::new(Waking(Mutex::new(Some(lifecycle.clone())), theirs.clone())).into();
        let mut aborted: Pin<Box<dyn Future<Output = ()> + Send>> = {
            let lifecycle = lifecycle.clone();
            Box::pin(async move { lifecycle.aborted().await })
        };
        assert!(aborted.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        theirs.add("here");
        pending::<()>().await;
        drop(aborted);
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let client = Asked::get(&server, Leave::Close).await;
    notes.seen("here").await;
    let _left = client.leave(Leave::Close).await;
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["here", "woken: ABORTED", "a hook of a waker"]);
    assert!(server.stop().await.is_clean());
}

/// The event function may ask what it likes, wherever the event happened.
#[tokio::test]
async fn the_event_function_can_use_the_epilogue() {
    static EPILOGUE: OnceLock<Epilogue> = OnceLock::new();
    let notes = Notes::default();
    let theirs = notes.clone();
    let epilogue = Epilogue::builder()
        .on_event(move |event: &Event| {
            let epilogue = EPILOGUE.get().unwrap();
            let _ = (epilogue.running(), epilogue.stuck(), epilogue.lost());
            theirs.add(event.kind().name());
        })
        .build();
    EPILOGUE.set(epilogue.clone()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", get(async || (Continuation::new(async {}), "hello")));
    let server = tokio::spawn(epilogue.serve(listener, app).into_future());
    assert_eq!(Http2::connect(address).await.get("/").await.unwrap().body, b"hello");
    notes.seen("ended").await;
    let names = [
        "arrived",
        "handler_start",
        "handler_end",
        "handed_over",
        "flushed",
        "continuation_start",
        "continuation_end",
        "ended",
    ];
    assert_eq!(notes.all(), names);
    server.abort();
}

#[tokio::test]
async fn a_panic_of_the_event_function_harms_no_request() {
    let notes = Notes::default();
    let app = Router::new()
        .route("/", get(pending::<()>))
        .layer((TimeLimitLayer::new(SHORT), ShutdownHookLayer::new(told(&notes))));
    let epilogue =
        Epilogue::builder().on_event(|_: &Event| panic!("the event function panics, as this test wants it")).build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(epilogue.serve(listener, app).into_future());
    assert_eq!(Http2::connect(address).await.get("/").await.unwrap().status, 503);
    notes.count(1).await;
    epilogue.events_delivered().await;
    assert_eq!(notes.all(), ["hook: TIMEOUT, Flushed"]);
    server.abort();
}
