//! `finish` called by another task than the handler's, or resolved before a slow reader has its response; and what is given back
//! behind it.

use axum::{Router, body::Body, extract::Request, routing::get};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt as _;
use tower::ServiceExt;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{SECOND, told},
    support::{Gate, MemoryServer, Notes, Server, h2client::Http2, soon},
};

/// Until the gate is open nothing else has the handler polled.
#[tokio::test]
async fn the_response_that_another_task_gives_leaves_while_the_handler_waits() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let notes = theirs.clone();
        tokio::spawn(async move { notes.add(format!("{:?}", lifecycle.finish("finished").await.unwrap())) });
        opens.passed().await;
        theirs.add("rest");
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "finished");
    assert_eq!(Http2::connect(server.address).await.get("/").await.unwrap().body, b"finished");
    notes.count(2).await;
    assert_eq!(notes.all(), ["Flushed", "Flushed"]);
    gate.open();
    server.journal.ended(2).await;
    assert_eq!(notes.all().len(), 6);
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn it_resolves_when_the_patience_with_a_slow_reader_is_over() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let sent = lifecycle.finish(Bytes::from(vec![b'x'; 1_000_000])).await;
        theirs.add(format!("{:?}", sent.unwrap()));
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = MemoryServer::with(app, |builder| builder.patience(SECOND));
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    notes.seen("GivenUp").await;
    server.ended(1).await;
    assert_eq!(notes.all(), ["GivenUp", "hook: NORMAL, GivenUp"]);
    assert_eq!(client.reply().await.body.len(), 1_000_000);
    assert!(server.stop().await.is_clean());
}

/// The handler has waited, and so has had its client watched.
#[tokio::test]
async fn behind_it_the_socket_of_a_closed_connection_is_given_back() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        tokio::task::yield_now().await;
        lifecycle.finish("finished").await.unwrap();
        opens.passed().await;
        theirs.add("rest");
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "finished");
    // What is sent to one that is gone is answered with a reset.
    soon("the socket is closed", async {
        while client.stream.write_all(b"x").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(notes.all().is_empty());
    gate.open();
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

/// By another task, in the moment in which the handler returns: taken or refused, what came with the response runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finish_beside_a_handler_that_returns_loses_nothing() {
    let (notes, requests) = (Notes::default(), 500);
    for request in 0..requests {
        let notes = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            tokio::spawn(async move {
                let (theirs, kept) = (notes.clone(), lifecycle.clone());
                let work = Continuation::new(async move {
                    theirs.add("ran");
                    drop(kept);
                });
                let refused = lifecycle.finish((work, "finished")).await.is_err();
                notes.add(if refused { "refused" } else { "taken" });
            });
            (0..request * 4).for_each(|_| std::hint::spin_loop());
            "returned"
        };
        let app: Router = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::off());
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        let _ = response.into_body().collect().await.unwrap();
    }
    notes.count(2 * requests).await;
    let all = notes.all();
    let [ran, refused, taken] = ["ran", "refused", "taken"].map(|what| all.iter().filter(|note| *note == what).count());
    assert!(ran == requests && refused + taken == requests, "{ran} ran, {refused} were refused, {taken} taken");
}
