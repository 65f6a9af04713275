//! What can be seen of requests from outside: events, spans, metrics, and the report on what is slow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

mod observing {
    mod bodies;
    mod broken;
    mod events;
    mod fields;
    #[cfg(feature = "durable-sqlite")]
    mod jobs;
    mod links;
    mod numbers;
    mod recorder;
    mod report;
    mod slow;
    mod spans;
}
