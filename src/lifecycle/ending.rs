//! The one driver of a request's end: waits for its response, runs its continuations, then its hooks.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};
use tracing::Instrument as _;

use super::{
    clock::{LIMIT_PASSED, poll_timer},
    frames::Framed,
    hooks::{End, Hook},
    places::run_as_hook,
    shared::Shared,
    transitions::Verdict,
    word,
};
use crate::{
    continuation::{Continuation, Kind},
    event::{CONTINUATION, EventKind},
    pool::{
        Captured, Listed, Straggler,
        blocking::Blocking,
        carry::{Work, carried},
        caught, lock, spans,
    },
};

type Pending = (Continuation, Vec<Box<dyn Captured>>);

/// Starts the task. Where no runtime is left to run it, that is said, and nothing else can be done.
pub(super) fn start(shared: Arc<Shared>) {
    let pool = shared.pool().clone();
    let weak: std::sync::Weak<dyn Straggler> = Arc::downgrade(&shared) as _;
    let ending = Ending { _listed: pool.list(weak), shared, ended: false };

    if let Err(work) = pool.spawn(ending.run()) {
        caught::discard(work);
    }
}

pub(super) struct Ending {
    pub(super) shared: Arc<Shared>,
    _listed: Listed,
    ended: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.pool().report_lost(&self.shared.route(), "the runtime ended before the request did");
        }
    }
}

/// How long a slow reader is waited for.
#[derive(Default)]
struct Patience {
    /// The wait that is timed, and when it is over.
    wait: Option<(u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn poll(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        let Some(number) = shared.wait_for_reader() else {
            return Poll::Pending;
        };
        let ends = match self.wait {
            Some((timed, ends)) if timed == number => ends,
            _ => match Instant::now().checked_add(shared.pool().settings.patience) {
                Some(ends) => self.wait.insert((number, ends)).1,
                None => return Poll::Pending,
            },
        };
        poll_timer(&mut self.timer, ends, cx)
    }
}

/// What the work after a response came to.
enum Outcome {
    Ended,
    Dropped,
}

impl Ending {
    async fn run(mut self) {
        while let Some((continuation, captured)) = self.next_continuation().await {
            // Boxed: a request that has hooks alone does not carry the room for it.
            Box::pin(self.run_continuation(continuation, captured)).await;
        }
        self.shared.drop_tickets();
        self.run_hooks().await;
        self.ended = true;
    }

    /// The next continuation, once the response is flushed or will not be; `None` when the hooks may run.
    async fn next_continuation(&self) -> Option<Pending> {
        let mut patience = Patience::default();
        poll_fn(|cx| self.poll_next(&mut patience, cx)).await
    }

    fn poll_next(&self, patience: &mut Patience, cx: &mut Context<'_>) -> Poll<Option<Pending>> {
        let shared = &self.shared;
        shared.ending_waker.register(cx.waker());
        if shared.word().known_sent().is_none() {
            shared.arm();
            if patience.poll(shared, cx).is_ready() {
                tracing::info!(route = shared.route(), "the reader is slow: its request goes on without it");
                shared.give_up_on_reader();
            }
        }
        let word = shared.word();
        if word.known_sent().is_none() || word.drops_its_work() {
            return Poll::Pending;
        }
        let mut core = lock(&shared.core);
        if let Some(continuation) = core.continuations.pop_front() {
            if core.continuations.is_empty() {
                // Its room is not needed while this one runs, which may be long.
                core.continuations = VecDeque::new();
            }
            return Poll::Ready(Some(continuation));
        }
        // Under the lock, so that no continuation can come in between.
        let settled = shared.change(None, |word| word.is_settled().then(|| word.with(word::HOOKS)));
        if settled.is_some() {
            return Poll::Ready(None);
        }
        drop(core);
        // The rest of a handler, or of a producer, runs and may still bring a continuation.
        shared.arm();
        Poll::Pending
    }

    async fn run_continuation(&self, mut continuation: Continuation, captured: Vec<Box<dyn Captured>>) {
        let shared = &self.shared;
        shared.let_buffer_go();
        // An attempt at a job comes in a span of its own.
        if !shared.is_job {
            continuation.begin_span(|| shared.route(), Some(shared.id()));
            shared.begin_spans();
        }
        #[cfg(feature = "acknowledged")]
        if let Some(deadline) = continuation.acknowledgement() {
            self.wait_for_acknowledgement(deadline).await;
        }
        let (class, failure) = (continuation.class_name(), continuation.failure_slot());
        if class.is_some() {
            self.note_class(class);
        }
        let brief = matches!(continuation.kind, Some(Kind::Brief(_)));
        let places = match shared.pool().bounds {
            // Boxed: an unbounded one does not carry the room for it.
            Some(_) if !brief => Box::pin(self.wait_for_places(class, continuation.is_blocking())).await,
            Some(_) | None => Ok(Vec::new()),
        };
        if !shared.take_seat(places.is_ok()) {
            Self::put_back(continuation);
            return self.note_class(None);
        }
        shared.change(Some(EventKind::ContinuationStart), |word| Some(word.with(word::CONTINUING)));
        let (kind, span) = continuation.into_work();
        let outcome = match kind {
            Kind::Async(work) => {
                let work = if captured.is_empty() { work } else { Box::pin(carried(captured, work)) };
                let mut work = Framed::new(&**shared, CONTINUATION, work);
                let outcome = self.run_to_limit(&mut work.work).instrument(span.clone()).await;
                let _span = span.enter();
                drop(work);
                outcome
            }
            Kind::Brief(work) => {
                work();
                Outcome::Ended
            }
            Kind::Blocking(mut work) => {
                for value in captured {
                    work = value.around_blocking(work);
                }
                match places {
                    Ok(places) => {
                        // The thread is what the place is for: it has it until it ends.
                        let work = move || {
                            let _places = places;
                            work();
                        };
                        let (pool, route) = (shared.pool().clone(), shared.route());
                        let thread = Blocking::start(Box::new(work), pool, span.clone(), route);
                        self.run_blocking(thread).instrument(span.clone()).await
                    }
                    Err(entering) => {
                        self.run_blocking_later(work, entering, span.clone());
                        Outcome::Dropped
                    }
                }
            }
        };
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            Box::pin(self.tell_failure(error, class).instrument(span.clone())).await;
        }
        let event = match outcome {
            Outcome::Ended => EventKind::ContinuationEnd,
            Outcome::Dropped => EventKind::ContinuationDropped,
        };
        spans::ended(&span, if event == EventKind::ContinuationEnd { "ended" } else { "dropped" });
        // Closed before its end is told.
        drop(span);
        shared.change(Some(event), |word| Some(word.without(word::CONTINUING)));
        if class.is_some() {
            self.note_class(None);
        }
    }

