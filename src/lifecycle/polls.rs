//! Polls of what is the user's: measured, timed, and caught.

use std::{cell::Cell, error::Error as StdError, time::Instant};

use tokio::runtime::Handle;

use super::{
    clock::LIMIT_PASSED,
    shared::{Change, Shared},
    word::{self, Word},
};
use crate::{
    event::{BODY, EventKind},
    pool::{caught, lock, message, panic_message},
};

thread_local! {
    /// A poll is being timed on this thread.
    static TIMED: Cell<bool> = const { Cell::new(false) };
}

/// The time of a poll; over also when that panics.
struct Timing {
    began: Instant,
}

impl Timing {
    fn begin() -> Option<Self> {
        (!TIMED.replace(true)).then(|| Self { began: Instant::now() })
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        TIMED.set(false);
    }
}

impl Shared {
    // === panics ===

    pub(crate) fn panicked(&self, what: &'static str, payload: &caught::Payload) {
        let message = panic_message(&**payload);
        caught::tell(|| tracing::error!(route = self.route(), panic = message, "a {what} panicked"));
        self.pool().count_panic();
        let mut core = lock(&self.core);
        core.rare().panic.get_or_insert(message.into());
        drop(core);
        let told = if what == BODY { word::BODY_FAILED } else { 0 };
        self.change(Some(EventKind::Panicked { what }), |word| Some(word.with(word::PANICKED | told)));
    }

    /// A body failed, which breaks its response off. It is told of once, by whoever sees it first; not where it was cut, which
    /// was told of then.
    pub(crate) fn body_failed(&self, error: &(dyn StdError + 'static)) {
        let whose = match self.first_failure_of_body() {
            Some(change) if change.old.status().is_aborted() => "a body whose reader had left",
            Some(_) => "a response's body",
            // Its reader had been given up on, and its request has ended: no event comes any more, but the record does.
            None if self.word().has(word::ENDED) && !self.word().has(word::BODY_FAILED) && !self.producer_is_over() => {
                "a response's body"
            }
            None => return,
        };
        let error = message(error);
        caught::tell(|| tracing::warn!(route = self.route(), error, "{whose} failed"));
    }

    /// The same of one that was held back: its response is another.
    pub(crate) fn held_body_failed(&self, error: &(dyn StdError + 'static)) {
        if self.first_failure_of_body().is_some() {
            let (route, error) = (self.route(), message(error));
            caught::tell(|| tracing::error!(route, error, "a response's body failed before its head was sent"));
        }
        // The body of what a middleware gets when it asks again is another.
        self.change(None, |word| Some(word.without(word::BODY_FAILED)));
    }

    fn first_failure_of_body(&self) -> Option<Change> {
        if self.producer_is_over() {
            return None;
        }
        let is_first = |word: Word| (!word.has(word::BODY_FAILED)).then(|| word.with(word::BODY_FAILED));
        self.change(Some(EventKind::BodyFailed), is_first)
    }

    pub(crate) fn panic(&self) -> Option<String> {
        self.word().has(word::PANICKED).then(|| lock(&self.core).rare().panic.clone()).flatten().map(String::from)
    }

    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.core).rare.as_ref()?.failure.clone().map(String::from)
    }

    // === the clock ===

    /// Polls something of the user's on this request's clock.
    #[inline]
    pub(crate) fn measure<T>(&self, what: &'static str, poll: impl FnOnce() -> T) -> T {
        self.measure_first(what, false, poll)
    }

    /// The same; `first` if nothing of the request was polled before.
    #[inline]
    pub(super) fn measure_first<T>(&self, what: &'static str, first: bool, poll: impl FnOnce() -> T) -> T {
        let poll = || self.framed(what, poll);
        if self.pool().settings.slow_poll.is_some() {
            return self.timed(what, || self.measure_limited(what, first, poll));
        }
        self.measure_limited(what, first, poll)
    }

    /// Names a poll that held up its thread.
    pub(super) fn timed<T>(&self, what: &'static str, poll: impl FnOnce() -> T) -> T {
        let Some(most) = self.pool().settings.slow_poll else { return poll() };
        // Polls nest, as services do; the outermost speaks for all.
        let Some(timing) = Timing::begin() else { return poll() };
        let result = poll();
        let took = timing.began.elapsed();
        if took >= most {
            caught::tell(|| tracing::warn!(route = self.route(), ?took, "a poll of the {what} held up its thread"));
        }
        result
    }

    #[inline]
    fn measure_limited<T>(&self, what: &'static str, first: bool, poll: impl FnOnce() -> T) -> T {
        if !self.clock.is_limited() {
            return poll();
        }
        let was_over = self.word().status().is_timeout();
        let (result, measured) = self.clock.measure(first, poll);
        if let Some(over) = measured.overstayed.filter(|_| !was_over) {
            caught::tell(|| {
                tracing::warn!(
                    route = self.route(),
                    ?over,
                    "a poll of the {what} was stuck: it ran past the time limit without an await"
                );
            });
        }
        if measured.exhausted {
            self.time_out(LIMIT_PASSED);
        }
        result
    }

