//! What the page says of requests that are over.

use std::{future::pending, io, time::Duration};

use axum::{Router, body::Body, routing::get};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower_epilogue::{Continuation, Event, ShutdownHookLayer, TimeLimitLayer, test_util::TestServer};

const SECOND: Duration = Duration::from_secs(1);

fn app() -> Router {
    let mail = async || {
        let work = async {
            sleep(2 * SECOND).await;
            Err::<(), _>(io::Error::other("no mail today"))
        };
        (Continuation::try_new(work).class("mail"), "accepted")
    };
    let fails = async || {
        let parts = [Ok("half"), Err(io::Error::other("the other half is missing"))];
        Body::from_stream(stream::iter(parts))
    };
    Router::new()
        .route("/mail", get(mail).layer(ShutdownHookLayer::new(async |_| sleep(3 * SECOND).await)))
        .route("/cut", get(async || (Continuation::new(pending()), "accepted")).layer(TimeLimitLayer::new(SECOND)))
        .route("/fails", get(fails))
        .route("/hook", get(async || "hello").layer(ShutdownHookLayer::new(async |_| pending::<()>().await)))
}

#[tokio::test(start_paused = true)]
async fn what_went_wrong_and_how_long_it_worked() {
    let builder = TestServer::builder().epilogue(|epilogue| epilogue.status_page().hook_limit(4 * SECOND));
    let server = builder.in_memory_with(async |epilogue| app().nest("/status", epilogue.status_page())).await;
    for (place, path) in ["/mail", "/cut", "/fails", "/hook"].into_iter().enumerate() {
        server.connect().await.send_get(path).await;
        server.journal().ended(place + 1).await;
    }
    sleep(10 * SECOND).await;
    let html = server.get("/status").await.text();
    assert!(html.contains("<dd class=\"bad\" data-name=\"failed\">1<"), "{html}");
    assert!(html.contains("<dd class=\"\" data-name=\"refused\">0<"), "{html}");
    let page: Value = serde_json::from_str(&server.get("/status/json").await.text()).unwrap();
    let said = |name: &str| -> Vec<Value> {
        page["failures"].as_array().unwrap().iter().map(|failure| failure[name].clone()).collect()
    };
    // The last first.
    assert_eq!(said("route"), ["GET /hook", "GET /fails", "GET /cut", "GET /mail"]);
    assert_eq!(
        said("faults"),
        [json!(["dropped"]), json!(["failed"]), json!(["dropped", "timed out"]), json!(["failed"])]
    );
    assert_eq!(said("class"), [json!(null), json!(null), json!(null), json!("mail")]);
    // Hooks are no part of the work.
    assert_eq!(said("work_seconds")[3].as_f64().unwrap().floor(), 2.0);
    assert_eq!(said("age_seconds")[3].as_f64().unwrap().floor(), 5.0);
    let ago: Vec<_> = said("ended_seconds_ago").iter().map(|ago| ago.as_f64().unwrap().floor()).collect();
    assert_eq!(ago, [10.0, 14.0, 14.0, 15.0]);
}

/// What listens beside it may hang: then what is counted so far has to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_function_that_never_returns_holds_no_page_up() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    // The runtime is told, so that the threads that are left do the work of this one.
    let hangs = move |_: &Event| tokio::task::block_in_place(|| released.lock().unwrap().recv().unwrap_or(()));
    let builder = TestServer::builder().epilogue(|epilogue| epilogue.status_page().on_event(hangs));
    let app = Router::new().route("/", get(async || "hello"));
    let server = builder.on_socket_with(async |epilogue| app.nest("/status", epilogue.status_page())).await;
    assert_eq!(server.get("/").await.text(), "hello");
    let page: Value = serde_json::from_str(&server.get("/status/json").await.text()).unwrap();
    // What it was told of before it hung.
    assert_eq!((&page["requests"]["accepted"], &page["requests"]["ended"]), (&json!(1), &json!(0)), "{page}");
    drop(release);
}
