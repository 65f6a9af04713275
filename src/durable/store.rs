//! [`DurableStore`]: the handle to a store that works.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Durable, DurableError, DurableLayer, JobCounts,
    database::{Database, Tx},
    elsewhere::Elsewhere,
    engine::{DiscardedJob, Engine, NewJob, Stored, Unique},
    error::Kind,
    op::{Kept, Op, ROOM, Reply},
    outlast::Outlasting,
    part::{ByHand, Promise},
    records::{Answer, Claim, Claimed},
    writing::Writing,
};
use crate::pool::{Companion, Pool};

/// A running store of durable jobs. Made by [`DurableBuilder::start`](super::DurableBuilder::start).
///
/// Cloning is cheap; clones are the same store. It runs jobs until the [`Epilogue`](crate::Epilogue) that it was
/// started in drains, even if only the store, or its layer, still refers to that.
#[derive(Clone)]
pub struct DurableStore(
    pub(super) Arc<Inner>,
    /// Without it nothing would run.
    #[expect(dead_code, reason = "it lives as long as this")]
    pub(super) Arc<Pool>,
);

pub(super) struct Inner {
    pub(super) database: Database,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) writer: mpsc::UnboundedSender<Op>,
    /// For as many as may wait for the writer.
    pub(super) room: Arc<Semaphore>,
    pub(super) lease: Duration,
    pub(super) stopping: CancellationToken,
    pub(super) elsewhere: Elsewhere,
    pub(super) writing: Writing,
    pub(super) outlasting: Outlasting,
}

impl fmt::Debug for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableStore").field("database", &self.0.database).finish_non_exhaustive()
    }
}

impl DurableStore {
    /// A layer that stores what the handlers inside it promise. Put it around every route that returns a
    /// [`Durable`](super::Durable).
    #[must_use]
    pub fn layer(&self) -> DurableLayer {
        DurableLayer::new(self.clone())
    }

    /// Stores a job outside any response (from a cron task, for example), and starts it at once. It is stored when
    /// this returns `Ok`. A job that was stored in a transaction of yours is only started: commit before you call
    /// this.
    ///
    /// # Errors
    ///
    /// If it cannot be stored, or if 10,000 writes are already waiting for the database.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, the job may be stored all the same.
    pub async fn enqueue(&self, job: Durable) -> Result<(), DurableError> {
        let mut job = match job.into_promise() {
            Some(Promise::New(job)) => job?,
            Some(Promise::Stored(stored)) => {
                promote_each(stored, None);
                return Ok(());
            }
            None => return Ok(()),
        };
        fill_key(&mut job, None);
        self.keep(vec![job], None).await.map(drop)
    }

