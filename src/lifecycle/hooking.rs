//! The hooks at a request's end, one after the other.

use std::{
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use tracing::Span;

use super::{
    ending::{Aside, Step},
    hooks::{End, Hook, Outcome},
    places::HookTime,
    shared::Shared,
};
use crate::{
    event::EventKind,
    pool::{caught, lock},
};

/// How many hooks that never wait run in one poll.
const HOOKS_A_POLL: usize = 32;

/// A hook that runs.
pub(super) struct RunningHook {
    index: usize,
    work: Outcome,
    span: Option<Box<Span>>,
    time: HookTime,
}

impl Step {
    /// One after the other; `waiting` is the one that was at it before.
    pub(super) fn poll_hooks(
        &mut self,
        waiting: Option<RunningHook>,
        shared: &Arc<Shared>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut hook = waiting.or_else(|| next_hook(shared, 0));
        let mut count = 0;
        while let Some(mut running) = hook {
            if count == HOOKS_A_POLL {
                // A hook may register another, without end: the others, and a drain, have their turn.
                *self = Self::aside(Aside::Hook(running));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            count += 1;
            let Poll::Ready(outcome) = running.poll(shared, cx) else {
                *self = Self::aside(Aside::Hook(running));
                return Poll::Pending;
            };
            let RunningHook { index, work, span, .. } = running;
            caught::discard_in(span.as_deref(), work);
            let outcome = match outcome {
                Some(Ok(outcome)) => outcome,
                failed => {
                    caught::within(span.as_deref(), || shared.hook_failed(index, failed));
                    ControlFlow::Continue(())
                }
            };
            caught::close(span);
            shared.tell(EventKind::HookEnd { hook: index });
            if outcome.is_break() {
                let skipped = std::mem::take(&mut lock(&shared.core).hooks);
                let count = skipped.iter().count();
                if count > 0 {
                    caught::tell(|| {
                        tracing::info!(route = shared.route(), skipped = count, "a hook stopped the hooks after it");
                    });
                }
                caught::discard(skipped);
            }
            hook = next_hook(shared, index + 1);
        }
        Poll::Ready(())
    }
}

/// The next hook, begun; when there is none, the request ends, under the lock, so that no hook can come too late to run
/// and too early to be refused.
fn next_hook(shared: &Arc<Shared>, index: usize) -> Option<RunningHook> {
    let mut core = lock(&shared.core);
    let hook = core.hooks.next();
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
    ) -> Poll<Option<Result<ControlFlow<()>, caught::Payload>>> {
        let Self { work, span, time, .. } = self;
        caught::within(span.as_deref(), || time.poll(shared, work.as_mut(), cx))
    }
}
