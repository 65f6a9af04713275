//! Keeping what a response promises: storing it, and having it start when the response has left.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{body::Body, response::Response};
use http::Extensions;
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};

use super::{
    Durable, DurableError,
    claimant::Claimant,
    engine::{NewJob, Stored},
    idempotency::{self, Guard},
    outlast::{Again, Unstored},
    part::{ByHand, Promise},
    records::{Answer, Claim},
    store::{Inner, fill_key, promote_each},
};
use crate::{
    continuation::Continuation,
    lifecycle::{Lifecycle, Promised, store_alone},
    pool::caught,
};

/// How long an answer's body may be to be kept.
const KEPT_BODY: u64 = 64 * 1024;

/// Whether there is somebody to whom a refusal can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Waits,
    /// It waits, and what it has asked for goes on when it leaves.
    MayLeave,
    /// It has left, which is ignored, and may be reading still.
    Left,
    /// Its response goes nowhere.
    Gone,
}

/// Stores what `response` promises. If that is nothing, its key, if there was one, is given back.
pub(super) fn keep_promises(
    store: &Arc<Inner>,
    lifecycle: &Lifecycle,
    mut response: Response,
    claims: Claims,
    asker: Asker,
) -> Promised {
    let promises = Durable::take_from(response.extensions_mut());
    if promises.is_empty() {
        claims.give_back();
        return Promised::Nothing(response);
    }
    let route = lifecycle.0.route();
    let untold = Untold {
        route: (asker != Asker::Waits).then(|| route.clone()),
        stays: (asker == Asker::MayLeave).then(|| lifecycle.clone()),
    };
    let (store, lifecycle) = (store.clone(), lifecycle.clone());
    let keeping = Keeping { store, lifecycle, route, by_hand: Vec::new(), claims, untold };
    Promised::Storing(Box::pin(keep(keeping, response, promises, asker)))
}

/// A request's claims on its key, while what it promises is stored.
pub(super) struct Claims {
    /// What is stored with the answer.
    answered: Option<Guard>,
    /// What is given back afterwards: there was another answer.
    #[expect(dead_code, reason = "it lives as long as this")]
    late: Option<Guard>,
    claimant: Arc<Claimant>,
    lifecycle: Lifecycle,
}

impl Claims {
    pub(super) fn new(
        answered: Option<Guard>,
        late: Option<Guard>,
        claimant: &Arc<Claimant>,
        lifecycle: &Lifecycle,
    ) -> Self {
        Self { answered, late, claimant: claimant.clone(), lifecycle: lifecycle.clone() }
    }

    fn give_back(mut self) {
        drop(self.answered.take());
    }

    fn settle(mut self) {
        if let Some(guard) = self.answered.take() {
            guard.settle();
        }
    }
}

impl Drop for Claims {
    /// If the answer was not stored: a handler that runs on after its `finish` goes on with its claim, which is given back with
    /// what is left of its layer; any other has nobody to keep it for.
    fn drop(&mut self) {
        if let Some(guard) = self.answered.take().filter(|_| self.lifecycle.0.is_finished()) {
            self.claimant.put(guard);
        }
    }
}

/// What it takes beside the store to keep a promise.
struct Keeping {
    store: Arc<Inner>,
    lifecycle: Lifecycle,
    route: String,
    /// What the user has stored.
    by_hand: Vec<ByHand>,
    claims: Claims,
    untold: Untold,
}

/// The same; a response that says so if that fails.
async fn keep(mut keeping: Keeping, response: Response, promises: Vec<Promise>, asker: Asker) -> Response {
    let claim = keeping.claims.answered.as_ref().and_then(Guard::claim).cloned();
    // What a handler returned has its keys. What it gave to `finish` has none, and is not what it returns afterwards; nor
    // has what goes on without an answer to somebody who still waits for one, whose keys may be those of another promise.
    let finished = claim.as_ref().map(|claim| format!("{}:finished", claim.name));
    let mut jobs = Vec::new();
    for promise in promises {
        match promise {
            Promise::New(Ok(mut job)) => {
                fill_key(&mut job, finished.as_deref().map(|finished| (finished, jobs.len())));
                job.from.clone_from(&keeping.route);
                jobs.push(job);
            }
            Promise::New(Err(error)) => return keeping.refuse(&error),
            Promise::Stored(stored) => keeping.by_hand.extend(stored),
        }
    }
    let (response, answer) = match claim {
        Some(claim) => {
            let (response, answer) = with_answer(response).await;
            (response, Some((claim, answer)))
        }
        None => (response, None),
    };
    let store = keeping.store.clone();
    match store_all(&store, jobs, answer, asker, &keeping.untold).await {
        Ok(stored) => keeping.stored(&stored),
        Err(Unstored { error, again: Some(again) }) => {
            let owner = keeping.lifecycle.0.clone();
            // Apart from its request, whose places and continuations are not to wait for a database.
            store_alone(&owner, keeping.outlast(again, error));
            if asker != Asker::Gone {
                return idempotency::not_yet_stored();
            }
        }
        Err(Unstored { error, again: None }) => return keeping.refuse(&error),
    }
    response
}

