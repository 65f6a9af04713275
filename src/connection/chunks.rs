//! HTTP/2: the chunks of a body, each of which tells when the server lets go of it.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;

use super::reader::{Drops, Reader, moment};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize};

/// How many are out, and what became of the rest.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pub(super) reader: Arc<Reader>,
    /// Those that were handed out and are not yet in the write buffer.
    pub(super) out: AtomicUsize,
    /// Some were thrown away without having been written, since their stream was reset.
    pub(super) discarded: AtomicBool,
    /// Some may have been.
    pub(super) suspected: AtomicBool,
    /// The end of the stream was handed out as one.
    pub(super) end_guarded: AtomicBool,
    /// It is part of a head.
    pub(super) is_head: AtomicBool,
    /// The [moment] at which the end of the stream was let go of; else 0.
    pub(super) dropped_at: AtomicU64,
    /// That at which the server let go of the body; else 0.
    pub(super) left_at: AtomicU64,
    /// Every byte of a known length was given out, and waits for its flush.
    pub(super) all_given: AtomicBool,
    /// The server has asked for more since, and so has none of it in hand, which it would let go of unwritten.
    pub(super) all_taken: AtomicBool,
    /// All of it was flushed: whoever leaves now has all that it was promised, though the body has not ended.
    pub(super) given_flushed: AtomicBool,
}

impl Chunks {
    /// Wraps a chunk; `last`, if it is the end of the stream.
    pub(super) fn guard(self: &Arc<Self>, chunk: Bytes, last: bool) -> Bytes {
        // AcqRel on both sides of the count: the flush that sees zero comes after the writes that made it so.
        self.out.fetch_add(1, Ordering::AcqRel);
        Bytes::from_owner(Guarded { chunk, chunks: self.clone(), last })
    }

    /// A flush completed, `after_reading` if the server was done with that: whether all that were handed out have left.
    pub(super) fn have_left(&self, after_reading: bool) -> bool {
        after_reading && self.are_gone() && !self.discarded.load(Ordering::Acquire)
    }

    pub(super) fn are_gone(&self) -> bool {
        self.out.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_head(&self) -> bool {
        self.is_head.load(Ordering::Acquire)
    }

    /// Of the end and the body, one is let go of. Where the stream was reset, the server could not queue the end, or never came
    /// to it: then it lets go of both at once, in the same thread, and does nothing else there between. What comes before the end
    /// says nothing: it may have been written just then, or be on its way still.
    pub(super) fn drops(&self, this: &AtomicU64, other: &AtomicU64) {
        let now = moment();
        this.store(now, Ordering::Release);
        if other.load(Ordering::Acquire) == now {
            self.discard();
        }
    }

    pub(super) fn discard(&self) {
        self.discarded.store(true, Ordering::Release);
    }
}

/// A chunk of a body that tells when it is dropped.
///
/// h2 drops it under its own lock: so this does nothing but note and count.
struct Guarded {
    chunk: Bytes,
    chunks: Arc<Chunks>,
    last: bool,
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        match self.chunks.reader.drops() {
            Drops::Thrown => self.chunks.discard(),
            Drops::Perhaps => self.chunks.suspected.store(true, Ordering::Release),
            Drops::Other => {}
        }
        if self.last {
            self.chunks.drops(&self.chunks.dropped_at, &self.chunks.left_at);
        }
        // Last: whoever finds it gone finds that, too.
        self.chunks.out.fetch_sub(1, Ordering::AcqRel);
    }
}