    /// Begins a transaction on a SQLite store, for [`Durable::in_transaction`].
    ///
    /// It holds the only connection that writes: until it ends, nothing else is stored, and whatever waits longer
    /// than the [busy timeout](super::DurableBuilder::busy_timeout) is refused. Keep it short, and do not await
    /// anything in it that has to be stored itself: that would deadlock until the timeout. Reading needs no such
    /// transaction: a pool of your own on the same file, of [`durable::sqlx`](super::sqlx), waits for nobody.
    ///
    /// # Errors
    ///
    /// If the store does not answer, or is a Postgres store.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no transaction is left half-begun.
    #[cfg(feature = "durable-sqlite")]
    pub async fn begin_sqlite(&self) -> Result<super::sqlx::Transaction<'static, super::sqlx::Sqlite>, DurableError> {
        match self.0.database.begin().await? {
            super::database::Begun::Sqlite(transaction) => Ok(transaction),
            #[cfg(feature = "durable-postgres")]
            super::database::Begun::Postgres(_) => {
                Err(DurableError::new(Kind::Settings("this is a Postgres store: use `begin_postgres`".to_owned())))
            }
        }
    }

    /// Begins a transaction on a Postgres store, for [`Durable::in_transaction`].
    ///
    /// Once it has stored a job that has a [key](Durable::with_key), or completed one, anyone who promises another job
    /// of that kind and key waits until it ends, and everything else that their process stores waits as well. Keep it
    /// short, and do not await anything in it that has to be stored itself.
    ///
    /// # Errors
    ///
    /// If the store does not answer, or is a SQLite store.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no transaction is left half-begun.
    #[cfg(feature = "durable-postgres")]
    pub async fn begin_postgres(
        &self,
    ) -> Result<super::sqlx::Transaction<'static, super::sqlx::Postgres>, DurableError> {
        match self.0.database.begin().await? {
            super::database::Begun::Postgres(transaction) => Ok(transaction),
            #[cfg(feature = "durable-sqlite")]
            super::database::Begun::Sqlite(_) => {
                Err(DurableError::new(Kind::Settings("this is a SQLite store: use `begin_sqlite`".to_owned())))
            }
        }
    }

    /// The number of jobs in each state, in whichever process they run.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    pub async fn counts(&self) -> Result<JobCounts, DurableError> {
        self.0.engine.counts().await
    }

    /// Jobs that were given up on, at most `limit` (1 to 10,000). They are kept until they are
    /// [revived](Self::revive).
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    pub async fn discarded(&self, limit: u32) -> Result<Vec<DiscardedJob>, DurableError> {
        self.0.engine.discarded(limit).await
    }

    /// Retries a job that was given up on: for the attempts that it has left, or once if it has none. Any other job is
    /// left alone.
    ///
    /// # Errors
    ///
    /// If there is no such job, if another of its kind and key is stored by now, or if the store does not answer.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, the job may be retried all the same.
    pub async fn revive(&self, id: i64) -> Result<(), DurableError> {
        self.0.engine.revive(id).await
    }

    /// Waits until everything that was promised so far, and whose response has left, is ready to run.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn settled(&self) {
        self.0.settled().await;
    }

    /// `None` if it was there before.
    pub(super) async fn insert_in(&self, mut job: NewJob, tx: Tx<'_, '_>) -> Result<Option<ByHand>, DurableError> {
        fill_key(&mut job, None);
        job.wait = self.0.lease;
        self.0.elsewhere.promised(job.kind);
        let key = job.key.clone();
        let stored = self.0.engine.insert(&[job], tx).await?;
        let nothing = || DurableError::because(Kind::Other, "the engine stored nothing");
        let Stored { id, duplicate } = *stored.first().ok_or_else(nothing)?;
        Ok((!duplicate).then(|| ByHand { store: self.0.clone(), id, key }))
    }

    pub(super) async fn complete_in(&self, id: i64, tx: Tx<'_, '_>) -> Result<(), DurableError> {
        self.0.engine.complete(id, tx).await
    }

    /// Stores jobs and has those start that nobody waits to flush a response for.
    async fn keep(&self, jobs: Vec<NewJob>, answer: Option<(Claim, Answer)>) -> Result<Vec<Stored>, DurableError> {
        let stored = self.0.store(jobs, answer).await?;
        self.0.promote(&stored);
        Ok(stored)
    }
}

/// Gives a job its key, if it has none of its own: the client's, or else a random one.
pub(super) fn fill_key(job: &mut NewJob, clients: Option<(&str, usize)>) {
    if !job.key.is_empty() {
        return;
    }
    match clients {
        Some((key, index)) => {
            job.key = format!("{key}:{index}");
            job.unique = Unique::UntilDone;
        }
        None => job.key = random_name(),
    }
}

/// Has jobs start that were stored by hand, each in its own store, and those told of that are not there: what their
/// transaction came to, only the store knows.
pub(super) fn promote_each(stored: impl IntoIterator<Item = ByHand>, route: Option<&str>) {
    for ByHand { store, id, key } in stored {
        // With the writer gone, they start when their lease ends.
        let _ = store.send(Op::PromoteIfThere { id, key, route: route.map(ToOwned::to_owned) });
    }
}

/// 128 random bits.
pub(super) fn random_name() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system once a thread, and counted on from there: unique, and not to be guessed from outside. The
    // process and the time are mixed in for the processes of one machine.
    let part = |salt: u64| {
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u64(salt);
        hasher.write_u32(std::process::id());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hasher.write_u128(now.as_nanos());
        hasher.finish()
    };
    format!("{:016x}{:016x}", part(1), part(2))
}

