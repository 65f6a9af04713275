//! Runs attempts in the pool of the process's [`Epilogue`](crate::Epilogue): one lifecycle for all that runs after
//! responses.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    DurableJob, DurableStore, JobContext, JobError,
    context::State,
    engine::{Attempt, Boxed, DiscardedJob, Outcome, Runner},
    job::{Then, default_backoff},
    store::Inner,
};
use crate::{
    continuation::Continuation,
    lifecycle::Lifecycle,
    pool::{Pool, caught, panic_message},
};

type Run = Box<dyn FnOnce(JobContext) -> Boxed<'static, Result<(), JobError>> + Send>;

/// A kind of job that this process knows.
pub(super) struct KnownKind {
    decode: fn(&str) -> Result<Run, serde_json::Error>,
    backoff: fn(u16) -> Duration,
}

impl KnownKind {
    pub(super) fn of<J: DurableJob>() -> Self {
        Self {
            decode: |payload| {
                let job: J = serde_json::from_str(payload)?;
                Ok(Box::new(move |cx| Box::pin(async move { job.run(cx).await })))
            },
            backoff: J::backoff,
        }
    }
}

/// Called for each job that is given up.
pub(super) type OnDiscard = Arc<dyn Fn(&DiscardedJob) + Send + Sync>;

pub(super) struct JobRunner {
    // Weak, both: the pool owns the store, which owns the engine, which owns this.
    pub(super) pool: Weak<Pool>,
    pub(super) store: OnceLock<Weak<Inner>>,
    pub(super) kinds: HashMap<&'static str, KnownKind>,
    pub(super) state: Arc<State>,
    pub(super) on_discard: Option<OnDiscard>,
}

impl fmt::Debug for JobRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobRunner").field("kinds", &self.kinds.keys()).finish_non_exhaustive()
    }
}

/// How long a job waits whose attempt failed through no fault of its own.
const RETURNED: Duration = Duration::from_secs(30);

/// Ten per cent more or less, so that what failed together is not retried together.
fn jittered(delay: Duration) -> Duration {
    // `RandomState` is seeded at random; nothing secret hangs on this.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish() % 201;
    delay.saturating_mul(u32::try_from(900 + random).unwrap_or(1000)) / 1000
}

impl Runner for JobRunner {
    fn run(&self, attempt: Attempt) -> Boxed<'_, Outcome> {
        Box::pin(self.attempt(attempt))
    }

    fn backoff(&self, kind: &str, attempt: u16) -> Duration {
        jittered(self.kinds.get(kind).map_or_else(|| default_backoff(attempt), |kind| (kind.backoff)(attempt)))
    }
}

impl JobRunner {
    async fn attempt(&self, attempt: Attempt) -> Outcome {
        let store = self.store.get().and_then(Weak::upgrade);
        let (Some(pool), Some(inner), Some(kind)) = (self.pool.upgrade(), store, self.kinds.get(attempt.kind.as_str()))
        else {
            return Outcome::Returned { after: RETURNED };
        };
        if inner.is_stopping() {
            return Outcome::Returned { after: Duration::ZERO };
        }
        let span = tracing::info_span!(
            "durable_job",
            kind = attempt.kind,
            job = attempt.id,
            attempt = attempt.attempt,
            from = attempt.from
        );
        // The user's deserializer may panic.
        let run = match caught::call(|| (kind.decode)(&attempt.payload)) {
            Ok(Ok(run)) => run,
            Ok(Err(error)) => return undecodable(&attempt, &error.to_string()),
            Err(payload) => return undecodable(&attempt, &panic_message(&*payload)),
        };
        let lifecycle = Lifecycle::of_job(pool, &attempt.kind, attempt.limit);
        let deadline = Instant::now() + attempt.limit;
        let context = JobContext {
            id: attempt.id,
            kind: attempt.kind.clone(),
            key: attempt.key.clone(),
            attempt: attempt.attempt,
            max_attempts: attempt.max_attempts,
            deadline,
            lifecycle: lifecycle.clone(),
            state: self.state.clone(),
            store: DurableStore(inner.clone()),
        };
        let (ended, outcome) = oneshot::channel();
        let work = span.in_scope(|| {
            Continuation::new(async move {
                // Nobody waits for it any more if the engine has stopped hard.
                let _ = ended.send(run(context).await);
            })
        });
        if lifecycle.0.add_continuation(work).is_err() {
            return Outcome::Returned { after: RETURNED };
        }
        let error = match outcome.await {
            Ok(Ok(())) => return Outcome::Completed,
            Ok(Err(error)) => error,
            Err(_) => match lifecycle.0.panic() {
                Some(message) => JobError::from(format!("panicked: {message}")),
                // What a drain has cut is stored as it was, and counts no attempt.
                None if inner.is_stopping() && Instant::now() < deadline => {
                    return Outcome::Returned { after: Duration::ZERO };
                }
                None if lifecycle.status().is_timeout() => {
                    JobError::from(format!("the limit of {:?} passed", attempt.limit))
                }
                // The runtime is going away.
                None => return Outcome::Returned { after: Duration::ZERO },
            },
        };
        self.failed(&attempt, &error, &span)
    }

    fn failed(&self, attempt: &Attempt, error: &JobError, span: &tracing::Span) -> Outcome {
        let _span = span.enter();
        let text = error.chain();
        let last = attempt.attempt >= attempt.max_attempts;
        if !last && error.then != Then::GiveUp {
            let after = match error.then {
                Then::RetryAfter(delay) => delay,
                _ => self.backoff(&attempt.kind, attempt.attempt),
            };
            tracing::warn!(error = text, ?after, "a durable job failed and will be tried again");
            return Outcome::Failed { error: text, after };
        }
        tracing::error!(error = text, attempts = attempt.attempt, "a durable job was given up");
        if let Some(on_discard) = &self.on_discard {
            let discarded = DiscardedJob {
                id: attempt.id,
                kind: attempt.kind.clone(),
                key: attempt.key.clone(),
                payload: attempt.payload.clone(),
                attempts: attempt.attempt,
                error: text.clone(),
            };
            if let Err(payload) = caught::call(|| on_discard(&discarded)) {
                tracing::error!(message = panic_message(&*payload), "the function for discarded jobs panicked");
                caught::dispose(payload);
            }
        }
        if last { Outcome::Failed { error: text, after: Duration::ZERO } } else { Outcome::GivenUp { error: text } }
    }
}

/// A payload of another version. Not the job's fault: it stays stored, no attempt is counted, and a process that can
/// read it runs it.
fn undecodable(attempt: &Attempt, error: &str) -> Outcome {
    tracing::error!(
        kind = attempt.kind,
        job = attempt.id,
        error,
        "a durable job was stored by another version of this program, and does not decode: it stays stored. Give \
         fields that were added a default (`#[serde(default)]`), or run a version that knows both"
    );
    Outcome::Returned { after: RETURNED }
}
