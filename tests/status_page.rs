//! The status page: what it counts and lists, what it never shows, how it is asked, and that it holds nothing up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, missing_debug_implementations, reason = "the modules of one suite")]

#[path = "status_page/counts.rs"]
mod counts;
#[path = "status_page/forms.rs"]
mod forms;
#[cfg(feature = "durable-sqlite")]
#[path = "status_page/jobs.rs"]
mod jobs;
#[path = "status_page/live.rs"]
mod live;
#[path = "status_page/overload.rs"]
mod overload;
#[path = "status_page/page.rs"]
mod page;
#[path = "status_page/past.rs"]
mod past;
#[path = "status_page/secrets.rs"]
mod secrets;
#[path = "status_page/updates.rs"]
mod updates;

mod support;
