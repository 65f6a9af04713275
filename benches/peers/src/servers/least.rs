//! The least that has it: work that goes along with the response, and that a layer starts, under a time limit, when the
//! body is gone. It boxes nothing that it need not, and nobody knows of what it has started.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, Router,
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

/// What an extension of a response can carry: it has to be `Clone`.
#[derive(Clone)]
pub struct Work(Arc<Mutex<Option<Boxed>>>);

impl Work {
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(work)))))
    }

    pub fn take_from(response: &mut Response) -> Option<Boxed> {
        response.extensions_mut().remove::<Self>()?.0.lock().unwrap().take()
    }
}

#[derive(Clone)]
struct AfterBody(Route);

impl Service<Request> for AfterBody {
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<<Route as Service<Request>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Answer { inner: self.0.call(request) }
    }
}

pin_project! {
    struct Answer<F> {
        #[pin]
        inner: F,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map_ok(|mut response| {
            let work = Work::take_from(&mut response);
            let start = |work| drop(tokio::spawn(tokio::time::timeout(LIMIT, work)));
            response.map(|body| Watched::around(body, work, start))
        })
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

pub async fn serve() {
    async fn with(work: Duration) -> (Extension<Work>, &'static str) {
        (Extension(Work::new(sleep(work))), HELLO)
    }
    let app = Router::new()
        .route("/respond", get(|| with(WORK)))
        .route("/park", get(|| with(PARKED)))
        .route("/upload", post(axum_peers::upload))
        .layer(tower::layer::layer_fn(AfterBody));
    axum_peers::serve(app).await;
}
