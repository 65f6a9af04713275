//! gzip of bodies that are whole, with compressors that are used again.
//!
//! tower-http makes a compressor for each response: some 300 KiB to allocate and to clear, which for a small page takes
//! longer than to compress it. What is answered here is what tower-http would answer, and the encoder and its level are
//! the same.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes};
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use http::HeaderValue;
use http_body::Frame;

use crate::pool::lock;

/// Compressors that are kept for the next response, at most.
const KEPT: usize = 16;
/// Bytes that are compressed before others get a turn, and room for what comes of them.
const TURN: usize = 32 * 1024;
/// Different `Accept-Encoding`s that are remembered, and how long they may be.
const REMEMBERED: (usize, usize) = (64, 128);

/// Idle compressors, and which clients want gzip.
#[derive(Default)]
pub(super) struct Gzips {
    idle: Mutex<Vec<Compress>>,
    negotiated: Mutex<Vec<(HeaderValue, bool)>>,
}

impl fmt::Debug for Gzips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gzips").field("idle", &lock(&self.idle).len()).finish_non_exhaustive()
    }
}

impl Gzips {
    /// Whether a client that accepts these gets gzip: as `negotiate` says, which is asked once for each.
    pub(super) fn are_for(&self, accepted: &HeaderValue, negotiate: impl FnOnce() -> bool) -> bool {
        let known = |list: &[(HeaderValue, bool)]| list.iter().find(|(other, _)| other == accepted).map(|(_, is)| *is);
        if let Some(is) = known(&lock(&self.negotiated)) {
            return is;
        }
        let is = negotiate();
        if accepted.len() > REMEMBERED.1 {
            return is;
        }
        // A copy: it is a slice of the buffer that its request was read into, which it would keep in memory as a whole.
        let Ok(copy) = HeaderValue::from_bytes(accepted.as_bytes()) else { return is };
        let mut list = lock(&self.negotiated);
        if known(&list).is_none() {
            // The oldest makes room: clients that ask for ever new ones are not to fill it for good.
            if list.len() == REMEMBERED.0 {
                list.remove(0);
            }
            list.push((copy, is));
        }
        is
    }

    /// A body that gives these bytes, compressed.
    pub(super) fn body(self: &Arc<Self>, bytes: Bytes) -> Gzip {
        let idle = lock(&self.idle).pop();
        Gzip {
            compress: Some(idle.unwrap_or_else(|| Compress::new(Compression::default(), false))),
            pool: self.clone(),
            bytes,
            taken: 0,
            checksum: Crc::new(),
            begun: false,
        }
    }
}

/// A gzip file (RFC 1952) that is being made.
pub(super) struct Gzip {
    /// `None` at the end.
    compress: Option<Compress>,
    pool: Arc<Gzips>,
    bytes: Bytes,
    /// How many of the bytes the compressor has.
    taken: usize,
    checksum: Crc,
    begun: bool,
}

impl Gzip {
    /// The next piece of the file.
    fn next(&mut self, compress: &mut Compress) -> Result<(Vec<u8>, Status), flate2::CompressError> {
        let left = self.bytes.len() - self.taken;
        let mut piece = Vec::with_capacity(TURN.min(left + 64));
        if !self.begun {
            self.begun = true;
            // Deflate, no flags, no time, nothing said of the level, an unknown system.
            piece.put_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
        }
        loop {
            let end = self.bytes.len().min(self.taken + TURN);
            let flush = if end == self.bytes.len() { FlushCompress::Finish } else { FlushCompress::None };
            let before = compress.total_in();
            let status = compress.compress_vec(&self.bytes[self.taken..end], &mut piece, flush)?;
            let taken = self.taken + (compress.total_in() - before) as usize;
            self.checksum.update(&self.bytes[self.taken..taken]);
            self.taken = taken;
            if status == Status::StreamEnd {
                piece.put_u32_le(self.checksum.sum());
                piece.put_u32_le(self.checksum.amount());
                return Ok((piece, status));
            }
            // The compressor keeps much of what it has for later: a turn may give nothing.
            if !piece.is_empty() {
                return Ok((piece, status));
            }
        }
    }

    fn keep(&self, mut compress: Compress) {
        // Before the lock: it clears all of its memory.
        compress.reset();
        let mut idle = lock(&self.pool.idle);
        if idle.len() < KEPT {
            idle.push(compress);
        }
    }
}

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = axum_core::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(mut compress) = this.compress.take() else {
            return Poll::Ready(None);
        };
        match this.next(&mut compress) {
            Ok((piece, Status::StreamEnd)) => {
                this.keep(compress);
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
            Ok((piece, _)) => {
                this.compress = Some(compress);
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.compress.is_none()
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        if let Some(compress) = self.compress.take() {
            self.keep(compress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_others_have_asked_for_does_not_keep_one_from_being_remembered() {
        let gzips = Gzips::default();
        for number in 0..REMEMBERED.0 {
            gzips.are_for(&HeaderValue::from_str(&format!("nonsense-{number}")).unwrap(), || false);
        }
        let accepted = HeaderValue::from_static("gzip, br");
        assert!(gzips.are_for(&accepted, || true) && gzips.are_for(&accepted, || false));
        assert_eq!(lock(&gzips.negotiated).len(), REMEMBERED.0);
    }

    #[test]
    fn what_a_long_header_asks_for_is_not_remembered() {
        let gzips = Gzips::default();
        let long = HeaderValue::from_str(&"gzip,".repeat(REMEMBERED.1)).unwrap();
        assert!(gzips.are_for(&long, || true) && !gzips.are_for(&long, || false));
        assert!(lock(&gzips.negotiated).is_empty());
    }

    /// Also of a body that its client has left.
    #[test]
    fn some_compressors_are_kept_and_no_crowd_of_them() {
        let gzips = Arc::<Gzips>::default();
        drop(gzips.body(Bytes::from_static(b"never polled")));
        assert_eq!(lock(&gzips.idle).len(), 1);
        let crowd: Vec<_> = (0..KEPT + 3).map(|_| gzips.body(Bytes::new())).collect();
        assert!(lock(&gzips.idle).is_empty());
        drop(crowd);
        assert_eq!(lock(&gzips.idle).len(), KEPT);
    }

    /// A header's value is a slice of the buffer that its request was read into.
    #[test]
    fn what_is_remembered_keeps_no_request_in_memory() {
        let read = Bytes::from(vec![b'x'; 100_000]);
        let accepted = HeaderValue::from_maybe_shared(read.slice(..4)).unwrap();
        let gzips = Gzips::default();
        assert!(gzips.are_for(&accepted, || true) && gzips.are_for(&accepted, || false));
        drop(accepted);
        assert!(read.is_unique());
    }
}
