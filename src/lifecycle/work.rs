//! What is still to run for a request: its continuations, its hooks, and the end when there is nothing left.

use std::collections::VecDeque;

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
    event::EventKind,
    pool::{caught, lock, spans},
};

/// Most requests have one of a kind: a queue that grew by itself would make room for four.
pub(super) fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.capacity() == 0 {
        queue.reserve_exact(1);
    }
    queue.push_back(item);
}

impl Shared {
    /// Takes in a continuation. `Err` if the request has ended.
    pub(crate) fn add_continuation(&self, continuation: Continuation) -> Result<(), Continuation> {
        let captured = self.captured();
        let mut core = lock(&self.core);
        if self.change(None, |word| (!word.has(word::HOOKS)).then(|| word.with(word::WORK))).is_none() {
            return Err(continuation);
        }
        push(&mut core.continuations, (continuation, captured));
        drop(core);
        self.more_work();
        Ok(())
    }

    pub(crate) fn add_hook(&self, mut hook: Hook) -> Result<(), LifecycleError> {
        hook.captured = self.captured();
        let mut core = lock(&self.core);
        if self.change(None, |word| Some(word.with(word::WORK))).is_none() {
            drop(core);
            caught::discard(hook);
            return Err(LifecycleError::new(Kind::HookTooLate));
        }
        push(&mut core.hooks, hook);
        drop(core);
        self.more_work();
        Ok(())
    }

    /// Takes in a continuation, and runs it on its own if the request has ended.
    pub(crate) fn keep(&self, continuation: Continuation) {
        if let Err(continuation) = self.add_continuation(continuation) {
            continuation::run_alone(continuation);
        }
    }

    /// Gives the continuations that wait for their turn spans of their own, so that none keeps the request's span open while
    /// others run.
    pub(super) fn begin_spans(&self) {
        if LevelFilter::current() == LevelFilter::OFF {
            return;
        }
        let mut core = lock(&self.core);
        let lent =
            core.continuations.iter_mut().filter_map(|(waiting, _)| Some((waiting.lend_span()?, waiting.class_name())));
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
            while let (Some(given), Some((continuation, _))) = (span.take(), waiting.next()) {
                span = continuation.put_span(given);
                if span.is_none() {
                    break;
                }
            }
        }
    }

    pub(super) fn more_work(&self) {
        let word = self.word();
        if word.has(word::ENDING) {
            self.ending_waker.wake();
        } else if word.has(word::HEAD) {
            self.ensure_ending();
        }
    }

    /// Starts the task that brings the request to its end, unless there is one.
    pub(super) fn ensure_ending(&self) {
        let started = self.change(None, |word| (!word.has(word::ENDING)).then(|| word.with(word::ENDING)));
        if let Some(me) = started.and_then(|_| self.arc()) {
            ending::start(me);
        }
    }

    /// Something ended: is that the end of all?
    pub(super) fn progress(&self) {
        let word = self.word();
        if word.has(word::ENDING) {
            self.ending_waker.wake();
        } else if word.is_settled()
            && self.end(|word| word.is_settled() && !word.has(word::WORK | word::ENDING)).is_none()
            && self.word().has(word::WORK)
        {
            self.ensure_ending();
        }
    }

    /// Ends the request, if `may` says so of the word as it is.
    pub(super) fn end(&self, may: impl Fn(Word) -> bool) -> Option<()> {
        let ended = self.change(Some(EventKind::Ended), |word| may(word).then(|| word.with(word::ENDED)))?;
        self.clock.stop();
        // A response that was given up on may still be on its way, and needs its connection to let its end go.
        if let Some(connection) = self.connection().filter(|_| ended.new.sent().is_some()) {
            connection.leave(self);
        }
        self.wake_awaiting();
        Some(())
    }
}
