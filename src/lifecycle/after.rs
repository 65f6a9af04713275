//! What only some continuations wait for, before they run, while they block, or after they failed.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum_core::BoxError;
use tokio::time::Instant;

use super::{
    clock::{LIMIT_PASSED, Start},
    ending::Outcome,
    late::Turn,
    places::Entering,
    shared::Shared,
    timer::poll_timer,
    transitions::Verdict,
    word,
};
use crate::{
    continuation::{Continuation, Extra},
    event::CONTINUATION,
    pool::{blocking::Blocking, bounds::Place, caught, lock, spans::InSpan},
};

/// The places of a continuation, or, if its limit passed before it had them, its way there.
pub(super) type Places = Result<Vec<Place>, Entering>;

/// What comes after such a wait.
pub(super) enum Next {
    /// It may run.
    Run(Continuation, Places),
    /// It is over.
    Over(Outcome, Option<Box<Rest>>),
}

/// What belongs to a continuation that runs, if anything does.
#[derive(Default)]
pub(super) struct Rest {
    pub(super) extra: Extra,
    /// Given back after its end was told; after a failure, before anybody is told of that.
    pub(super) places: Option<Places>,
}

#[cfg(feature = "acknowledged")]
impl super::shared::Core {
    /// The socket, which is kept no longer than somebody is to wait for it.
    fn delivered(&mut self) -> crate::connection::Delivered {
        let others = self.continuations.iter().any(|waiting| waiting.acknowledgement().is_some());
        let delivered = &mut self.rare().delivered;
        if others { delivered.clone() } else { delivered.take() }.unwrap_or_default()
    }
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
        let acknowledgement = None::<Duration>;
        let bounded = self.pool().bounds.is_some() && !continuation.is_brief();
        if acknowledgement.is_none() && !bounded {
            return Ok(continuation);
        }
        let shared = self.clone();
        Err(Box::pin(async move {
            #[cfg(feature = "acknowledged")]
            if let Some(deadline) = acknowledgement {
                shared.wait_for_acknowledgement(deadline).await;
            }
            let places = match bounded {
                true => shared.wait_for_places(continuation.class_name(), continuation.is_blocking()).await,
                false => Ok(Vec::new()),
            };
            Next::Run(continuation, places)
        }))
    }

    /// For a drain's report, and for events.
    pub(super) fn note_class(&self, class: Option<&'static str>) {
        lock(&self.core).rare().class = class;
        self.note_told_class(class);
    }

    /// For the continuations that wait for an acknowledgement: the server may close right after the flush.
    #[cfg(feature = "acknowledged")]
    pub(super) fn keep_socket(&self, core: &mut super::shared::Core) {
        let waits = core.continuations.iter().any(|continuation| continuation.acknowledgement().is_some());
        if waits && !self.is_broken_off() {
            let kept = &mut core.rare().delivered;
            *kept = kept.take().or_else(|| Some(self.connection()?.keep_socket()));
        }
    }

    /// Nothing will be acknowledged: as long as it is kept, the client does not see the connection's end.
    #[cfg(feature = "acknowledged")]
    pub(super) fn let_go_of_socket(&self) {
        if self.is_broken_off() {
            let kept = lock(&self.core).rare.as_mut().and_then(|rare| rare.delivered.take());
            drop(kept);
        }
    }

    /// Waits until the flushed response is confirmed; to the deadline, and to the time limit.
    #[cfg(feature = "acknowledged")]
    async fn wait_for_acknowledgement(&self, deadline: Duration) {
        use crate::connection::Acknowledged;

        let delivered = lock(&self.core).delivered();
        if self.word().known_sent() != Some(crate::status::Sent::Flushed) {
            return;
        }
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
    pub(super) async fn block(
        self: Arc<Self>,
        work: Box<dyn FnOnce() + Send>,
        mut rest: Box<Rest>,
        places: Places,
    ) -> Next {
        let span = rest.extra.span.clone();
        let outcome = match places {
            Ok(places) => {
                let turn = Turn::default();
                let (theirs, request) = (turn.clone(), self.clone());
                // The thread is what the place is for: it has it until it ends.
                let work = move || {
                    let _places = places;
                    theirs.comes();
                    request.thread_came();
                    drop(request);
                    work();
                };
                let thread = Blocking::start(Box::new(work), self.pool().clone(), span.clone(), self.route());
                let outcome = InSpan::new(self.run_blocking(thread, &turn), span).await;
                if outcome == Outcome::Dropped {
                    turn.is_late(&self, rest.extra.class);
                }
                outcome
            }
            Err(entering) => {
                self.run_blocking_later(work, entering, rest.extra.class, span);
                Outcome::Dropped
            }
        };
        match rest.extra.failure.take().and_then(|slot| lock(&slot).take()) {
            Some(error) => self.failed(error, outcome, rest).await,
            None => Next::Over(outcome, Some(rest)),
        }
    }

    /// A continuation returned an error.
    pub(super) async fn failed(self: Arc<Self>, error: BoxError, outcome: Outcome, mut rest: Box<Rest>) -> Next {
        // It runs no more: whoever is told of its failure needs no place, and may take long.
        drop(rest.places.take());
        let (class, span) = (rest.extra.class, rest.extra.span.clone());
        InSpan::new(self.tell_failure(error, class), span).await;
        Next::Over(outcome, Some(rest))
    }

    /// Has the limit count from now on; also for a thread that is timed by the busy clock. Nothing comes back that is over.
    pub(super) fn restart_clock(&self, limit: Duration) {
        let word = self.word();
        if word.has(word::ENDED) || word.status().is_timeout() {
            return;
        }
        if self.clock.is_busy() {
            // Noted first: until then a thread has the rest of the limit before, and never less than of this one.
            lock(&self.core).rare().restarted = Some(Instant::now());
        }
        self.clock.set(limit, Start::Now, None);
        self.thread_came();
        self.arm_anywhere();
    }

    /// The busy clock counts a thread's time from now on: whoever waits for the thread sets its timer.
    fn thread_came(&self) {
        if self.clock.is_busy() {
            self.ending_waker.wake();
        }
    }

    /// Since when the time of a thread counts that came then.
    fn busy_since(&self, came: Instant) -> Instant {
        let restarted = lock(&self.core).rare.as_ref().and_then(|rare| rare.restarted);
        restarted.map_or(came, |restarted| restarted.max(came))
    }

    /// When its time is used up, on the busy clock.
    fn busy_until(&self, came: Instant) -> Option<Instant> {
        let left = self.clock.busy_left()?;
        self.busy_since(came).checked_add(left)
    }

    /// A thread counts as one long poll: on the busy clock, all of its time is busy, and the wait for it is not.
    async fn run_blocking(&self, mut work: Blocking, turn: &Turn) -> Outcome {
        let shared = self;
        let mut timer = None;
        poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(result) = Pin::new(&mut work).poll(cx) {
                if let Some(came) = turn.came() {
                    shared.clock.ran(shared.busy_since(came).elapsed());
                }
                if let Err(payload) = result {
                    shared.panicked(CONTINUATION, &payload);
                    caught::dispose(payload);
                }
                return Poll::Ready(Outcome::Ended);
            }
            shared.arm();
            if let Some(at) = turn.came().and_then(|came| shared.busy_until(came)) {
                if poll_timer(&mut timer, at, cx).is_ready() {
                    shared.time_out(LIMIT_PASSED);
                }
            }
            if shared.verdict() != Some(Verdict::TimedOut) {
                return Poll::Pending;
            }
            if work.give_up() {
                caught::tell(|| {
                    tracing::warn!(
                        route = shared.route(),
                        "a blocking continuation ran past its limit: its thread is stuck until it returns"
                    );
                });
                return Poll::Ready(Outcome::Dropped);
            }
            // It ended in this moment; the next poll has its result.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}
