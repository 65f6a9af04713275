//! What a continuation waits for besides its response, and where its error goes.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::BoxError;
use tokio::time::{Instant, Sleep};

use super::{shared::Shared, timer::poll_timer, transitions::Verdict};
use crate::{
    continuation::Continuation,
    event::EventKind,
    pool::{
        Failure,
        bounds::{Place, enter},
        caught, lock, message,
    },
};

/// A continuation's way to its places.
pub(super) type Entering = Pin<Box<dyn Future<Output = Vec<Place>> + Send>>;

impl Shared {
    /// Waits for a place among those that run (contract rule 9). The time counts for the limit; when that passes, the
    /// wait comes back unfinished.
    pub(super) async fn wait_for_places(
        &self,
        class: Option<&'static str>,
        blocking: bool,
    ) -> Result<Vec<Place>, Entering> {
        let shared = self;
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
        caught::discard_in(Some(&span), kind);
        caught::close(span);
    }

    /// A continuation returned an error.
    pub(super) async fn tell_failure(&self, error: BoxError, class: Option<&'static str>) {
        let shared = self;
        let message = message(&*error);
        lock(&shared.core).rare().failure.get_or_insert_with(|| message.as_str().into());
        shared.tell(EventKind::ContinuationFailed);
        let Some(handler) = &shared.pool().failures else {
            if shared.is_job {
                // Whoever runs it says that, and what becomes of it.
                return caught::discard(error);
            }
            caught::tell(|| tracing::error!(route = shared.route(), class, error = message, "a continuation failed"));
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
                let mut time = HookTime::default();
                let result = poll_fn(|cx| time.poll(shared, work.as_mut(), cx)).await;
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
            None => caught::tell(|| {
                tracing::warn!(
                    route = shared.route(),
                    "the failure handler (`on_failure`) ran past the hook limit and was dropped"
                );
            }),
        }
    }
}

/// The time that one hook, or what is treated as one, may take.
#[derive(Default)]
pub(super) struct HookTime {
    /// Most hooks never wait, and need no timer.
    timer: Option<Pin<Box<Sleep>>>,
    /// Known since its first wait. One that cannot be reckoned with never comes.
    ends: Option<Option<Instant>>,
}

impl HookTime {
    /// Polls something of the user's; `None` when its time is over.
    pub(super) fn poll<F>(
        &mut self,
        shared: &Shared,
        mut work: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<F::Output, caught::Payload>>>
    where
        F: Future + ?Sized,
    {
        match shared.timed("hook", || caught::poll(work.as_mut(), cx)) {
            Ok(Poll::Ready(outcome)) => return Poll::Ready(Some(Ok(outcome))),
            Err(payload) => return Poll::Ready(Some(Err(payload))),
            Ok(Poll::Pending) => {}
        }
        let limit = shared.pool().settings.hook_limit;
        match *self.ends.get_or_insert_with(|| Instant::now().checked_add(limit)) {
            Some(ends) => poll_timer(&mut self.timer, ends, cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

impl Shared {
    /// A hook panicked, or ran past its time.
    pub(super) fn hook_failed<T>(&self, index: usize, outcome: Option<Result<T, caught::Payload>>) {
        match outcome {
            Some(Ok(_)) => {}
            Some(Err(payload)) => {
                self.panicked("hook", &payload);
                caught::dispose(payload);
            }
            None => {
                let limit = self.pool().settings.hook_limit;
                caught::tell(|| {
                    tracing::warn!(route = self.route(), ?limit, "a hook ran past the hook limit and was dropped");
                });
                self.tell(EventKind::HookDropped { hook: index });
            }
        }
    }
}
