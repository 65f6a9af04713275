//! Who tells a request what happened to it: its connection, its timer, and a drain.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Wake,
    time::Duration,
};

use super::{
    clock::LIMIT_PASSED,
    passage::Waits,
    shared::Shared,
    word::{self, Phase},
};
use crate::{
    connection::{Exchange, Party},
    continuation::Continuation,
    event::EventKind,
    pool::{Description, Straggler, lock},
    status::Sent,
};

/// Whom its deadline wakes: the request itself, which needs no task, and no memory, to act on its limit.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        // It may have been moved since.
        if self.clock.is_past() {
            self.time_out(LIMIT_PASSED);
        }
    }
}

impl Party for Shared {
    #[cfg(feature = "serve")]
    fn as_straggler(self: Arc<Self>) -> Arc<dyn Straggler> {
        self
    }

    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn is_http2(&self) -> bool {
        self.http2()
    }

    fn ends_by_close(&self) -> bool {
        self.ends_by_close()
    }

    fn flushed(&self) {
        self.flushed_whole();
    }

    fn released(&self) {
        self.wake(Waits::Response);
    }

    fn left(&self) {
        self.abort();
        self.abandon();
    }

    fn had_left(&self) {
        // Whether that is ignored is for the layers to say, which have not seen the request yet.
        self.abort();
    }

    fn closed(&self) {
        let aborted = self.word().status().is_aborted();
        self.decide(if aborted { Sent::Aborted } else { Sent::BrokenOff });
        // A handler or body that nobody drops (it was handed to another task) learns of it here.
        self.wake_all();
    }

    fn stalled(&self) {
        if self.word().has(word::HEAD) {
            self.arm();
        }
    }

    fn waits_for_reader(&self) -> bool {
        // A poll may take long, and its reader has nothing to do with that.
        let asked = !self.produces.load(Ordering::Acquire) && self.wait_for_reader().is_some();
        asked || self.exchange.has_chunks_out()
    }

    fn hides_end_of_input(&self, serves_half_closed: bool) -> bool {
        let word = self.word();
        word.has(word::UPLOADED) && (serves_half_closed || word.ignores_abort())
    }
}

impl Straggler for Shared {
    fn is_slow(&self, after: Duration) -> bool {
        // A response that is on its way may be meant to last.
        matches!(self.word().phase(), Phase::Handling | Phase::Continuing) && self.elapsed() >= after
    }

    fn is_over(&self) -> bool {
        matches!(self.word().phase(), Phase::Ending | Phase::Ended)
    }

    fn tell_slow(&self) {
        let Description { route, class, age, phase, .. } = self.describe();
        let frames = self.waits_in();
        let frames = frames.as_ref().map(tracing::field::display);
        tracing::warn!(route, class, ?age, phase, frames, "a request takes long");
        self.tell(EventKind::Slow);
    }

    fn cut(&self) {
        self.time_out("a drain cuts what is left");
    }

    fn describe(&self) -> Description {
        let core = lock(&self.core);
        let queued = || core.continuations.iter().next().and_then(Continuation::class_name);
        let late = core.rare.as_ref().and_then(|rare| rare.late.first().copied());
        let class = core.rare.as_ref().and_then(|rare| rare.class).or_else(queued).or(late.flatten());
        drop(core);
        let word = self.word();
        let phase = match word.phase() {
            // Without what is still to come: of that it is told here.
            Phase::Ended if late.is_some() => Phase::Continuing,
            // What is gone is waited for no longer: its continuation waits for its place, or to be acknowledged.
            Phase::Sending if word.known_sent().is_some() && !word.has(word::PRODUCER | word::UNREAD) => {
                Phase::Continuing
            }
            // Its response was given up on, and is still on its way.
            Phase::Ended if word.sent().is_none() => Phase::Sending,
            phase => phase,
        };
        Description { route: self.route(), class, age: self.elapsed(), phase: phase.name(), stored: self.is_job }
    }
}
