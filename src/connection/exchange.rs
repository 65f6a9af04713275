//! One request and its response, as their connection sees them.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;

use super::{chunks::Chunks, reader::Reader};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, OnceLock};

// The stages; 0 is that before: the request is handled, or its body is on its way.

/// HTTP/2: the body has ended, but its end is held back until every chunk of it was flushed.
const HELD: u8 = 1;
/// HTTP/2: every chunk was flushed; the end may go.
const RELEASED: u8 = 2;
/// The server has all of the response; the flush that follows is the one that counts.
const AWAITING: u8 = 3;

/// The flush of one response.
///
/// HTTP/1 runs a connection in one task: hyper takes the last frame, drops the body, writes and flushes. So the
/// first completed flush after the body's drop, with more bytes written than when the head was handed over,
/// is the flush of this response.
///
/// HTTP/2 copies bodies into per-stream queues and drops them long before the bytes leave. So each chunk is
/// handed over as guarded `Bytes` that tells when it has gone into the write buffer, and the end of the stream
/// is held back until no chunk is left and a later flush completed. What then still has to leave is the end of
/// the stream alone: an empty chunk, guarded as the others are, so that the flush after it was written is the one
/// that counts. So it is with a last piece that is short, which takes the end along; it may have to wait for room in its
/// client's windows, long after the body was dropped. So is a head without a body, by one of its values, if it has one that can be guarded. Other heads, and
/// trailers, cannot: they are queued when the body is dropped, and a connection writes all that is queued after each time it
/// has read. So there the flush that counts is the last of the first turn (reads, writes, flushes) that began after the drop.
/// If nothing at all was written since they were handed over, they were thrown away, with a stream that its client has reset.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    stage: AtomicU8,
    /// On its connection's list.
    listed: AtomicBool,
    /// Bytes written when the head was handed over; on HTTP/2, or the trailers were.
    mark: AtomicU64,
    /// HTTP/2: the server's turn when the body was dropped.
    turn: AtomicU64,
    /// There only where chunks are guarded: a request that waits long keeps no more than it needs.
    chunks: OnceLock<Arc<Chunks>>,
    /// The client knows how long the body is.
    length_known: AtomicBool,
    /// HTTP/2: the end of the stream was flushed, or every byte of a body of known length: then what is held back is an
    /// end that its client need not wait for.
    all_flushed: AtomicBool,
    /// HTTP/2: the server was given an end that cannot be guarded, and has not let go of the body.
    end_given: AtomicBool,
}

