//! The one driver of a request's end: waits for its response, runs its continuations, then its hooks.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};
use tracing::{Span, span::Entered};

use super::{
    after::{Next, Places, Rest},
    clock::poll_timer,
    hooks::{End, Hook},
    places::HookTime,
    shared::Shared,
    transitions::Verdict,
    word,
};
use crate::{
    continuation::{Continuation, Kind},
    event::{CONTINUATION, EventKind},
    pool::{Straggler, carry::Work, caught, lock, spans},
};

/// Starts the task. Where no runtime is left to run it, that is said, and nothing else can be done.
pub(super) fn start(shared: Arc<Shared>) {
    let pool = shared.pool().clone();
    let weak: std::sync::Weak<dyn Straggler> = Arc::downgrade(&shared) as _;
    shared.set_listed(pool.list(weak));
    if let Err(work) = pool.spawn(Ending { shared, step: None }) {
        let shared = work.shared.clone();
        let _served = shared.served_in();
        caught::discard(pool.spawn(work).err());
    }
}

/// The task.
///
/// Written by hand, and not as an `async fn`, whose size would be that of all that it ever waits for: a million of these
/// may wait for a long continuation each. With the word that tracks it, it is what fits into the smallest task that tokio
/// has (128 bytes), and one more would double that.
pub(super) struct Ending {
    shared: Arc<Shared>,
    /// `None` while the response is waited for.
    step: Option<Box<Step>>,
}

/// What it is at.
enum Step {
    /// The response's reader is slow.
    Reader(Box<Patience>),
    /// The continuation runs.
    Running(Running),
    /// What comes before a continuation or after it, for those that have such.
    Around(Pin<Box<dyn Future<Output = Next> + Send>>),
    /// A hook that waits.
    Hook(Box<RunningHook>),
}

/// How long a slow reader is waited for.
struct Patience {
    /// The wait that is timed, and when it is over.
    wait: u32,
    ends: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A continuation that runs.
struct Running {
    work: Work,
    rest: Option<Box<Rest>>,
}

/// A hook that runs.
struct RunningHook {
    index: usize,
    work: super::hooks::Outcome,
    span: Option<Box<Span>>,
    time: HookTime,
}

/// What the work after a response came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ended,
    Dropped,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(Step::Running(Running { work, rest })) = self.step.take().map(|step| *step) {
            discard(&self.shared, work, rest.as_deref());
        }
        let shared = &self.shared;
        if !shared.word().has(word::ENDED) {
            shared.pool().report_lost(&shared.route(), "the runtime ended before the request did");
            shared.discard_work();
        }
        shared.pool().unlist(shared.listed());
    }
}

impl Future for Ending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            match this.step.as_deref_mut() {
                None | Some(Step::Reader(_)) => match ready!(this.poll_next(cx)) {
                    Some(continuation) => this.start(continuation),
                    None => {
                        this.shared.drop_tickets();
                        return this.poll_hooks(None, cx);
                    }
                },
                Some(Step::Running(running)) => {
                    let outcome = ready!(running.poll(&this.shared, cx));
                    this.ran(outcome);
                }
                Some(Step::Around(work)) => match ready!(work.as_mut().poll(cx)) {
                    Next::Run(continuation, places) => this.run(continuation, Some(places)),
                    Next::Over(outcome, rest) => {
                        this.step = None;
                        this.over(outcome, rest);
                    }
                },
                Some(Step::Hook(_)) => {
                    let hook = this.step.take();
                    return this.poll_hooks(hook, cx);
                }
            }
        }
    }
}

// === the response ===

impl Ending {
    /// The next continuation, once the response is flushed or will not be; `None` when the hooks may run.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Continuation>> {
        self.shared.ending_waker.register(cx.waker());
        if self.shared.word().known_sent().is_none() {
            self.shared.arm();
            if self.poll_patience(cx).is_ready() {
                tracing::info!(route = self.shared.route(), "the reader is slow: its request goes on without it");
                self.shared.give_up_on_reader();
            }
        }
        let shared = &self.shared;
        let word = shared.word();
        if word.known_sent().is_none() || word.drops_its_work() {
            return Poll::Pending;
        }
        let mut core = lock(&shared.core);
        if let Some(continuation) = core.continuations.pop_front() {
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

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &self.shared;
        let Some(number) = shared.wait_for_reader() else {
            return Poll::Pending;
        };
        let (ends, timer) = match self.step.as_deref_mut() {
            Some(Step::Reader(patience)) if patience.wait == number => (patience.ends, &mut patience.timer),
            _ => {
                let Some(ends) = Instant::now().checked_add(shared.pool().settings.patience) else {
                    return Poll::Pending;
                };
                let timer = match self.step.take().map(|step| *step) {
                    Some(Step::Reader(patience)) => patience.timer,
                    _ => None,
                };
                let patience = Box::new(Patience { wait: number, ends, timer });
                match &mut **self.step.insert(Box::new(Step::Reader(patience))) {
                    Step::Reader(patience) => (ends, &mut patience.timer),
                    _ => return Poll::Pending,
                }
            }
        };
        poll_timer(timer, ends, cx)
    }
}

// === continuations ===

impl Ending {
    /// Its response is gone, or waited for no longer.
    fn start(&mut self, mut continuation: Continuation) {
        let shared = &self.shared;
        shared.let_go();
        // An attempt at a job comes in a span of its own.
        if !shared.is_job {
            continuation.begin_span(|| shared.route(), Some(shared.id()));
            shared.begin_spans();
        }
        let class = continuation.class_name();
        if class.is_some() {
            shared.note_class(class);
        }
        match shared.before(continuation) {
            Ok(continuation) => self.run(continuation, None),
            Err(before) => self.step = Some(Box::new(Step::Around(before))),
        }
    }