    /// The same as `arm`, where the user calls, which may be in a thread of their own.
    pub(super) fn arm_anywhere(&self) {
        if lock(&self.core).is_lost() {
            // Its runtime takes no timer any more.
            return;
        }
        if !self.clock.is_wall_limited() {
            return;
        }
        if !self.knows_deadlines() {
            // Who asks may be in a runtime of their own, which ends. Whoever polls it next has it waited for, or hands its
            // response over; nobody may poll it after that.
            self.clock.note_asked();
            self.wake_all();
            if !self.word().has(word::HEAD) || Handle::try_current().is_err() {
                return;
            }
        }
        self.arm();
    }

    /// The same for work that is to be dropped where it waits: a timer whose time has passed tells only when its runtime has
    /// looked, and a service outside of this one that measures this poll only when that is over.
    pub(super) fn arm_for_work(&self) {
        self.arm();
        self.note_limit();
    }

    fn note_limit(&self) {
        if self.clock.is_past() || self.clock.is_used_up() {
            self.time_out(LIMIT_PASSED);
        }
    }

    /// Whether the limit has passed, also where nobody has noticed so far.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.note_limit();
        self.word().status().is_timeout()
    }

    /// Has the wall limit waited for, if there is one; acts at once if it has passed.
    pub(super) fn arm(&self) {
        // What is waited for keeps the request: it must not be any more when that is over.
        if self.word().has(word::ENDED) {
            return;
        }
        if self.clock.arm(|| self.deadlines(), || self.arc()) {
            self.time_out(LIMIT_PASSED);
        }
        if self.word().has(word::ENDED) {
            self.stop_clock();
        }
    }

    /// The head leaves. Where nobody knows of a runtime, its limit may have been asked for before there was any.
    pub(super) fn arm_asked(&self) {
        if self.runtime().is_none() && self.clock.was_asked() && Handle::try_current().is_ok() {
            self.arm();
        }
    }

    /// Its limit is waited for no more.
    pub(super) fn stop_clock(&self) {
        if let (true, Some(me)) = (self.clock.was_placed(), self.arc()) {
            self.clock.stop(&self.deadlines(), me);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        task::Waker,
        time::Duration,
    };

    use axum_core::response::Response;

    use super::*;
    use crate::lifecycle::{clock::Start, shared::Arrival};

    /// Whether a request ends of which nothing is left but its response, which is on its way, and a limit that passes.
    fn ends(limit_passes: impl AsyncFnOnce(&Arc<Shared>) + Send + 'static) -> bool {
        let (tells, told) = mpsc::channel();
        // It may hang.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(async {
                let shared = Shared::new(Arrival::of_a_test(&Arc::default()));
                shared.response_leaves(&Response::default());
                limit_passes(&shared).await;
                tells.send(shared.word().has(word::ENDED)).unwrap();
            });
        });
        told.recv_timeout(Duration::from_secs(10)).is_ok_and(|ended| ended)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_has_ended_is_not_kept_until_its_limit() {
        let shared = Shared::new(Arrival::of_a_test(&Arc::default()));
        shared.clock.set(Duration::from_secs(60), Start::Arrival, None);
        shared.arm();
        assert!(Arc::strong_count(&shared) == 2 && shared.end(|_| true));
        shared.ended();
        // It comes too late.
        shared.clock.set(Duration::from_secs(30), Start::Arrival, None);
        shared.arm();
        assert_eq!(Arc::strong_count(&shared), 1);
    }

    /// Who is woken where it is moved ends the request, which takes it off there.
    #[test]
    fn a_limit_that_has_passed_when_it_is_moved_ends_the_request() {
        assert!(ends(async |shared| {
            shared.clock.set(Duration::from_secs(60), Start::Arrival, None);
            shared.arm();
            tokio::time::advance(Duration::from_secs(10)).await;
            shared.clock.set(Duration::from_secs(5), Start::Arrival, None);
            shared.arm();
        }));
    }

    /// On several threads a limit may pass while it is being armed.
    #[test]
    fn a_limit_that_passes_while_it_is_being_armed_ends_the_request() {
        assert!(ends(async |shared| {
            shared.clock.set(Duration::from_secs(5), Start::Arrival, None);
            tokio::time::advance(Duration::from_secs(5)).await;
            let passes_meanwhile = || {
                Waker::from(shared.clone()).wake();
                Some(shared.clone())
            };
            shared.clock.arm(|| shared.deadlines(), passes_meanwhile);
            shared.arm_for_work();
        }));
    }
}
