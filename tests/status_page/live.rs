//! What is not over is listed as what it is.

use std::{collections::BTreeMap, convert::Infallible};

use axum::{Router, body::Body, routing::get};
use serde_json::Value;
use tower_epilogue::{Continuation, EarlyCloseLayer, End, Epilogue, EpilogueBuilder, Lifecycle};

use crate::{
    page::{json, json_when, serve},
    support::{Client, Gate, Server},
};

/// Each route with its phase and class.
fn rows(page: &Value) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = page["live"].as_array().unwrap().iter();
    rows.map(|row| (text(&row["route"]), (text(&row["phase"]), text(&row["class"])))).collect()
}

fn app(held: &Gate) -> Router {
    let gate = || held.clone();
    let (handling, continuing, mailing, hooking) = (gate(), gate(), gate(), gate());
    let waits =
        move |gate: Gate, class: &'static str| Continuation::new(async move { gate.passed().await }).class(class);
    Router::new()
        .route("/handling", get(async move || handling.passed().await))
        .route("/continuing", get(async move || (waits(continuing, "thumbnail"), "continuing")))
        .route("/mail/{number}", get(async move || (waits(mailing, "mail"), "mail")))
        .route(
            "/sending",
            get(async || Body::from_stream(futures_util::stream::repeat(Ok::<_, Infallible>("x".repeat(65_536))))),
        )
        .route(
            "/ending",
            get(async move |lifecycle: Lifecycle| {
                lifecycle.on_shutdown(move |_: End| async move { hooking.passed().await }).unwrap();
                "ending"
            }),
        )
        .layer(EarlyCloseLayer::new())
}

async fn begin(server: &Server, path: &str) -> Client {
    let mut client = server.connect().await;
    client.send_get(path).await;
    client
}

#[tokio::test]
async fn phase_class_age_and_status_of_what_is_not_over() {
    let held = Gate::closed();
    let bounds = |builder: EpilogueBuilder| {
        builder
            .class("mail", tower_epilogue::Bound::new(1).max_waiting(5))
            .hook_limit(std::time::Duration::from_secs(60))
    };
    let server = serve(app(&held), bounds).await;
    let mut clients = vec![begin(&server, "/handling").await];
    for path in ["/continuing", "/mail/1", "/mail/2", "/ending"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let mut reader = begin(&server, "/sending").await;
    reader.read_until("xxxx").await;
    clients.push(reader);
    let page = json_when(&server, "all are where they stay", |page| {
        let now = &page["now"];
        let one = |name: &str| now[name] == 1;
        one("handling") && one("sending") && one("waiting") && one("ending") && now["continuing"] == 2
    })
    .await;
    assert_eq!((&page["now"]["running"], &page["requests"]["in_flight"]), (&5.into(), &6.into()));
    let expected = [
        ("GET /continuing", "continuing", "thumbnail"),
        ("GET /ending", "ending", "-"),
        ("GET /handling", "handling", "-"),
        ("GET /mail/{number}", "waiting", "mail"),
        ("GET /sending", "sending", "-"),
    ];
    // Both of the mails have one route; the one that came last is the one that waits.
    let expected = expected.map(|(route, phase, class)| (route.to_owned(), (phase.to_owned(), class.to_owned())));
    assert_eq!(rows(&page), BTreeMap::from(expected));
    let live = page["live"].as_array().unwrap();
    assert_eq!((live.len(), &live[0]["route"]), (6, &"GET /handling".into()));
    let ages: Vec<_> = live.iter().map(|row| row["age_seconds"].as_f64().unwrap()).collect();
    assert!(ages.is_sorted_by(|one, next| one >= next) && ages[0] > 0.0, "the oldest first: {ages:?}");
    assert!(live.iter().all(|row| row["status"] == "NORMAL" && row["durable_job"] == false), "{live:#?}");
    let html = server.get("/status").await.text();
    for text in ["GET /mail/{number}", "<td>waiting</td>", "<td>thumbnail</td>", "<td>mail</td>", "<td>ending</td>"] {
        assert!(html.contains(text), "{text} in {html}");
    }
    held.open();
    drop(clients);
    json_when(&server, "all have ended", |page| page["requests"]["ended"] == 6).await;
    assert_eq!(rows(&json(&server, "/status/json").await), BTreeMap::new());
    server.stop().await;
}

#[tokio::test]
async fn few_are_listed_and_many_in_full() {
    let held = Gate::closed();
    let server = serve(app(&held), |builder| builder).await;
    for _ in 0..50 {
        assert_eq!(server.get("/continuing").await.status, 200);
    }
    json_when(&server, "all run", |page| page["now"]["continuing"] == 50).await;
    let page = json(&server, "/status/json").await;
    assert_eq!((page["live"].as_array().unwrap().len(), &page["live_left_out"]), (20, &30.into()));
    let page = json(&server, "/status/json?full").await;
    assert_eq!((page["live"].as_array().unwrap().len(), &page["live_left_out"]), (50, &0.into()));
    let html = server.get("/status").await.text();
    assert!(html.contains("and 30 more"), "{html}");
    assert!(!server.get("/status?full").await.text().contains("more, all of them younger"));
    held.open();
    server.stop().await;
}

#[tokio::test]
async fn the_picture_and_the_json_have_what_ran() {
    let held = Gate::closed();
    let server = serve(app(&held), |builder| builder).await;
    for _ in 0..3 {
        assert_eq!(server.get("/continuing").await.status, 200);
    }
    let ran = |page: &Value| page["history"].as_array().unwrap().iter().any(|point| point["running"] == 3);
    json_when(&server, "three ran", ran).await;
    let html = server.get("/status").await.text();
    assert!(html.contains("at most 3 in a second"), "{html}");
    held.open();
    server.stop().await;
}

/// As under `axum::serve` without a tracked listener: what there is to know is shown.
#[tokio::test]
async fn the_page_works_under_a_plain_server() {
    let epilogue = Epilogue::builder().status_page().build();
    let page: Router = epilogue.status_page();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, page).into_future());
    let mut client = Client::connect(address).await;
    client.send("GET /?json HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    let page: Value = serde_json::from_slice(&client.reply().await.body).unwrap();
    assert_eq!((&page["requests"]["accepted"], &page["connections_open"]), (&0.into(), &0.into()));
    serving.abort();
}
