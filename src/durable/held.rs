//! That an attempt which has not begun is still this process's.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{engine::Attempt, store::Inner};
use crate::pool::{caught, lock};

/// Until when an attempt was this process's.
pub(super) struct Held {
    /// When it was known last, and how long ago it was so then.
    at: Mutex<(Instant, Duration)>,
    id: i64,
    attempt: u16,
}

impl Held {
    /// From when it was given out.
    pub(super) fn new(attempt: &Attempt) -> Arc<Self> {
        Arc::new(Self { at: Mutex::new((Instant::now(), attempt.age)), id: attempt.id, attempt: attempt.attempt })
    }

    pub(super) fn age(&self) -> Duration {
        let (at, before) = *lock(&self.at);
        at.elapsed().saturating_add(before)
    }

    /// Says that it is not lost, and whether it is still ours, if the store can tell.
    pub(super) async fn hold(&self, store: &Inner, grace: Duration) -> Option<bool> {
        let (job, asked) = (self.id, Instant::now());
        // A database that hangs must not have it begin when it may be another's already.
        match tokio::time::timeout(grace / 4, store.engine.hold(job, self.attempt)).await {
            Ok(Ok(ours)) => {
                if ours {
                    *lock(&self.at) = (asked, Duration::ZERO);
                }
                return Some(ours);
            }
            Ok(Err(error)) => caught::tell(
                || tracing::warn!(%error, job, "the store could not be told that a durable job waits for its place"),
            ),
            Err(_) => caught::tell(|| {
                tracing::warn!(job, "the store could not be told in time that a durable job waits for its place");
            }),
        }
        None
    }
}

/// Whether an attempt may begin that has its place: a process that was suspended asks first, since another may have taken it
/// meanwhile.
pub(super) async fn still_ours(held: Arc<Held>, store: Arc<Inner>, grace: Duration) -> bool {
    held.age() < grace / 2 || held.hold(&store, grace).await == Some(true)
}
