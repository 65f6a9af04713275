//! [`DurableBuilder`]: where jobs are stored, which of them this process runs, and how.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    DurableError, DurableJob, DurableStore, connect,
    context::State,
    database::Database,
    elsewhere::Elsewhere,
    engine::{DiscardedJob, Engine, Times, Work},
    error::Kind,
    job::kind_error,
    op::ROOM,
    outlast::Outlasting,
    records,
    river::River,
    runner::{JobRunner, KnownKind, OnDiscard},
    store::Inner,
    writer::Writer,
    writing::Writing,
};
use crate::{
    Epilogue,
    pool::{Companion, caught},
};

/// Configures a [`DurableStore`], which [`start`](Self::start) opens.
#[must_use = "a builder does nothing until `start` is called"]
pub struct DurableBuilder {
    pub(super) place: Place,
    kinds: HashMap<&'static str, KnownKind>,
    work: Vec<Work>,
    state: State,
    on_discard: Option<OnDiscard>,
    migrate: bool,
    lease: Duration,
    keep_answers: Duration,
    claim: Duration,
    times: Times,
    pub(super) busy_timeout: Duration,
    outlast: Duration,
    pub(super) connections: u32,
    settings_error: Option<String>,
}

/// Where the store is.
pub(super) enum Place {
    #[cfg(feature = "durable-sqlite")]
    Sqlite(std::path::PathBuf),
    #[cfg(feature = "durable-postgres")]
    Postgres(String),
    #[cfg(feature = "durable-postgres")]
    PostgresPool(riverqueue::sqlx::PgPool),
}

impl fmt::Debug for DurableBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableBuilder").field("work", &self.work).finish_non_exhaustive()
    }
}

impl DurableStore {
    /// A store in a SQLite file, which is created if it does not exist: no server, for the processes of one machine.
    /// It must not be on a network file system. It may contain your own tables as well, for a
    /// [transaction](super::Durable::in_transaction) with both.
    ///
    /// It is opened in WAL mode with `synchronous=FULL`: with the weaker setting that many builds of SQLite default
    /// to in WAL mode, a power cut can undo the latest commits. The tables are created by
    /// [`start`](DurableBuilder::start).
    #[cfg(feature = "durable-sqlite")]
    pub fn sqlite(file: impl Into<std::path::PathBuf>) -> DurableBuilder {
        DurableBuilder::new(Place::Sqlite(file.into()), true)
    }

    /// A store in a Postgres database, for one or many machines: `postgres://user:password@host/database`. Postgres
    /// must not run with `synchronous_commit=off`, which acknowledges commits that a crash can undo.
    ///
    /// Its tables are created only if [`migrate`](DurableBuilder::migrate) is set, not by every process that starts.
    ///
    /// On Linux, a database server whose machine vanishes (power or network failure) is given up on within 25 s, or
    /// within 8 s of its return; so is a server that accepts nothing of what is sent for 20 s. sqlx has no TCP
    /// keep-alive, so its connections are relayed through sockets of this process that have, over a Unix socket in
    /// the abstract namespace. If that is not permitted, a warning is logged, and sqlx connects directly.
    ///
    /// The server is also told to probe this process's machine (`tcp_keepalives_idle`): if that vanishes in the
    /// middle of a transaction, its locks are released within 25 s. In a [transaction of
    /// yours](DurableStore::begin_postgres), while a response of the server is on its way, it takes a quarter of an
    /// hour.
    ///
    /// A connection to a server that has become read-only, as after a fail-over, is replaced before its next use.
    #[cfg(feature = "durable-postgres")]
    pub fn postgres(url: impl Into<String>) -> DurableBuilder {
        DurableBuilder::new(Place::Postgres(url.into()), false)
    }

    /// A store in the Postgres database of a pool of yours, of the sqlx that is exported as
    /// [`durable::sqlx`](super::sqlx): with TLS, for example, or with a `search_path` of its own.
    ///
    /// What requests promise is stored over separate connections, two at most, opened like the pool's and closed with
    /// it, so that other users of the pool cannot delay it; a request waits for one of them for the
    /// [`busy_timeout`](DurableBuilder::busy_timeout).
    ///
    /// The pool's connections have no TCP keep-alive (sqlx 0.9 cannot set it): if the server's machine vanishes,
    /// whatever waits for its answer waits for ever, both writes and the fetching of jobs. If a process's own machine
    /// vanishes, its locks stay for as long as the server's `tcp_keepalives_idle` says, two hours by default. A
    /// connection to a server that has become read-only is used until the pool closes it, after half an hour by
    /// default, unless the pool's `before_acquire` refuses it.
    #[cfg(feature = "durable-postgres")]
    pub fn postgres_pool(pool: riverqueue::sqlx::PgPool) -> DurableBuilder {
        DurableBuilder::new(Place::PostgresPool(pool), false)
    }
}

