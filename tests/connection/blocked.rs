//! A continuation that blocks its worker never delays its own client.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use axum::{Router, extract::Path, routing::get};
use bytes::Bytes;
use tower_epilogue::Continuation;

use crate::{
    shapes::OwnServer,
    support::{Client, h2client::Http2},
};

const SIZES: [usize; 4] = [100, 10_000, 1_000_000, 10_000_000];
const RUNS: usize = 7;
/// Much more than a response takes.
const AT_MOST: Duration = Duration::from_secs(5);

/// Each continuation blocks its worker until its client has the whole response, and says whether that ever came.
///
/// Blocking for a fixed time would take a slow machine for a client that had to wait.
async fn runs(workers: usize, http2: bool) {
    let (has_it, waits) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let waits = Arc::new(Mutex::new(waits));
    let handler = async move |Path(size): Path<usize>| {
        let continuation = Continuation::new(async move {
            let in_time = waits.lock().unwrap().recv_timeout(AT_MOST).is_ok();
            tell.send((in_time, Instant::now())).unwrap();
        });
        (continuation, Bytes::from(vec![b'x'; size]))
    };
    let server = OwnServer::start(Some(workers), None, Router::new().route("/{size}", get(handler)));
    let mut http2_client = Http2::connect(server.address).await;
    for size in SIZES {
        for _ in 0..RUNS {
            let path = format!("/{size}");
            let began = Instant::now();
            let length = if http2 {
                http2_client.get(&path).await.unwrap().body.len()
            } else {
                let mut client = Client::connect(server.address).await;
                client.send_get(&path).await;
                client.response(false).await.body.len()
            };
            let last_byte = Instant::now();
            assert_eq!(length, size);
            has_it.send(()).unwrap();
            // The server has threads of its own, so this one may wait.
            let (in_time, ended) = told.recv_timeout(2 * AT_MOST).expect("the continuation ends");
            let took = last_byte - began;
            let cell = format!("{size} bytes, HTTP/2: {http2}, {workers} workers");
            assert!(in_time && last_byte <= ended, "{cell}: the client waited {took:?} for the continuation");
        }
    }
}

#[tokio::test]
async fn a_continuation_that_blocks_its_worker_does_not_delay_its_client_on_http1() {
    for workers in [1, 2] {
        runs(workers, false).await;
    }
}

#[tokio::test]
async fn a_continuation_that_blocks_its_worker_does_not_delay_its_client_on_http2() {
    for workers in [1, 2] {
        runs(workers, true).await;
    }
}
