//! What is still to run for a request: its continuations, its hooks, and the end when there is nothing left.

use tracing::{Span, level_filters::LevelFilter};

use super::{
    LifecycleError, ending,
    error::Kind,
    hooks::Hook,
    shared::Shared,
    word::{self, Word},
};
use crate::{
    continuation::{self, Continuation},
    event::{EventKind, HANDLER},
    pool::{Captured, Carry, caught, lock, spans},
};

impl Shared {
    /// Takes in a continuation. `Err` if the request has ended.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(crate) fn add_continuation(&self, mut continuation: Continuation) -> Result<(), Continuation> {
        continuation.carry(self.captured());
        self.take_in(continuation)
    }

    /// Takes in a continuation that has with it what goes along: nothing of the user's is called. `Err` if the request has
    /// ended.
    fn take_in(&self, continuation: Continuation) -> Result<(), Continuation> {
        let mut core = lock(&self.core);
        let taken = |word: Word| (!word.has(word::HOOKS)).then(|| word.with(word::WORK));
        if core.is_lost() || self.change(None, taken).is_none() {
            return Err(continuation);
        }
        core.continuations.push_back(continuation);
        #[cfg(feature = "acknowledged")]
        if self.word().has(word::HEAD) {
            self.keep_socket(&mut core);
        }
        drop(core);
        self.more_work();
        Ok(())
    }

    pub(crate) fn add_hook(&self, mut hook: Hook) -> Result<(), LifecycleError> {
        hook.carry(self.captured());
        let mut core = lock(&self.core);
        if core.is_lost() || self.change(None, |word| Some(word.with(word::WORK))).is_none() {
            drop(core);
            caught::discard(hook);
            return Err(LifecycleError::new(Kind::HookTooLate));
        }
        core.hooks.push_back(hook);
        drop(core);
        self.more_work();
        Ok(())
    }

    /// Takes in a continuation, and runs it on its own if the request has ended.
    pub(crate) fn keep(&self, continuation: Continuation) {
        self.keep_with(continuation, self.captured());
    }

    /// The same from a destructor, with what was `captured` before it (contract rule 11).
    pub(crate) fn keep_with(&self, mut continuation: Continuation, captured: Vec<Box<dyn Captured>>) {
        continuation.carry(captured);
        if let (Err(continuation), Some(me)) = (self.take_in(continuation), self.arc()) {
            continuation.told(|| {
                tracing::warn!(
                    route = self.route(),
                    "a continuation came after its request had ended: it runs on its own, without limit and hooks"
                );
            });
            me.let_go();
            continuation::run_alone(continuation, me);
        }
    }

    /// What goes along with work that leaves the request's task.
    pub(crate) fn captured(&self) -> Vec<Box<dyn Captured>> {
        self.pool().carries.iter().filter_map(|carry| self.capture(&**carry)).collect()
    }

    /// It is cloned, which is the user's code. What cannot be does not go along; the work does.
    fn capture(&self, carry: &dyn Carry) -> Option<Box<dyn Captured>> {
        caught::call(|| carry.capture()).unwrap_or_else(|payload| {
            self.panicked(HANDLER, &payload);
            caught::dispose(payload);
            None
        })
    }

    /// Gives the continuations that wait for their turn spans of their own, so that none keeps the request's span open while
    /// others run.
    pub(super) fn begin_spans(&self) {
        if LevelFilter::current() == LevelFilter::OFF {
            return;
        }
        let mut core = lock(&self.core);
        let lent =
            core.continuations.iter_mut().filter_map(|waiting| Some((waiting.lend_span()?, waiting.class_name())));
        let lent: Vec<_> = lent.collect();
        drop(core);
        if lent.is_empty() {
            return;
        }
        // A subscriber's code, which is not to be run under a lock (contract rule 11).
        let own = |(span, class): (Span, _)| spans::continuation(&span, || self.route(), class, Some(self.id()));
        let own: Vec<_> = lent.into_iter().map(own).collect();
        let mut core = lock(&self.core);
        let mut waiting = core.continuations.iter_mut();
        for span in own {
            let mut span = Some(span);
            // Others may have come in between.
            while let (Some(given), Some(continuation)) = (span.take(), waiting.next()) {
                span = continuation.put_span(given);
                if span.is_none() {
                    break;
                }
            }
        }
    }

    /// Nothing is left that could run it, and it may keep the request that keeps it, as the timer does.
    pub(super) fn discard_work(&self) {
        self.drop_tickets();
        #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
        self.release_keepers(true);
        let mut core = lock(&self.core);
        core.rare().lost = true;
        let (continuations, hooks) = (std::mem::take(&mut core.continuations), std::mem::take(&mut core.hooks));
        let finished = core.rare().finished.take();
        #[cfg(feature = "acknowledged")]
        let delivered = core.rare().delivered.take();
        drop(core);
        #[cfg(feature = "acknowledged")]
        drop(delivered);
        // From here on it takes no other.
        self.stop_clock();
        for continuation in continuations {
            Self::put_back(continuation);
        }
        for hook in hooks {
            caught::discard(hook);
        }
        caught::discard(finished.map(|finished| finished.response));
    }

    pub(super) fn more_work(&self) {
        let word = self.word();
        if word.has(word::ENDING) {
            self.ending_waker.wake();
        } else if word.has(word::HEAD) {
            self.ensure_ending();
        }
    }

    /// Starts the task that brings the request to its end, or has it look again.
    pub(super) fn ensure_ending(&self) {
        let started = self.change(None, |word| (!word.has(word::ENDING)).then(|| word.with(word::ENDING)));
        match started.and_then(|_| self.arc()) {
            Some(me) => ending::start(self, me),
            None => self.ending_waker.wake(),
        }
    }

    /// Something ended: is that the end of all?
    pub(super) fn progress(&self) {
        let word = self.word();
        if word.has(word::ENDING) {
            self.ending_waker.wake();
        } else if word.is_settled() {
            if self.end(|word| word.is_settled() && !word.has(word::WORK | word::ENDING)) {
                self.ended();
            } else if self.word().has(word::WORK) {
                self.ensure_ending();
            }
        }
    }

    /// Ends the request, if `may` says so of the word as it is.
    pub(super) fn end(&self, may: impl Fn(Word) -> bool) -> bool {
        self.change(Some(EventKind::Ended), |word| may(word).then(|| word.with(word::ENDED))).is_some()
    }

    /// The request has ended: what it held is given back.
    pub(super) fn ended(&self) {
        self.stop_clock();
        #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
        self.release_keepers(true);
        // A response that was given up on may still be on its way, and needs its connection to let its end go.
        if self.word().sent().is_some() {
            self.leave_connection();
        }
        self.wake_awaiting();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum_core::{body::Body, response::Response};

    use super::*;
    use crate::{
        lifecycle::{Phase, handling::HandlerEnd, running::Count, shared::Arrival},
        pool::Pool,
        status::Sent,
    };

    #[test]
    fn what_comes_when_its_runtime_has_ended_is_lost_and_not_in_silence() {
        let pool = Arc::<Pool>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let shared = runtime.block_on(async {
            let shared = Shared::new(Arrival::of_a_test(&pool));
            assert!(shared.runtime().is_some());
            shared
        });
        drop(runtime);
        // As the destructor of its task does.
        shared.discard_work();
        shared.keep(Continuation::new(async {}));
        assert_eq!((pool.lost(), pool.running()), (1, 0));
        assert!(shared.add_hook(Hook::new(|_| async {})).is_err());
    }

    #[tokio::test]
    async fn a_head_that_comes_last_is_the_end_also_of_what_went_on_alone() {
        let shared = Shared::new(Arrival::of_a_test(&Arc::default()));
        shared.running.begin_alone(Count::NOTHING);
        shared.handler_started();
        shared.ensure_ending();
        shared.decide(Sent::Aborted);
        shared.keep(Continuation::new(async {}));
        shared.handler_ended(HandlerEnd::Ended, Count::ALONE);
        // Its task has its turns.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shared.word().phase(), Phase::Handling);
        shared.response_leaves(&Response::new(Body::empty()));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shared.word().phase(), Phase::Ended);
    }
}
