//! `finish` called by another task than the handler's, or resolved before a slow reader has its response; and what is given back
//! behind it.

use axum::{Router, routing::get};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::{Lifecycle, ShutdownHookLayer};

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
