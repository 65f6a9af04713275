//! A middleware that calls the service inside of it once more: every attempt is treated as the first was.

use std::time::Duration;

use axum::{Router, routing::get};
use tower_epilogue::{Bound, EarlyCloseLayer, ReserveLayer, TimeLimitLayer};

use crate::{
    services::Treats,
    support::{Server, streamed},
};

#[tokio::test]
async fn the_response_of_the_last_attempt_is_closed_early_and_measured() {
    let app = Router::new().route("/", get(async || streamed(&["hel", "lo"])));
    let (closes, keeps) = (EarlyCloseLayer::new(), EarlyCloseLayer::new().keep_alive());
    for app in [
        app.clone().layer((Treats::CallsTwice, closes.clone())),
        // Of two the inner one decides, in every attempt.
        app.clone().layer((Treats::CallsTwice, keeps.clone(), closes.clone())),
        app.clone().layer((keeps, Treats::CallsTwice, closes)),
    ] {
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        // A client that does not ask for the close.
        let reply = client.reply().await;
        assert_eq!((reply.header("connection"), reply.header("content-length")), (Some("close"), Some("5")));
        assert_eq!(reply.text(), "hello");
    }
}

/// There is one clock for all attempts, on the busy clock too.
#[tokio::test]
async fn what_an_attempt_has_used_of_its_busy_time_the_next_one_has_not() {
    let (limit, used) = (Duration::from_millis(300), Duration::from_millis(200));
    let handler = async move || {
        std::thread::sleep(used);
        tokio::task::yield_now().await;
        // Whoever is there when it is looked at again has answered.
        tokio::task::yield_now().await;
        "hello"
    };
    let app = Router::new().route("/", get(handler)).layer((Treats::CallsTwice, TimeLimitLayer::busy(limit)));
    assert_eq!(Server::start(app).await.get("/").await.status, 503);
}

/// What the first attempt has reserved, and its response does not need, is not missing for the second.
#[tokio::test]
async fn a_request_is_not_refused_for_the_place_that_it_keeps_itself() {
    let app = Router::new().route("/", get(async || "hello")).layer((Treats::CallsTwice, ReserveLayer::class("mail")));
    let server = Server::with(app, |builder| builder.class("mail", Bound::new(1).max_waiting(0))).await;
    for _ in 0..2 {
        assert_eq!(server.get("/").await.text(), "hello");
    }
    server.journal.ended(2).await;
    assert_eq!(server.epilogue.class_load("mail").unwrap().reserved, 0);
}
