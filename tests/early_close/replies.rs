//! Redirect and continue, empty and gone, 202 with a `Location`.

use axum::{
    Json, Router,
    response::{IntoResponse, NoContent, Redirect, Response},
    routing::get,
};
use tower_epilogue::{
    EarlyCloseLayer,
    reply::{Accepted, Then},
};

use crate::support::{Gate, Notes, Server};

/// Reply, head and body.
type Row = (fn(Notes, Gate) -> Response, &'static [&'static str], &'static str);

fn rows() -> [Row; 5] {
    [
        (
            |notes, gate| Redirect::to("/thanks").then(waits(notes, gate)).into_response(),
            &["HTTP/1.1 303 See Other", "content-length: 0", "location: /thanks"],
            "",
        ),
        (|notes, gate| NoContent.then(waits(notes, gate)).into_response(), &["HTTP/1.1 204 No Content"], ""),
        (
            |notes, gate| Accepted::at("/jobs/7").then(waits(notes, gate)).into_response(),
            &["HTTP/1.1 202 Accepted", "content-length: 0", "location: /jobs/7"],
            "",
        ),
        (
            |notes, gate| Accepted::at("../jobs/7").with(Json(7)).then(waits(notes, gate)).into_response(),
            &["HTTP/1.1 202 Accepted", "content-length: 1", "content-type: application/json", "location: ../jobs/7"],
            "7",
        ),
        (
            |notes, gate| Accepted::at("/jo\nbs").then(waits(notes, gate)).into_response(),
            &["HTTP/1.1 500 Internal Server Error", "content-length: 29", "content-type: text/plain; charset=utf-8"],
            "failed to parse header value",
        ),
    ]
}

async fn waits(notes: Notes, gate: Gate) {
    gate.passed().await;
    notes.add("work");
}

#[tokio::test]
async fn the_client_has_the_reply_while_the_work_waits() {
    for layer in [None, Some(EarlyCloseLayer::new().keep_alive())] {
        for (reply, head, body) in rows() {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (theirs, waits) = (notes.clone(), gate.clone());
            let app = Router::new().route("/", get(async move || reply(theirs, waits)));
            let server = Server::start(if let Some(layer) = layer.clone() { app.layer(layer) } else { app }).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let bodiless = head[0].contains("204");
            let got = client.reply_by_length(bodiless).await;
            let mut expected = head.to_vec();
            let length = format!("content-length: {}", body.len());
            for line in &mut expected {
                if line.starts_with("content-length") {
                    *line = &length;
                }
            }
            assert_eq!((got.sorted_head(), got.text().as_str()), (expected, body));
            assert!(notes.all().is_empty());
            gate.open();
            server.journal.ended(1).await;
            assert_eq!(notes.all(), ["work"]);
        }
    }
}

#[tokio::test]
async fn work_that_is_added_later_runs_later() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let (first, second) = (theirs.clone(), theirs);
        NoContent.then(async move { first.add("first") }).then_blocking(move || second.add("second"))
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.status, 204);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first", "second"]);
}

#[test]
fn an_accepted_says_where() {
    assert_eq!(Accepted::at("/jobs/7").with("queued").location(), "/jobs/7");
}

/// Contract rule 1: whatever becomes of the reply.
#[tokio::test]
async fn the_work_of_a_reply_runs_also_where_its_location_cannot_be_sent() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, waits_for) = (notes.clone(), gate.clone());
    let reply = async move || Accepted::at("/jo\nbs").with("queued".then(waits(theirs, waits_for)));
    let server = Server::start(Router::new().route("/", get(reply))).await;
    assert_eq!(server.get("/").await.status, 500);
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["work"]);
    assert!(server.journal.lines().contains(&"continuation_end/0".to_owned()), "{:?}", server.journal.lines());
}