    fn run(&mut self, continuation: Continuation, places: Option<Places>) {
        self.step = None;
        let shared = &self.shared;
        if !shared.take_seat(!matches!(places, Some(Err(_)))) {
            Shared::put_back(continuation);
            return shared.note_class(None);
        }
        shared.change(Some(EventKind::ContinuationStart), |word| Some(word.with(word::CONTINUING)));
        let (kind, extra) = continuation.take_apart();
        let needs_rest = extra.is_some() || places.is_some();
        let rest = |places| Box::new(Rest { extra: extra.map(|extra| *extra).unwrap_or_default(), places });
        let step = match kind {
            Kind::Async(work) => {
                let rest = needs_rest.then(|| rest(places));
                Step::Running(Running { work, rest })
            }
            Kind::Brief(work) => {
                work();
                return self.over(Outcome::Ended, Some(rest(places)));
            }
            Kind::Blocking(work) => {
                let places = places.unwrap_or_else(|| Ok(Vec::new()));
                Step::Around(Box::pin(shared.clone().block(work, rest(None), places)))
            }
        };
        self.step = Some(Box::new(step));
    }

    /// An async one has returned, panicked, or reached its limit.
    fn ran(&mut self, outcome: Outcome) {
        let Some(Step::Running(Running { work, mut rest })) = self.step.take().map(|step| *step) else { return };
        discard(&self.shared, work, rest.as_deref());
        let slot = rest.as_mut().and_then(|rest| rest.extra.failure.take());
        match (slot.and_then(|slot| lock(&slot).take()), rest) {
            (Some(error), Some(rest)) => {
                let told = self.shared.clone().failed(error, outcome, rest);
                self.step = Some(Box::new(Step::Around(Box::pin(told))));
            }
            (_, rest) => self.over(outcome, rest),
        }
    }

    fn over(&self, outcome: Outcome, rest: Option<Box<Rest>>) {
        let (event, how) = match outcome {
            Outcome::Ended => (EventKind::ContinuationEnd, "ended"),
            Outcome::Dropped => (EventKind::ContinuationDropped, "dropped"),
        };
        let Rest { extra, places } = rest.map(|rest| *rest).unwrap_or_default();
        let class = extra.class;
        spans::ended(&extra.span, how);
        // Its span is closed before its end is told, and its places are given back afterwards.
        drop(extra);
        self.shared.change(Some(event), |word| Some(word.without(word::CONTINUING)));
        if class.is_some() {
            self.shared.note_class(None);
        }
        drop(places);
    }
}

/// Drops what ran, among its frames and in its span.
fn discard(shared: &Shared, work: Work, rest: Option<&Rest>) {
    shared.framed(CONTINUATION, || caught::discard_in(rest.map(|rest| &rest.extra.span), work));
}

impl Running {
    fn poll(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Outcome> {
        let _span: Option<Entered<'_>> = self.rest.as_ref().map(|rest| rest.extra.span.enter());
        let work = &mut self.work;
        shared.ending_waker.register(cx.waker());
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
    }
}

// === hooks ===

impl Ending {
    /// One after the other; `waiting` is the one that was at it before.
    fn poll_hooks(&mut self, waiting: Option<Box<Step>>, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &self.shared;
        let mut hook = match waiting.map(|step| *step) {
            Some(Step::Hook(hook)) => Some(*hook),
            _ => self.next_hook(0),
        };
        while let Some(mut running) = hook {
            let Poll::Ready(outcome) = running.poll(shared, cx) else {
                self.step = Some(Box::new(Step::Hook(Box::new(running))));
                return Poll::Pending;
            };
            let RunningHook { index, work, span, .. } = running;
            caught::discard_in(span.as_deref(), work);
            let outcome = match outcome {
                Some(Ok(outcome)) => outcome,
                failed => {
                    let _span = span.as_deref().map(Span::enter);
                    shared.hook_failed(failed);
                    std::ops::ControlFlow::Continue(())
                }
            };
            shared.tell(EventKind::HookEnd { hook: index });
            if outcome.is_break() {
                let skipped = std::mem::take(&mut lock(&shared.core).hooks);
                let count = skipped.iter().count();
                if count > 0 {
                    tracing::info!(route = shared.route(), skipped = count, "a hook stopped the hooks after it");
                }
                caught::discard(skipped);
            }
            hook = self.next_hook(index + 1);
        }
        Poll::Ready(())
    }

    /// The next hook, begun; when there is none, the request ends, under the lock, so that no hook can come too late
    /// to run and too early to be refused.
    fn next_hook(&self, index: usize) -> Option<RunningHook> {
        let shared = &self.shared;
        let mut core = lock(&shared.core);
        let hook = core.hooks.pop_front();
        if hook.is_none() {
            shared.end(|_| true);
        }
        drop(core);
        match hook {
            Some(hook) => Some(RunningHook::start(shared, hook, index)),
            None => {
                shared.ended();
                None
            }
        }
    }
}

impl RunningHook {
    fn start(shared: &Arc<Shared>, hook: Hook, index: usize) -> Self {
        shared.tell(EventKind::HookStart { hook: index });
        let (work, span) = hook.start(End { shared: shared.clone() });
        Self { index, work, span, time: HookTime::default() }
    }

    /// `None` if its time is over.
    fn poll(
        &mut self,
        shared: &Shared,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<std::ops::ControlFlow<()>, caught::Payload>>> {
        let _span = self.span.as_deref().map(Span::enter);
        self.time.poll(shared, self.work.as_mut(), cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_word_that_tracks_it_the_task_is_three_words() {
        assert_eq!(size_of::<Ending>(), 2 * size_of::<usize>());
        assert!(size_of::<Step>() <= 4 * size_of::<usize>());
    }
}
