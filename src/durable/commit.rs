//! What holds a response back until its promises are stored.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use axum_core::{body::Body, response::Response};
use http::Extensions;
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use pin_project_lite::pin_project;

use super::{
    Durable, DurableError,
    idempotency::{self, Guard},
    layer::Claimant,
    part::Promise,
    records::{Answer, Claim},
    store::{Asker, Inner, fill_key, promote_each},
};
use crate::{
    continuation::Continuation,
    lifecycle::{Drive, Hold, Lifecycle, Promised, Storing, response_future},
    pool::lock,
};

/// How long an answer's body may be to be kept.
const KEPT_BODY: u64 = 64 * 1024;

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
    pub(super) claimant: Claimant,
    lifecycle: Lifecycle,
}

impl Waiting {
    pub(super) fn new(lifecycle: Lifecycle) -> Self {
        Self { there: Some(Arc::new(())), claimant: Claimant::default(), lifecycle }
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
                    if result.as_ref().is_ok_and(|response| goes_on(lifecycle, response)) {
                        waiting = None;
                    }
                    let claimant = waiting.as_ref().map(|waiting| waiting.claimant.clone()).unwrap_or_default();
                    let guard = lock(&claimant).take();
                    // Only now: whoever finds it gone takes the claim.
                    drop(waiting);
                    let (response, store) = match (result, store) {
                        (Ok(response), Some(store)) => (response, store),
                        (result, _) => return Poll::Ready(result),
                    };
                    // It may have left, and is ignored.
                    let asker = if lifecycle.is_aborted() { Asker::Gone } else { Asker::Waits };
                    match keep_promises(store, lifecycle, response, guard, &claimant, asker) {
                        Promised::Storing(storing) => storing,
                        Promised::Nothing(response) => return Poll::Ready(Ok(response)),
                    }
                }
            };
            self.set(Self::Storing { storing });
        }
    }
}

/// Whether the handler runs on and has promised nothing so far: it keeps its claim, which is given back with what is left of
/// its layer.
fn goes_on(lifecycle: &Lifecycle, response: &Response) -> bool {
    lifecycle.0.is_finished() && !Durable::is_in(response.extensions())
}

/// Stores what `response` promises. If that is nothing, its key, if there was one, is given back. If that fails, and the handler
/// runs on after its `finish`, its `claimant` gets it back.
pub(super) fn keep_promises(
    store: &Arc<Inner>,
    lifecycle: &Lifecycle,
    mut response: Response,
    guard: Option<Guard>,
    claimant: &Claimant,
    asker: Asker,
) -> Promised {
    let promises = Durable::take_from(response.extensions_mut());
    if promises.is_empty() {
        drop(guard);
        return Promised::Nothing(response);
    }
    let guard =
        guard.map(|guard| HeldClaim { guard: Some(guard), claimant: claimant.clone(), lifecycle: lifecycle.clone() });
    Promised::Storing(Box::pin(keep(store.clone(), lifecycle.clone(), response, promises, guard, asker)))
}

/// A claim, while its answer is stored.
struct HeldClaim {
    guard: Option<Guard>,
    claimant: Claimant,
    lifecycle: Lifecycle,
}

impl Drop for HeldClaim {
    /// If it was not: a handler that runs on after its `finish` goes on with its claim, which is given back with what is left of
    /// its layer; any other has nobody to keep it for.
    fn drop(&mut self) {
        let guard = self.guard.take();
        if guard.is_some() && self.lifecycle.0.is_finished() {
            *lock(&self.claimant) = guard;
        }
    }
}

