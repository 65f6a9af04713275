//! What an early close does to a response: its framing, its trailers, its connection, and the function on its body.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "early_close/alone.rs"]
mod alone;
#[path = "early_close/framing.rs"]
mod framing;
#[path = "early_close/inner.rs"]
mod inner;
#[path = "early_close/map_buffer.rs"]
mod map_buffer;
#[path = "early_close/map_buffer_cut.rs"]
mod map_buffer_cut;
#[path = "early_close/patience.rs"]
mod patience;
#[path = "early_close/pipelined.rs"]
mod pipelined;
#[path = "early_close/replies.rs"]
mod replies;
#[path = "early_close/trailers.rs"]
mod trailers;

mod support;
