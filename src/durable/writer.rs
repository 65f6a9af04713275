//! The one task that writes to the store: what requests want at the same moment is committed together.
//!
//! A commit waits for the disk; so one transaction for all who wait costs as much as one for each alone. It also means
//! that a request which is dropped while it waits leaves nothing half done: its job is stored, or it is not.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    error::DurableError,
    op::Op,
    records::{self, Claim, Claimed},
    writing::{Done, Over, Writing, later_ms, now_ms, surviving},
};
use crate::pool::caught;

/// How many requests share a transaction at most.
const TOGETHER: usize = 256;

/// How much they hold at most: Postgres takes no gigabyte at once, and refuses all for it.
const BYTES: usize = 16 * 1024 * 1024;

/// How long others have the database for themselves while there is much to forget.
const BREATH: Duration = Duration::from_millis(50);

pub(super) struct Writer {
    writing: Writing,
    /// How long a request waits for a database that cannot be reached.
    patience: Duration,
    /// Claims whose handlers run here, by their owners.
    held: HashMap<String, Claim>,
    /// Jobs whose requests did not wait for them: nobody else will promote them.
    orphans: Vec<i64>,
    /// Who waits until all before is written, and those are promoted.
    barriers: Vec<oneshot::Sender<()>>,
    /// Receipts of what is known to be stored: they are forgotten with what is written next.
    receipts: Vec<String>,
}

/// The next ones: those that were `left` come first. None when nobody can send any more.
async fn receive(ops: &mut mpsc::UnboundedReceiver<Op>, left: &mut VecDeque<Op>, batch: &mut Vec<Op>) -> usize {
    if left.is_empty() {
        ops.recv_many(batch, TOGETHER).await;
        left.extend(batch.drain(..));
    }
    let mut bytes = 0;
    while batch.len() < TOGETHER {
        let Some(op) = left.pop_front() else { break };
        bytes += op.bytes();
        // One that holds more than that is written alone.
        if bytes > BYTES && !batch.is_empty() {
            left.push_front(op);
            break;
        }
        batch.push(op);
    }
    batch.len()
}

impl Writer {
    pub(super) fn new(writing: Writing, patience: Duration) -> Self {
        Self {
            writing,
            patience,
            held: HashMap::new(),
            orphans: Vec::new(),
            barriers: Vec::new(),
            receipts: Vec::new(),
        }
    }

