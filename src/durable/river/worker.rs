//! River's side of an attempt.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use riverqueue::{
    BoxError, Job, JobRow, RetryPolicy, WorkContext, WorkError, WorkMiddleware, WorkNext, WorkOutcome, Worker,
    WorkerTimeout, jiff::Timestamp,
};

use super::Envelope;
use crate::durable::{
    engine::{Attempt, DiscardedJob, Outcome, Runner},
    job::default_backoff,
    runner::longest_wait,
};

/// Where a job that was given up keeps the reason.
const REASON: &str = "tower_epilogue_reason";

/// What River says of it.
const GIVEN_UP: &str = "job discarded by worker";

/// Hands attempts to the runner.
pub(super) struct Attempts {
    runner: Arc<OnceLock<Arc<dyn Runner>>>,
    /// How long past its limit an attempt counts as running.
    grace: Duration,
}

impl Attempts {
    pub(super) fn new(runner: Arc<OnceLock<Arc<dyn Runner>>>, grace: Duration) -> Self {
        Self { runner, grace }
    }
}

/// So much of an error is stored. All that a job has failed with is read at each attempt, and written with what others came to.
const LONGEST: usize = 16 * 1024;

/// Postgres's `jsonb` has no NUL, and no string without end. River notes many outcomes in one statement, and tries that again
/// until it succeeds: with one such in it, none of them would ever be noted, and all of these jobs would run again.
fn storable(mut error: String) -> String {
    if error.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| error.is_char_boundary(at)).unwrap_or(0);
        error.truncate(end);
        error.push('…');
    }
    if error.contains('\0') { error.replace('\0', "\u{fffd}") } else { error }
}

/// An attempt that failed, on its way through River to the retry policy.
#[derive(Debug)]
struct Failed {
    error: String,
    after: Duration,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Failed {}

impl Worker<Envelope> for Attempts {
    type Error = BoxError;

    /// River's own limit, and the age at which its rescuer takes the job for lost: ours passes before it.
    fn timeout(&self, job: &Job<Envelope>) -> WorkerTimeout {
        let limit = Duration::from_millis(job.args.limit_ms);
        let grace = limit.checked_add(self.grace).unwrap_or(limit);
        // An attempt that waits for its place grows no older in the store, but here it does.
        let waits = if IN_WORK.try_with(|()| ()).is_ok() { longest_wait(self.grace) } else { Duration::ZERO };
        WorkerTimeout::After(grace.checked_add(waits).unwrap_or(grace))
    }

    async fn work(&self, context: WorkContext, job: Job<Envelope>) -> Result<WorkOutcome, BoxError> {
        let Some(runner) = self.runner.get() else {
            return Ok(WorkOutcome::Snooze(self.grace));
        };
        let number = |number: i32| u16::try_from(number).unwrap_or(u16::MAX);
        let age = job.row.attempted_at.and_then(|at| Timestamp::now().duration_since(at).try_into().ok());
        let attempt = Attempt {
            id: job.row.id,
            kind: job.row.queue.clone(),
            key: job.args.key,
            payload: job.args.payload,
            limit: Duration::from_millis(job.args.limit_ms),
            attempt: number(job.row.attempt),
            max_attempts: number(job.row.max_attempts),
            from: job.args.from,
            age: age.unwrap_or_default(),
            cancelled: context.cancellation_token().clone(),
        };
        match runner.run(attempt).await {
            Outcome::Completed => Ok(WorkOutcome::Complete),
            Outcome::Failed { error, after } => Err(Failed { error: storable(error), after }.into()),
            Outcome::GivenUp { error } => {
                // Without it the job is discarded all the same; only its reason is in the log alone.
                let _ = context.metadata_set(REASON, storable(error));
                Ok(WorkOutcome::Discard)
            }
            // Of one that was cancelled River makes that, whatever comes but its completion.
            Outcome::Returned { after } => Ok(WorkOutcome::Snooze(after)),
        }
    }
}

tokio::task_local! {
    /// An attempt is about to be run in this process, and not judged from outside.
    static IN_WORK: ();
}

/// Tells the two apart that ask for a job's time.
pub(super) struct InWork;

impl WorkMiddleware for InWork {
    async fn work(&self, _: &WorkContext, job: JobRow, next: WorkNext<'_>) -> Result<WorkOutcome, WorkError> {
        IN_WORK.scope((), next.run(job)).await
    }
}

/// When the next attempt comes.
pub(super) struct Backoff {
    runner: Arc<OnceLock<Arc<dyn Runner>>>,
}

impl Backoff {
    pub(super) fn new(runner: Arc<OnceLock<Arc<dyn Runner>>>) -> Self {
        Self { runner }
    }
}

impl RetryPolicy for Backoff {
    fn next_retry(&self, job: &JobRow, error: &WorkError, _: Timestamp) -> Duration {
        if let Some(failed) = error.downcast_ref::<Failed>() {
            return failed.after;
        }
        let attempt = u16::try_from(job.attempt).unwrap_or(u16::MAX);
        match self.runner.get() {
            Some(runner) => runner.backoff(&job.queue, attempt),
            None => default_backoff(attempt),
        }
    }
}

/// A discarded job in our words; `None` for one that is not ours.
pub(super) fn discarded(job: &JobRow) -> Option<DiscardedJob> {
    let envelope: Envelope = serde_json::from_str(job.encoded_args.get()).ok()?;
    let last = job.errors.last().map(|error| error.error.as_str()).unwrap_or_default();
    // One that was revived has the reason of before, and may have failed otherwise since.
    let reason = if last == GIVEN_UP { job.metadata.get::<String>(REASON).ok().flatten() } else { None };
    let error = reason.unwrap_or_else(|| last.to_owned());
    Some(DiscardedJob {
        id: job.id,
        kind: job.queue.clone(),
        key: envelope.key,
        payload: envelope.payload,
        attempts: u16::try_from(job.attempt).unwrap_or(u16::MAX),
        error,
    })
}