/// The same; a response that says so if that fails.
async fn keep(
    store: Arc<Inner>,
    lifecycle: Lifecycle,
    response: Response,
    promises: Vec<Promise>,
    claimed: Option<HeldClaim>,
    asker: Asker,
) -> Response {
    let route = lifecycle.0.route();
    let claim = claimed.as_ref().and_then(|claimed| claimed.guard.as_ref()?.claim()).cloned();
    // What a handler returned has its keys. What it gave to `finish` has none, and is not what it returns afterwards.
    let finished = claim.as_ref().map(|claim| format!("{}:finished", claim.name));
    let (mut by_hand, mut jobs) = (Vec::new(), Vec::new());
    for promise in promises {
        match promise {
            Promise::New(Ok(mut job)) => {
                fill_key(&mut job, finished.as_deref().map(|finished| (finished, jobs.len())));
                job.from.clone_from(&route);
                jobs.push(job);
            }
            Promise::New(Err(error)) => return refuse(&route, &error),
            Promise::Stored(stored) => by_hand.extend(stored),
        }
    }
    let (response, answer) = match claim {
        Some(claim) => {
            let (response, answer) = with_answer(response).await;
            (response, Some((claim, answer)))
        }
        None => (response, None),
    };
    let ids = match store_all(&store, jobs, answer, asker).await {
        Ok(stored) => {
            if let Some(guard) = claimed.and_then(|mut claimed| claimed.guard.take()) {
                guard.settle();
            }
            stored
        }
        Err(error) => return refuse(&route, &error),
    };
    start_after_flush(&store, &lifecycle, ids, by_hand);
    response
}

/// The numbers of the jobs that are to be started.
async fn store_all(
    store: &Inner,
    jobs: Vec<super::engine::NewJob>,
    answer: Option<(Claim, Answer)>,
    asker: Asker,
) -> Result<Vec<i64>, DurableError> {
    if jobs.is_empty() && answer.is_none() {
        return Ok(Vec::new());
    }
    let stored = store.store(jobs, answer, asker).await?;
    Ok(stored.iter().filter(|job| !job.duplicate).map(|job| job.id).collect())
}

/// The store's own error is in the log already; what it means for a request is here (contract rule 13).
fn refuse(route: &str, error: &DurableError) -> Response {
    tracing::error!(route, %error, "a durable job was not stored: its client is answered with a 503");
    idempotency::not_stored()
}

/// Wakes the jobs when the response has left, before the request's other continuations.
fn start_after_flush(store: &Arc<Inner>, lifecycle: &Lifecycle, ids: Vec<i64>, by_hand: Vec<(Arc<Inner>, i64)>) {
    if ids.is_empty() && by_hand.is_empty() {
        return;
    }
    let (theirs, now, now_by_hand) = (store.clone(), ids.clone(), by_hand.clone());
    let start = Continuation::brief(move || {
        theirs.promote_ids(ids);
        promote_each(by_hand);
    });
    if let Err(late) = lifecycle.0.add_first_continuation(start) {
        // The request has ended.
        drop(late.into_work());
        store.promote_ids(now);
        promote_each(now_by_hand);
    }
}

/// Reads a body that is short enough to be kept.
async fn with_answer(response: Response) -> (Response, Answer) {
    let (parts, body) = response.into_parts();
    let short = body.size_hint().exact().is_some_and(|length| length <= KEPT_BODY);
    if !short {
        let answer = idempotency::remember(&parts, None);
        return (Response::from_parts(parts, body), answer);
    }
    match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().cloned();
            let body = body.to_bytes();
            let answer = idempotency::remember(&parts, Some(&body));
            let body = match trailers {
                Some(trailers) => Body::new(Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))))),
                None => Body::from(body),
            };
            (Response::from_parts(parts, body), answer)
        }
        Err(error) => {
            let answer = idempotency::remember(&parts, None);
            // The client is to see that it broke off.
            let broken = futures_body(error);
            (Response::from_parts(parts, broken), answer)
        }
    }
}

/// A body that fails.
fn futures_body(error: axum_core::Error) -> Body {
    struct Broken(Option<axum_core::Error>);

    impl http_body::Body for Broken {
        type Data = bytes::Bytes;
        type Error = axum_core::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
            Poll::Ready(self.0.take().map(Err))
        }
    }

    Body::new(Broken(Some(error)))
}

/// Gives the jobs of a response their keys, where its request has one: wherever the response goes from here.
pub(super) fn stamp(extensions: &mut Extensions, claim: &Claim) {
    for (index, promise) in Durable::take_from(extensions).into_iter().enumerate() {
        Durable::put_back(promise, extensions, |job| fill_key(job, Some((&claim.name, index))));
    }
}

response_future! {
    /// The response future of [`DurableLayer`](super::DurableLayer)'s service.
    pub(super) fn new(drive: Drive<Commit<Hold<F>>>)
}
