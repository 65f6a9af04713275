//! The one driver of a request's end: waits for its response, runs its continuations, then its hooks.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};

use super::{
    after::{Next, Places, Rest},
    hooking::RunningHook,
    shared::Shared,
    timer::poll_timer,
    transitions::Verdict,
    word,
};
use crate::{
    continuation::{Continuation, Kind},
    event::{CONTINUATION, EventKind},
    pool::{OnTheList, Pool, Straggler, carry::Work, caught, lock, spans},
};

/// Starts the task of the request, which is `me`. Where no runtime is left to run it, that is said, and nothing else can be
/// done.
pub(super) fn start(shared: &Shared, me: Arc<Shared>) {
    let weak: std::sync::Weak<dyn Straggler> = Arc::downgrade(&me) as _;
    shared.set_listed(shared.pool().list(weak));
    let work = Ending { shared: Some(me), step: Step::NONE };
    // Where it is served, and not where somebody has it begin: a runtime of the user's own may end before the request.
    match shared.runtime() {
        Some(runtime) => drop(runtime.spawn(work)),
        None => caught::discard(Pool::spawn_listed(work).err()),
    }
}

/// The task.
///
/// Written by hand, and not as an `async fn`, whose size would be that of all that it ever waits for: a million of these
/// may wait for a long continuation each. It is what fits into the smallest task that tokio has (128 bytes), and one word
/// more would double that: what tracks it is on the pool's list.
pub(super) struct Ending {
    /// `None` in its destructor alone.
    shared: Option<Arc<Shared>>,
    step: Step,
}

/// What it is at.
pub(super) enum Step {
    /// A continuation runs, and nothing belongs to it: for most the longest of all, and so without a box of ours.
    Running(Work),
    /// `None` while the response is waited for.
    Other(Option<Box<Aside>>),
}

/// What most are never at, or not for long.
pub(super) enum Aside {
    /// The response's reader is slow.
    Reader(Patience),
    /// A continuation runs.
    Running(Work, Box<Rest>),
    /// What comes before a continuation or after it, for those that have such.
    Around(Pin<Box<dyn Future<Output = Next> + Send>>),
    /// A hook that waits.
    Hook(RunningHook),
}

impl Step {
    pub(super) const NONE: Self = Self::Other(None);

    pub(super) fn aside(aside: Aside) -> Self {
        Self::Other(Some(Box::new(aside)))
    }
}

/// How long a slow reader is waited for.
pub(super) struct Patience {
    /// The wait that is timed, and when it is over.
    wait: u32,
    ends: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What the work after a response came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ended,
    Dropped,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let listed = OnTheList { pool: shared.pool().clone(), key: shared.listed() };
        if let Some((work, rest)) = self.step.take_running() {
            discard(&shared, work, rest.as_deref());
        }
        caught::discard(std::mem::replace(&mut self.step, Step::NONE));
        if !shared.word().has(word::ENDED) {
            shared.pool().report_lost(&shared.route(), "the runtime ended before the request did");
            shared.discard_work();
        }
        caught::discard(shared);
        // Last: a drain that waits for this waits for nothing more.
        drop(listed);
    }
}

impl Future for Ending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(shared) = &this.shared else { return Poll::Ready(()) };
        let step = &mut this.step;
        loop {
            let aside = match step {
                Step::Running(work) => {
                    let outcome = ready!(poll_running(work, None, shared, cx));
                    step.ran(outcome, shared);
                    continue;
                }
                Step::Other(aside) => aside.as_deref_mut(),
            };
            match aside {
                None | Some(Aside::Reader(_)) => match ready!(step.poll_next(shared, cx)) {
                    Some(continuation) => step.start(continuation, shared),
                    None => {
                        shared.drop_tickets();
                        return step.poll_hooks(None, shared, cx);
                    }
                },
                Some(Aside::Running(work, rest)) => {
                    let outcome = ready!(poll_running(work, Some(rest), shared, cx));
                    step.ran(outcome, shared);
                }
                Some(Aside::Around(work)) => match ready!(work.as_mut().poll(cx)) {
                    Next::Run(continuation, places) => step.run(continuation, Some(places), shared),
                    Next::Over(outcome, rest) => {
                        *step = Step::NONE;
                        over(outcome, rest, shared);
                    }
                },
                Some(Aside::Hook(_)) => {
                    let waiting = step.take_hook();
                    return step.poll_hooks(waiting, shared, cx);
                }
            }
        }
    }
}

