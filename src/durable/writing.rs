//! How requests are written: all in one transaction, or nothing of any.

use std::{
    collections::HashSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    database::{Begun, Database},
    engine::{Engine, Stored},
    error::{DurableError, Kind},
    op::{Op, once_each},
    records::{self, Claimed},
};
use crate::pool::{caught, panic_message};

/// What became of an [`Op`].
pub(super) enum Done {
    Claimed(Claimed),
    Kept(Vec<Stored>),
    /// What was looked for is not there.
    Missing,
    Nothing,
}

/// How often a transaction is tried that another stands in the way of.
const TRIES: u32 = 5;

/// How long a receipt is kept behind the last time that it may be asked for: the clocks of machines differ.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Over which connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The writer's own.
    Writers,
    /// Those of all others, so that nobody who waits for the writer waits for this.
    Others,
}

#[derive(Clone)]
pub(super) struct Writing {
    pub(super) database: Database,
    pub(super) engine: Arc<dyn Engine>,
    /// How long a claim holds without being renewed.
    pub(super) claim: Duration,
    /// How long answers are kept.
    pub(super) keep: Duration,
    /// How long that is tried again which nobody can be told of.
    pub(super) outlast: Duration,
}

pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn later_ms(by: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
}

/// A subscriber's panic at what the database's client says, in the middle of it, is a database that gives no answer.
pub(super) async fn surviving<T>(asks: impl Future<Output = Result<T, DurableError>>) -> Result<T, DurableError> {
    let mut asks = pin!(asks);
    poll_fn(|cx| {
        caught::poll(asks.as_mut(), cx).unwrap_or_else(|payload| {
            let error = format!("its client panicked: {}", panic_message(&*payload));
            caught::dispose(payload);
            Poll::Ready(Err(DurableError::because(Kind::Unavailable, error)))
        })
    })
    .await
}

impl Writing {
    /// Again, if the database has undone it in favour of another process's transaction, or of the user's: two that lock the
    /// same keys in another order each.
    pub(super) async fn write(&self, ops: &[Op], over: Over) -> Result<Vec<Done>, DurableError> {
        let mut tries = 1;
        loop {
            match surviving(self.write_once(ops, over)).await {
                Err(error) if error.is_conflict() && tries < TRIES => {
                    tries += 1;
                    caught::tell(|| tracing::debug!(%error, requests = ops.len(), "a transaction is retried"));
                }
                result => return result,
            }
        }
    }

    async fn write_once(&self, ops: &[Op], over: Over) -> Result<Vec<Done>, DurableError> {
        if ops.iter().all(|op| matches!(op, Op::Barrier(_))) {
            return Ok(ops.iter().map(|_| Done::Nothing).collect());
        }
        let mut begun = match over {
            Over::Writers => self.database.begin_writer().await?,
            Over::Others => self.database.begin_apart().await?,
        };
        let result = self.write_in(ops, &mut begun).await;
        match result {
            Ok(done) => {
                begun.commit().await?;
                if ops.iter().any(|op| matches!(op, Op::Promote(_) | Op::PromoteIfThere { .. })) {
                    self.engine.wake();
                }
                Ok(done)
            }
            Err(error) => {
                begun.rollback().await;
                Err(error)
            }
        }
    }

