//! axum with what a team writes by hand: the work goes along with the response, a layer starts it when the body is gone,
//! and well-kept parts do the rest. It knows of no flush, no abort, no hook, and no end.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::Request,
    response::Response,
    routing::{Route, get, post},
};
use futures_util::FutureExt as _;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tower::Service;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

use super::{
    HELLO, PARKED, WORK, axum_peers,
    least::{Boxed, LIMIT, Watched},
};

/// What an extension of a response can carry: it has to be `Clone`.
#[derive(Clone)]
struct Work(Arc<Mutex<Option<Boxed>>>);

impl Work {
    fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(work)))))
    }

    fn take_from(response: &mut Response) -> Option<Boxed> {
        response.extensions_mut().remove::<Self>()?.0.lock().unwrap().take()
    }
}

#[derive(Clone)]
struct AfterBody<S> {
    inner: S,
    tracker: TaskTracker,
}

impl<S> Service<Request> for AfterBody<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (response, tracker) = (self.inner.call(request), self.tracker.clone());
        Box::pin(async move {
            let mut response = response.await?;
            let work = Work::take_from(&mut response);
            let start = move |work| {
                let work = std::panic::AssertUnwindSafe(tokio::time::timeout(LIMIT, work)).catch_unwind();
                tracker.spawn(work.map(drop));
            };
            Ok(response.map(|body| Watched::around(body, work, start)))
        })
    }
}

pub async fn serve() {
    async fn with(work: Duration) -> (Extension<Work>, &'static str) {
        (Extension(Work::new(sleep(work))), HELLO)
    }
    let tracker = TaskTracker::new();
    let after_body = tower::layer::layer_fn(move |inner: Route| AfterBody { inner, tracker: tracker.clone() });
    let app = Router::new()
        .route("/respond", get(|| with(WORK)))
        .route("/park", get(|| with(PARKED)))
        .route("/upload", post(axum_peers::upload))
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(axum::http::StatusCode::SERVICE_UNAVAILABLE, LIMIT))
        .layer(after_body);
    axum_peers::serve(app).await;
}