impl Step {
    /// The continuation that runs, taken out; if none does, nothing changes.
    fn take_running(&mut self) -> Option<(Work, Option<Box<Rest>>)> {
        match std::mem::replace(self, Self::NONE) {
            Self::Running(work) => Some((work, None)),
            Self::Other(Some(aside)) => match *aside {
                Aside::Running(work, rest) => Some((work, Some(rest))),
                other => {
                    *self = Self::aside(other);
                    None
                }
            },
            Self::Other(None) => None,
        }
    }

    fn take_hook(&mut self) -> Option<RunningHook> {
        let Self::Other(aside) = self else { return None };
        match aside.take().map(|aside| *aside) {
            Some(Aside::Hook(hook)) => Some(hook),
            other => {
                *aside = other.map(Box::new);
                None
            }
        }
    }
}

// === the response ===

impl Step {
    /// The next continuation, once the response is flushed or will not be; `None` when the hooks may run.
    fn poll_next(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Option<Continuation>> {
        // Most find it flushed, and need not be woken for it.
        if let Poll::Ready(next) = next(shared) {
            return Poll::Ready(next);
        }
        // Registered before the second look, so that what changes after it wakes us.
        shared.ending_waker.register(cx.waker());
        if shared.word().known_sent().is_none() {
            shared.arm();
            if self.poll_patience(shared, cx).is_ready() {
                caught::tell(|| {
                    tracing::info!(
                        route = shared.route(),
                        "the reader is slow: its request goes on without waiting for the flush"
                    );
                });
                shared.give_up_on_reader();
            }
        }
        next(shared)
    }

    fn poll_patience(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(number), Self::Other(aside)) = (shared.wait_for_reader(), self) else {
            return Poll::Pending;
        };
        let timer = match aside.take().map(|aside| *aside) {
            Some(Aside::Reader(patience)) if patience.wait == number => Some(patience),
            Some(Aside::Reader(patience)) => Patience::begin(number, patience.timer, shared),
            _ => Patience::begin(number, None, shared),
        };
        let Some(patience) = timer else { return Poll::Pending };
        match &mut **aside.insert(Box::new(Aside::Reader(patience))) {
            Aside::Reader(patience) => poll_timer(&mut patience.timer, patience.ends, cx),
            _ => Poll::Pending,
        }
    }
}

impl Patience {
    /// `None` if it is too long to be reckoned with.
    fn begin(wait: u32, timer: Option<Pin<Box<Sleep>>>, shared: &Shared) -> Option<Self> {
        let ends = Instant::now().checked_add(shared.pool().settings.patience)?;
        Some(Self { wait, ends, timer })
    }
}

