//! What a continuation waits for besides its response, and where its error goes.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use axum_core::BoxError;
use tokio::time::Instant;
use tracing::Span;

use super::{clock::poll_timer, ending::Ending, shared::Shared, transitions::Verdict};
use crate::{
    continuation::Continuation,
    event::EventKind,
    pool::{
        Failure,
        blocking::Blocking,
        bounds::{Place, enter},
        caught, lock, panic_message,
    },
};

/// A continuation's way to its places.
pub(super) type Entering = Pin<Box<dyn Future<Output = Vec<Place>> + Send>>;

impl Ending {
    /// Waits for a place among those that run (contract rule 9). The time counts for the limit; when that passes, the
    /// wait comes back unfinished.
    pub(super) async fn wait_for_places(
        &self,
        class: Option<&'static str>,
        blocking: bool,
    ) -> Result<Vec<Place>, Entering> {
        let shared = &self.shared;
        let tickets = shared.tickets(class, blocking);
        let mut entering: Entering = Box::pin(enter(tickets));
        let mut told = false;
        let places = poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(places) = entering.as_mut().poll(cx) {
                return Poll::Ready(Some(places));
            }
            if shared.seat_given_up() {
                return Poll::Ready(None);
            }
            if !std::mem::replace(&mut told, true) {
                shared.tell(EventKind::ContinuationWaits);
            }
            shared.arm();
            if shared.verdict() == Some(Verdict::TimedOut) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        places.ok_or(entering)
    }

    /// An attempt at a job whose place was given up: it is dropped without having been polled, and its job is in the store.
    /// So nothing began, and nothing is told but the end.
    pub(super) fn put_back(continuation: Continuation) {
        let (kind, span) = continuation.into_work();
        span.in_scope(|| caught::discard(kind));
    }

    /// The limit passed while it waited for its place: for the contract it has ended, and it runs when its turn comes.
    pub(super) fn run_blocking_later(&self, work: Box<dyn FnOnce() + Send>, entering: Entering, span: Span) {
        let (pool, route) = (self.shared.pool().clone(), self.shared.route());
        tracing::warn!(route, "a blocking continuation reached its limit before its turn: it runs when that comes");
        pool.stuck_started();
        let runner = pool.clone();
        let later = async move {
            let places = entering.await;
            let work = move || {
                let _places = places;
                work();
            };
            if let Err(payload) = Blocking::start(Box::new(work), runner.clone(), span, route).await {
                tracing::error!(message = panic_message(&*payload), "a continuation panicked");
                caught::dispose(payload);
            }
            runner.stuck_ended();
        };
        if let Err(later) = pool.spawn(later) {
            pool.stuck_ended();
            pool.report_lost(&self.shared.route(), "the runtime ended before its turn came");
            caught::discard(later);
        }
    }

    /// A continuation returned an error.
    pub(super) async fn tell_failure(&self, error: BoxError, class: Option<&'static str>) {
        let shared = &self.shared;
        // Its `Display` is the user's.
        let message = caught::call(|| error.to_string()).unwrap_or_else(|payload| {
            caught::dispose(payload);
            "an error whose message panicked".to_owned()
        });
        lock(&shared.core).failure.get_or_insert_with(|| message.as_str().into());
        shared.tell(EventKind::ContinuationFailed);
        let Some(handler) = &shared.pool().failures else {
            if shared.is_job {
                // Whoever runs it says that, and what becomes of it.
                return caught::discard(error);
            }
            tracing::error!(route = shared.route(), class, error = message, "a continuation failed");
            return caught::discard(error);
        };
        let failure = Failure {
            request: shared.id(),
            route: shared.route(),
            class,
            error,
            status: shared.word().status(),
            elapsed: shared.elapsed(),
        };
        let result = match caught::call(|| handler(failure)) {
            Ok(mut work) => {
                let result = run_as_hook(shared, work.as_mut(), &Span::current()).await;
                caught::discard(work);
                result
            }
            Err(payload) => Some(Err(payload)),
        };
        match result {
            Some(Ok(())) => {}
            Some(Err(payload)) => {
                shared.panicked("failure handler", &payload);
                caught::dispose(payload);
            }
            None => tracing::warn!(route = shared.route(), "the failure handler ran past the hook limit: dropped"),
        }
    }
}

/// Runs something of the user's on the time of hooks; `None` when that is over.
pub(super) async fn run_as_hook<F>(
    shared: &Shared,
    mut work: Pin<&mut F>,
    span: &Span,
) -> Option<Result<F::Output, caught::Payload>>
where
    F: Future + ?Sized,
{
    let limit = shared.pool().settings.hook_limit;
    // Most hooks never wait, and need no timer. One that cannot be reckoned with never comes.
    let (mut timer, mut ends) = (None, None);
    poll_fn(|cx| {
        let _span = span.enter();
        match shared.timed("hook", || caught::poll(work.as_mut(), cx)) {
            Ok(Poll::Ready(outcome)) => return Poll::Ready(Some(Ok(outcome))),
            Err(payload) => return Poll::Ready(Some(Err(payload))),
            Ok(Poll::Pending) => {}
        }
        match *ends.get_or_insert_with(|| Instant::now().checked_add(limit)) {
            Some(ends) => poll_timer(&mut timer, ends, cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}
