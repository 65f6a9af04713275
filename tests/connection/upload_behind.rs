//! Uploads that go on behind their response.

use std::time::Duration;

use axum::{Router, body::Body, routing::post};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_epilogue::{Continuation, Lifecycle, LifecycleError};

use crate::support::{MemoryServer, Notes};

const SECOND: Duration = Duration::from_secs(1);

async fn read(body: Body, notes: Notes) {
    match body.collect().await {
        Ok(all) => notes.add(format!("{} bytes", all.to_bytes().len())),
        Err(error) => notes.add(format!("{error:?}")),
    }
}

fn app(notes: &Notes) -> Router {
    let (theirs, finishes) = (notes.clone(), notes.clone());
    let returned = async move |body: Body| (Continuation::new(read(body, theirs.clone())), "taken");
    let finished = async move |lifecycle: Lifecycle, body: Body| -> Result<(), LifecycleError> {
        lifecycle.finish("taken").await?;
        read(body, finishes.clone()).await;
        Ok(())
    };
    Router::new().route("/returned", post(returned)).route("/finished", post(finished))
}

/// For longer than a connection may idle. When it is over, that time begins.
#[tokio::test(start_paused = true)]
async fn it_is_read_to_its_end_however_long_that_takes() {
    let declared = ("content-length: 10", "12345", "67890");
    let chunked = ("transfer-encoding: chunked", "5\r\n12345\r\n", "5\r\n67890\r\n0\r\n\r\n");
    for path in ["/returned", "/finished"] {
        for (framing, first, rest) in [declared, chunked] {
            let notes = Notes::default();
            let server = MemoryServer::start(app(&notes));
            let mut client = server.connect();
            client.send(&format!("POST {path} HTTP/1.1\r\nhost: test\r\n{framing}\r\n\r\n{first}")).await;
            client.read_until("taken").await;
            tokio::time::sleep(100 * SECOND).await;
            client.send(rest).await;
            let sent = Instant::now();
            server.ended(1).await;
            assert_eq!(notes.all(), ["10 bytes"], "{path}, {framing}");
            assert!(sent.elapsed() < SECOND, "{path}, {framing}: {:?}", sent.elapsed());
            assert!(client.reply().await.head.is_empty());
            let idled = sent.elapsed().as_secs();
            assert!((30..=31).contains(&idled), "{path}, {framing}: {idled} s");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// What nobody will read is not waited for.
#[tokio::test(start_paused = true)]
async fn one_that_nobody_reads_any_more_keeps_no_connection() {
    let app = Router::new().route(
        "/",
        post(async |body: Body| {
            let work = Continuation::new(async move {
                tokio::time::sleep(100 * SECOND).await;
                drop(body);
            });
            (work, "taken")
        }),
    );
    let server = MemoryServer::start(app);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345").await;
    client.read_until("taken").await;
    let began = Instant::now();
    client.reply().await;
    let idled = began.elapsed().as_secs();
    assert!((100..=135).contains(&idled), "{idled} s");
    assert!(server.stop().await.is_clean());
}
