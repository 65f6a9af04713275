//! What a connection's IO reports.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use super::{Connection, parties::Party, turn::Turn, watch::Watch};
use crate::pool::lock;

/// What a completed flush did.
enum Found {
    Flushed(Arc<dyn Party>),
    /// And nobody else is there.
    Last(Arc<dyn Party>),
    Released(Arc<dyn Party>),
}

impl Connection {
    /// Each time, and not only when it was woken since: a wake can take the waker at any moment, between any two steps
    /// of such a look. (The model finds that order.)
    pub(crate) fn register(&self, waker: &Waker) {
        self.0.task.register(waker);
    }

    /// The server's next turn begins with reading.
    ///
    /// HTTP/2: if the last one ended with a flush and no write after it, there was nothing more to write, and the ends
    /// of streams that were queued before it have left. (A flush alone does not tell: h2 flushes in the middle of a
    /// turn too, when its buffer is full, and for what stalled in the turn before.)
    pub(super) fn read_begins(&self) {
        self.acts_no_more(true);
        // Changed by the one task that reads and writes, as all of the account that is not changed in one step.
        let flushed = self.0.flushed_turn.load(Ordering::Acquire);
        if flushed == 0 {
            return;
        }
        self.0.flushed_turn.store(0, Ordering::Release);
        if !self.0.waiting.load(Ordering::Acquire) {
            return;
        }
        while let Some(party) = self.next_of_turn(flushed) {
            if self.has_begun(&*party) {
                party.flushed();
            } else {
                party.left();
                party.closed();
            }
        }
    }

    /// Nothing is left to read: what is written from here on belongs to a new turn.
    pub(super) fn turn_begins(&self) {
        self.acts_no_more(true);
        self.0.turns.store(self.0.turns.load(Ordering::Acquire) + 1, Ordering::Release);
    }

    pub(super) fn write_begins(&self, turn: Turn) {
        self.0.flushed_turn.store(0, Ordering::Release);
        if turn == Turn::StalledReading {
            self.acts_no_more(false);
        }
    }

    /// The server goes on with what it has read, or, if that is `unsure`, with writing.
    pub(super) fn acts_on_reads(&self, unsure: bool) {
        self.0.reader.acts(unsure);
    }

    /// It `reads`, or writes.
    pub(super) fn acts_no_more(&self, reads: bool) {
        if self.0.reader.stops() {
            self.0.parties.read(|parties| parties.iter().for_each(|party| party.exchange().settle(reads)));
        }
    }

    /// Whether the end of an HTTP/2 stream was handed over, and no turn has passed since.
    pub(super) fn awaits_a_turn(&self) -> bool {
        let awaits = |party: &Arc<dyn Party>| party.is_http2() && party.exchange().is_awaiting();
        self.0.waiting.load(Ordering::Acquire) && self.0.parties.read(|parties| parties.iter().any(awaits))
    }

    /// Whether the server is between two steps with the end of an HTTP/2 stream: it was given it, and lets go of the body
    /// as soon as it has queued it. In between, which in another thread may be long, the client may have all of it already.
    pub(super) fn is_given_an_end(&self) -> bool {
        self.0.parties.read(|parties| parties.iter().any(|party| party.exchange().is_end_given()))
    }

    fn next_of_turn(&self, flushed: u64) -> Option<Arc<dyn Party>> {
        self.0.parties.change(|parties| {
            let place = parties.iter().position(|party| {
                let exchange = party.exchange();
                // What is queued, its client may have to make room for: no turn tells when that leaves.
                let awaits = party.is_http2() && exchange.is_awaiting() && !exchange.is_queued();
                awaits && flushed > exchange.turn()
            })?;
            parties[place].exchange().set_listed(false);
            Some(parties.swap_remove(place))
        })
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.0.written.store(self.written() + bytes as u64, Ordering::Release);
    }

    /// Whether a client may still be sending when the server closes: a request that was answered; and on HTTP/2, where it
    /// acknowledges what it reads (RFC 9113, section 6.9), anything at any time.
    pub(super) fn may_be_sent_to(&self) -> bool {
        self.0.unread_upload.load(Ordering::Acquire) || (self.is_http2() && !self.client_left())
    }

    /// The client closed its sending side.
    pub(super) fn saw_end_of_input(&self) {
        if !self.0.serves_half_closed {
            self.saw_client_leave();
        }
    }

    pub(super) fn is_reset(&self) -> bool {
        self.0.reset.load(Ordering::Acquire)
    }

    /// Whether its end must not be one in order: that was asked for, or it would be the end of a response that is not whole.
    pub(super) fn ends_with_reset(&self) -> bool {
        let cuts = |party: &Arc<dyn Party>| party.ends_by_close() && !self.has_left(&**party);
        if !self.is_reset() && self.0.parties.read(|parties| parties.iter().any(cuts)) {
            self.0.reset.store(true, Ordering::Release);
        }
        self.is_reset()
    }

    pub(super) fn is_refused(&self) -> bool {
        self.0.refused.load(Ordering::Acquire)
    }

    /// The client closed its side or reset the connection: everything in flight learns of it at once.
    pub(super) fn saw_client_leave(&self) {
        if self.0.client_left.swap(true, Ordering::AcqRel) {
            return;
        }
        let parties = self.0.parties.read(<[_]>::to_vec);
        for party in parties {
            party.left();
        }
    }

    /// Whether the end of input is to be kept from the server for now.
    pub(super) fn hides_end_of_input(&self) -> bool {
        let hide = self.0.parties.read(|parties| {
            !parties.is_empty() && parties.iter().all(|party| party.hides_end_of_input(self.0.serves_half_closed))
        });
        self.0.hidden_end.store(hide, Ordering::Release);
        hide
    }

