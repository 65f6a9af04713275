//! What is outside of the inner service's future: in the outermost of our services, the driver.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::response::Response;
use pin_project_lite::pin_project;

use super::driver::Driver;
use crate::pool::caught;

pin_project! {
    /// The outermost service's driver, if this is that, and the inner future.
    ///
    /// The fields' order is the order of their drops: first the driver says why, then the handler's future
    /// decides what that means for it.
    pub(crate) struct Drive<F> {
        driver: Option<Driver>,
        #[pin]
        inner: Inner<F>,
    }
}

impl<F> Drive<F> {
    pub(super) fn new(driver: Option<Driver>, inner: F) -> Self {
        Self { driver, inner: Inner::Waiting { inner } }
    }
}

pin_project! {
    #[project = InnerProjection]
    pub(super) enum Inner<F> {
        Waiting { #[pin] inner: F },
        /// Answered without it.
        Gone,
    }
}

impl<F> Inner<F> {
    /// Drops what waits, which may be the user's.
    pub(super) fn leave(mut self: Pin<&mut Self>) {
        caught::discarding(|| self.set(Inner::Gone));
    }
}

impl<F, E> Future for Inner<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            InnerProjection::Waiting { inner } => inner.poll(cx),
            InnerProjection::Gone => Poll::Pending,
        }
    }
}

impl<F, E> Future for Drive<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(driver) = this.driver else {
            return this.inner.poll(cx);
        };
        if driver.is_holding() {
            return driver.poll_holding(cx).map(|response| driver.hand_over(Ok(response)));
        }
        let polled = match caught::poll(this.inner.as_mut(), cx) {
            Ok(Poll::Pending) => driver.poll(this.inner.as_mut(), cx),
            Ok(ready) => ready,
            Err(payload) => {
                this.inner.leave();
                driver.panicked(payload)
            }
        };
        match polled {
            Poll::Ready(Ok(response)) => driver.hold_back(response, cx).map(|response| driver.hand_over(Ok(response))),
            polled => polled.map(|result| driver.hand_over(result)),
        }
    }
}

/// The response future that a service shows: a [`Drive`], and nothing of what it drives.
macro_rules! response_future {
    ($(#[$doc:meta])* $new:vis fn new(drive: $drive:ty)) => {
        pin_project_lite::pin_project! {
            $(#[$doc])*
            pub struct ResponseFuture<F> {
                #[pin]
                drive: $drive,
            }
        }

        impl<F> ResponseFuture<F> {
            $new fn new(drive: $drive) -> Self {
                Self { drive }
            }
        }

        impl<F> std::fmt::Debug for ResponseFuture<F> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("ResponseFuture").finish_non_exhaustive()
            }
        }

        impl<F, B, E> Future for ResponseFuture<F>
        where
            F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
            B: $crate::lifecycle::SendBody,
        {
            type Output = Result<axum_core::response::Response, E>;

            #[inline]
            fn poll(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Self::Output> {
                self.project().drive.poll(cx)
            }
        }
    };
}
pub(crate) use response_future;
