//! What only some continuations wait for, before they run, while they block, or after they failed.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use tokio::time::Instant;

use super::{
    clock::{LIMIT_PASSED, poll_timer},
    ending::Outcome,
    places::Entering,
    shared::Shared,
    transitions::Verdict,
};
use crate::{
    continuation::{Continuation, Extra},
    pool::{blocking::Blocking, bounds::Place, caught, lock},
};

/// The places of a continuation, or, if its limit passed before it had them, its way there.
pub(super) type Places = Result<Vec<Place>, Entering>;

/// What comes after such a wait.
pub(super) enum Next {
    /// It may run.
    Run(Continuation, Places),
    /// It is over; of that class.
    Over(Outcome, Option<&'static str>),
}

impl Shared {
    /// What a continuation waits for besides its response; most for nothing, and those are given back.
    pub(super) fn before(
        self: &Arc<Self>,
        continuation: Continuation,
    ) -> Result<Continuation, Pin<Box<dyn Future<Output = Next> + Send>>> {
        #[cfg(feature = "acknowledged")]
        let acknowledgement = continuation.acknowledgement();
        #[cfg(not(feature = "acknowledged"))]
        let acknowledgement = None::<std::time::Duration>;
        if acknowledgement.is_none() && self.pool().bounds.is_none() {
            return Ok(continuation);
        }
        let shared = self.clone();
        Err(Box::pin(async move {
            #[cfg(feature = "acknowledged")]
            if let Some(deadline) = acknowledgement {
                shared.wait_for_acknowledgement(deadline).await;
            }
            let places = match shared.pool().bounds {
                Some(_) => shared.wait_for_places(continuation.class_name(), continuation.is_blocking()).await,
                None => Ok(Vec::new()),
            };
            Next::Run(continuation, places)
        }))
    }

    /// For a drain's report.
    pub(super) fn note_class(&self, class: Option<&'static str>) {
        lock(&self.core).rare().class = class;
    }

    /// Waits until the flushed response is confirmed; to the deadline, and to the time limit.
    #[cfg(feature = "acknowledged")]
    async fn wait_for_acknowledgement(&self, deadline: std::time::Duration) {
        use crate::connection::Acknowledged;

        if self.word().known_sent() != Some(crate::status::Sent::Flushed) {
            return;
        }
        let delivered = lock(&self.core).rare().delivered.take().unwrap_or_default();
        let mut acknowledged = std::pin::pin!(tokio::time::timeout(deadline, delivered.acknowledged()));
        let outcome = poll_fn(|cx| {
            self.ending_waker.register(cx.waker());
            if let Poll::Ready(outcome) = acknowledged.as_mut().poll(cx) {
                return Poll::Ready(outcome.ok());
            }
            self.arm();
            if self.verdict() == Some(Verdict::TimedOut) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        if outcome == Some(Acknowledged::Aborted) {
            self.never_acknowledged();
        }
    }

    /// Runs a continuation that blocks.
    pub(super) async fn block(self: Arc<Self>, work: Box<dyn FnOnce() + Send>, extra: Extra, places: Places) -> Next {
        let Extra { span, class, failure, .. } = extra;
        let outcome = match places {
            Ok(places) => {
                // The thread is what the place is for: it has it until it ends.
                let work = move || {
                    let _places = places;
                    work();
                };
                let thread = Blocking::start(Box::new(work), self.pool().clone(), span, self.route());
                self.run_blocking(thread).await
            }
            Err(entering) => {
                self.run_blocking_later(work, entering, span);
                Outcome::Dropped
            }
        };
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            self.tell_failure(error, class).await;
        }
        Next::Over(outcome, class)
    }

    /// A thread counts as one long poll: on the busy clock, all of its time is busy.
    async fn run_blocking(&self, mut work: Blocking) -> Outcome {
        let shared = self;
        let busy_until = shared.clock.busy_left().and_then(|left| Instant::now().checked_add(left));
        let mut timer = None;
        poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(result) = Pin::new(&mut work).poll(cx) {
                if let Err(payload) = result {
                    shared.panicked("a continuation", &payload);
                    caught::dispose(payload);
                }
                return Poll::Ready(Outcome::Ended);
            }
            shared.arm();
            if let Some(at) = busy_until {
                if poll_timer(&mut timer, at, cx).is_ready() {
                    shared.time_out(LIMIT_PASSED);
                }
            }
            if shared.verdict() != Some(Verdict::TimedOut) {
                return Poll::Pending;
            }
            if work.give_up() {
                tracing::warn!(
                    route = shared.route(),
                    "a blocking continuation ran past its limit: its thread is stuck until it returns"
                );
                return Poll::Ready(Outcome::Dropped);
            }
            // It ended in this moment; the next poll has its result.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}
