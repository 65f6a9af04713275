//! The page's own updates: they bring the numbers, and hold nothing up.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
    routing::get,
};
use tower::ServiceExt as _;
use tower_epilogue::{Continuation, Epilogue, EpilogueBuilder, IgnoreAbortLayer, TimeLimitLayer};

use crate::{
    page::{json_when, serve, shown},
    support::{Client, Gate, Server, h2client::Http2, soon},
};

const ASK: &str = "GET /status?events HTTP/1.1\r\nhost: test\r\n\r\n";

async fn watch(server: &Server) -> Client {
    let mut client = server.connect().await;
    client.send(ASK).await;
    let head = client.read_until("Latest failures").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream\r\n"), "{head}");
    assert!(head.contains("x-accel-buffering: no\r\n") && head.contains("retry: 2000"), "{head}");
    client
}

fn app(held: &Gate) -> Router {
    let held = held.clone();
    let work = move || Continuation::new(async move { held.passed().await });
    Router::new().route("/", get(async move || (work(), "hello")))
}

#[tokio::test]
async fn they_bring_the_numbers() {
    let held = Gate::closed();
    let server = serve(app(&held), |builder| builder).await;
    let mut watching = watch(&server).await;
    for number in 1..=2 {
        server.get("/").await;
        soon("an update with it", async {
            while shown(&watching.read_until("Latest failures").await, "accepted") != number {}
        })
        .await;
    }
    held.open();
    drop(watching);
    server.stop().await;
}

#[tokio::test]
async fn they_are_no_work_of_the_server_and_end_when_it_drains() {
    let held = Gate::closed();
    let mut server = serve(app(&held), |builder| builder).await;
    let mut watching = watch(&server).await;
    let page = json_when(&server, "nothing runs", |page| page["connections_open"] == 2).await;
    assert_eq!((&page["now"]["running"], &page["requests"]["accepted"]), (&0.into(), &0.into()), "{page:#}");
    server.get("/").await;
    json_when(&server, "it runs", |page| page["now"]["running"] == 1).await;
    server.begin_drain();
    // The stream ends although the server still drains, and its last event says that it does.
    let last = watching.read_until("\r\n0\r\n\r\n").await;
    assert!(last.rsplit("retry:").next().unwrap().contains("draining"), "{last}");
    assert!(!held.is_open());
    held.open();
    assert!(server.drained().await.is_clean());
}

#[tokio::test]
async fn neither_a_limit_nor_ignored_aborts_concern_them() {
    let limited = |app: Router| app.layer((IgnoreAbortLayer::new(), TimeLimitLayer::new(Duration::from_millis(300))));
    let page = |epilogue: &Epilogue| limited(Router::new().nest("/status", epilogue.status_page()));
    let server = Server::made(EpilogueBuilder::status_page, page).await;
    let mut watching = watch(&server).await;
    // One a second: the limit passes several times.
    watching.read_until("Latest failures").await;
    watching.read_until("Latest failures").await;
    watching.reset();
    // Nobody reads it any more: its request ends, and its seat is free.
    soon("its end", server.journal.ended(1)).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn they_last_a_minute_and_one_comes_each_second() {
    let epilogue = Epilogue::builder().status_page().build();
    let began = tokio::time::Instant::now();
    let request = Request::builder().uri("/?events").body(Body::empty()).unwrap();
    let response = epilogue.status_page::<()>().oneshot(request).await.unwrap();
    let all = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&all).matches("retry: 2000").count(), 60);
    assert_eq!(began.elapsed().as_secs(), 59);
}

#[tokio::test]
async fn so_many_watch_and_no_more() {
    let server = serve(Router::new(), |builder| builder).await;
    let mut watching = Vec::new();
    for _ in 0..16 {
        watching.push(watch(&server).await);
    }
    let mut client = server.connect().await;
    client.send(ASK).await;
    let refused = client.reply_by_length(false).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    // The page itself is still there.
    assert_eq!(server.get("/status").await.status, 200);
    watching.pop().unwrap().reset();
    soon("a seat that is free", async {
        loop {
            client.send(ASK).await;
            if client.read_until("\r\n\r\n").await.contains(" 200 ") {
                break;
            }
            client = server.connect().await;
        }
    })
    .await;
    drop((watching, client));
    server.stop().await;
}

#[tokio::test]
async fn on_another_listener_they_show_the_drain_and_end_with_it() {
    let held = Gate::closed();
    let gate = held.clone();
    let mut server = Server::made(EpilogueBuilder::status_page, |_| app(&gate)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page: Router = Router::new().nest("/status", server.epilogue.status_page());
    let serving = tokio::spawn(axum::serve(listener, page).into_future());
    let mut watching = Client::connect(address).await;
    watching.send(ASK).await;
    watching.read_until("Latest failures").await;
    server.get("/").await;
    server.begin_drain();
    // More than one update: the drain does not end it.
    for _ in 0..2 {
        watching.read_until("draining").await;
    }
    held.open();
    assert!(server.drained().await.is_clean());
    let end = watching.read_until("\r\n0\r\n\r\n").await;
    assert!(!end.rsplit("retry:").next().unwrap().contains("draining"), "{end}");
    serving.abort();
}

#[tokio::test]
async fn over_http2_they_end_when_it_drains_as_well() {
    let held = Gate::closed();
    let mut server = serve(app(&held), |builder| builder).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/status?events").await;
    let mut body = soon("the head", response).await.unwrap().into_body();
    let mut all = String::new();
    while !all.contains("Latest failures") {
        all += &String::from_utf8_lossy(&soon("an update", body.data()).await.unwrap().unwrap());
    }
    server.get("/").await;
    server.begin_drain();
    let mut last = String::new();
    while let Some(data) = soon("the end", body.data()).await {
        last += &String::from_utf8_lossy(&data.unwrap());
    }
    assert!(last.rsplit("retry:").next().unwrap().contains("draining"), "{last}");
    held.open();
    assert!(server.drained().await.is_clean());
}
