//! A handler that is not safe to drop shows it, one that is does not.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::FutureExt as _;
use tower_epilogue::{
    Continuation, Epilogue, EventKind, IgnoreAbortLayer, Lifecycle,
    test_util::{Interrupted, TestServer, every_await_point},
};

type Steps = Arc<Mutex<Vec<u32>>>;

/// Three steps with two awaits between, and one that does not wait.
async fn steps(steps: Steps) {
    for step in 0..3 {
        steps.lock().unwrap().push(step);
        std::future::ready(()).await;
        if step < 2 {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

fn app(done: &Steps) -> Router {
    let done = done.clone();
    Router::new().route("/", get(move || steps(done)))
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_dropped_at_each_of_its_await_points_in_turn() {
    let turns = Mutex::new(Vec::new());
    let points = every_await_point(async |server| {
        let done = Steps::default();
        let story = server.get(app(&done), "/").await;
        story.assert_contract();
        assert_eq!(story.count("handler_dropped"), usize::from(done.lock().unwrap().len() < 3), "{story}");
        turns.lock().unwrap().push((server.point(), done.lock().unwrap().clone()));
    })
    .await;
    assert_eq!(points, 2);
    let expected = [(None, vec![0, 1, 2]), (Some(0), vec![0]), (Some(1), vec![0, 1])];
    assert_eq!(*turns.lock().unwrap(), expected, "undisturbed, and at each point");
}

async fn must_be_whole(server: Interrupted) {
    let done = Steps::default();
    server.get(app(&done), "/").await;
    assert_eq!(done.lock().unwrap().len(), 3, "half done");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_not_safe_to_drop_shows_it() {
    let outcome = AssertUnwindSafe(every_await_point(must_be_whole)).catch_unwind().await;
    assert!(outcome.is_err());
}

#[tokio::test(start_paused = true)]
async fn where_aborts_are_ignored_it_goes_on_from_each_point() {
    for shielded in [false, true] {
        let points = every_await_point(async |server| {
            let done = Steps::default();
            let theirs = done.clone();
            let handler = async move |lifecycle: Lifecycle| {
                let _shield = shielded.then(|| lifecycle.shield());
                steps(theirs.clone()).await;
            };
            let app = Router::new().route("/", get(handler));
            let app = if shielded { app } else { app.layer(IgnoreAbortLayer::new()) };
            let story = server.get(app, "/").await;
            assert_eq!(done.lock().unwrap().len(), 3, "{story}");
            story.assert_handler_ended();
            let disturbed = server.point().is_some_and(|point| point < 2);
            assert_eq!(story.status().is_aborted(), disturbed, "{story}");
        })
        .await;
        assert_eq!(points, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_streamed_body_has_await_points_too() {
    let points = every_await_point(async |server| {
        let frames = futures_util::stream::unfold(0, |frame| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (frame < 2).then(|| (Ok::<_, std::io::Error>(vec![b'x'; 10]), frame + 1))
        });
        let body = Arc::new(Mutex::new(Some(Body::from_stream(frames))));
        let handler = async move || {
            tokio::task::yield_now().await;
            body.lock().unwrap().take().unwrap()
        };
        let story = server.get(Router::new().route("/", get(handler)), "/").await;
        story.assert_contract();
        match server.point() {
            Some(0) => story.assert_handler_dropped(),
            Some(1..=3) => assert_eq!(story.count("body_dropped"), 1, "{story}"),
            _ => assert_eq!(story.count("body_end"), 1, "{story}"),
        }
    })
    .await;
    assert_eq!(points, 4, "one in the handler, one before each frame, one before the end");
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_runs_wherever_the_client_left() {
    let points = every_await_point(async |server| {
        let handler = async |lifecycle: Lifecycle| {
            let mail = Continuation::new(tokio::time::sleep(Duration::from_secs(1)));
            let sent = lifecycle.finish((mail, "finished")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(sent);
        };
        let story = server.get(Router::new().route("/", get(handler)), "/").await;
        story.assert_handler_ended();
        story.assert_continuations(1);
    })
    .await;
    assert_eq!(points, 0, "after `finish` an abort drops nothing");
}

#[tokio::test]
async fn a_request_of_ones_own_may_be_for_the_head_alone() {
    let points = every_await_point(async |server| {
        let handler = async || {
            tokio::task::yield_now().await;
            "hello"
        };
        let app = Router::new().route("/", get(handler));
        let story = server.send(app, "HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        assert_eq!(story.has(&EventKind::HandlerDropped), server.point() == Some(0), "{story}");
    })
    .await;
    assert_eq!(points, 1);
}

#[tokio::test(start_paused = true)]
async fn its_server_may_have_settings_and_its_app_be_made_of_its_epilogue() {
    let shares = Mutex::new(0);
    let points = every_await_point(async |server| {
        let told = Arc::new(Mutex::new(0));
        let listener = told.clone();
        let builder =
            TestServer::builder().epilogue(|epilogue| epilogue.on_event(move |_| *listener.lock().unwrap() += 1));
        let done = Steps::default();
        let app = async |epilogue: &Epilogue| {
            // It is the one that serves the app.
            assert_eq!(epilogue.running(), 0);
            app(&done)
        };
        let story = server.send_to(builder, app, "GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        story.assert_contract();
        *shares.lock().unwrap() += usize::from(*told.lock().unwrap() > 0);
    })
    .await;
    assert_eq!((points, *shares.lock().unwrap()), (2, 3), "each turn is told of to the listener of the settings");
}