fn next(shared: &Shared) -> Poll<Option<Continuation>> {
    let word = shared.word();
    if word.known_sent().is_none() || word.drops_its_work() {
        return Poll::Pending;
    }
    let mut core = lock(&shared.core);
    if let Some(continuation) = core.continuations.next() {
        core.note_starting(&continuation);
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

// === continuations ===

impl Step {
    /// Its response is gone, or waited for no longer.
    fn start(&mut self, mut continuation: Continuation, shared: &Arc<Shared>) {
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
            Ok(continuation) => self.run(continuation, None, shared),
            Err(before) => *self = Self::aside(Aside::Around(before)),
        }
    }

    fn run(&mut self, continuation: Continuation, places: Option<Places>, shared: &Arc<Shared>) {
        *self = Self::NONE;
        if !shared.take_seat(!matches!(places, Some(Err(_)))) {
            Shared::put_back(continuation);
            return shared.note_class(None);
        }
        shared.change(Some(EventKind::ContinuationStart), |word| Some(word.with(word::CONTINUING)));
        let (kind, extra) = continuation.take_apart();
        let needs_rest = extra.is_some() || places.is_some();
        let rest = |places| Box::new(Rest { extra: extra.map(|extra| *extra).unwrap_or_default(), places });
        *self = match kind {
            Kind::Async(work) if needs_rest => Self::aside(Aside::Running(work, rest(places))),
            Kind::Async(work) => Self::Running(work),
            Kind::Brief(work) => {
                work();
                return over(Outcome::Ended, Some(rest(places)), shared);
            }
            Kind::Blocking(work) => {
                let places = places.unwrap_or_else(|| Ok(Vec::new()));
                Self::aside(Aside::Around(Box::pin(shared.clone().block(work, rest(None), places))))
            }
        };
    }

    /// An async one has returned, panicked, or reached its limit.
    fn ran(&mut self, outcome: Outcome, shared: &Arc<Shared>) {
        let Some((work, mut rest)) = self.take_running() else { return };
        discard(shared, work, rest.as_deref());
        let slot = rest.as_mut().and_then(|rest| rest.extra.failure.take());
        match (slot.and_then(|slot| lock(&slot).take()), rest) {
            (Some(error), Some(rest)) => {
                *self = Self::aside(Aside::Around(Box::pin(shared.clone().failed(error, outcome, rest))));
            }
            (_, rest) => over(outcome, rest, shared),
        }
    }
}

fn over(outcome: Outcome, rest: Option<Box<Rest>>, shared: &Shared) {
    let (event, how) = match outcome {
        Outcome::Ended => (EventKind::ContinuationEnd, "ended"),
        Outcome::Dropped => (EventKind::ContinuationDropped, "dropped"),
    };
    let class = rest.as_ref().and_then(|rest| rest.extra.class);
    let places = rest.and_then(|rest| {
        let Rest { extra, places } = *rest;
        spans::ended(&extra.span, how);
        // Its span is closed before its end is told, and its places are given back afterwards.
        caught::close(extra);
        places
    });
    shared.change(Some(event), |word| Some(word.without(word::CONTINUING)));
    if class.is_some() {
        shared.note_class(None);
    }
    drop(places);
}

/// Drops what ran, among its frames and in its span.
fn discard(shared: &Shared, work: Work, rest: Option<&Rest>) {
    shared.framed(CONTINUATION, || caught::discard_in(rest.map(|rest| &rest.extra.span), work));
}

fn poll_running(work: &mut Work, rest: Option<&Rest>, shared: &Shared, cx: &mut Context<'_>) -> Poll<Outcome> {
    caught::within(rest.map(|rest| &rest.extra.span), || poll_work(work, shared, cx))
}

fn poll_work(work: &mut Work, shared: &Shared, cx: &mut Context<'_>) -> Poll<Outcome> {
    match shared.measure(CONTINUATION, || caught::poll(work.as_mut(), cx)) {
        Ok(Poll::Ready(())) => return Poll::Ready(Outcome::Ended),
        Err(payload) => {
            shared.panicked(CONTINUATION, &payload);
            caught::dispose(payload);
            return Poll::Ready(Outcome::Ended);
        }
        Ok(Poll::Pending) => {}
    }
    // Registered before the look, so that what changes after it wakes us.
    shared.ending_waker.register(cx.waker());
    shared.arm_for_work();
    match shared.verdict() {
        Some(Verdict::TimedOut) => {
            caught::tell(|| tracing::warn!(route = shared.route(), "a continuation was dropped before its end"));
            Poll::Ready(Outcome::Dropped)
        }
        Some(Verdict::Abandoned) | None => Poll::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_is_three_words() {
        assert_eq!(size_of::<Ending>(), 3 * size_of::<usize>());
    }
}
