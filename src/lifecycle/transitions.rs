//! Everything that can happen to a request, one method each, whoever notices it.
//!
//! None of these runs user code: they are called from destructors, from flushes and from timers. They change
//! the word, tell of it, and wake whoever has to act.

use std::{sync::atomic::Ordering, task::Context};

use axum_core::response::Response;
use http::Version;

use super::{passage::Waits, polled::Which, shared::Shared, word};
use crate::{
    connection::WhyDropped,
    event::EventKind,
    pool::{caught, runtime_lives},
    status::{ConnectionStatus, Sent},
};

/// Why the handler's future, or the body's producer, is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The limit passed, or a drain's deadline.
    TimedOut,
    /// The client left, and aborts are not ignored.
    Abandoned,
}

impl Shared {
    /// Whether the work is to end now. After `finish` an abort no longer ends it (contract rule 7).
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let word = self.word();
        if word.status().is_timeout() {
            Some(Verdict::TimedOut)
        } else if word.is_abandoned() && !word.has(word::FINISHED) {
            Some(Verdict::Abandoned)
        } else {
            None
        }
    }

    /// So of one attempt, which has finished or not: another one may have.
    pub(super) fn verdict_on(&self, which: Which) -> Option<Verdict> {
        self.verdict().or_else(|| self.producer_verdict().filter(|_| !self.has_finished(which)))
    }

    /// Whether a handler whose future is dropped by somebody else goes on in a task of its own.
    pub(super) fn survives_drop(&self, has_finished: bool) -> bool {
        let word = self.word();
        word.status() == ConnectionStatus::ABORTED && (word.ignores_abort() || has_finished)
    }
}

// === the response ===

impl Shared {
    /// The outermost service hands the response over.
    pub(super) fn response_leaves(&self, response: &Response) {
        // Before the word tells of it.
        self.answered.store(response.status().as_u16(), Ordering::Release);
        if !self.http2() && response.version() <= Version::HTTP_10 {
            // Of an upstream, perhaps: to whichever client, hyper sends it without chunks.
            self.without_chunks.store(true, Ordering::Release);
        }
        self.tell_connection_of_head();
        let changed = self.change(Some(EventKind::HandedOver), |word| Some(word.with(word::HEAD)));
        self.arm_asked();
        self.release_tickets();
        #[cfg(feature = "acknowledged")]
        if changed.is_some_and(|change| change.new.has(word::WORK)) {
            self.keep_socket(&mut crate::pool::lock(&self.core));
        }
        if changed.is_some_and(|change| change.new.has(word::WORK | word::HANDLER)) {
            self.ensure_ending();
        } else {
            // Its fate may be known before it leaves: the client is gone.
            self.progress();
        }
    }

    /// The client reset the connection after the flush, and before it had confirmed what it was asked to confirm.
    #[cfg(feature = "acknowledged")]
    pub(super) fn never_acknowledged(&self) {
        let aborted = ConnectionStatus::ABORTED;
        self.change(Some(EventKind::Aborted), |word| (!word.status().is_aborted()).then(|| word.with_status(aborted)));
        self.wake_awaiting();
    }

    /// The service gave an error instead of a response.
    pub(super) fn response_failed(&self) {
        self.decide(Sent::BrokenOff);
        self.no_response();
    }

    /// The outermost response future was dropped before there was a response.
    pub(super) fn response_lost(&self) {
        self.dropped_by_server(self.why_dropped());
        self.no_response();
    }

    /// Only now the request may end: until its outermost future is gone, its handler may still begin, although its
    /// connection is closed.
    fn no_response(&self) {
        let changed = self.change(None, |word| Some(word.with(word::HEAD)));
        self.release_tickets();
        // A middleware may have put its handler into another task, where it goes on or has yet to be dropped: a drain waits
        // for that, and for what comes after it.
        let goes_on = |word: word::Word| {
            word.has(word::HANDLER) && (word.has(word::WORK) || self.survives_drop(self.is_finished()))
        };
        if changed.is_some_and(|change| goes_on(change.new)) {
            self.ensure_ending();
        } else {
            self.progress();
        }
    }

