//! What a job engine must do for us, so that another can take the place of the one there is.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{database::Tx, error::DurableError};

/// A future in a box, as a trait object's methods return them.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whether a second job of one kind and key is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unique {
    /// It is: the key is random.
    No,
    /// Not before the first is done. The key is made of a client's request, which may come again in the end.
    UntilDone,
    /// Not as long as the first is kept.
    WhileKept,
}

/// A job on its way into the store.
#[derive(Clone, Debug)]
pub(super) struct NewJob {
    pub(super) kind: &'static str,
    pub(super) key: String,
    pub(super) unique: Unique,
    /// JSON.
    pub(super) payload: String,
    pub(super) limit: Duration,
    pub(super) max_attempts: u16,
    /// How long from now it waits, unless it is promoted.
    pub(super) wait: Duration,
    /// The route of the request that promised it.
    pub(super) from: String,
}

/// A job in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) id: i64,
    /// It was there before.
    pub(super) duplicate: bool,
}

/// One attempt at a job, for the [`Runner`].
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) key: String,
    pub(super) payload: String,
    pub(super) limit: Duration,
    pub(super) attempt: u16,
    pub(super) max_attempts: u16,
    pub(super) from: String,
    /// How long ago the store gave it out, as far as the clocks of both can tell: its answer may have come late.
    pub(super) age: Duration,
    /// It is to end, for the engine's own reasons: somebody has cancelled the job.
    pub(super) cancelled: CancellationToken,
}

/// What an attempt came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Completed,
    /// It counts, and the next one starts after so long; the engine discards the job if it was the last.
    Failed {
        error: String,
        after: Duration,
    },
    /// No attempt can succeed.
    GivenUp {
        error: String,
    },
    /// It does not count: the job itself was not at fault.
    Returned {
        after: Duration,
    },
}

/// Runs attempts. Ours; the engine calls it.
pub(super) trait Runner: Send + Sync + 'static {
    fn run(&self, attempt: Attempt) -> Boxed<'_, Outcome>;

    /// How long after the failure of `attempt` a job of `kind` waits, for attempts that ended with their process.
    fn backoff(&self, kind: &str, attempt: u16) -> Duration;
}

/// How many jobs are in which state.
///
/// Completed jobs are kept for a day, discarded ones until they are [revived](super::DurableStore::revive).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobCounts {
    /// Promised, and waiting for their response to be flushed or for their lease to end.
    pub scheduled: u64,
    /// Ready to run.
    pub available: u64,
    /// Running, here or elsewhere.
    pub running: u64,
    /// Failed, and waiting for their next attempt.
    pub retryable: u64,
    /// Completed; kept for a day.
    pub completed: u64,
    /// Given up on after their last attempt, or by [`JobError::give_up`](super::JobError::give_up).
    pub discarded: u64,
}

impl JobCounts {
    /// The jobs that will still run.
    #[must_use]
    pub const fn unfinished(&self) -> u64 {
        self.scheduled + self.available + self.running + self.retryable
    }
}

/// A job that was given up on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiscardedJob {
    /// Its number in the store.
    pub id: i64,
    /// Its [`KIND`](super::DurableJob::KIND).
    pub kind: String,
    /// Its idempotency key.
    pub key: String,
    /// What it was stored as: JSON.
    pub payload: String,
    /// How often it was tried.
    pub attempts: u16,
    /// What the last attempt failed with; in the store, the first 16 KiB of it.
    pub error: String,
}

/// Which jobs an engine works.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) kind: &'static str,
    pub(super) concurrency: usize,
}

/// The times that the engine keeps. See [`DurableBuilder`](super::DurableBuilder) for what they mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) rescue_after: Duration,
    pub(super) poll: Duration,
    pub(super) cooldown: Duration,
    pub(super) elect: Duration,
}

/// A job engine.
pub(super) trait Engine: Send + Sync + 'static {
    /// Creates or upgrades its tables.
    fn migrate(&self) -> Boxed<'_, Result<(), DurableError>>;
    /// An error if its tables are not what it needs.
    fn check(&self) -> Boxed<'_, Result<(), DurableError>>;
    /// Stores jobs, in order.
    fn insert<'a>(&'a self, jobs: &'a [NewJob], tx: Tx<'a, '_>) -> Boxed<'a, Result<Vec<Stored>, DurableError>>;
    /// Makes jobs that still wait for their lease's end ready at once; leaves all others alone.
    fn promote<'a>(&'a self, ids: &'a [i64], tx: Tx<'a, '_>) -> Boxed<'a, Result<(), DurableError>>;
    /// Those of them that are in the store, with their keys.
    fn are_there<'a>(&'a self, ids: &'a [i64], tx: Tx<'a, '_>) -> Boxed<'a, Result<Vec<(i64, String)>, DurableError>>;
    /// Says that an attempt which waits for its place in this process is not lost: its time to be taken for that begins
    /// anew. False if it is another's.
    fn hold(&self, id: i64, attempt: u16) -> Boxed<'_, Result<bool, DurableError>>;
    /// Completes a job that runs.
    fn complete<'a>(&'a self, id: i64, tx: Tx<'a, '_>) -> Boxed<'a, Result<(), DurableError>>;
    /// Whether a job is, once the transaction has ended in which it is being completed.
    fn is_completed(&self, id: i64) -> Boxed<'_, Result<bool, DurableError>>;
    /// Has this process look for jobs at once.
    fn wake(&self);
    /// Begins to run jobs.
    fn start(&self, runner: Arc<dyn Runner>) -> Result<(), DurableError>;
    /// Begins no more.
    fn stop(&self);
    /// Waits until what it had begun has ended and is noted.
    fn stopped(&self) -> Boxed<'_, ()>;
    fn counts(&self) -> Boxed<'_, Result<JobCounts, DurableError>>;
    fn discarded(&self, limit: u32) -> Boxed<'_, Result<Vec<DiscardedJob>, DurableError>>;
    /// Makes a discarded job ready again.
    fn revive(&self, id: i64) -> Boxed<'_, Result<(), DurableError>>;
}
