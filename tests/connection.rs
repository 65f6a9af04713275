//! The connection's truth, on real sockets: flushed, aborted, half-closed, lingering, slow and silent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test may panic and print, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "connection/abort.rs"]
mod abort;
#[path = "connection/abort_http2.rs"]
mod abort_http2;
#[path = "connection/around_last_piece.rs"]
mod around_last_piece;
#[path = "connection/blocked.rs"]
mod blocked;
#[path = "connection/common.rs"]
mod common;
#[path = "connection/flush.rs"]
mod flush;
#[path = "connection/flush_slow.rs"]
mod flush_slow;
#[path = "connection/frames.rs"]
mod frames;
#[path = "connection/half_close.rs"]
mod half_close;
#[path = "connection/half_close_http2.rs"]
mod half_close_http2;
#[path = "connection/handed_on.rs"]
mod handed_on;
#[path = "connection/handed_over.rs"]
mod handed_over;
#[path = "connection/known_length.rs"]
mod known_length;
#[path = "connection/last_piece.rs"]
mod last_piece;
#[path = "connection/linger.rs"]
mod linger;
#[path = "connection/linger_bounds.rs"]
mod linger_bounds;
#[path = "connection/listener.rs"]
mod listener;
#[path = "connection/no_room.rs"]
mod no_room;
#[path = "connection/reset_http2.rs"]
mod reset_http2;
#[path = "connection/shapes.rs"]
mod shapes;
#[path = "connection/slow.rs"]
mod slow;
#[path = "connection/slow_http2.rs"]
mod slow_http2;
#[path = "connection/thrown_away.rs"]
mod thrown_away;
#[path = "connection/upgraded.rs"]
mod upgraded;
#[path = "connection/upload_behind.rs"]
mod upload_behind;
#[path = "connection/wrapped.rs"]
mod wrapped;

mod support;