impl DurableBuilder {
    fn new(place: Place, migrate: bool) -> Self {
        Self {
            place,
            kinds: HashMap::new(),
            work: Vec::new(),
            state: State::new(),
            on_discard: None,
            migrate,
            lease: Duration::from_secs(30),
            keep_answers: Duration::from_secs(24 * 3600),
            claim: Duration::from_secs(30),
            times: Times {
                rescue_after: Duration::from_secs(30),
                poll: Duration::from_secs(1),
                cooldown: Duration::from_millis(5),
                elect: Duration::from_secs(5),
            },
            busy_timeout: Duration::from_secs(5),
            outlast: Duration::from_secs(3600),
            connections: 10,
            settings_error: None,
        }
    }

    /// Makes this process run jobs of this kind. Other kinds are left to other processes; if one of them is promised
    /// here, that is logged once per kind. Without any registered kind, this process only stores jobs.
    pub fn register<J: DurableJob>(mut self) -> Self {
        if self.kinds.insert(J::KIND, KnownKind::of::<J>()).is_some() {
            self.settings_error = Some(format!("two types of job have the kind `{}`", J::KIND));
        }
        if J::LIMIT.is_zero() || J::MAX_ATTEMPTS == 0 || J::CONCURRENCY == 0 {
            self.settings_error =
                Some(format!("`{}` has a LIMIT, MAX_ATTEMPTS or CONCURRENCY of zero: each must be more", J::KIND));
        }
        if let Some(error) = kind_error(J::KIND) {
            self.settings_error = Some(error);
        }
        self.work.push(Work { kind: J::KIND, concurrency: J::CONCURRENCY });
        self
    }

    /// Shared state for jobs, such as a mailer or a pool; one value per type. Jobs get it from
    /// [`JobContext::state`](super::JobContext::state).
    pub fn state<T: Any + Send + Sync>(mut self, value: T) -> Self {
        self.state.insert(TypeId::of::<T>(), Box::new(value));
        self
    }

    /// Calls a function for each job that this process gives up on, after it was logged: for an alert. It should
    /// return quickly. A panic in it is logged.
    pub fn on_discard(mut self, function: impl Fn(&DiscardedJob) + Send + Sync + 'static) -> Self {
        self.on_discard = Some(Arc::new(function));
        self
    }

    /// Whether [`start`](Self::start) creates and upgrades the tables; `true` by default for SQLite, `false` for
    /// Postgres. If several machines share a database, let one step of the deployment do it. Repeating it is safe.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How long after it was stored a job starts if its process died before its response was flushed; 30 s by
    /// default.
    ///
    /// It should be longer than most responses take to leave. A job whose response takes longer starts before the
    /// flush; the flush then does not start it again.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long past its [limit](DurableJob::LIMIT) a running job is considered lost with its process, and run again;
    /// 30 s by default.
    ///
    /// An attempt that waits for its place is not considered lost. After four times this it is put back, for other
    /// processes to take, without counting as an attempt.
    ///
    /// It must cover the time that a job may need to end at its limit: a job that blocks its thread for longer runs
    /// twice at the same time. It also has to cover the difference between the clocks of a database and its clients.
    pub fn rescue_after(mut self, grace: Duration) -> Self {
        self.times.rescue_after = grace;
        self
    }

