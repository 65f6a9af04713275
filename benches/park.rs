//! What a continuation that waits costs in memory, beside a bare `tokio::spawn` and a `TaskTracker`.
//!
//! `cargo bench --bench park`. A million of them sleep (`PARKED=100000` for fewer); printed are the bytes that each
//! holds over its future, which every way has to keep. The continuations are those of requests whose responses were
//! read to their end, under the layers alone and with a tracked connection's place in the record.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::{convert::Infallible, future::Future, time::Duration};

use allocation_counter::measure;
use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_epilogue::{Continuation, Epilogue, IgnoreAbortLayer, TrackedIo};

/// The most that a parked continuation may hold over its future.
const MOST: usize = 512;

fn work() -> impl Future<Output = ()> + Send + 'static {
    tokio::time::sleep(Duration::from_secs(3600))
}

/// The bytes that are still held, each, once `count` of them sleep.
fn held<F: Future>(count: usize, park: impl Fn() -> F) -> f64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let round = |count: usize| {
        runtime.block_on(async {
            for index in 0..count {
                park().await;
                if index % 64 == 0 {
                    settle().await;
                }
            }
            settle().await;
        });
    };
    // What a process and a runtime pay once.
    round(1000);
    let info = measure(|| round(count));
    info.bytes_current as f64 / count as f64
}

/// Lets what was spawned run until it waits.
async fn settle() {
    for _ in 0..256 {
        tokio::task::yield_now().await;
    }
}

async fn answer(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Body::from("accepted"));
    Continuation::new(async { work().await }).attach(&mut response);
    Ok(response)
}

fn main() {
    let count = std::env::var("PARKED").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let future = size_of_val(&async { work().await });
    println!("{count} parked each way; a future of {future} bytes; bytes held each over that:");
    let spawned = held(count, async || drop(tokio::spawn(async { work().await })));
    println!("  tokio::spawn              {:8.1}", spawned - future as f64);
    let tracker = TaskTracker::new();
    let tracked = held(count, async || drop(tracker.spawn(async { work().await })));
    println!("  TaskTracker::spawn        {:8.1}", tracked - future as f64);
    let layered = IgnoreAbortLayer::new().layer(service_fn(answer));
    let layers = held(count, async || {
        let request = Request::get("/orders").body(Body::empty()).unwrap();
        let response = layered.oneshot(request).await.unwrap();
        response.into_body().collect().await.unwrap();
    });
    println!("  a continuation, layers    {:8.1}", layers - future as f64);
    let (near, far) = tokio::io::duplex(64);
    let epilogue = Epilogue::builder().max_running(usize::MAX).build();
    let io = TrackedIo::new(near);
    let wrapped = epilogue.wrap(&io, service_fn(answer));
    let bounded = held(count, async || {
        let mut request = Request::get("/orders").body(Body::empty()).unwrap();
        *request.version_mut() = http::Version::HTTP_10;
        let response = wrapped.clone().oneshot(request).await.unwrap();
        response.into_body().collect().await.unwrap();
    });
    drop((far, io));
    println!("  the same, not yet flushed {:8.1}", bounded - future as f64);
    println!("at most {MOST} are allowed: {}", if layers - future as f64 <= MOST as f64 { "kept" } else { "NOT KEPT" });
}
