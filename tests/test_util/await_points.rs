//! A handler that is not safe to drop shows it, one that is does not.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Request,
    routing::{get, post},
};
use futures_util::FutureExt as _;
use tower_epilogue::{
    Continuation, Epilogue, EventKind, IgnoreAbortLayer, Lifecycle,
    test_util::{Interrupted, TestServer, every_await_point, request_bytes},
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

/// What each turn came to: its point, how much of the body the handler has had in the end, and whether the client aborted.
type Turns = Mutex<Vec<(Option<usize>, usize, bool)>>;

async fn uploads(body: Vec<u8>, expects: bool) -> (usize, Vec<(Option<usize>, usize, bool)>) {
    let turns = Turns::default();
    let points = every_await_point(async |server| {
        let had = Arc::new(Mutex::new(0));
        let theirs = had.clone();
        let handler = async move |body: Bytes| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            *theirs.lock().unwrap() = body.len();
        };
        let app = Router::new().route("/", post(handler));
        let mut request = Request::post("/").body(body.clone()).unwrap();
        if expects {
            request.headers_mut().insert("expect", "100-continue".parse().unwrap());
        }
        let story = server.send(app, request_bytes(request)).await;
        story.assert_contract();
        turns.lock().unwrap().push((server.point(), *had.lock().unwrap(), story.status().is_aborted()));
    })
    .await;
    (points, turns.into_inner().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_whether_to_go_on_waits_for_the_response_after_that() {
    let (points, turns) = uploads(b"hello".to_vec(), true).await;
    assert_eq!(turns[0], (None, 5, false), "undisturbed");
    assert!(points > 0 && turns[1..].iter().all(|(_, had, aborted)| *had == 0 && *aborted), "{turns:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upload_may_be_longer_than_what_the_server_takes_at_once() {
    let (points, turns) = uploads(vec![b'x'; 500_000], false).await;
    assert_eq!(turns[0], (None, 500_000, false), "undisturbed");
    assert!(points > 1 && turns[1..].iter().all(|(_, had, aborted)| *had == 0 && *aborted), "{turns:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_is_told_with_the_line_and_the_answer() {
    let turn = async |server: Interrupted| {
        drop(server.send(Router::new(), "GET / HTTP/1.1\r\nhost : test\r\n\r\n").await);
    };
    let payload = AssertUnwindSafe(every_await_point(turn)).catch_unwind().await.unwrap_err();
    let message = payload.downcast::<String>().unwrap();
    assert!(message.contains("no request has begun") && message.contains(file!()), "{message}");
    assert!(message.contains("status: 400"), "{message}");
}

/// Each of them would be a turn.
#[tokio::test]
#[should_panic(expected = "more than 10000 await points")]
async fn a_handler_of_very_many_points_fails_the_test_at_once() {
    let waits = async || {
        for _ in 0..10_001 {
            tokio::task::yield_now().await;
        }
    };
    every_await_point(async |server| drop(server.get(Router::new().route("/", get(waits)), "/").await)).await;
}
