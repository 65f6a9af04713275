//! The harness, as its users have it: it must see what happens, and fail when something does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "test_util/example.rs"]
mod example;

#[path = "test_util/assertions.rs"]
mod assertions;

#[path = "test_util/await_points.rs"]
mod await_points;

#[path = "test_util/clients.rs"]
mod clients;

#[path = "test_util/failures.rs"]
mod failures;

#[cfg(feature = "durable-sqlite")]
#[path = "test_util/jobs.rs"]
mod jobs;

#[path = "test_util/memory.rs"]
mod memory;

#[path = "test_util/settled.rs"]
mod settled;
