//! The account of one connection, shared by its IO and by the exchanges in flight on it.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    task::Context,
};

use super::{
    HalfClose,
    exchange::Exchange,
    parties::{Parties, Party},
    reader::Reader,
    watch::{Source, Watch},
};
#[cfg(feature = "serve")]
use crate::{
    pool::Straggler,
    sync::{AtomicU8, AtomicUsize},
};
use crate::{
    pool::{lock, runtime_lives},
    sync::{AtomicBool, AtomicU64, AtomicWaker, Mutex},
};

/// Why a response future or body was dropped by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhyDropped {
    /// The client left: it closed, reset, or cancelled its stream.
    ClientLeft,
    /// The connection ended from our side, or something between dropped it.
    NotTheClient,
}

/// What a server asks of its connections.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Serve = 0,
    /// Finish what is open.
    Finish = 1,
    /// Close, with what is open broken off, but linger where a client may be cut off from what has left.
    Close = 2,
    /// End now.
    End = 3,
}

/// A request that the app is not ready for, or the body of one that may still be read, perhaps behind its response. Made by
/// [`Connection::coming`].
#[derive(Debug)]
pub(crate) struct Coming(#[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "nobody counts"))] Connection);

#[cfg(feature = "serve")]
impl Drop for Coming {
    fn drop(&mut self) {
        let connection = &self.0;
        connection.0.coming.fetch_sub(1, Ordering::AcqRel);
        if connection.requests().is_some() {
            // From now on its client is idle.
            connection.wake();
        }
    }
}

/// The handle of a tracked connection: what its IO has seen.
///
/// Returned by [`TrackedIo::connection`](super::TrackedIo::connection). Cloning is cheap.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<State>);

#[derive(Default)]
pub(crate) struct State {
    /// Bytes that the IO has accepted.
    pub(super) written: AtomicU64,
    /// The server's turns: each begins when there is nothing left to read.
    pub(super) turns: AtomicU64,
    /// The turn that the last flush ended, if nothing was written since; else 0.
    pub(super) flushed_turn: AtomicU64,
    /// The client closed its sending side, reset the connection, or a write failed.
    pub(super) client_left: AtomicBool,
    /// A client that closed its sending side is not taken to have left.
    pub(super) serves_half_closed: bool,
    /// The requests that have arrived on it.
    #[cfg(feature = "serve")]
    requests: AtomicU64,
    /// Those of them whose body is still to come, and may be read; and those that the app is not ready for.
    #[cfg(feature = "serve")]
    coming: AtomicUsize,
    /// They are HTTP/2's.
    http2: AtomicBool,
    /// What the server asks of it.
    #[cfg(feature = "serve")]
    asked: AtomicU8,
    /// A request was answered before it was read to its end, or has begun to come.
    pub(super) unread_upload: AtomicBool,
    /// It was upgraded: what it is used for is not HTTP/1 any more.
    pub(super) upgraded: AtomicBool,
    /// The end of input was seen but not shown.
    pub(super) hidden_end: AtomicBool,
    /// Writes are refused: the response on its way must not look whole.
    pub(super) refused: AtomicBool,
    /// The connection is to end with a reset.
    pub(super) reset: AtomicBool,
    /// `poll_shutdown` was called: everything before it was flushed.
    pub(super) shut: AtomicBool,
    /// The IO is gone.
    pub(super) closed: AtomicBool,
    /// An exchange may be held or awaiting; lets a flush that nobody waits for pass without the lock.
    pub(super) waiting: AtomicBool,
    /// Of use on HTTP/2, and there from the first read: a stream's task may answer while the server reads on.
    pub(super) reader: Arc<Reader>,
    pub(super) parties: Parties,
    /// The task that drives the connection.
    pub(super) task: AtomicWaker,
    pub(super) watch: Mutex<Watch>,
    /// For those who ask what of it was acknowledged; gone with the IO.
    #[cfg(feature = "acknowledged")]
    pub(super) source: Mutex<Option<Source>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("written", &self.written())
            .field("client_left", &self.client_left())
            .field("in_flight", &self.0.parties.read(<[_]>::len))
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(source: Option<Source>, half_close: HalfClose) -> Self {
        Self(Arc::new(State {
            serves_half_closed: half_close == HalfClose::Serve,
            #[cfg(feature = "acknowledged")]
            source: Mutex::new(source.clone()),
            watch: Mutex::new(source.map_or(Watch::None, |source| Watch::Idle(source, half_close))),
            ..State::default()
        }))
    }

    #[cfg(feature = "acknowledged")]
    pub(super) fn source(&self) -> Option<Source> {
        lock(&self.0.source).clone()
    }

    /// For the count of those that are open.
    #[cfg(feature = "status-page")]
    pub(crate) fn as_open(&self) -> std::sync::Weak<dyn crate::pool::census::Open> {
        let weak: std::sync::Weak<State> = Arc::downgrade(&self.0);
        weak
    }

    /// The bytes that the kernel (under TLS: the TLS session) has accepted so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Acquire)
    }

    /// Whether the client closed its sending side, reset the connection, or a write failed. Makes no system call.
    #[must_use]
    pub fn client_left(&self) -> bool {
        self.0.client_left.load(Ordering::Acquire)
    }
}

