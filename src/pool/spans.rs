//! The spans that continuations run in.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tracing::{Span, field::Empty};

use super::caught;
use crate::event::RequestId;

const TARGET: &str = "tower_epilogue";
const NAME: &str = "continuation";

/// A span of its own for a continuation, or for the rest of a handler after its `finish`.
///
/// A root: as a child of the request's it would keep that open, whose length is the request's latency. It follows from
/// it instead, which OpenTelemetry shows as a link.
///
/// At level info, as `#[instrument]` has it by default: there is one for each continuation, and it is what an operator
/// looks for. Where no subscriber wants it, nothing of this is computed, and the work runs in no span, never in the
/// request's.
pub(crate) fn continuation(
    request: &Span,
    route: impl FnOnce() -> String,
    class: Option<&'static str>,
    id: Option<RequestId>,
) -> Span {
    let make = || {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            NAME,
            route = route(),
            class,
            request = id.map(|id| id.0),
            outcome = Empty,
        );
        span.follows_from(request);
        span
    };
    made(make)
}

/// A span, or none if the subscriber panics: that is not to cost the work.
pub(crate) fn made(make: impl FnOnce() -> Span) -> Span {
    caught::call(make).unwrap_or_else(|payload| {
        caught::dispose(payload);
        Span::none()
    })
}

/// Notes in it how it ended, if it is one of ours.
pub(crate) fn ended(span: &Span, outcome: &'static str) {
    if span.metadata().is_some_and(|metadata| metadata.target() == TARGET && metadata.name() == NAME) {
        caught::tell(|| {
            span.record("outcome", outcome);
        });
    }
}

pin_project! {
    /// Work in a span, as `tracing::Instrument` has it, but that a subscriber that panics costs nothing of it.
    pub(crate) struct InSpan<F> {
        // `None` in its destructor alone.
        #[pin]
        work: Option<F>,
        span: Span,
    }

    impl<F> PinnedDrop for InSpan<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            caught::within(Some(this.span), || this.work.set(None));
            caught::close(std::mem::replace(this.span, Span::none()));
        }
    }
}

impl<F> InSpan<F> {
    pub(crate) const fn new(work: F, span: Span) -> Self {
        Self { work: Some(work), span }
    }
}

impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(work) = this.work.as_pin_mut() else { return Poll::Pending };
        caught::within(Some(this.span), || work.poll(cx))
    }
}