    /// Ends when nobody can send any more.
    pub(super) async fn run(mut self, mut ops: mpsc::UnboundedReceiver<Op>) {
        let mut renewal = tokio::time::interval((self.writing.claim / 3).max(Duration::from_millis(1)));
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut cleaning = tokio::time::interval(Duration::from_secs(60));
        cleaning.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut batch, mut left) = (Vec::new(), VecDeque::new());
        loop {
            tokio::select! {
                // The timers first: they are seldom due, and under load there is always something to write.
                biased;
                _ = renewal.tick() => {
                    self.renew().await;
                    // Of a database that does not answer it takes long, and what waits to be written is to have its turn.
                    renewal.reset();
                }
                _ = cleaning.tick() => {
                    if self.clean().await {
                        cleaning.reset_after(BREATH);
                    }
                }
                count = receive(&mut ops, &mut left, &mut batch) => {
                    if count == 0 {
                        return;
                    }
                    let mut batch = std::mem::take(&mut batch);
                    // What is only waited for is no reason to ask the database.
                    if batch.iter().any(|op| !matches!(op, Op::Barrier(_))) {
                        batch = self.forget(batch);
                    }
                    if let Err(error) = self.together(batch).await {
                        self.fail_behind(&mut ops, &mut left, &error);
                    }
                }
            }
            if !self.orphans.is_empty() {
                let orphans = std::mem::take(&mut self.orphans);
                // If that fails, it is told.
                let ops = self.forget(vec![Op::Promote(orphans)]);
                let _ = self.together(ops).await;
            }
            for reached in self.barriers.drain(..) {
                let _ = reached.send(());
            }
        }
    }

    /// The receipts that are to be forgotten, beside what is to be written.
    fn forget(&mut self, mut ops: Vec<Op>) -> Vec<Op> {
        if !self.receipts.is_empty() {
            ops.push(Op::Forget(std::mem::take(&mut self.receipts)));
        }
        ops
    }

    /// Writes all in one transaction; if that fails for a reason that may be one of them alone, each in its own. An error if
    /// the database is not there.
    async fn together(&mut self, ops: Vec<Op>) -> Result<(), DurableError> {
        match self.writing.write(&ops, Over::Writers).await {
            Ok(done) => self.answer(ops, done),
            Err(error) if ops.len() == 1 || error.is_unavailable() => return self.fail_all(ops, error),
            Err(_) => {
                let mut ops = ops.into_iter();
                while let Some(op) = ops.next() {
                    let alone = [op];
                    match self.writing.write(&alone, Over::Writers).await {
                        Ok(done) => self.answer(alone.into(), done),
                        Err(error) if error.is_unavailable() => {
                            return self.fail_all(alone.into_iter().chain(ops).collect(), error);
                        }
                        Err(error) => self.fail(alone.into(), &error),
                    }
                }
            }
        }
        Ok(())
    }

    fn fail_all(&mut self, ops: Vec<Op>, error: DurableError) -> Result<(), DurableError> {
        self.fail(ops, &error);
        // Who was in the way of these need not be in that of others.
        if error.is_unavailable() && !error.is_conflict() { Err(error) } else { Ok(()) }
    }

    /// Behind those that were tried in vain: who has waited for as long as they is not to wait for a turn of its own, which
    /// comes later the more there are.
    fn fail_behind(&mut self, ops: &mut mpsc::UnboundedReceiver<Op>, left: &mut VecDeque<Op>, error: &DurableError) {
        while let Ok(op) = ops.try_recv() {
            left.push_back(op);
        }
        let (late, rest): (Vec<_>, _) = std::mem::take(left).into_iter().partition(|op| op.has_waited(self.patience));
        *left = rest.into();
        if !late.is_empty() {
            self.fail(late, error);
        }
    }

    fn answer(&mut self, ops: Vec<Op>, done: Vec<Done>) {
        for (op, done) in ops.into_iter().zip(done) {
            match (op, done) {
                (Op::Claim { claim, reply }, Done::Claimed(claimed)) => {
                    if claimed == Claimed::First {
                        self.held.insert(claim.owner.clone(), claim);
                    }
                    // Whoever asked holds a guard, which releases the claim.
                    let _ = reply.send(Ok(claimed));
                }
                (Op::Keep { kept, reply }, Done::Kept(stored)) => {
                    if let Some((claim, _)) = &kept.answer {
                        self.held.remove(&claim.owner);
                    }
                    self.receipts.extend(kept.receipt.clone());
                    if let Err(Ok(stored)) = reply.send(Ok(stored)) {
                        self.orphans.extend(stored.iter().filter(|job| !job.duplicate).map(|job| job.id));
                    }
                }
                (Op::Release(claim), _) => {
                    self.held.remove(&claim.owner);
                }
                (Op::Barrier(reached), _) => self.barriers.push(reached),
                (Op::PromoteIfThere { id, route, .. }, Done::Missing) => caught::tell(|| {
                    tracing::warn!(
                        route,
                        job = id,
                        "a durable job that was to start is not in its store: the transaction that it was stored in was not \
                         committed. If it still is, the job starts when its lease ends; if not, nothing was promised"
                    );
                }),
                _ => {}
            }
        }
    }

    fn fail(&mut self, ops: Vec<Op>, error: &DurableError) {
        let requests = ops.iter().filter(|op| !matches!(op, Op::Forget(_))).count();
        caught::tell(|| tracing::error!(%error, requests, "the store of durable jobs failed"));
        for op in ops {
            match op {
                Op::Claim { reply, .. } => drop(reply.send(Err(error.share()))),
                Op::Keep { reply, .. } => drop(reply.send(Err(error.share()))),
                // It expires by itself, now that it is renewed no more.
                Op::Release(claim) => drop(self.held.remove(&claim.owner)),
                // They start when their lease ends.
                Op::Promote(_) | Op::PromoteIfThere { .. } | Op::Forget(_) => {}
                Op::Barrier(reached) => self.barriers.push(reached),
            }
        }
    }

    async fn renew(&self) {
        if self.held.is_empty() {
            return;
        }
        let renewed = async {
            let mut begun = self.writing.database.begin_writer().await?;
            records::renew(self.held.values(), later_ms(self.writing.claim), &mut begun.tx()).await?;
            begun.commit().await
        };
        if let Err(error) = surviving(renewed).await {
            caught::tell(|| tracing::warn!(%error, "claims on idempotency keys could not be renewed"));
        }
    }

    /// Whether there may be more.
    async fn clean(&mut self) -> bool {
        let receipts: Vec<_> = self.receipts.iter().map(String::as_str).collect();
        let cleaned = async {
            let mut begun = self.writing.database.begin_writer().await?;
            if !receipts.is_empty() {
                records::forget_receipts(&receipts, &mut begun.tx()).await?;
            }
            let rows = records::clean(now_ms(), &mut begun.tx()).await?;
            begun.commit().await?;
            Ok::<_, DurableError>(rows)
        };
        let rows = match surviving(cleaned).await {
            Ok(rows) => {
                self.receipts.clear();
                rows
            }
            Err(error) => {
                caught::tell(|| tracing::warn!(%error, "expired responses could not be deleted"));
                0
            }
        };
        if rows > 0 {
            caught::tell(|| tracing::debug!(rows, "expired responses were deleted"));
        }
        rows >= u64::from(records::FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::durable::op::{Kept, Reply};

    fn keep(bytes: usize) -> Op {
        let kept = Arc::new(Kept::of_a_test(bytes));
        Op::Keep { kept, reply: Reply::new(oneshot::channel().0, None) }
    }

    /// 256 of a few MiB each are more than Postgres takes in one message: it closes the connection, and all would be refused.
    #[tokio::test]
    async fn no_more_is_written_together_than_a_database_takes() {
        let (sender, mut ops) = mpsc::unbounded_channel();
        for bytes in [BYTES / 2, BYTES / 2, 1, BYTES + 1, BYTES + 1, 1] {
            sender.send(keep(bytes)).unwrap();
        }
        drop(sender);
        let (mut left, mut batches) = (VecDeque::new(), Vec::new());
        loop {
            let mut batch = Vec::new();
            match receive(&mut ops, &mut left, &mut batch).await {
                0 => break,
                count => batches.push(count),
            }
        }
        assert_eq!(batches, [2, 1, 1, 1, 1]);
    }
}
