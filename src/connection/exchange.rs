//! One request and its response, as their connection sees them.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;

use crate::sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, OnceLock};

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
/// that counts. Trailers, and a head without a body, cannot be guarded: they are queued when the body is dropped, and
/// a connection writes all that is queued after each time it has read. So there the flush that counts is the last of
/// the first turn (reads, writes, flushes) that began after the drop. If nothing at all was written since they were
/// handed over, they were thrown away, with a stream that its client has reset.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    stage: AtomicU8,
    /// On its connection's list.
    listed: AtomicBool,
    /// Bytes written when the head was handed over; on HTTP/2, or the trailers were.
    mark: AtomicU64,
    /// There only on HTTP/2: a request that waits long keeps no more than it needs.
    chunks: OnceLock<Arc<Chunks>>,
    /// The client knows how long the body is.
    length_known: AtomicBool,
    /// HTTP/2: the end of the stream was flushed, or every byte of a body of known length: then what is held back is an
    /// end that its client need not wait for.
    all_flushed: AtomicBool,
    /// HTTP/2: the server was given an end that cannot be guarded, and has not let go of the body.
    end_given: AtomicBool,
}

/// HTTP/2: the chunks of a body.
#[derive(Debug, Default)]
struct Chunks {
    /// Those that were handed out and are not yet in the write buffer.
    out: AtomicUsize,
    /// How many those were when the server last began to read.
    out_at_read: AtomicUsize,
    /// Some were dropped without having been written, since their stream was reset.
    discarded: AtomicBool,
    /// The end of the stream was handed out as one.
    end_guarded: AtomicBool,
    /// Every byte of a known length was given out, and waits for its flush.
    all_given: AtomicBool,
    /// The server has asked for more since, and so has none of it in hand, which it would let go of unwritten.
    all_taken: AtomicBool,
    /// All of it was flushed: whoever leaves now has all that it was promised, though the body has not ended.
    given_flushed: AtomicBool,
    /// The server's turn when the body was dropped.
    turn: AtomicU64,
}

impl Chunks {
    /// A flush completed, `after_reading` if the server was done with that: whether all that were handed out have left.
    fn have_left(&self, after_reading: bool) -> bool {
        after_reading && self.out.load(Ordering::Acquire) == 0 && !self.discarded.load(Ordering::Acquire)
    }
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
        self.chunks().turn.store(turn, Ordering::Release);
    }

    pub(crate) fn turn(&self) -> u64 {
        self.chunks.get().map_or(0, |chunks| chunks.turn.load(Ordering::Acquire))
    }

    fn chunks(&self) -> &Arc<Chunks> {
        self.chunks.get_or_init(Arc::default)
    }

    /// Wraps a chunk so that it counts until the server has written it.
    pub(crate) fn guard(&self, chunk: Bytes) -> Bytes {
        // AcqRel on both sides of the count: the flush that sees zero comes after the writes that made it so.
        let chunks = self.chunks();
        chunks.out.fetch_add(1, Ordering::AcqRel);
        Bytes::from_owner(Guarded { chunk, chunks: chunks.clone() })
    }

    /// The end of a stream: an empty chunk that counts until the server has written it.
    pub(crate) fn guard_end(&self) -> Bytes {
        let end = self.guard(Bytes::new());
        if let Some(chunks) = self.chunks.get() {
            chunks.end_guarded.store(true, Ordering::Release);
        }
        end
    }

    pub(crate) fn has_chunks_out(&self) -> bool {
        self.chunks.get().is_some_and(|chunks| chunks.out.load(Ordering::Acquire) > 0)
    }

    /// The server reads; again, if it `goes_on` with a turn. It writes nothing meanwhile: so chunks that are gone since
    /// it last began were discarded, with a stream that the client has reset.
    pub(crate) fn reading(&self, goes_on: bool) {
        let Some(chunks) = self.chunks.get() else { return };
        let out = chunks.out.load(Ordering::Acquire);
        if goes_on && out < chunks.out_at_read.load(Ordering::Acquire) {
            chunks.discarded.store(true, Ordering::Release);
        }
        chunks.out_at_read.store(out, Ordering::Release);
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
        self.chunks().all_given.store(true, Ordering::Release);
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
        begun && (self.is_awaiting() || self.is_end_given()) || self.is_all_flushed()
    }

    pub(crate) fn hold(&self) {
        self.stage.store(HELD, Ordering::Release);
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
    /// flush after it); and not that of such a stream, whose body is about to be dropped. That the client has all of it says
    /// only one that had `begun` to leave: the head has no guard, and whoever wants all of the body before that is let have it.
    pub(crate) fn release(&self, begun: bool, after_reading: bool) -> bool {
        let released = after_reading
            && self.chunks.get().is_none_or(|chunks| chunks.have_left(after_reading))
            // Most are not: a load costs less.
            && self.is_held()
            && self.stage.compare_exchange(HELD, RELEASED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if released && begun && self.length_known.load(Ordering::Acquire) {
            self.all_flushed.store(true, Ordering::Release);
        }
        released
    }

    /// A flush completed, `after_reading` as with [`release`](Self::release): was it that of a guarded end?
    pub(crate) fn end_flushed(&self, after_reading: bool) -> bool {
        let ended = |chunks: &Arc<Chunks>| chunks.end_guarded.load(Ordering::Acquire);
        let flushed = self.chunks.get().is_some_and(|chunks| ended(chunks) && chunks.have_left(after_reading));
        if flushed {
            self.all_flushed.store(true, Ordering::Release);
        }
        flushed
    }
}

/// A chunk of a body that tells when it is dropped.
///
/// h2 drops it under its own lock: so this does nothing but count.
struct Guarded {
    chunk: Bytes,
    chunks: Arc<Chunks>,
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.chunks.out.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(epilogue_model)))]
mod tests {
    use super::*;

    /// The client resets the stream, and the server, which reads that, throws away what is queued of it: that has not left.
    #[test]
    fn what_is_thrown_away_with_its_stream_was_not_flushed() {
        let (held, given) = (Exchange::default(), Exchange::default());
        let (chunk, end) = (held.guard(Bytes::from_static(b"chunk")), given.guard_end());
        held.hold();
        held.reading(false);
        given.reading(false);
        drop((chunk, end));
        held.reading(true);
        given.reading(true);
        assert!(!held.release(true, true) && !held.is_released());
        assert!(!given.end_flushed(true) && !given.is_all_flushed());
    }

    /// In the middle of a turn it may have been thrown away, and nobody has looked since.
    #[test]
    fn a_flush_counts_when_the_server_is_done_with_reading() {
        let (held, given) = (Exchange::default(), Exchange::default());
        let (chunk, end) = (held.guard(Bytes::from_static(b"chunk")), given.guard_end());
        held.hold();
        assert!(!held.release(true, true) && !given.end_flushed(true), "it is not written");
        drop((chunk, end));
        assert!(!held.release(true, false) && !given.end_flushed(false));
        assert!(held.release(true, true) && given.end_flushed(true));
    }
}
