//! Compressed streams that reach their client when they are flushed.
#![cfg(feature = "compressed-stream")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

#[path = "compressed_stream/compose.rs"]
mod compose;
#[path = "compressed_stream/decode.rs"]
mod decode;
#[path = "compressed_stream/flush.rs"]
mod flush;
#[path = "compressed_stream/head.rs"]
mod head;
