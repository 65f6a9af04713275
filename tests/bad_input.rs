//! What callers, handlers, middleware and bodies do wrong, and what that may cost: that request only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "bad_input/bodies.rs"]
mod bodies;
#[path = "bad_input/called_first.rs"]
mod called_first;
#[allow(dead_code, reason = "another suite's, which uses all of it")]
#[path = "contract/common.rs"]
mod common;
#[path = "bad_input/handle.rs"]
mod handle;
#[path = "bad_input/handle_finish.rs"]
mod handle_finish;
#[path = "bad_input/lengths.rs"]
mod lengths;
#[path = "bad_input/limits.rs"]
mod limits;
#[path = "bad_input/panics.rs"]
mod panics;
#[path = "bad_input/panics_in_bodies.rs"]
mod panics_in_bodies;
#[path = "bad_input/panics_in_drop.rs"]
mod panics_in_drop;
#[path = "bad_input/panics_in_services.rs"]
mod panics_in_services;
#[path = "bad_input/retries.rs"]
mod retries;
#[path = "bad_input/services.rs"]
mod services;
#[path = "bad_input/statuses.rs"]
mod statuses;
#[path = "bad_input/strays.rs"]
mod strays;
#[path = "bad_input/subscribers.rs"]
mod subscribers;

mod support;
