//! The body that was given to `finish` is no rest of a handler: an abort that is not ignored ends it, wherever it is.

use std::{
    future::{pending, ready},
    io,
};

use axum::{
    Router,
    body::{Body, Bytes},
    middleware::from_fn,
    routing::get,
};
use futures_util::{FutureExt, StreamExt, stream};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{SECOND, told},
    support::{Client, Notes, Server, h2client::Http2, pumps},
};

/// Its body gives one piece, and then waits for ever.
fn finishes(notes: &Notes) -> Router {
    let notes = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let (theirs, dropped) = (notes.clone(), notes.on_drop("body dropped"));
        let rest = async move {
            let _dropped = dropped;
            notes.add("waits");
            pending().await
        };
        let first = ready(Ok::<_, io::Error>(Bytes::from_static(b"first")));
        let body = Body::from_stream(stream::once(first).chain(stream::once(rest.boxed())));
        let work = Continuation::new(async move { theirs.add("continuation") });
        let _ = lifecycle.finish((work, body)).await;
    };
    Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::off())
}

const ENDED: [&str; 4] = ["waits", "body dropped", "continuation", "hook: ABORTED, Aborted"];

#[tokio::test]
async fn in_a_task_of_its_own() {
    for http2 in [false, true] {
        let notes = Notes::default();
        let app = finishes(&notes).layer(from_fn(pumps)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        if http2 {
            let mut client = Http2::connect(server.address).await;
            let response = client.start("GET", "/").await;
            notes.seen("waits").await;
            drop(response);
            server.journal.ended(1).await;
        } else {
            let mut client = server.connect().await;
            client.send_get("/").await;
            client.read_until("first").await;
            notes.seen("waits").await;
            client.reset();
            server.journal.ended(1).await;
        }
        assert_eq!(notes.all(), ENDED, "http2: {http2}");
        assert!(server.stop().await.is_clean());
    }
}

/// Behind a pipelined request hyper keeps the response's future.
#[tokio::test]
async fn while_it_is_being_measured() {
    let notes = Notes::default();
    let app = finishes(&notes).layer(EarlyCloseLayer::new().patience(60 * SECOND));
    let server = Server::start(app.layer(ShutdownHookLayer::new(told(&notes)))).await;
    let mut client: Client = server.connect().await;
    client.send(&"GET / HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2)).await;
    notes.seen("waits").await;
    client.close();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ENDED);
    assert!(server.stop().await.is_clean());
}
