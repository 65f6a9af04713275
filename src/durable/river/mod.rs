//! The engine there is: River, through its Rust client.
//!
//! Each kind of job is a queue of River's, and all are of one River kind, whose arguments say the rest. A process
//! fetches from the queues of the kinds that it knows, so that others are left alone; and whichever process leads can
//! schedule and rescue every job, since what it must know of one (its limit) is stored with it. River's own filter by
//! kind would not do: its rescuer discards what its leader does not know.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use riverqueue::{
    Client, InsertBatch, InsertOpts, JobArgs, JobListParams, JobState, MaintenanceConfig, QueueConfig, Retention,
    RunHandle, UniqueOpts, jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use self::worker::{Attempts, Backoff, InWork};
use super::{
    database::{Database, Tx},
    engine::{Boxed, DiscardedJob, Engine, JobCounts, NewJob, Runner, Stored, Times, Unique, Work},
    error::{DurableError, Kind},
};
use crate::pool::{caught, lock};

mod sql;
mod worker;

/// What River stores of a job. Fields may be added, with a default, and none taken away: older processes read them.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    key: String,
    /// JSON in a string, so that the database changes nothing of it (Postgres's `jsonb` has no NUL, and its own idea
    /// of numbers).
    payload: String,
    limit_ms: u64,
    #[serde(default)]
    from: String,
}

impl JobArgs for Envelope {
    const KIND: &'static str = "tower_epilogue";

    fn unique_fields() -> &'static [&'static [&'static str]] {
        &[&["key"]]
    }
}

/// The engine.
pub(super) struct River {
    database: Database,
    client: Client,
    runner: Arc<OnceLock<Arc<dyn Runner>>>,
    work: Vec<Work>,
    times: Times,
    /// How often it was woken: see `wake`.
    woken: AtomicU32,
    /// Locked by whoever waits for its end.
    running: tokio::sync::Mutex<Option<RunHandle>>,
    stopper: Mutex<Option<riverqueue::Stopper>>,
}

impl std::fmt::Debug for River {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("River").field("work", &self.work).finish_non_exhaustive()
    }
}

/// How often a leader looks for jobs that are due.
const SCHEDULER: Duration = Duration::from_secs(1);

impl River {
    pub(super) fn new(database: Database, work: Vec<Work>, times: Times) -> Result<Self, DurableError> {
        let runner = Arc::new(OnceLock::new());
        let mut workers = riverqueue::Workers::new();
        workers.add::<Envelope, _>(Attempts::new(runner.clone(), times.rescue_after))?;
        let maintenance = MaintenanceConfig::default()
            .with_elect_interval(times.elect)
            .with_scheduler_interval(SCHEDULER)
            .with_rescuer_interval(times.rescue_after.min(Duration::from_secs(5)))
            .with_rescue_after(times.rescue_after)
            // A promise that was broken stays on record until somebody has seen it.
            .with_discarded_job_retention(Retention::Keep);
        let mut builder = match &database {
            #[cfg(feature = "durable-sqlite")]
            Database::Sqlite { write, .. } => Client::builder(write.clone()),
            #[cfg(feature = "durable-postgres")]
            Database::Postgres(pools) => Client::builder(pools.all.clone()),
        }
        .workers(workers)
        .work_middleware(InWork)
        .retry_policy(Backoff::new(runner.clone()))
        // Each job brings its own limit.
        .without_job_timeout()
        .job_stuck_threshold(Duration::from_secs(5))
        .fetch_cooldown(times.cooldown)
        .maintenance(maintenance);
        for kind in &work {
            builder = builder.queue(kind.kind, queue(kind, times, 0));
        }
        let client = builder.build()?;
        Ok(Self {
            database,
            client,
            runner,
            work,
            times,
            woken: AtomicU32::new(0),
            running: tokio::sync::Mutex::new(None),
            stopper: Mutex::new(None),
        })
    }
}

const UNFINISHED: [JobState; 5] =
    [JobState::Available, JobState::Pending, JobState::Retryable, JobState::Running, JobState::Scheduled];

/// One of as many configurations that differ in nothing that matters.
const CONFIGURATIONS: u32 = 1000;

/// River adds this to the time.
const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

fn queue(work: &Work, times: Times, woken: u32) -> QueueConfig {
    let poll = times.poll.min(LONGEST_POLL).max(times.cooldown);
    let poll = poll.saturating_add(Duration::from_micros(u64::from(woken % CONFIGURATIONS)));
    QueueConfig::new(work.concurrency).with_fetch_poll_interval(poll)
}