#[cfg(feature = "status-page")]
impl crate::pool::census::Open for State {
    fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }
}

// === for the lifecycle ===

impl Connection {
    /// A request arrived. It is told what happens until it [leaves](Self::leave) or is resolved.
    pub(crate) fn enter(&self, party: &Arc<impl Party + 'static>) {
        let too_late = self.0.parties.change(|parties| {
            // Under the lock, so that it is only counted.
            #[cfg(feature = "serve")]
            self.0.requests.store(self.0.requests.load(Ordering::Acquire) + 1, Ordering::Release);
            // HTTP/1 reads one request to its end before it begins with the next; on HTTP/2 anything may come at any time.
            self.0.unread_upload.store(false, Ordering::Release);
            if party.is_http2() {
                self.0.http2.store(true, Ordering::Release);
            }
            party.exchange().set_listed(true);
            parties.push(party.clone());
            self.client_left()
        });
        if too_late {
            // The end of input came along with this (pipelined) request.
            party.had_left();
        }
    }

    /// A request ended without a flush to wait for.
    pub(crate) fn leave(&self, party: &dyn Party) {
        if !party.exchange().is_listed() {
            return;
        }
        let gone = self.0.parties.change(|parties| {
            let place =
                parties.iter().position(|other| std::ptr::addr_eq(Arc::as_ptr(other), std::ptr::from_ref(party)));
            party.exchange().set_listed(false);
            place.map(|place| parties.swap_remove(place))
        });
        drop(gone);
        // For it an end of the input may not have been told.
        party.exchange().is_end_given().then(|| self.wake());
        self.show_hidden_end();
    }

    /// The head of a response is handed over, or, on HTTP/2, the trailers are.
    pub(crate) fn head(&self, exchange: &Exchange) {
        exchange.set_mark(self.written());
    }

    /// HTTP/2: a response's chunks will be guarded.
    pub(crate) fn guards(&self, exchange: &Exchange) {
        exchange.guards(&self.0.reader);
    }

    /// HTTP/2: the body has ended; its end is held until its chunks are flushed.
    pub(crate) fn hold(&self, exchange: &Exchange) {
        exchange.hold();
        self.note_waiting();
        // The chunks may have been flushed before this, and no flush would come of itself.
        self.wake();
    }

    /// HTTP/2: the last piece of a body comes next, with its end.
    pub(crate) fn give_last(&self, exchange: &Exchange) {
        exchange.release_end();
        self.note_waiting();
    }

    /// HTTP/2: every byte of a known length is given out with what comes next, or there is none, while the body has not ended.
    pub(crate) fn await_given(&self, exchange: &Exchange) {
        exchange.give_all();
        self.note_waiting();
    }

    /// A flush is waited for.
    fn note_waiting(&self) {
        // A swap, which comes after the one that a flush clears it with, or is seen by that: of two mere stores nothing says
        // which is the last. (The model finds that order.)
        self.0.waiting.swap(true, Ordering::AcqRel);
    }

    /// The server has the whole response.
    pub(crate) fn await_flush(&self, party: &dyn Party) {
        let exchange = party.exchange();
        if party.is_http2() {
            exchange.set_turn(self.0.turns.load(Ordering::Acquire));
        }
        exchange.await_flush();
        self.note_waiting();
        // After both: at each moment, either that or this is seen.
        exchange.end_taken();
        if self.0.closed.load(Ordering::Acquire) {
            // Too late for a flush to tell.
            self.tell_of_close(party);
            self.leave(party);
        } else if party.is_http2() {
            self.wake();
        }
    }