impl Inner {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    pub(super) fn send(&self, op: Op) -> Result<(), DurableError> {
        self.writer.send(op).map_err(|_| DurableError::new(Kind::Stopped))
    }

    async fn wait<T>(reply: &mut oneshot::Receiver<Result<T, DurableError>>) -> Result<T, DurableError> {
        reply.await.unwrap_or_else(|_| Err(DurableError::new(Kind::Stopped)))
    }

    /// Room for one that is to be written.
    pub(super) fn room(&self) -> Result<OwnedSemaphorePermit, DurableError> {
        let full = || DurableError::because(Kind::Unavailable, format!("{ROOM} requests wait for it already"));
        self.room.clone().try_acquire_owned().map_err(|_| full())
    }

    pub(super) async fn claim(&self, claim: Claim, room: OwnedSemaphorePermit) -> Result<Claimed, DurableError> {
        let (reply, mut answered) = oneshot::channel();
        self.send(Op::Claim { claim, reply: Reply::new(reply, Some(room)) })?;
        Self::wait(&mut answered).await
    }

    pub(super) fn release(&self, claim: Claim) {
        // With the writer gone, it expires by itself.
        let _ = self.send(Op::Release(claim));
    }

    /// Stores jobs a lease ahead. Dropped before it is done, they are stored, or not, and started all the same.
    ///
    /// Where too many wait already it is refused.
    pub(super) async fn store(
        &self,
        jobs: Vec<NewJob>,
        answer: Option<(Claim, Answer)>,
    ) -> Result<Vec<Stored>, DurableError> {
        let room = self.room()?;
        self.ask(self.kept(jobs, answer, None), Some(room)).await
    }

    pub(super) fn kept(
        &self,
        mut jobs: Vec<NewJob>,
        answer: Option<(Claim, Answer)>,
        receipt: Option<String>,
    ) -> Arc<Kept> {
        for job in &mut jobs {
            job.wait = self.lease;
            self.elsewhere.promised(job.kind);
        }
        Arc::new(Kept { jobs, answer, receipt })
    }

    /// Has the writer store it.
    pub(super) async fn ask(
        &self,
        kept: Arc<Kept>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Vec<Stored>, DurableError> {
        let (reply, answered) = oneshot::channel();
        self.send(Op::Keep { kept, reply: Reply::new(reply, room) })?;
        let mut told = Told { answered, store: self };
        Self::wait(&mut told.answered).await
    }

    /// Has stored jobs start, but for duplicates: another has promised those, and promotes them.
    pub(super) fn promote(&self, stored: &[Stored]) {
        let ids: Vec<_> = stored.iter().filter(|job| !job.duplicate).map(|job| job.id).collect();
        self.promote_ids(ids);
    }

    pub(super) fn promote_ids(&self, ids: Vec<i64>) {
        if !ids.is_empty() {
            // With the writer gone, they start when their lease ends.
            let _ = self.send(Op::Promote(ids));
        }
    }

    async fn settled(&self) {
        let (reached, wait) = oneshot::channel();
        if self.send(Op::Barrier(reached)).is_ok() {
            let _ = wait.await;
        }
    }
}

/// One who waits for the writer's reply. Dropped when it was told and has not heard of it, it starts what was stored: what
/// is told to nobody, the writer starts.
struct Told<'a> {
    answered: oneshot::Receiver<Result<Vec<Stored>, DurableError>>,
    store: &'a Inner,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        // First, so that nothing comes after the look.
        self.answered.close();
        if let Ok(Ok(stored)) = self.answered.try_recv() {
            self.store.promote(&stored);
        }
    }
}

impl Companion for Inner {
    fn stop(&self) {
        self.stopping.cancel();
        self.engine.stop();
    }

    fn stopped(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            self.settled().await;
            self.engine.stopped().await;
        })
    }

    fn left(&self) -> Pin<Box<dyn Future<Output = Option<u64>> + Send + '_>> {
        Box::pin(async move {
            let counts = tokio::time::timeout(Duration::from_secs(2), self.engine.counts()).await;
            counts.ok()?.ok().map(|counts| counts.unfinished())
        })
    }
}
