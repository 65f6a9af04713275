//! A server that stops: cut short, told of while it lasts, and asked by the signals of a real process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, missing_docs, missing_debug_implementations, reason = "the modules of one suite")]

#[path = "drain/begins.rs"]
mod begins;
#[path = "drain/bounds.rs"]
mod bounds;
#[path = "drain/cut.rs"]
mod cut;
#[path = "connection/frames.rs"]
#[allow(dead_code, reason = "`connection` uses all of it")]
mod frames;
#[path = "drain/heard.rs"]
mod heard;
#[path = "drain/lost.rs"]
mod lost;
#[path = "drain/observed.rs"]
mod observed;
#[path = "drain/process.rs"]
mod process;
#[path = "drain/spawned.rs"]
mod spawned;

mod support;