fn batch(jobs: &[NewJob]) -> Result<InsertBatch, DurableError> {
    let mut batch = InsertBatch::new();
    for job in jobs {
        let envelope = Envelope {
            key: job.key.clone(),
            payload: job.payload.clone(),
            // Rounded up: none would be no limit.
            limit_ms: u64::try_from(job.limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
            from: job.from.clone(),
        };
        let mut opts = InsertOpts::default().with_queue(job.kind).with_max_attempts(i32::from(job.max_attempts.max(1)));
        if !job.wait.is_zero() {
            let at = Timestamp::now()
                .checked_add(job.wait)
                .map_err(|error| DurableError::because(Kind::Settings("the lease is too long".to_owned()), error))?;
            opts = opts.with_scheduled_at(at);
        }
        let unique = UniqueOpts::new().with_by_args(true).with_by_queue(true);
        match job.unique {
            Unique::No => {}
            // River's default: all but the discarded and cancelled.
            Unique::WhileKept => opts = opts.with_unique(unique),
            Unique::UntilDone => opts = opts.with_unique(unique.with_by_state(UNFINISHED)),
        }
        batch.push_with(envelope, opts);
    }
    Ok(batch)
}

impl Engine for River {
    fn migrate(&self) -> Boxed<'_, Result<(), DurableError>> {
        Box::pin(sql::migrate(&self.database))
    }

    fn check(&self) -> Boxed<'_, Result<(), DurableError>> {
        Box::pin(sql::check(&self.database))
    }

    fn insert<'a>(&'a self, jobs: &'a [NewJob], tx: Tx<'a, '_>) -> Boxed<'a, Result<Vec<Stored>, DurableError>> {
        Box::pin(async move {
            let request = self.client.insert_batch(batch(jobs)?);
            let stored = match tx {
                #[cfg(feature = "durable-sqlite")]
                Tx::Sqlite(transaction) => request.tx(transaction).await?,
                #[cfg(feature = "durable-postgres")]
                Tx::Postgres(transaction) => request.tx(transaction).await?,
            };
            let stored = stored.into_iter();
            Ok(stored.map(|job| Stored { id: job.id(), duplicate: job.unique_skipped_as_duplicate }).collect())
        })
    }

    fn promote<'a>(&'a self, ids: &'a [i64], tx: Tx<'a, '_>) -> Boxed<'a, Result<(), DurableError>> {
        Box::pin(sql::promote(ids, tx))
    }

    fn are_there<'a>(&'a self, ids: &'a [i64], tx: Tx<'a, '_>) -> Boxed<'a, Result<Vec<(i64, String)>, DurableError>> {
        Box::pin(sql::are_there(ids, tx))
    }

    fn hold(&self, id: i64, attempt: u16) -> Boxed<'_, Result<bool, DurableError>> {
        Box::pin(sql::hold(&self.database, id, attempt))
    }

    fn complete<'a>(&'a self, id: i64, tx: Tx<'a, '_>) -> Boxed<'a, Result<(), DurableError>> {
        Box::pin(async move {
            let request = self.client.jobs().complete(id);
            match tx {
                #[cfg(feature = "durable-sqlite")]
                Tx::Sqlite(transaction) => request.tx(transaction).await?,
                #[cfg(feature = "durable-postgres")]
                Tx::Postgres(transaction) => request.tx(transaction).await?,
            };
            Ok(())
        })
    }

    fn is_completed(&self, id: i64) -> Boxed<'_, Result<bool, DurableError>> {
        Box::pin(sql::is_completed(&self.database, id))
    }

    /// River looks at once when a queue's configuration changes. Its notifications take longer: SQLite's are polled
    /// for each 100 ms.
    fn wake(&self) {
        // A count and no mere change to and fro: River compares with what it saw last, and may have slept through some.
        // Relaxed: whoever comes last, the configuration has changed.
        let woken = self.woken.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for kind in &self.work {
            // It fails only for a queue that is not there, and those are.
            let _ = self.client.local_queues().update(kind.kind, queue(kind, self.times, woken));
        }
    }

    fn start(&self, runner: Arc<dyn Runner>) -> Result<(), DurableError> {
        let _ = self.runner.set(runner);
        if self.work.is_empty() {
            return Ok(());
        }
        let handle = self.client.start()?;
        *lock(&self.stopper) = Some(handle.stopper());
        // Nobody waits for its end before.
        if let Ok(mut running) = self.running.try_lock() {
            *running = Some(handle);
        }
        Ok(())
    }

    fn stop(&self) {
        if let Some(stopper) = &*lock(&self.stopper) {
            stopper.stop();
        }
    }

    fn stopped(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            // Of several who wait, each waits to the end. The handle stays if this is dropped half-way: dropped itself, it
            // would stop the jobs hard.
            let mut running = self.running.lock().await;
            if let Some(handle) = &mut *running {
                if let Err(error) = handle.wait().await {
                    caught::tell(|| tracing::error!(%error, "the engine of durable jobs ended with an error"));
                }
            }
            *running = None;
        })
    }

    fn counts(&self) -> Boxed<'_, Result<JobCounts, DurableError>> {
        Box::pin(sql::counts(&self.database))
    }

    fn discarded(&self, limit: u32) -> Boxed<'_, Result<Vec<DiscardedJob>, DurableError>> {
        Box::pin(async move {
            // Not those of others who use its tables, too.
            let ours = JobListParams::default().kinds([Envelope::KIND]);
            let params = ours.states([JobState::Discarded]).limit(limit.clamp(1, 10_000));
            let page = self.client.jobs().list(params).await?;
            Ok(page.jobs.iter().filter_map(worker::discarded).collect())
        })
    }

    fn revive(&self, id: i64) -> Boxed<'_, Result<(), DurableError>> {
        Box::pin(async move {
            self.client.jobs().get(id).await.map_err(|error| match error {
                riverqueue::Error::NotFound(_) => DurableError::new(Kind::NoSuchJob(id)),
                error => error.into(),
            })?;
            let mut begun = self.database.begin().await?;
            // River's `retry` would run a completed job once more.
            if sql::is_discarded(id, begun.tx()).await? {
                let request = self.client.jobs().retry(id);
                let retried = match begun.tx() {
                    #[cfg(feature = "durable-sqlite")]
                    Tx::Sqlite(transaction) => request.tx(transaction).await,
                    #[cfg(feature = "durable-postgres")]
                    Tx::Postgres(transaction) => request.tx(transaction).await,
                };
                retried.map_err(not_beside_another)?;
            }
            begun.commit().await?;
            self.wake();
            Ok(())
        })
    }
}