    /// It is shown, since nothing more can leave: the client has left, whatever the end of its input is taken for.
    pub(super) fn shows_end_of_input(&self) {
        self.0.hidden_end.store(false, Ordering::Release);
        self.saw_client_leave();
    }

    /// HTTP/2: whether nothing is on its way but responses whose client has to make room for them.
    pub(super) fn waits_for_windows(&self) -> bool {
        self.0.parties.read(|parties| {
            !parties.is_empty() && parties.iter().all(|party| party.is_http2() && party.waits_for_reader())
        })
    }

    pub(super) fn has_hidden_end(&self) -> bool {
        self.0.hidden_end.load(Ordering::Acquire)
    }

    pub(super) fn stalled(&self) {
        let parties = self.0.parties.read(<[_]>::to_vec);
        for party in parties {
            party.stalled();
        }
    }

    /// A flush completed: whether another turn has to tell what has left.
    pub(super) fn flushed(&self, turn: Turn) -> bool {
        match turn {
            Turn::Writing | Turn::Parting => {
                self.0.flushed_turn.store(self.0.turns.load(Ordering::Acquire), Ordering::Release);
            }
            Turn::StalledReading => {
                // Nothing was written since the last flush, if that left anything unsure: it was at the end of the writing.
                self.acts_no_more(false);
                self.acts_on_reads(true);
            }
            Turn::Reading | Turn::Stalled => {}
        }
        self.tell_of_flush(turn == Turn::Writing);
        turn == Turn::Parting && self.0.waiting.load(Ordering::Acquire)
    }

    /// To those who wait for one; for that at the end of a `turn`, if it may have been that.
    fn tell_of_flush(&self, turn: bool) {
        // Cleared first: whoever begins to wait during the search sets it again, for the next flush.
        if !self.0.waiting.load(Ordering::Acquire) || !self.0.waiting.swap(false, Ordering::AcqRel) {
            return;
        }
        // One at a time, so that nobody is told anything under the lock.
        loop {
            match self.next_flushed(turn) {
                Some(Found::Flushed(party)) => party.flushed(),
                Some(Found::Released(party)) => party.released(),
                Some(Found::Last(party)) => {
                    party.flushed();
                    break;
                }
                None => break,
            }
        }
        self.show_hidden_end();
    }

    fn next_flushed(&self, turn: bool) -> Option<Found> {
        let (found, ends) = self.0.parties.change(|parties| self.look_for_flushed(parties, turn));
        if ends {
            // The turn that may have ended with this flush is over when the next begins.
            self.wake();
        }
        found
    }

    /// Whom a flush concerns; if nobody, whether somebody waits for the turn's end.
    fn look_for_flushed(&self, parties: &mut Vec<Arc<dyn Party>>, turn: bool) -> (Option<Found>, bool) {
        let written = self.written();
        let (mut others, mut ends) = (false, false);
        for (place, party) in parties.iter().enumerate() {
            let exchange = party.exchange();
            let begun = written > exchange.mark();
            if exchange.release(begun, turn) {
                return (Some(Found::Released(party.clone())), false);
            }
            if exchange.is_awaiting() {
                let over = if party.is_http2() { exchange.end_flushed(begun, turn) } else { begun };
                if over {
                    exchange.set_listed(false);
                    let party = parties.swap_remove(place);
                    let found = if parties.is_empty() { Found::Last(party) } else { Found::Flushed(party) };
                    return (Some(found), false);
                }
                ends |= party.is_http2() && !exchange.is_queued();
                others = true;
            } else if exchange.is_released() {
                // Its end may leave before the server lets go of its body.
                exchange.end_flushed(begun, turn);
                others = true;
            }
            others |= exchange.is_held() || exchange.awaits_given(begun, turn);
        }
        if others {
            self.0.waiting.store(true, Ordering::Release);
        }
        (None, ends)
    }

    /// Whether anything was written since a response was handed over. Otherwise none of it has left: on HTTP/1, the server
    /// could not write its very head; on HTTP/2, its stream was reset. So it was where some of it was thrown away.
    fn has_begun(&self, party: &dyn Party) -> bool {
        self.written() > party.exchange().mark() && !party.exchange().is_discarded()
    }

    /// Whether all of a response has left when its connection is gone: in order, it is after everything was flushed, but for
    /// one of which nothing was ever written.
    fn has_left(&self, party: &dyn Party) -> bool {
        party.exchange().has_left(self.has_begun(party) && self.0.shut.load(Ordering::Acquire))
    }

    /// The connection is gone.
    pub(super) fn tell_of_close(&self, party: &dyn Party) {
        if self.has_left(party) {
            return party.flushed();
        }
        if party.is_http2() && self.0.shut.load(Ordering::Acquire) {
            // Closed in order: this stream was reset, and its task has not run since.
            party.left();
        }
        party.closed();
    }

    /// An orderly close began: hyper flushes everything before it.
    pub(super) fn shutting_down(&self) {
        self.read_begins();
        self.0.parties.read(|parties| parties.iter().for_each(|party| party.exchange().discard_queued()));
        self.0.shut.store(true, Ordering::Release);
    }

    pub(super) fn closed(&self) {
        self.0.closed.store(true, Ordering::Release);
        // The watch owns a share of the socket, and lifecycles own this state: let the socket go now.
        *lock(&self.0.watch) = Watch::default();
        #[cfg(feature = "acknowledged")]
        lock(&self.0.source).take();
        // So is the task: as long as its waker is kept, so is all of its memory.
        drop(self.0.task.take());
        let parties = self.0.parties.change(std::mem::take);
        for party in parties {
            party.exchange().set_listed(false);
            self.tell_of_close(&*party);
        }
    }
}