    /// How often a process polls for jobs; 1 s by default. It is notified at once of jobs that it promised itself,
    /// and on Postgres of those of other processes.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.times.poll = interval;
        self
    }

    /// The minimum time between two queries for jobs; 5 ms by default. A longer time spares the database under load,
    /// and delays the start of jobs promised meanwhile.
    pub fn fetch_cooldown(mut self, cooldown: Duration) -> Self {
        self.times.cooldown = cooldown;
        self
    }

    /// How often the processes elect the one that looks after leases, retries and rescues; 5 s by default. A leader
    /// that died is replaced after up to twice this long plus 11 s.
    pub fn leader_lease(mut self, interval: Duration) -> Self {
        self.times.elect = interval;
        self
    }

    /// How long a write waits for another connection's write lock (SQLite), or for a connection (Postgres); 5 s by
    /// default. After that, or twice that if others are waiting already, the client gets a 503.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// How long storing a job is retried while the database is out, if nobody can be told that it was not stored:
    /// because the client has left (or leaves meanwhile) and that is [ignored](crate::IgnoreAbortLayer), or because
    /// the job was returned after [`finish`](crate::Lifecycle::finish). 1 h by default; with zero it is tried once.
    ///
    /// A drain waits for it until its deadline. See [the manual](crate::manual::durable#what-nobody-can-be-told-of).
    pub fn outlast(mut self, outage: Duration) -> Self {
        self.outlast = outage;
        self
    }

    /// The maximum number of connections to the database; 10 by default. In addition there is one that writes what
    /// requests promise on SQLite; on Postgres two, and one more that listens for notifications.
    ///
    /// On Postgres, each transaction of [`begin_postgres`](DurableStore::begin_postgres) holds one of them until it
    /// ends, and the engine needs some to fetch jobs and to record their results: set it higher than the number of
    /// such transactions at the same time. A [pool of yours](DurableStore::postgres_pool) has its own maximum.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// How long responses are kept to be replayed to clients that retry with the same `Idempotency-Key`; 24 h by
    /// default.
    pub fn keep_answers(mut self, keep: Duration) -> Self {
        self.keep_answers = keep;
        self
    }

    /// How long a client that retries gets a 409 after the process that ran its first request died; 30 s by default.
    /// A live process renews its claims.
    pub fn claim(mut self, claim: Duration) -> Self {
        self.claim = claim;
        self
    }

    /// Opens the store, and begins to run jobs in `epilogue`: within its bounds and classes, with its hook limit,
    /// events and failure handler, and counted by [`Epilogue::running`].
    ///
    /// When the `epilogue` drains, no more jobs are started, running ones are waited for, and at the deadline those
    /// that are left are cut; they and all others stay stored. In an `epilogue` that is draining, none are started.
    ///
    /// # Errors
    ///
    /// If a setting is invalid (a zero `rescue_after`, `claim`, `busy_timeout` or `connections`; two types with one
    /// `KIND`; a `LIMIT`, `MAX_ATTEMPTS` or `CONCURRENCY` of zero), the database does not answer, or its tables are
    /// missing.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, no job runs. Of a [migration](Self::migrate) what was done by then stays, and the next `start`
    /// does the rest.
    pub async fn start(mut self, epilogue: &Epilogue) -> Result<DurableStore, DurableError> {
        if let Some(error) = self.settings_error {
            return Err(DurableError::new(Kind::Settings(error)));
        }
        if self.times.rescue_after.is_zero()
            || self.claim.is_zero()
            || self.busy_timeout.is_zero()
            || self.connections == 0
        {
            let error = "`rescue_after`, `claim`, `busy_timeout` and `connections` must not be zero";
            return Err(DurableError::new(Kind::Settings(error.to_owned())));
        }
        self.keep_within(epilogue);
        self.keep_in_time();
        let database = connect::connect(&self).await?;
        let engine = Arc::new(River::new(database.clone(), self.work, self.times)?) as Arc<dyn Engine>;
        if self.migrate {
            migrate(&*engine, &database).await?;
        }
        check(&*engine, &database).await?;
        let elsewhere = Elsewhere::new(self.kinds.keys().copied());
        let runner = Arc::new(JobRunner {
            pool: Arc::downgrade(&epilogue.pool),
            store: OnceLock::new(),
            kinds: self.kinds,
            state: Arc::new(self.state),
            on_discard: self.on_discard,
            grace: self.times.rescue_after,
        });
        let (claim, keep, outlast) = (self.claim, self.keep_answers, self.outlast);
        let writing = Writing { database: database.clone(), engine: engine.clone(), claim, keep, outlast };
        let (writer, ops) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            database,
            engine: engine.clone(),
            writer,
            room: Arc::new(Semaphore::new(ROOM)),
            lease: self.lease,
            stopping: CancellationToken::new(),
            elsewhere,
            writing: writing.clone(),
            outlasting: Outlasting::new(outlast),
        });
        let _ = runner.store.set(Arc::downgrade(&inner));
        #[expect(clippy::disallowed_methods, reason = "it is no work of a request, and ends with the store")]
        tokio::spawn(Writer::new(writing, self.busy_timeout).run(ops));
        engine.start(runner)?;
        epilogue.pool.accompany(&(inner.clone() as Arc<dyn Companion>));
        Ok(DurableStore(inner, epilogue.pool.clone()))
    }
}

/// Neither databases nor engines have a time for the end of all times.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// SQLite's own: an `i32` of milliseconds.
const LONGEST_BUSY: Duration = Duration::from_millis(i32::MAX as u64);

impl DurableBuilder {
    fn keep_in_time(&mut self) {
        for time in [&mut self.lease, &mut self.times.rescue_after, &mut self.times.elect] {
            *time = CENTURY.min(*time);
        }
        self.busy_timeout = LONGEST_BUSY.min(self.busy_timeout);
    }

    /// No more of a kind is fetched than could ever run at once.
    fn keep_within(&mut self, epilogue: &Epilogue) {
        let Some(bounds) = epilogue.pool.bounds.as_deref() else { return };
        for work in &mut self.work {
            let class = self.kinds.get(work.kind).and_then(|kind| kind.class);
            let least = bounds.gates(class, false).filter_map(|gate| gate.most()).min();
            work.concurrency = least.map_or(work.concurrency, |most| work.concurrency.min(most));
        }
    }
}

async fn check(engine: &dyn Engine, database: &Database) -> Result<(), DurableError> {
    engine.check().await?;
    records::check(database).await
}

/// How long a migration is tried that meets another one.
const MIGRATION: Duration = Duration::from_secs(15);

/// Engines do not expect another process at the same work: the one that comes second fails in whatever way, and finds it
/// done when it looks again.
async fn migrate(engine: &dyn Engine, database: &Database) -> Result<(), DurableError> {
    let began = tokio::time::Instant::now();
    loop {
        let migrated = async {
            engine.migrate().await?;
            records::migrate(database).await
        };
        let Err(error) = migrated.await else { return Ok(()) };
        if check(engine, database).await.is_ok() {
            return Ok(());
        }
        if began.elapsed() >= MIGRATION {
            return Err(error);
        }
        let said = "a migration failed, perhaps because another process is running it: it is retried";
        caught::tell(|| tracing::debug!(%error, "{said}"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
