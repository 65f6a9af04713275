//! What the layers cost one request that has nothing to wait for, beside what a bare `tokio::spawn` costs it.
//!
//! `cargo bench --bench layers`. Each figure is for 1,000 requests, one after the other, in one task of a runtime
//! with one or two workers: the call, its response, its body read to the end, and a yield, in which whatever was
//! spawned runs. The peer of the four layers
//! is `spawn`: the same service called in a `tokio::spawn` whose `JoinHandle` is awaited, which is what keeps a
//! handler alive otherwise.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, clippy::needless_pass_by_value)]

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use axum::body::Body;
use divan::{Bencher, counter::ItemsCount};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt as _};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

const REQUESTS: usize = 1_000;
const WORKERS: [usize; 3] = [1, 2, 3];

fn main() {
    divan::main();
}

/// The service inside: answers at once.
#[derive(Clone, Copy)]
struct Hello;

impl Service<Request<Body>> for Hello {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new(Body::from("hello"))))
    }
}

fn runtime(workers: usize) -> Runtime {
    match workers {
        1 => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
    }
}

fn request() -> Request<Body> {
    Request::new(Body::empty())
}

fn run<S>(bencher: Bencher<'_, '_>, workers: usize, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let runtime = runtime(workers);
    bencher.counter(ItemsCount::new(REQUESTS)).bench(|| {
        let service = service.clone();
        let requests = async move {
            for _ in 0..REQUESTS {
                let response = service.clone().oneshot(request()).await.unwrap();
                divan::black_box(response.into_body().collect().await.unwrap());
                // So that what was spawned runs, and is counted, and does not pile up.
                tokio::task::yield_now().await;
            }
        };
        if workers == 3 {
            runtime.block_on(requests);
        } else {
            runtime.block_on(runtime.spawn(requests)).unwrap();
        }
    });
}

#[divan::bench(args = WORKERS)]
fn bare(bencher: Bencher<'_, '_>, workers: usize) {
    run(bencher, workers, Hello);
}

#[divan::bench(args = WORKERS)]
fn spawn(bencher: Bencher<'_, '_>, workers: usize) {
    let spawned = tower::service_fn(|request| async move { tokio::spawn(Hello.call(request)).await.unwrap() });
    run(bencher, workers, spawned);
}

#[divan::bench(args = WORKERS)]
fn early_close(bencher: Bencher<'_, '_>, workers: usize) {
    run(bencher, workers, EarlyCloseLayer::new().layer(Hello));
}

#[divan::bench(args = WORKERS)]
fn ignore_abort(bencher: Bencher<'_, '_>, workers: usize) {
    run(bencher, workers, IgnoreAbortLayer::new().layer(Hello));
}

#[divan::bench(args = WORKERS)]
fn time_limit(bencher: Bencher<'_, '_>, workers: usize) {
    run(bencher, workers, TimeLimitLayer::default().layer(Hello));
}

#[divan::bench(args = WORKERS)]
fn shutdown_hook(bencher: Bencher<'_, '_>, workers: usize) {
    run(bencher, workers, ShutdownHookLayer::new(|_| async {}).layer(Hello));
}

#[divan::bench(args = WORKERS)]
fn three_layers(bencher: Bencher<'_, '_>, workers: usize) {
    let layers = (EarlyCloseLayer::new(), IgnoreAbortLayer::new(), TimeLimitLayer::default());
    run(bencher, workers, layers.layer(Hello));
}

#[divan::bench(args = WORKERS)]
fn four_layers(bencher: Bencher<'_, '_>, workers: usize) {
    let hook = ShutdownHookLayer::new(|_| async {});
    let layers = (EarlyCloseLayer::new(), IgnoreAbortLayer::new(), TimeLimitLayer::default(), hook);
    run(bencher, workers, layers.layer(Hello));
}

/// A continuation, beside the untracked spawn that it takes the place of.
#[divan::bench(args = WORKERS)]
fn continuation(bencher: Bencher<'_, '_>, workers: usize) {
    let service = tower::service_fn(|request| async move {
        let mut response = Hello.call(request).await?;
        Continuation::new(async {}).attach(&mut response);
        Ok::<_, Infallible>(response)
    });
    run(bencher, workers, IgnoreAbortLayer::new().layer(service));
}

#[divan::bench(args = WORKERS)]
fn untracked_spawn(bencher: Bencher<'_, '_>, workers: usize) {
    let service = tower::service_fn(|request| async move {
        tokio::spawn(async {});
        Hello.call(request).await
    });
    run(bencher, workers, service);
}