    fn why_dropped(&self) -> WhyDropped {
        match self.connection() {
            Some(connection) => connection.why_dropped(self.http2()),
            // Nothing tells: it reads as the client's abort, unless even the runtime ends.
            None if runtime_lives() => WhyDropped::ClientLeft,
            None => WhyDropped::NotTheClient,
        }
    }

    fn dropped_by_server(&self, why: WhyDropped) {
        match why {
            WhyDropped::ClientLeft => {
                self.abort();
                self.decide(Sent::Aborted);
            }
            WhyDropped::NotTheClient => self.decide(Sent::BrokenOff),
        }
    }

    /// The outermost body is dropped by the server. This is the one place where it is decided how it ended.
    ///
    /// - `complete`: the server took its last frame, or was never to take any.
    /// - `failed`: it gave an error.
    pub(super) fn body_dropped(&self, complete: bool, failed: bool) {
        if failed {
            if let Some(connection) = self.ends_by_close().then(|| self.connection()).flatten() {
                connection.refuse_writes(true);
            }
            return self.decide(Sent::BrokenOff);
        }
        match self.connection() {
            // HTTP/1: a server that lets go of a body may still write what it took of it (a handler that
            // declared less than it gave); if it gives up instead, the IO goes and says so.
            Some(connection) if complete || !self.http2() => {
                self.reader_begins();
                connection.await_flush(self);
            }
            None if complete => self.flushed_whole(),
            Some(_) | None => self.dropped_by_server(self.why_dropped()),
        }
    }

    pub(super) fn flushed_whole(&self) {
        let flushed = EventKind::Flushed { bytes: self.body_bytes() };
        let changed = self.change(Some(flushed), |word| word.is_open().then(|| word.with_sent(Sent::Flushed)));
        let word = self.word();
        let unread = (changed.is_some() || word.sent().is_none()) && !word.has(word::UPLOADED);
        if let Some(connection) = unread.then(|| self.connection()).flatten() {
            // If the connection is closed now, its client must get to read this all the same.
            connection.left_unread();
        }
        if changed.is_some() {
            self.wake_awaiting();
            self.progress();
        }
    }

    /// The client left; the first to notice says so.
    pub(super) fn abort(&self) {
        if self.exchange.is_all_flushed() || self.exchange.is_given_flushed() {
            // Contract rule 3: who leaves after the whole response has not aborted.
            return self.flushed_whole();
        }
        let changed = self.change(Some(EventKind::Aborted), |word| {
            (word.is_open() && !word.status().is_aborted()).then(|| word.with_status(ConnectionStatus::ABORTED))
        });
        if changed.is_some() {
            self.wake_all();
        }
    }

    /// Has a task woken when the client leaves. HTTP/2 needs no help: there the server always reads.
    pub(super) fn watch_client(&self, cx: &mut Context<'_>) {
        if let Some(connection) = (!self.http2()).then(|| self.connection()).flatten() {
            connection.watch(cx);
        }
    }

    /// Acts on an abort that is not (any more) ignored.
    pub(super) fn abandon(&self) {
        let changed =
            self.change(None, |word| (word.is_abandoned() && word.is_open()).then(|| word.with_sent(Sent::Aborted)));
        if changed.is_some() {
            // hyper may hold on to the response (pipelined bytes, an unread upload): its writes are refused.
            self.break_off();
            self.wake_all();
            self.progress();
        }
    }

    /// Decides the fate of a response that was not flushed, and that nothing more is to be heard of.
    pub(super) fn decide(&self, sent: Sent) {
        if self.exchange.is_all_flushed() {
            self.flushed_whole();
        }
        // Of one that was given up on hooks are told that, once they run, unless it leaves whole.
        let decided =
            |word: word::Word| (!word.has(word::HOOKS)).then(|| word.with_sent(sent)).filter(|new| *new != word);
        let changed = self.change(None, decided);
        self.leave_connection();
        #[cfg(feature = "acknowledged")]
        self.let_go_of_socket();
        if changed.is_some() {
            self.wake_awaiting();
            self.progress();
        }
    }

