//! What a running job is told: [`JobContext`].

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{DurableError, DurableStore, DurableTransaction, JobError};
use crate::{
    lifecycle::{End, HookOutcome, Lifecycle, LifecycleError},
    status::ConnectionStatus,
};

/// What the process gives to its jobs, one value of each type.
pub(super) type State = HashMap<TypeId, Box<dyn Any + Send + Sync>>;

/// What a running job knows of itself: one attempt at it.
pub struct JobContext {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) key: String,
    pub(super) attempt: u16,
    pub(super) max_attempts: u16,
    pub(super) deadline: Instant,
    pub(super) lifecycle: Lifecycle,
    pub(super) state: Arc<State>,
    pub(super) store: DurableStore,
    /// Whether a transaction completes it, once that is committed.
    pub(super) completes: Arc<AtomicBool>,
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl JobContext {
    /// The job's number in the store.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// How many attempts there are at most.
    #[must_use]
    pub fn max_attempts(&self) -> u16 {
        self.max_attempts
    }

    /// Whether the job is given up on if this attempt fails.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.max_attempts
    }

    /// A key that is the same for every attempt at this job. No other job of its kind has it, unless it was promised
    /// under the same [key](super::Durable::with_key) after this one was no longer kept. Pass it to whatever the job
    /// calls, so that an effect which has happened does not happen again: as a payment provider's `Idempotency-Key`,
    /// or in a unique column.
    #[must_use]
    pub fn idempotency_key(&self) -> &str {
        &self.key
    }

    /// When this attempt is dropped because of its [`LIMIT`](super::DurableJob::LIMIT).
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time left until the [`deadline`](Self::deadline).
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The value of this type that was given to [`DurableBuilder::state`](super::DurableBuilder::state).
    ///
    /// # Errors
    ///
    /// If there is none. With `?` the job is retried later, perhaps by a process that has it.
    pub fn state<T: Any + Send + Sync>(&self) -> Result<&T, JobError> {
        self.state.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref()).ok_or_else(|| {
            let name = std::any::type_name::<T>();
            format!("this process has no `{name}` for its jobs: give it one with `DurableBuilder::state`").into()
        })
    }

    /// The store that the job is in.
    #[must_use]
    pub fn store(&self) -> &DurableStore {
        &self.store
    }

    /// The attempt's status. TIMEOUT is set once the attempt has to end, also if somebody has cancelled the job with
    /// River's tools. ABORTED is never set: a job has no client.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.lifecycle.status()
    }

    /// Registers a hook for the end of this attempt, as
    /// [`Lifecycle::on_shutdown`](crate::Lifecycle::on_shutdown) does for a request's. Another attempt has its own.
    ///
    /// # Errors
    ///
    /// If the attempt has ended.
    pub fn on_shutdown<F, Fut>(&self, hook: F) -> Result<(), LifecycleError>
    where
        F: FnOnce(End) -> Fut + Send + 'static,
        Fut: Future<Output: HookOutcome> + Send + 'static,
    {
        self.lifecycle.on_shutdown(hook)
    }

    /// Marks the job as completed in a transaction of your own: what you write in the same transaction happens
    /// exactly once, even if this process dies before [`run`](super::DurableJob::run) returns. Commit, and return
    /// `Ok`: whatever `run` returns after that, the job is completed and not retried.
    ///
    /// Complete it last: on Postgres, anyone who promises a job of its kind and [key](super::Durable::with_key) waits
    /// until the transaction ends, and everything else that their process stores waits as well.
    ///
    /// # Errors
    ///
    /// If the job is no longer running, because it was considered lost and another attempt has completed it; or if
    /// the store fails. Roll the transaction back.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, it may have completed the job in the transaction: roll that back.
    pub async fn complete_in_transaction<'c, T>(&self, transaction: &mut T) -> Result<(), DurableError>
    where
        T: DurableTransaction<'c>,
    {
        self.store.complete_in(self.id, transaction.erase()).await?;
        // Release: see the runner.
        self.completes.store(true, Ordering::Release);
        Ok(())
    }
}
