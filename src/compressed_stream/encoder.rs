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

/// Compresses into memory, where nothing ever waits. What it compresses with may be megabytes, and is made for the first byte: the
/// response to a `HEAD` never has one, and that of a stream of events may be long in coming.
pub(super) struct Encoder {
    encoding: Encoding,
    level: Level,
    made: Option<Box<dyn Encodes>>,
}

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

fn make(encoding: Encoding, level: Level) -> Box<dyn Encodes> {
    let quality = match (level, encoding) {
        (Level::Fastest, _) => Quality::Fastest,
        // Brotli's own default is its slowest, for files that are compressed once.
        (Level::Default, Encoding::Brotli) => Quality::Precise(4),
        (Level::Default, Encoding::Gzip | Encoding::Zstd) => Quality::Default,
        // Above it, the window is larger than a client's.
        (Level::Best, Encoding::Zstd) => Quality::Precise(19),
        (Level::Best, Encoding::Gzip | Encoding::Brotli) => Quality::Best,
    };
    match encoding {
        Encoding::Gzip => Box::new(GzipEncoder::with_quality(Vec::new(), quality)),
        Encoding::Brotli => Box::new(BrotliEncoder::with_quality(Vec::new(), quality)),
        Encoding::Zstd if level == Level::Best => {
            let [window, hash, chain] = ZSTD_BEST;
            let bounds = [CParameter::window_log(window), CParameter::hash_log(hash), CParameter::chain_log(chain)];
            Box::new(ZstdEncoder::with_quality_and_params(Vec::new(), quality, &bounds))
        }
        Encoding::Zstd => Box::new(ZstdEncoder::with_quality(Vec::new(), quality)),
    }
}

impl Encoder {
    pub(super) const fn new(encoding: Encoding, level: Level) -> Self {
        Self { encoding, level, made: None }
    }

    fn made(&mut self) -> &mut dyn Encodes {
        &mut **self.made.get_or_insert_with(|| make(self.encoding, self.level))
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = now(|cx| Pin::new(self.made()).poll_write(cx, data))?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Has all that was written come out, so that a decoder can read it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        now(|cx| Pin::new(self.made()).poll_flush(cx))
    }

    /// Ends the compressed stream.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        now(|cx| Pin::new(self.made()).poll_shutdown(cx))
    }

    pub(super) fn len(&mut self) -> usize {
        self.made.as_mut().map_or(0, |made| made.output().len())
    }

    /// What has come out.
    pub(super) fn take(&mut self) -> Bytes {
        self.made.as_mut().map(|made| std::mem::take(made.output())).unwrap_or_default().into()
    }
}

/// A write into memory is never pending.
fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>) -> io::Result<T> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_before_there_is_something_to_compress() {
        let mut encoder = Encoder::new(Encoding::Brotli, Level::Default);
        assert_eq!((encoder.len(), encoder.take().len()), (0, 0));
        assert!(encoder.made.is_none());
        encoder.write(b"hello").unwrap();
        assert!(encoder.made.is_some());
    }
}
