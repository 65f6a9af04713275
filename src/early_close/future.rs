use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::response::Response;
use pin_project_lite::pin_project;

use super::shaping::{Next, Shaping, Step};
use crate::lifecycle::{Drive, Hold, response_future};

response_future! {
    /// Response future of [`EarlyClose`](super::EarlyClose).
    pub(super) fn new(drive: Drive<Shape<Hold<F>>>)
}

pin_project! {
    /// Shapes the response of `inner` (contract rule 8).
    pub(super) struct Shape<F> {
        #[pin]
        inner: F,
        shaping: Shaping,
        // What is waited for after `inner`.
        step: Option<Box<Step>>,
    }

    impl<F> PinnedDrop for Shape<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(step) = this.step.take() {
                this.shaping.left(step);
            }
        }
    }
}

impl<F> Shape<F> {
    pub(super) fn new(inner: F, shaping: Shaping) -> Self {
        Self { inner, shaping, step: None }
    }
}

impl<F, E> Future for Shape<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let next = match this.step.take() {
            Some(step) => Next::Wait(step),
            None => this.shaping.begin(ready!(this.inner.poll(cx))?),
        };
        this.shaping.poll_on(next, this.step, cx).map(Ok)
    }
}
