//! async-compression's encoders into memory.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use async_compression::{
    Level as Quality,
    tokio::write::{BrotliEncoder, GzipEncoder, ZstdEncoder},
    zstd::CParameter,
};
use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::{Level, accept::Encoding};

/// The logarithms of zstd's window and of its two tables at the best level. Its own take 80 MiB for each stream, and its window 8
/// MiB, which is as much as a client has to have room for (RFC 9659, section 3). These take 16 MiB together.
const ZSTD_BEST: [u32; 3] = [21, 20, 21];

/// Compresses into memory, where nothing ever waits.
pub(super) struct Encoder(Box<dyn Encodes>);

trait Encodes: AsyncWrite + Unpin + Send {
    fn output(&mut self) -> &mut Vec<u8>;
}

impl Encodes for GzipEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Encodes for BrotliEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Encodes for ZstdEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Encoder {
    pub(super) fn new(encoding: Encoding, level: Level) -> Self {
        let quality = match (level, encoding) {
            (Level::Fastest, _) => Quality::Fastest,
            // Brotli's own default is its slowest, for files that are compressed once.
            (Level::Default, Encoding::Brotli) => Quality::Precise(4),
            (Level::Default, Encoding::Gzip | Encoding::Zstd) => Quality::Default,
            // Above it, the window is larger than a client's.
            (Level::Best, Encoding::Zstd) => Quality::Precise(19),
            (Level::Best, Encoding::Gzip | Encoding::Brotli) => Quality::Best,
        };
        Self(match encoding {
            Encoding::Gzip => Box::new(GzipEncoder::with_quality(Vec::new(), quality)),
            Encoding::Brotli => Box::new(BrotliEncoder::with_quality(Vec::new(), quality)),
            Encoding::Zstd if level == Level::Best => {
                let [window, hash, chain] = ZSTD_BEST;
                let bounds = [CParameter::window_log(window), CParameter::hash_log(hash), CParameter::chain_log(chain)];
                Box::new(ZstdEncoder::with_quality_and_params(Vec::new(), quality, &bounds))
            }
            Encoding::Zstd => Box::new(ZstdEncoder::with_quality(Vec::new(), quality)),
        })
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = now(|cx| Pin::new(&mut *self.0).poll_write(cx, data))?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Has all that was written come out, so that a decoder can read it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        now(|cx| Pin::new(&mut *self.0).poll_flush(cx))
    }

    /// Ends the compressed stream.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        now(|cx| Pin::new(&mut *self.0).poll_shutdown(cx))
    }

    pub(super) fn len(&mut self) -> usize {
        self.0.output().len()
    }

    /// What has come out.
    pub(super) fn take(&mut self) -> Bytes {
        std::mem::take(self.0.output()).into()
    }
}

/// A write into memory is never pending.
fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>) -> io::Result<T> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