    /// For a drain's report, and for events.
    fn note_class(&self, class: Option<&'static str>) {
        lock(&self.shared.core).class = class;
        self.shared.note_told_class(class);
    }

    /// Waits until the flushed response is confirmed; to the deadline, and to the time limit.
    #[cfg(feature = "acknowledged")]
    async fn wait_for_acknowledgement(&self, deadline: std::time::Duration) {
        use crate::connection::Acknowledged;

        let shared = &self.shared;
        if shared.word().known_sent() != Some(crate::status::Sent::Flushed) {
            return;
        }
        let delivered = lock(&shared.core).delivered.take().unwrap_or_default();
        let mut acknowledged = std::pin::pin!(tokio::time::timeout(deadline, delivered.acknowledged()));
        let outcome = poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(outcome) = acknowledged.as_mut().poll(cx) {
                return Poll::Ready(outcome.ok());
            }
            shared.arm();
            if shared.verdict() == Some(Verdict::TimedOut) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        if outcome == Some(Acknowledged::Aborted) {
            shared.never_acknowledged();
        }
    }

    async fn run_to_limit(&self, work: &mut Option<Work>) -> Outcome {
        let shared = &self.shared;
        poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            let Some(work) = work else { return Poll::Ready(Outcome::Ended) };
            match shared.measure(CONTINUATION, || caught::poll(work.as_mut(), cx)) {
                Ok(Poll::Ready(())) => return Poll::Ready(Outcome::Ended),
                Err(payload) => {
                    shared.panicked(CONTINUATION, &payload);
                    caught::dispose(payload);
                    return Poll::Ready(Outcome::Ended);
                }
                Ok(Poll::Pending) => {}
            }
            shared.arm();
            match shared.verdict() {
                Some(Verdict::TimedOut) => {
                    tracing::warn!(route = shared.route(), "a continuation was dropped at its limit");
                    Poll::Ready(Outcome::Dropped)
                }
                Some(Verdict::Abandoned) | None => Poll::Pending,
            }
        })
        .await
    }

    /// A thread counts as one long poll: on the busy clock, all of its time is busy.
    async fn run_blocking(&self, mut work: Blocking) -> Outcome {
        let shared = &self.shared;
        let busy_until = shared.clock.busy_left().and_then(|left| Instant::now().checked_add(left));
        let mut timer = None;
        poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(result) = Pin::new(&mut work).poll(cx) {
                if let Err(payload) = result {
                    shared.panicked(CONTINUATION, &payload);
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

    async fn run_hooks(&self) {
        let shared = &self.shared;
        let mut index = 0;
        loop {
            let Some(hook) = self.next_hook() else { return };
            shared.tell(EventKind::HookStart { hook: index });
            let outcome = self.run_hook(hook).await;
            shared.tell(EventKind::HookEnd { hook: index });
            index += 1;
            if outcome.is_break() {
                let skipped = std::mem::take(&mut lock(&shared.core).hooks);
                if !skipped.is_empty() {
                    tracing::info!(
                        route = shared.route(),
                        skipped = skipped.len(),
                        "a hook stopped the hooks after it"
                    );
                }
                caught::discard(skipped);
            }
        }
    }

    /// The next hook; when there is none, the request ends, under the lock, so that no hook can come too late
    /// to run and too early to be refused.
    fn next_hook(&self) -> Option<Hook> {
        let mut core = lock(&self.shared.core);
        let hook = core.hooks.pop_front();
        if hook.is_none() {
            self.shared.end(|_| true);
        }
        hook
    }

    async fn run_hook(&self, hook: Hook) -> ControlFlow<()> {
        let shared = &self.shared;
        let end = End { shared: shared.clone() };
        let (mut work, span) = hook.start(end);
        let result = run_as_hook(shared, work.as_mut(), &span).await;
        let _span = span.enter();
        caught::discard(work);
        match result {
            Some(Ok(outcome)) => outcome,
            Some(Err(payload)) => {
                shared.panicked("hook", &payload);
                caught::dispose(payload);
                ControlFlow::Continue(())
            }
            None => {
                let limit = shared.pool().settings.hook_limit;
                tracing::warn!(route = shared.route(), ?limit, "a hook ran past its own limit and was dropped");
                ControlFlow::Continue(())
            }
        }
    }
}