/// Of one kind and key, only one may be stored that was not given up.
fn not_beside_another(error: riverqueue::Error) -> DurableError {
    let cause = if let riverqueue::Error::Database(error) = &error { error.as_database_error() } else { None };
    if cause.is_some_and(riverqueue::sqlx::error::DatabaseError::is_unique_violation) {
        return DurableError::new(Kind::Invalid(
            "another job of its kind and key is, and keeps the promise".to_owned(),
        ));
    }
    error.into()
}

impl From<riverqueue::Error> for DurableError {
    fn from(error: riverqueue::Error) -> Self {
        use riverqueue::Error;
        match error {
            Error::Database(error) => error.into(),
            Error::InvalidJob(error) => Self::new(Kind::Invalid(error.to_string())),
            Error::Configuration(error) => Self::new(Kind::Settings(error.to_string())),
            Error::JobNotRunning { .. } | Error::NotFound(_) => Self::new(Kind::NotRunning),
            Error::DatabaseMismatch(_) => {
                Self::new(Kind::Invalid("the transaction is of another kind of database than the store".to_owned()))
            }
            error => Self::because(Kind::Other, error),
        }
    }
}

#[cfg(all(test, feature = "durable-sqlite"))]
mod tests {
    use super::*;
    use crate::{
        Epilogue,
        durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Says that it ran.
    #[derive(Serialize, Deserialize)]
    struct Tells;

    impl DurableJob for Tells {
        const KIND: &'static str = "tells";

        async fn run(self, cx: JobContext) -> Result<(), JobError> {
            Ok(cx.state::<tokio::sync::mpsc::UnboundedSender<()>>()?.send(())?)
        }
    }

    /// On one thread, so that nobody looks between the two.
    #[tokio::test]
    async fn of_two_wakings_at_once_one_wakes() {
        let file = std::env::temp_dir().join(format!("epilogue-wakes-{}.db", std::process::id()));
        let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<()>();
        let epilogue = Epilogue::new();
        let builder = DurableStore::sqlite(&file).poll_interval(Duration::MAX).lease(DAY);
        let store = builder.state(sender).register::<Tells>().start(&epilogue).await.unwrap();
        store.enqueue(Durable::new(Tells)).await.unwrap();
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, ran.recv()).await.expect("the engine runs").unwrap();
        // The end of an attempt has the engine look, too.
        while store.counts().await.unwrap().completed == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut begun = store.0.database.begin().await.unwrap();
        let transaction = match begun.tx() {
            Tx::Sqlite(transaction) => transaction,
            #[cfg(feature = "durable-postgres")]
            Tx::Postgres(_) => unreachable!("it is one of SQLite"),
        };
        let _ = Durable::in_transaction(Tells, &store, transaction).await.unwrap();
        store.0.engine.promote(&[2], begun.tx()).await.unwrap();
        begun.commit().await.unwrap();
        store.0.engine.wake();
        store.0.engine.wake();
        tokio::time::timeout(patience, ran.recv()).await.expect("it is found").unwrap();
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", file.display()));
        }
    }
}
