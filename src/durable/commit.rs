//! What holds a response back until its promises are stored.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::response::Response;
use pin_project_lite::pin_project;

use super::{
    Durable,
    claimant::Claimant,
    keep::{Asker, Claims, keep_promises},
    store::Inner,
};
use crate::{
    lifecycle::{Drive, Hold, Lifecycle, Promised, Storing, response_future, store_alone},
    status::ConnectionStatus,
};

pin_project! {
    /// The inner future, and then the store.
    #[project = CommitProjection]
    pub(super) enum Commit<F> {
        Inner {
            // First, so that it is dropped first: a handler that goes on without us finds it gone.
            waiting: Option<Waiting>,
            #[pin]
            inner: F,
            // None if that is for a layer further out.
            store: Option<Arc<Inner>>,
            lifecycle: Lifecycle,
        },
        Storing { storing: Storing },
    }
}

/// Somebody waits for a request's response. Dropped, nobody does any more: then what comes later goes nowhere, and where
/// nothing comes, the claim is given back.
pub(super) struct Waiting {
    there: Option<Arc<()>>,
    pub(super) claimant: Arc<Claimant>,
    lifecycle: Lifecycle,
}

impl Waiting {
    pub(super) fn new(lifecycle: Lifecycle) -> Self {
        Self { there: Some(Arc::new(())), claimant: Arc::default(), lifecycle }
    }

    /// Whether a response without promises is not all that comes: the handler has given it to `finish`, or it is that of a
    /// middleware behind which a handler, or a response that is held back, goes on without its client. That keeps the claim,
    /// which is given back with what is left of its layer.
    fn may_be_promised(&self) -> bool {
        self.lifecycle.0.is_finished() || self.claimant.going() > 0
    }

    /// As long as somebody does.
    pub(super) fn is_there(&self) -> Weak<()> {
        self.there.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.there = None;
        self.lifecycle.0.keeper_left();
    }
}

impl<F> Commit<F> {
    pub(super) fn new(inner: F, store: Option<Arc<Inner>>, lifecycle: Lifecycle, waiting: Option<Waiting>) -> Self {
        Self::Inner { waiting, inner, store, lifecycle }
    }
}

impl<F, E> Future for Commit<F>
where
    F: Future<Output = Result<Response, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let storing = match self.as_mut().project() {
                CommitProjection::Storing { storing } => return storing.as_mut().poll(cx).map(Ok),
                CommitProjection::Inner { waiting, inner, store, lifecycle } => {
                    let result = ready!(inner.poll(cx));
                    let mut waiting = waiting.take();
                    let promises = result.as_ref().is_ok_and(|response| Durable::is_in(response.extensions()));
                    if !promises && waiting.as_ref().is_some_and(Waiting::may_be_promised) {
                        waiting = None;
                    }
                    let claimant = waiting.as_ref().map(|waiting| waiting.claimant.clone()).unwrap_or_default();
                    let guard = claimant.take();
                    // Only now: whoever finds it gone takes the claim.
                    drop(waiting);
                    let (response, store) = match (result, store) {
                        (Ok(response), Some(store)) => (response, store),
                        (result, _) => return Poll::Ready(result),
                    };
                    let asker = asker(lifecycle);
                    let claims = Claims::new(guard, None, &claimant, lifecycle);
                    match keep_promises(store, lifecycle, response, claims, asker) {
                        Promised::Storing(storing) if asker != Asker::Waits => {
                            Box::pin(GoesOn { storing: Some(storing), lifecycle: lifecycle.clone() })
                        }
                        Promised::Storing(storing) => storing,
                        Promised::Nothing(response) => return Poll::Ready(Ok(response)),
                    }
                }
            };
            self.set(Self::Storing { storing });
        }
    }
}

/// It may have left, and is ignored; or it may leave yet, and what has finished is ended by nobody.
fn asker(lifecycle: &Lifecycle) -> Asker {
    if lifecycle.is_aborted() {
        Asker::Left
    } else if lifecycle.ignores_abort() || lifecycle.0.is_finished() {
        Asker::MayLeave
    } else {
        Asker::Waits
    }
}

/// What is stored for a client that has left, or leaves meanwhile: where nobody waits for its response any more, it is stored
/// all the same.
struct GoesOn {
    /// `None` while it is polled.
    storing: Option<Storing>,
    lifecycle: Lifecycle,
}

impl Future for GoesOn {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let Some(mut storing) = self.storing.take() else { return Poll::Pending };
        let polled = storing.as_mut().poll(cx);
        if polled.is_pending() {
            self.storing = Some(storing);
        }
        polled
    }
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        // Not past its limit, not when a drain has cut it, and not where its client has another's answer.
        let has_left = self.lifecycle.status() == ConnectionStatus::ABORTED;
        if let Some(storing) = self.storing.take().filter(|_| has_left) {
            // Its request may end before it, and counts no more then: the body of its answer is still to be read, perhaps.
            let left = self.lifecycle.time_left().unwrap_or(Duration::MAX);
            store_alone(&self.lifecycle.0, async move { tokio::time::timeout(left, storing).await });
        }
    }
}

response_future! {
    /// The response future of [`DurableLayer`](super::DurableLayer)'s service.
    pub(super) fn new(drive: Drive<Commit<Hold<F>>>)
}