impl Exchange {
    pub(crate) fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Release);
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    pub(crate) fn set_mark(&self, mark: u64) {
        self.mark.store(mark, Ordering::Release);
    }

    /// HTTP/2: a middleware around us took it, and not the server. When what it makes of that is written nobody knows: that
    /// nothing is as yet says nothing of its client.
    pub(crate) fn take_elsewhere(&self) {
        self.set_mark(0);
    }

    pub(crate) fn mark(&self) -> u64 {
        self.mark.load(Ordering::Acquire)
    }

    pub(crate) fn set_turn(&self, turn: u64) {
        self.turn.store(turn, Ordering::Release);
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    /// HTTP/2: its chunks will be guarded.
    pub(super) fn guards(&self, reader: &Arc<Reader>) {
        self.chunks.get_or_init(|| Arc::new(Chunks { reader: reader.clone(), ..Chunks::default() }));
    }

    /// Wraps a chunk so that it counts until the server has written it.
    pub(crate) fn guard(&self, chunk: Bytes) -> Bytes {
        self.chunks.get_or_init(Arc::default).guard(chunk, false)
    }

    /// The end of a stream: a chunk, mostly an empty one, that counts until the server has written it.
    pub(crate) fn guard_last(&self, last: Bytes) -> Bytes {
        let chunks = self.chunks.get_or_init(Arc::default);
        let end = chunks.guard(last, true);
        chunks.end_guarded.store(true, Ordering::Release);
        end
    }

    /// The end of a stream that has no body: a part of its head.
    pub(crate) fn guard_head(&self, part: Bytes) -> Bytes {
        self.chunks.get_or_init(Arc::default).is_head.store(true, Ordering::Release);
        self.guard_last(part)
    }

    /// The server asks whether there is more behind a head, or behind a piece, and is about to take that; or a middleware
    /// around us is.
    pub(crate) fn ask_for_end(&self) {
        let Some(chunks) = self.chunks.get().filter(|chunks| chunks.end_guarded.load(Ordering::Acquire)) else {
            return;
        };
        // What a middleware has taken off, or copied, before says nothing.
        chunks.end_guarded.store(chunks.dropped_at.load(Ordering::Acquire) == 0, Ordering::Release);
    }

    /// It has, if it `asked`, and lets go of the body. (A middleware that asks, and then answers something else at once, looks as
    /// a server whose stream was reset.)
    pub(crate) fn leave_end(&self, asked: bool) {
        if !asked {
            return self.take_elsewhere();
        }
        if let Some(chunks) = self.chunks.get().filter(|chunks| chunks.end_guarded.load(Ordering::Acquire)) {
            chunks.drops(&chunks.left_at, &chunks.dropped_at);
        }
    }

    pub(crate) fn has_chunks_out(&self) -> bool {
        self.chunks.get().is_some_and(|chunks| chunks.out.load(Ordering::Acquire) > 0)
    }

    /// Whether some of the body waits to be written. (Of a head somebody may have a copy.)
    pub(super) fn is_queued(&self) -> bool {
        self.chunks.get().is_some_and(|chunks| !chunks.are_gone() && !chunks.is_head())
    }

    /// The server does the next thing, and `reads` or writes: of what it let go of while that was not sure.
    pub(super) fn settle(&self, reads: bool) {
        let Some(chunks) = self.chunks.get() else { return };
        if chunks.suspected.swap(false, Ordering::AcqRel) && reads {
            chunks.discard();
        }
    }

    /// The connection closes: what is still queued of a body does not leave any more.
    pub(super) fn discard_queued(&self) {
        if let Some(chunks) = self.chunks.get().filter(|_| self.is_awaiting() && self.is_queued()) {
            chunks.discard();
        }
    }

    /// Whether something of the body was thrown away, with a stream that its client has reset.
    pub(super) fn is_discarded(&self) -> bool {
        self.chunks.get().is_some_and(|chunks| chunks.discarded.load(Ordering::Acquire))
    }

    pub(crate) fn set_length_known(&self) {
        self.length_known.store(true, Ordering::Release);
    }

    /// Whether the client has, or will have, all that it waits for.
    pub(crate) fn is_all_flushed(&self) -> bool {
        self.all_flushed.load(Ordering::Acquire)
    }

    /// The last byte of a known length was [guarded](Self::guard), if there is any.
    pub(crate) fn give_all(&self) {
        self.chunks.get_or_init(Arc::default).all_given.store(true, Ordering::Release);
    }

    /// A flush completed, as with [`release`](Self::release): whether the last byte of a known length still waits for one.
    pub(crate) fn awaits_given(&self, begun: bool, after_reading: bool) -> bool {
        let Some(chunks) = self.chunks.get().filter(|chunks| chunks.all_given.load(Ordering::Acquire)) else {
            return false;
        };
        if begun && chunks.have_left(after_reading) {
            chunks.given_flushed.store(true, Ordering::Release);
        }
        !chunks.given_flushed.load(Ordering::Acquire)
    }

    /// The server asks for what comes behind the last byte of a known length.
    pub(crate) fn take_all(&self) {
        if let Some(chunks) = self.chunks.get() {
            chunks.all_taken.store(true, Ordering::Release);
        }
    }

    /// Whether the client has all of a known length.
    pub(crate) fn is_given_flushed(&self) -> bool {
        let flushed = |chunks: &Arc<Chunks>| {
            chunks.given_flushed.load(Ordering::Acquire) && chunks.all_taken.load(Ordering::Acquire)
        };
        self.chunks.get().is_some_and(flushed)
    }

    /// Whether all of it has left when its connection is gone, which was shut in order after it had `begun` to leave, or
    /// not.
    pub(super) fn has_left(&self, begun: bool) -> bool {
        begun && (self.is_awaiting() && !self.is_queued() || self.is_end_given()) || self.is_all_flushed()
    }

    pub(crate) fn hold(&self) {
        self.stage.store(HELD, Ordering::Release);
    }

    /// Nothing is held back: the end goes with what is left.
    pub(crate) fn release_end(&self) {
        self.stage.store(RELEASED, Ordering::Release);
    }

    pub(crate) fn is_held(&self) -> bool {
        self.stage.load(Ordering::Acquire) == HELD
    }

    pub(crate) fn is_released(&self) -> bool {
        self.stage.load(Ordering::Acquire) == RELEASED
    }

    pub(crate) fn is_awaiting(&self) -> bool {
        self.stage.load(Ordering::Acquire) == AWAITING
    }

    pub(crate) fn await_flush(&self) {
        self.stage.store(AWAITING, Ordering::Release);
    }

    /// The server is given trailers, or a head without a body.
    pub(crate) fn give_end(&self) {
        self.end_given.store(true, Ordering::Release);
    }

    /// The server has let go of the body, and its flush is waited for.
    pub(crate) fn end_taken(&self) {
        self.end_given.store(false, Ordering::Release);
    }

    pub(crate) fn is_end_given(&self) -> bool {
        self.end_given.load(Ordering::Acquire)
    }

    /// A flush completed, `after_reading` if the server was done with that: does it release a held end?
    ///
    /// Not while it reads, when chunks that are gone may have been discarded with their stream (each turn ends with a
    /// flush after it). The body of such a stream is about to be dropped, and whoever asks for its end all the same is let
    /// have it. That the client has all of it says only one of which nothing was discarded and that had `begun` to leave: the
    /// head has no guard, and whoever wants all of the body before that is let have it, too.
    pub(crate) fn release(&self, begun: bool, after_reading: bool) -> bool {
        let released = after_reading
            && self.chunks.get().is_none_or(|chunks| chunks.are_gone())
            // Most are not: a load costs less.
            && self.is_held()
            && self.stage.compare_exchange(HELD, RELEASED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if released && begun && self.length_known.load(Ordering::Acquire) && !self.is_discarded() {
            self.all_flushed.store(true, Ordering::Release);
        }
        released
    }

    /// A flush completed, `after_reading` as with [`release`](Self::release): was it that of a guarded end?
    pub(crate) fn end_flushed(&self, begun: bool, after_reading: bool) -> bool {
        // A head that could not be sent is gone, too, and nothing is written of it.
        let ended = |chunks: &Arc<Chunks>| chunks.end_guarded.load(Ordering::Acquire) && (begun || !chunks.is_head());
        let flushed = self.chunks.get().is_some_and(|chunks| ended(chunks) && chunks.have_left(after_reading));
        if flushed {
            self.all_flushed.store(true, Ordering::Release);
        }
        flushed
    }
}

#[cfg(all(test, not(epilogue_model)))]
mod tests {
    use super::*;

    /// An exchange of a known length, which has ended, and one whose end was handed out.
    fn both(reader: &Arc<Reader>) -> [(Exchange, Bytes); 2] {
        let (held, given) = (Exchange::default(), Exchange::default());
        held.guards(reader);
        given.guards(reader);
        let (chunk, end) = (held.guard(Bytes::from_static(b"chunk")), given.guard_last(Bytes::new()));
        held.set_length_known();
        held.hold();
        [(held, chunk), (given, end)]
    }

    /// The client resets the stream, and the server, which reads that, throws away what is queued of it: that has not left.
    #[test]
    fn what_is_thrown_away_with_its_stream_was_not_flushed() {
        let reader = Arc::<Reader>::default();
        let [(held, chunk), (given, end)] = both(&reader);
        reader.acts(false);
        drop((chunk, end));
        assert!(held.release(true, true) && !held.is_all_flushed());
        assert!(!given.end_flushed(true, true) && !given.is_all_flushed() && given.is_discarded());
    }

    /// Somebody else was given it.
    #[test]
    fn what_another_thread_drops_while_the_server_reads_was_not_thrown_away() {
        let reader = Arc::<Reader>::default();
        let [(held, chunk), (given, end)] = both(&reader);
        reader.acts(false);
        std::thread::spawn(move || drop((chunk, end))).join().unwrap();
        assert!(held.release(true, true) && held.is_all_flushed());
        assert!(given.end_flushed(true, true) && !given.is_discarded());
    }

    #[test]
    fn what_it_does_next_tells_whether_it_was_thrown_away() {
        for reads in [true, false] {
            let reader = Arc::<Reader>::default();
            let [(held, chunk), (given, end)] = both(&reader);
            reader.acts(true);
            drop((chunk, end));
            assert!(reader.stops());
            held.settle(reads);
            given.settle(reads);
            assert!(held.release(true, true));
            assert_eq!((held.is_all_flushed(), given.end_flushed(true, true)), (!reads, !reads));
        }
    }

    /// In the middle of a turn it may have been thrown away, and nobody has looked since.
    #[test]
    fn a_flush_counts_when_the_server_is_done_with_reading() {
        let (held, given) = (Exchange::default(), Exchange::default());
        let (chunk, end) = (held.guard(Bytes::from_static(b"chunk")), given.guard_last(Bytes::new()));
        held.hold();
        assert!(!held.release(true, true) && !given.end_flushed(true, true), "it is not written");
        drop((chunk, end));
        assert!(!held.release(true, false) && !given.end_flushed(true, false));
        assert!(held.release(true, true) && given.end_flushed(true, true));
    }
}
