//! The handle, used too late, without a service of ours, or from a thread or a runtime of one's own.

use std::{sync::mpsc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::IntoResponse, routing::get};
use http::StatusCode;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{End, IgnoreAbortLayer, Lifecycle, LifecycleError, Phase, Sent, ShutdownHookLayer};

use crate::{
    common::{held_back, settled, told},
    support::{Gate, Notes, Server, soon},
};

/// A handler that gives its handle away.
fn giving() -> (Router, mpsc::Receiver<Lifecycle>) {
    let (sender, receiver) = mpsc::channel();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send(lifecycle).unwrap();
        "hello"
    };
    (Router::new().route("/", get(handler)), receiver)
}

fn is_too_late(error: &LifecycleError) -> bool {
    error.is_too_late() && !error.is_finished_twice() && !error.is_already_answered()
}

#[tokio::test]
async fn a_hook_after_the_end_is_refused_and_dropped() {
    let notes = Notes::default();
    let (app, handles) = giving();
    for with_hooks in [false, true] {
        let app = app.clone();
        let app = if with_hooks { app.layer(ShutdownHookLayer::new(async |_| ())) } else { app };
        let server = Server::start(app).await;
        assert_eq!(server.get("/").await.text(), "hello");
        server.journal.ended(1).await;
        let lifecycle = handles.recv().unwrap();
        assert_eq!(lifecycle.phase(), Phase::Ended);
        let (ran, dropped) = (notes.clone(), notes.on_drop("dropped"));
        let error = lifecycle
            .on_shutdown(async move |_| {
                let _dropped = dropped;
                ran.add("ran");
            })
            .unwrap_err();
        assert!(is_too_late(&error), "{error:?}");
        assert!(error.to_string().contains("the request has ended"), "{error}");
        assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(server.stop().await.is_clean());
    }
    assert_eq!(notes.all(), ["dropped", "dropped"]);
}

#[tokio::test]
async fn a_hook_through_a_kept_end_is_refused_after_the_end() {
    let (sender, ends) = mpsc::channel::<End>();
    let hook = ShutdownHookLayer::new(move |end| {
        sender.send(end).unwrap();
        std::future::ready(())
    });
    let server = Server::start(Router::new().route("/", get(async || "hello")).layer(hook)).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    let end = ends.recv().unwrap();
    assert!(is_too_late(&end.on_shutdown(async |_| ()).unwrap_err()));
    // Reading it works on.
    assert_eq!((end.sent(), end.route(), end.body_bytes()), (Sent::Flushed, "GET /".to_owned(), 5));
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_kept_handle_reads_on_and_sets_nothing() {
    let (app, handles) = giving();
    let server = Server::start(app.layer(IgnoreAbortLayer::off())).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(client.response(false).await.text(), "hello");
    server.journal.ended(1).await;
    let lifecycle = handles.recv().unwrap();
    let before = server.journal.lines();
    lifecycle.set_time_limit(Duration::from_nanos(1));
    lifecycle.ignore_abort(true);
    let shields = (lifecycle.shield(), lifecycle.shield());
    drop(shields);
    let error = lifecycle.finish("too late").await.unwrap_err();
    assert!(error.is_already_answered() && !error.is_too_late() && !error.is_finished_twice());
    assert!(lifecycle.status().is_normal() && !lifecycle.is_aborted() && !lifecycle.ignores_abort());
    assert_eq!(lifecycle.phase(), Phase::Ended);
    // The next request on the connection knows nothing of it.
    client.send_get("/").await;
    assert_eq!(client.response(false).await.text(), "hello");
    server.journal.ended(2).await;
    assert_eq!(server.journal.lines_of(lifecycle.id()), before);
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_lives_longer_than_its_request_keeps_nothing_running() {
    let (app, handles) = giving();
    let notes = Notes::default();
    let app = app.layer(ShutdownHookLayer::new(told(&notes)));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let lifecycle = handles.recv().unwrap();
    drop(response.into_body().collect().await.unwrap());
    settled().await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    assert_eq!(lifecycle.phase(), Phase::Ended);
}

#[tokio::test]
async fn without_a_service_of_ours_the_handle_is_refused_with_the_cure() {
    let app = Router::new()
        .route("/", get(async |_: Lifecycle| "never"))
        .route("/optional", get(async |lifecycle: Option<Lifecycle>| format!("{}", lifecycle.is_some())));
    let ask = |path: &str| app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
    let response = ask("/").await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    for cure in ["Lifecycle", "tower-epilogue", "Epilogue::serve", "make_service", ".layer(TimeLimitLayer::off())"] {
        assert!(text.contains(cure), "{cure} in {text}");
    }
    let response = ask("/optional").await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "false");
    let response = app.clone().layer(IgnoreAbortLayer::off());
    let response = response.oneshot(Request::get("/optional").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "true");
}

/// A thread of the user's own is in no runtime: what it asks for happens where the request is served.
#[tokio::test]
async fn a_thread_of_ones_own_may_use_the_handle() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (app, handles) = {
        let (sender, receiver) = mpsc::channel();
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            sender.send(lifecycle).unwrap();
            held_back(&theirs, &opens, "first", "second")
        };
        (Router::new().route("/", get(handler)), receiver)
    };
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("first").await;
    let (lifecycle, hooks) = (handles.recv().unwrap(), notes.clone());
    std::thread::spawn(move || {
        lifecycle.on_shutdown(async move |end| hooks.add(format!("hook: {}", end.status()))).unwrap();
        lifecycle.set_time_limit(Duration::from_millis(30));
    })
    .join()
    .unwrap();
    server.journal.ended(1).await;
    assert!(notes.has("hook: TIMEOUT"), "{:?}", notes.all());
    assert_eq!(server.epilogue.lost(), 0);
}

