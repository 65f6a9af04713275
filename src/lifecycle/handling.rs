//! When the handler begins and ends, of which there may be several attempts beside each other.

use super::{
    nowhere::{Keepers, finish_nowhere},
    running::Count,
    shared::Shared,
    word,
};
use crate::{continuation::Continuation, event::EventKind, pool::lock, queue::Queue};

/// How the handler's future ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandlerEnd {
    /// It returned or panicked.
    Ended,
    Dropped,
}

/// Hooks run, or have.
const OVER: u64 = word::HOOKS | word::ENDED;

impl Shared {
    /// An attempt begins: the first poll of a future of ours that is not inside of another attempt. Whatever is inside the
    /// innermost counts as the handler. One that begins, in a task, when hooks run does not: they are the last (contract
    /// rule 2).
    pub(super) fn handler_started(&self) {
        // The other one of the two where it ends, or begins, in between.
        loop {
            let first = |word: word::Word| (!word.has(word::HANDLER | OVER)).then(|| word.with(word::HANDLER));
            if !self.word().has(word::HANDLER) && self.change(Some(EventKind::HandlerStart), first).is_some() {
                return;
            }
            let further = |word: word::Word| word.has(word::HANDLER).then(|| word.attempted());
            if self.change(None, further).is_some() || self.word().has(OVER) {
                return;
            }
        }
    }

    /// An attempt of it ended.
    pub(super) fn handler_ended(&self, how: HandlerEnd, count: Count) {
        self.running.leave(count);
        self.tell_handlers_end(how);
    }

    /// Unless another goes on.
    pub(super) fn tell_handlers_end(&self, how: HandlerEnd) {
        let event = match how {
            HandlerEnd::Ended => EventKind::HandlerEnd,
            HandlerEnd::Dropped => EventKind::HandlerDropped,
        };
        self.change(Some(event), |word| self.without_handler(word));
        self.handler_is_over();
        self.progress();
    }

    /// Looks at both in one step: an attempt that begins changes the word, too.
    fn without_handler(&self, word: word::Word) -> Option<word::Word> {
        (word.has(word::HANDLER) && !self.running.any()).then(|| word.without(word::HANDLER))
    }

    /// An attempt returned, with these continuations.
    pub(super) fn handler_returned(&self, mut continuations: Queue<Continuation>, count: Count) {
        if continuations.is_empty() {
            return self.handler_ended(HandlerEnd::Ended, count);
        }
        // Most servers carry nothing.
        if !self.pool().carries.is_empty() {
            continuations.iter_mut().for_each(|continuation| continuation.carry(self.captured()));
        }
        // Under the lock that the ending task takes them from, so that none starts before the handler's end is
        // told; and the request cannot end before they are seen.
        let mut core = lock(&self.core);
        // Before it counts no longer: what ends beside it may tell of the handler's end then, and end the request.
        let joined = self.change(None, |word| (!word.has(word::HOOKS)).then(|| word.with(word::WORK)));
        self.running.leave(count);
        let ended = self.change(Some(EventKind::HandlerEnd), |word| self.without_handler(word));
        let changed = ended.or(joined);
        if core.is_lost() || changed.is_none_or(|change| change.new.has(word::HOOKS)) {
            // A middleware has answered before it began, or the request has ended and was sent in once more.
            drop(core);
            continuations.for_each(|continuation| self.keep(continuation));
            self.handler_is_over();
            return self.progress();
        }
        for continuation in continuations {
            core.continuations.push_back(continuation);
        }
        #[cfg(feature = "acknowledged")]
        if changed.is_some_and(|change| change.new.has(word::HEAD)) {
            // Its response was given to `finish`, and may have left already.
            self.keep_socket(&mut core);
        }
        drop(core);
        self.handler_is_over();
        self.more_work();
    }

    fn handler_is_over(&self) {
        if self.word().has(word::HANDLER) {
            return;
        }
        // One that another task, or a destructor, gave to `finish` in this very moment has nobody left who would take it. Under
        // the lock that it is stored under: another attempt may have begun, whose it is then.
        if let (Some(late), Some(me)) = (self.take_finished(|_| !self.word().has(word::HANDLER)), self.arc()) {
            finish_nowhere(&me, *late, Keepers::none());
        }
        #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
        self.release_keepers(false);
        if self.word().has(word::HEAD) {
            self.release_tickets();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lifecycle::{
        running::{Around, Within},
        shared::Arrival,
    };

    #[test]
    fn attempts_that_begin_where_another_ends_are_the_handler() {
        let shared = Shared::new(Arrival::of_a_test(&Arc::default()));
        shared.running.begin(Within::Nothing(None), 1, Around::NOTHING);
        shared.handler_started();
        shared.running.leave(Count::IN_SERVICE);
        let mut begins = 0..2;
        let ended = shared.change(None, |word| {
            let ended = shared.without_handler(word);
            for _ in begins.by_ref() {
                assert!(ended.is_some());
                shared.running.begin(Within::Other, 2, Around::NOTHING);
                shared.handler_started();
            }
            ended
        });
        assert!(ended.is_none() && shared.word().has(word::HANDLER));
        shared.handler_ended(HandlerEnd::Ended, Count::IN_SERVICE);
        assert!(shared.word().has(word::HANDLER));
        shared.handler_ended(HandlerEnd::Ended, Count::IN_SERVICE);
        assert!(!shared.word().has(word::HANDLER));
    }
}
