//! The connection's truth under TLS, HTTP/1.1 and HTTP/2 by ALPN: flushed, aborted, half-closed, lingering.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test may panic and print, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "tls/abort.rs"]
mod abort;
#[cfg(all(feature = "acknowledged", target_os = "linux"))]
#[path = "tls/acknowledged.rs"]
mod acknowledged;
#[path = "tls/close.rs"]
mod close;
#[path = "tls/drain.rs"]
mod drain;
#[path = "tls/flush.rs"]
mod flush;
#[path = "connection/frames.rs"]
#[allow(dead_code, reason = "`connection` uses all of it")]
mod frames;
#[path = "tls/server.rs"]
mod server;

mod support;