/// The same without a server of ours: nothing says where that is, so whoever polls the request next sets the timer.
#[tokio::test]
async fn a_thread_of_ones_own_may_set_the_limit_without_a_server_of_ours() {
    let (sender, handles) = mpsc::channel();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send(lifecycle).unwrap();
        std::future::pending::<()>().await;
    };
    let app: Router = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::off());
    let thread = std::thread::spawn(move || handles.recv().unwrap().set_time_limit(Duration::from_millis(30)));
    let response = soon("the limit passes", app.oneshot(Request::new(Body::empty()))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    thread.join().unwrap();
}

/// A runtime of the user's own, in a thread of theirs, which is over when they have done what they wanted with the handle.
async fn in_another_runtime(lifecycle: Lifecycle, with_time: bool, what: impl FnOnce(&Lifecycle) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = if with_time { runtime.enable_all() } else { &mut runtime };
        runtime.build().unwrap().block_on(async { what(&lifecycle) });
    });
    thread.join().unwrap();
}

#[tokio::test]
async fn another_runtime_may_use_the_handle_and_end() {
    for with_time in [false, true] {
        for limits in [false, true] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (sender, handles) = mpsc::channel();
            let (theirs, opens) = (notes.clone(), gate.clone());
            let handler = async move |lifecycle: Lifecycle| {
                sender.send(lifecycle).unwrap();
                held_back(&theirs, &opens, "first", "second")
            };
            let server = Server::start(Router::new().route("/", get(handler))).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            client.read_until("first").await;
            let (lifecycle, hooks) = (handles.recv().unwrap(), notes.clone());
            let hook = async move |end: End| hooks.add(format!("hook: {}", end.status()));
            in_another_runtime(lifecycle.clone(), with_time, |lifecycle| lifecycle.on_shutdown(hook).unwrap()).await;
            if limits {
                let limit = Duration::from_millis(30);
                in_another_runtime(lifecycle, with_time, move |lifecycle| lifecycle.set_time_limit(limit)).await;
            } else {
                gate.open();
            }
            server.journal.ended(1).await;
            let expected = if limits { "hook: TIMEOUT" } else { "hook: NORMAL" };
            assert!(notes.has(expected), "with time: {with_time}, limits: {limits}: {:?}", notes.all());
            assert_eq!(server.epilogue.lost(), 0);
        }
    }
}
