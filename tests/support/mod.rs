//! What the suites share: servers, clients that show their bytes, and a journal of what happened.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each suite uses its own part")]

use std::time::Duration;

use tokio::sync::Notify;

mod app;
mod client;
pub mod h2client;
mod journal;
mod logs;
mod memory;
mod notes;
mod panics_in;
mod reply;
mod server;

#[allow(unused_imports, reason = "each suite uses its own part")]
pub use self::{
    app::{Ends, Gate, TellingHook, ends, held, pumps, streamed},
    client::Client,
    journal::{Journal, at, goes_without_saying, line},
    logs::{Logs, logs},
    memory::{MemoryClient, MemoryServer},
    notes::{NoteOnDrop, Notes},
    panics_in::PanicsIn,
    reply::Reply,
    server::Server,
};

/// How long anything may take before the test fails; nothing waits so long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Fails the test, instead of hanging it, when something that must happen does not.
pub async fn soon<F: IntoFuture>(what: &str, future: F) -> F::Output {
    let began = tokio::time::Instant::now();
    match tokio::time::timeout(PATIENCE, future).await {
        // At the end it is polled once more, which is no proof that it was woken.
        Ok(output) if began.elapsed() < PATIENCE => output,
        _ => panic!("it never happened: {what}"),
    }
}

/// A timer's resolution later at most.
pub fn is_about(time: Duration, expected: Duration) {
    assert!(time >= expected && time < expected + Duration::from_millis(10), "{time:?}, not {expected:?}");
}

/// Waits until `found` says so, and looks again whenever there is news.
async fn noticed(news: &Notify, found: impl Fn() -> bool) {
    loop {
        let next = news.notified();
        tokio::pin!(next);
        // Enlisted before the look, so that what happens after it is heard of.
        next.as_mut().enable();
        if found() {
            return;
        }
        next.await;
    }
}