    /// Why the server drops what is in flight.
    pub(crate) fn why_dropped(&self, http2: bool) -> WhyDropped {
        // On a living HTTP/2 connection nothing but a RST_STREAM (RFC 9113, section 6.4) makes the server drop a
        // stream's work; and one that was closed in order had no stream left but such.
        let reset =
            || !self.is_ending() && (!self.0.closed.load(Ordering::Acquire) || self.0.shut.load(Ordering::Acquire));
        if self.client_left() || (http2 && reset() && runtime_lives()) {
            WhyDropped::ClientLeft
        } else {
            WhyDropped::NotTheClient
        }
    }

    /// Refuses all further writes: what is on its way is broken off. With `reset`, the connection does not end in
    /// order either.
    pub(crate) fn refuse_writes(&self, reset: bool) {
        self.0.reset.fetch_or(reset, Ordering::AcqRel);
        self.0.refused.store(true, Ordering::Release);
        self.wake();
    }

    /// Watches the socket itself for a client that leaves, which hyper does not see behind unread or pipelined
    /// bytes. Registers `cx`, and costs nothing when never called.
    pub(crate) fn watch(&self, cx: &mut Context<'_>) {
        if self.client_left() || self.0.closed.load(Ordering::Acquire) {
            return;
        }
        let left = lock(&self.0.watch).poll_left(cx);
        if left {
            self.saw_client_leave();
        }
    }

    /// Has the connection's task look again.
    pub(crate) fn wake(&self) {
        self.0.task.wake();
    }

    /// Has it do what its server asks, at its next turn, which comes at once.
    #[cfg(feature = "serve")]
    pub(crate) fn ask(&self, asked: Asked) {
        // AcqRel: the task that is woken, or looks by itself, sees it. The highest stays.
        self.0.asked.fetch_max(asked as u8, Ordering::AcqRel);
        self.wake();
    }

    /// What its server asks. Costs its task one load a turn, where a token of cancellation would take its lock, which all
    /// connections share.
    #[cfg(feature = "serve")]
    pub(crate) fn asked(&self) -> Asked {
        match self.0.asked.load(Ordering::Acquire) {
            0 => Asked::Serve,
            1 => Asked::Finish,
            2 => Asked::Close,
            _ => Asked::End,
        }
    }

    /// Whether its server closes it as it is. The streams of HTTP/2, in tasks of their own, see that before its IO does.
    #[cfg(feature = "serve")]
    fn is_ending(&self) -> bool {
        matches!(self.asked(), Asked::Close | Asked::End)
    }

    #[cfg(not(feature = "serve"))]
    #[expect(clippy::unused_self, reason = "nobody can ask")]
    fn is_ending(&self) -> bool {
        false
    }

    /// How many requests have arrived, if none is in flight, waits for the app, or has a body that is still to come.
    #[cfg(feature = "serve")]
    pub(crate) fn requests(&self) -> Option<u64> {
        // A step that nobody comes between, and not a load: of two that go at once, a request and what was coming, the one that
        // looks last finds both gone.
        let none = self.0.parties.is_empty() && self.0.coming.fetch_add(0, Ordering::AcqRel) == 0;
        none.then(|| self.0.requests.load(Ordering::Acquire))
    }

    /// A request, or its body, is on its way to the app, as long as the value lives.
    pub(crate) fn coming(&self) -> Coming {
        #[cfg(feature = "serve")]
        self.0.coming.fetch_add(1, Ordering::AcqRel);
        Coming(self.clone())
    }

    /// Whether a request has shown that it is HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.0.http2.load(Ordering::Acquire)
    }

    /// The requests in flight.
    #[cfg(feature = "serve")]
    pub(crate) fn in_flight(&self) -> Vec<Arc<dyn Straggler>> {
        self.0.parties.read(|parties| parties.iter().map(|party| party.clone().as_straggler()).collect())
    }

    pub(super) fn show_hidden_end(&self) {
        if self.0.hidden_end.load(Ordering::Acquire) {
            self.wake();
        }
    }
}