    /// Makes sure that a response on its way never looks whole: on HTTP/1 the IO refuses its bytes, on HTTP/2
    /// the body fails at its next poll.
    fn break_off(&self) {
        if let Some(connection) = (!self.http2()).then(|| self.connection()).flatten() {
            connection.refuse_writes(self.ends_by_close());
        }
        self.wake(Waits::Response);
    }

    /// Whether the end of the connection may be the end of the response: then a broken one must end with a reset,
    /// or its client cannot tell (RFC 9112, section 8).
    pub(super) fn ends_by_close(&self) -> bool {
        self.version <= Version::HTTP_10 || self.without_chunks.load(Ordering::Acquire)
    }

    /// The patience with a slow reader is over.
    pub(super) fn give_up_on_reader(&self) {
        self.change(None, |word| word.sent().is_none().then(|| word.with_sent(Sent::GivenUp)));
        self.wake_awaiting();
    }

    /// Whether the outermost body is to fail.
    pub(super) fn is_broken_off(&self) -> bool {
        self.word().is_broken_off()
    }

    /// HTTP/2: the server is about to be given the end of the response; unless that is broken off.
    pub(super) fn hands_over(&self) -> bool {
        self.change(None, |word| (!word.is_broken_off()).then(|| word.with(word::WHOLE)));
        // The request of one that was given up on may have ended.
        !self.is_broken_off()
    }
}

// === the body's producer ===

impl Shared {
    pub(crate) fn producer_started(&self) {
        self.change(None, word::Word::producing);
    }

    pub(super) fn has_producer(&self) -> bool {
        self.word().has(word::PRODUCER)
    }

    /// `event` is there for bodies of unknown length.
    pub(crate) fn producer_ended(&self, event: Option<EventKind>) {
        self.change(self.before_hooks(event), |word| word.has(word::PRODUCER).then(|| word.produced()));
        self.progress();
    }

    /// One that was produced goes on without its reader.
    pub(super) fn producer_goes_on(&self) {
        self.change(None, |word| word.has(word::PRODUCER).then(|| word.produced().producing_unread()));
    }

    pub(super) fn unread_ended(&self, event: Option<EventKind>) {
        self.change(self.before_hooks(event), |word| word.has(word::UNREAD).then(|| word.produced_unread()));
        self.progress();
    }

    /// The body of a handler that began when hooks run is told of as little as that. Those of others keep hooks from running.
    fn before_hooks(&self, event: Option<EventKind>) -> Option<EventKind> {
        event.filter(|_| !self.word().has(word::HOOKS))
    }

    pub(crate) fn uploaded(&self) {
        self.change(None, |word| Some(word.with(word::UPLOADED)));
    }
}

// === the limit ===

impl Shared {
    /// The limit passed, or a drain's deadline: the work ends at its next `.await`.
    pub(super) fn time_out(&self, why: &'static str) {
        let changed = self.change(None, |word| {
            if word.status().is_timeout() || word.has(word::HOOKS) {
                return None;
            }
            let word = word.with_status(ConnectionStatus::TIMEOUT);
            // Before the head it is answered with a 503; after it, what is on its way is broken off. What nothing takes back is
            // waited for no longer.
            let fate = if word.has(word::WHOLE) { Sent::GivenUp } else { Sent::BrokenOff };
            Some(if word.has(word::HEAD) { word.with_sent(fate) } else { word })
        });
        let Some(change) = changed else { return };
        caught::tell(|| tracing::warn!(route = self.route(), phase = change.old.phase().name(), "{why}"));
        if change.old.sent().is_none() && change.new.sent().is_some() {
            self.break_off();
            if self.wait_for_reader().is_some() || change.new.has_producers() {
                // The server will not ask this body for more before its reader does, which may be never (on
                // HTTP/2, a stream without flow-control window): for the contract it has ended now. Nor need anybody ask for
                // one beside it.
                self.drop_producers();
            }
        }
        self.wake_all();
        self.progress();
    }
}
