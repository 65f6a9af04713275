//! The least that has it: a layer that starts work when the response's body is gone. The work reaches the layer beside the
//! response (through the thread), and not in it; it boxes nothing that it need not, and nobody knows of what it has started.
//! `bare` starts the work, `least` starts it under a time limit.

use std::{
    cell::Cell,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    response::Response,
    routing::{Route, get, post},
};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::sleep;
use tower::Service;

use super::{HELLO, PARKED, WORK, axum_peers};

pub const LIMIT: Duration = Duration::from_secs(2 * PARKED.as_secs());

pub type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// From the handler to the layer around it: the runtime has one thread, and the handler's last poll is the layer's, too.
    static PASSED: Cell<Option<Boxed>> = const { Cell::new(None) };
}

#[derive(Clone)]
struct AfterBody(Route, fn(Boxed));

impl Service<Request> for AfterBody {
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<<Route as Service<Request>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Answer { inner: self.0.call(request), start: self.1 }
    }
}

pin_project! {
    struct Answer<F> {
        #[pin]
        inner: F,
        start: fn(Boxed),
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.inner.poll(cx).map_ok(|response| response.map(|body| Watched::around(body, PASSED.take(), *this.start)))
    }
}

/// A body that starts its work when it is dropped.
pub struct Watched<S: FnMut(Boxed)> {
    body: Body,
    work: Option<Boxed>,
    start: S,
}

impl<S: FnMut(Boxed) + Send + Unpin + 'static> Watched<S> {
    pub fn around(body: Body, work: Option<Boxed>, start: S) -> Body {
        Body::new(Self { body, work, start })
    }
}

impl<S: FnMut(Boxed) + Unpin> HttpBody for Watched<S> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S: FnMut(Boxed)> Drop for Watched<S> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            (self.start)(work);
        }
    }
}

async fn serve_with(start: fn(Boxed)) {
    async fn with(work: Duration) -> &'static str {
        PASSED.set(Some(Box::pin(sleep(work))));
        HELLO
    }
    let app = Router::new()
        .route("/respond", get(|| with(WORK)))
        .route("/park", get(|| with(PARKED)))
        .route("/upload", post(axum_peers::upload))
        .layer(tower::layer::layer_fn(move |inner| AfterBody(inner, start)));
    axum_peers::serve(app).await;
}

pub async fn bare() {
    serve_with(|work| drop(tokio::spawn(work))).await;
}

pub async fn serve() {
    serve_with(|work| drop(tokio::spawn(tokio::time::timeout(LIMIT, work)))).await;
}