async fn store_all(
    store: &Inner,
    jobs: Vec<NewJob>,
    answer: Option<(Claim, Answer)>,
    asker: Asker,
    untold: &Untold,
) -> Result<Vec<Stored>, Unstored> {
    if jobs.is_empty() && answer.is_none() {
        return Ok(Vec::new());
    }
    let refused = |error| Unstored { error, again: None };
    let room = match asker {
        Asker::Waits => return store.store(jobs, answer).await.map_err(refused),
        Asker::MayLeave => Some(store.room().map_err(refused)?),
        Asker::Left | Asker::Gone => None,
    };
    store.store_untold(jobs, answer, room, || !untold.is_heard()).await
}

impl Keeping {
    fn stored(self, stored: &[Stored]) {
        self.claims.settle();
        self.untold.told();
        let ids = stored.iter().filter(|job| !job.duplicate).map(|job| job.id).collect();
        start_after_flush(&self.store, &self.lifecycle, ids, self.by_hand);
    }

    async fn outlast(self, again: Again, error: DurableError) {
        let store = self.store.clone();
        match store.outlast(&self.route, again, error).await {
            Ok(stored) => self.stored(&stored),
            Err(error) => drop(self.refuse(&error)),
        }
    }

    /// The store's own error is in the log already; what it means for a request is here (contract rule 13).
    fn refuse(self, error: &DurableError) -> Response {
        let Self { route, untold, .. } = &self;
        if untold.is_heard() {
            caught::tell(
                || tracing::error!(route, %error, "a durable job was not stored: its client is answered with a 503"),
            );
        } else {
            caught::tell(
                || tracing::error!(route, %error, "a durable job was not stored, and nobody can be told: it is lost"),
            );
        }
        self.untold.told();
        idempotency::not_stored()
    }
}

/// The route of what is promised where nobody can be told that it was not stored. Dropped before that is known, it says so
/// (contract rule 13).
struct Untold {
    route: Option<String>,
    /// Whose client may be there still.
    stays: Option<Lifecycle>,
}

impl Untold {
    /// Whether somebody is told.
    fn is_heard(&self) -> bool {
        self.route.is_none() || self.stays.as_ref().is_some_and(|stays| !stays.is_aborted())
    }

    fn told(mut self) {
        self.route = None;
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        if self.is_heard() {
            return;
        }
        if let Some(route) = self.route.take() {
            let said = "a durable job was dropped before it was known to be stored, and nobody can be told: by its request's \
                        limit, a drain, a panic, or the end of its runtime";
            caught::tell(|| tracing::error!(route, "{said}"));
        }
    }
}

/// Wakes the jobs when the response has left, before the request's other continuations.
fn start_after_flush(store: &Arc<Inner>, lifecycle: &Lifecycle, ids: Vec<i64>, by_hand: Vec<ByHand>) {
    if ids.is_empty() && by_hand.is_empty() {
        return;
    }
    let route = (!by_hand.is_empty()).then(|| lifecycle.0.route());
    let (theirs, now, now_by_hand, its) = (store.clone(), ids.clone(), by_hand.clone(), route.clone());
    let start = Continuation::brief(move || {
        theirs.promote_ids(ids);
        promote_each(by_hand, its.as_deref());
    });
    if let Err(late) = lifecycle.0.add_first_continuation(start) {
        // The request has ended.
        drop(late.into_work());
        store.promote_ids(now);
        promote_each(now_by_hand, route.as_deref());
    }
}

/// Gives the jobs of a response their keys, where its request has one: wherever the response goes from here.
pub(super) fn stamp(extensions: &mut Extensions, claim: &Claim) {
    for (index, promise) in Durable::take_from(extensions).into_iter().enumerate() {
        Durable::put_back(promise, extensions, |job| fill_key(job, Some((&claim.name, index))));
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
