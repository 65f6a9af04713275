//! Compression inside of an early close, and tower-http's outside of it: an exact length, or none.
#![cfg(feature = "compression")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "support/fetch.rs"]
mod fetch;
#[path = "compression/headers.rs"]
mod headers;
#[path = "compression/length.rs"]
mod length;
#[path = "compression/lifecycle.rs"]
mod lifecycle;
#[path = "compression/orders.rs"]
mod orders;

mod support;

/// What tower-http knows.
const ENCODINGS: [&str; 4] = ["gzip", "br", "zstd", "deflate"];

/// More patient than an encoder without optimizations is slow.
fn early_close() -> tower_epilogue::EarlyCloseLayer {
    tower_epilogue::EarlyCloseLayer::new().patience(support::PATIENCE)
}

/// A text of so many bytes, which compresses well, and tells of each byte that is missing.
fn text(length: usize) -> String {
    let mut text: String = (0..length / 20 + 1).map(|number| format!("line {number:9} here\n")).collect();
    text.truncate(length);
    text
}

/// In pieces, of a length that nobody knows.
fn streamed(text: &str) -> axum::body::Body {
    let pieces: Vec<_> = text.as_bytes().chunks(700).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    axum::body::Body::from_stream(futures_util::stream::iter(pieces))
}

/// What no encoding makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}