    async fn write_in<'o>(&self, ops: &'o [Op], begun: &mut Begun) -> Result<Vec<Done>, DurableError> {
        let stored_before = self.leave_receipts(ops, begun).await?;
        let new = |(op, before): (&'o Op, &bool)| op.kept().filter(|_| !before);
        let jobs = ops.iter().zip(&stored_before).filter_map(new).flat_map(|kept| &kept.jobs);
        let (firsts, places) = once_each(&jobs.collect::<Vec<_>>());
        let inserted = if firsts.is_empty() { Vec::new() } else { self.engine.insert(&firsts, begun.tx()).await? };
        let place = |(first, again)| {
            let Stored { id, duplicate } = *inserted.get(first)?;
            Some(Stored { id, duplicate: duplicate || again })
        };
        let mut stored = places.into_iter().filter_map(place);
        let mut done = Vec::with_capacity(ops.len());
        let (mut promoted, mut forgotten, mut looked) = (Vec::new(), Vec::new(), Vec::new());
        for (op, before) in ops.iter().zip(&stored_before) {
            done.push(match op {
                Op::Keep { .. } if *before => Done::Kept(Vec::new()),
                Op::Keep { kept, .. } => {
                    let jobs = kept.jobs.len();
                    let kept: Vec<_> = stored.by_ref().take(jobs).collect();
                    if kept.len() != jobs {
                        return Err(DurableError::because(
                            Kind::Other,
                            "the engine stored fewer jobs than it was given",
                        ));
                    }
                    Done::Kept(kept)
                }
                Op::Promote(ids) => {
                    promoted.extend_from_slice(ids);
                    Done::Nothing
                }
                Op::Forget(receipts) => {
                    forgotten.extend(receipts.iter().map(String::as_str));
                    Done::Nothing
                }
                Op::PromoteIfThere { id, .. } => {
                    looked.push(*id);
                    Done::Nothing
                }
                Op::Claim { .. } | Op::Release(_) | Op::Barrier(_) => Done::Nothing,
            });
        }
        if !looked.is_empty() {
            let there = self.engine.are_there(&looked, begun.tx()).await?;
            for (op, done) in ops.iter().zip(&mut done) {
                let Op::PromoteIfThere { id, key, .. } = op else { continue };
                if there.iter().any(|job| (job.0, &job.1) == (*id, key)) {
                    promoted.push(*id);
                } else {
                    *done = Done::Missing;
                }
            }
        }
        // Jobs before keys, in every transaction: those that were inserted are locked, too, where others have stored them.
        if !promoted.is_empty() {
            self.engine.promote(&promoted, begun.tx()).await?;
        }
        // By their keys, as every process does it: of two that have one each and want the other's, the database would fail
        // one. What is about one key stays in its order.
        let mut keyed: Vec<_> = ops.iter().zip(stored_before).zip(&mut done).collect();
        keyed.retain(|((op, before), _)| op.key().is_some() && !before);
        keyed.sort_by_key(|((op, _), _)| op.key());
        for ((op, _), done) in keyed {
            match op {
                Op::Claim { claim, .. } => {
                    let until = later_ms(self.claim);
                    *done = Done::Claimed(records::claim(claim, now_ms(), until, &mut begun.tx()).await?);
                }
                Op::Keep { kept, .. } => {
                    if let Some((claim, answer)) = &kept.answer {
                        let until = later_ms(self.keep);
                        records::answer(claim, answer, until, &mut begun.tx()).await?;
                    }
                }
                Op::Release(claim) => records::release(claim, &mut begun.tx()).await?,
                Op::Promote(_) | Op::PromoteIfThere { .. } | Op::Forget(_) | Op::Barrier(_) => {}
            }
        }
        if !forgotten.is_empty() {
            records::forget_receipts(&forgotten, &mut begun.tx()).await?;
        }
        Ok(done)
    }

    /// Which of them were stored before, by a commit whose answer never came. First of all: where that is not over yet, it is
    /// waited for.
    async fn leave_receipts(&self, ops: &[Op], begun: &mut Begun) -> Result<Vec<bool>, DurableError> {
        let receipts: Vec<_> = ops.iter().filter_map(Op::receipt).collect();
        if receipts.is_empty() {
            return Ok(vec![false; ops.len()]);
        }
        let until = later_ms(self.outlast.saturating_add(DAY));
        let new = records::leave_receipts(&receipts, until, &mut begun.tx()).await?;
        let new: HashSet<_> = new.iter().map(String::as_str).collect();
        Ok(ops.iter().map(|op| op.receipt().is_some_and(|receipt| !new.contains(receipt))).collect())
    }
}
