//! The connection's truth, on real sockets: flushed, aborted, half-closed, lingering, slow and silent.
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "connection/abort.rs"]
mod abort;
#[path = "connection/abort_http2.rs"]
mod abort_http2;
#[path = "connection/common.rs"]
mod common;
#[path = "connection/flush.rs"]
mod flush;
#[path = "connection/flush_slow.rs"]
mod flush_slow;
#[path = "connection/frames.rs"]
mod frames;
#[path = "connection/linger.rs"]
mod linger;
#[path = "connection/linger_bounds.rs"]
mod linger_bounds;
#[path = "connection/shapes.rs"]
mod shapes;

mod support;
