//! What nobody can be told of that it was not stored: it outlasts an outage of the database.
//!
//! It is tried again apart from the writer, over other connections, one at a time: nobody waits for it who has something else
//! stored. It has a receipt from its first attempt on, since of a commit whose answer never came nobody knows what became.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    engine::{NewJob, Stored},
    error::{DurableError, Kind},
    op::{Kept, Op, Reply},
    records::{Answer, Claim},
    store::{Inner, random_name},
    writing::{Done, Over, Writing},
};
use crate::pool::caught;

/// The pause after the first attempt that fails, and that after many.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How much waits at most, in KiB: an outage of hours is not to use up the memory.
const ROOM: u32 = 64 * 1024;

/// How long an attempt has its turn: it may hang.
const TURN: Duration = Duration::from_secs(30);

/// What one of them takes at least, with all that waits for it.
const LEAST: u32 = 4;

pub(super) struct Outlasting {
    /// Zero: not at all.
    time: Duration,
    room: Arc<Semaphore>,
    /// Whose turn it is, and the pause before it: one at a time finds out whether the database is back.
    turn: Arc<Mutex<Duration>>,
}

impl Outlasting {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, room: Arc::new(Semaphore::new(ROOM as usize)), turn: Arc::default() }
    }

    /// Room for one that waits.
    fn room(&self, kept: &Kept) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(kept.bytes() / 1024).unwrap_or(u32::MAX);
        // One that is larger than all the room waits where nothing else does.
        self.room.clone().try_acquire_many_owned(kib.saturating_add(LEAST).min(ROOM)).ok()
    }
}

/// What was not stored.
pub(super) struct Unstored {
    pub(super) error: DurableError,
    /// If it is to [outlast](Inner::outlast) that.
    pub(super) again: Option<Again>,
}

/// The name of a receipt, which no hash of a client's key has.
fn receipt() -> String {
    format!("stored:{}", random_name())
}

/// What is to be tried again, and the room that it takes.
pub(super) struct Again(Arc<Kept>, #[expect(dead_code, reason = "it is given back with it")] OwnedSemaphorePermit);

impl Inner {
    /// Stores a lease ahead what nobody can be told of, or perhaps, as `is_untold` says once it has failed. Dropped before it is
    /// done, it is stored, or not, and started all the same.
    pub(super) async fn store_untold(
        &self,
        jobs: Vec<NewJob>,
        answer: Option<(Claim, Answer)>,
        room: Option<OwnedSemaphorePermit>,
        is_untold: impl FnOnce() -> bool + Send,
    ) -> Result<Vec<Stored>, Unstored> {
        let outlasts = !self.outlasting.time.is_zero();
        let kept = self.kept(jobs, answer, outlasts.then(receipt));
        self.ask(kept.clone(), room).await.map_err(|error| {
            if !outlasts || !error.may_pass() || !is_untold() {
                return Unstored { error, again: None };
            }
            let Some(room) = self.outlasting.room(&kept) else {
                let full = format!("{error}, and as much as there is room for waits to be tried again");
                return Unstored { error: DurableError::because(Kind::Unavailable, full), again: None };
            };
            Unstored { error, again: Some(Again(kept, room)) }
        })
    }

    /// Tries it again until it is stored, or its time is over. Dropped, it is stored, or not.
    pub(super) async fn outlast(
        &self,
        route: &str,
        again: Again,
        error: DurableError,
    ) -> Result<Vec<Stored>, DurableError> {
        // Level warn: it is late, and not lost.
        caught::tell(
            || tracing::warn!(route, %error, "a durable job was not stored, and its client cannot be told: storing it is retried"),
        );
        let (began, mut last) = (Instant::now(), error);
        let tries = async {
            loop {
                match self.try_again(&again.0).await {
                    Err(error) if error.may_pass() => last = error,
                    result => return result,
                }
            }
        };
        let Ok(result) = timeout(self.outlasting.time, tries).await else { return Err(last) };
        let stored = result?;
        caught::tell(
            || tracing::info!(route, after = ?began.elapsed(), "a durable job whose storing was retried is stored"),
        );
        if let Some((claim, _)) = &again.0.answer {
            // It is answered: there is nothing left to renew.
            self.release(claim.clone());
        }
        Ok(stored)
    }

    /// Once more, when it is its turn and the pause is over.
    async fn try_again(&self, kept: &Arc<Kept>) -> Result<Vec<Stored>, DurableError> {
        let pause = self.outlasting.turn.clone().lock_owned().await;
        sleep(*pause).await;
        #[expect(
            clippy::disallowed_methods,
            reason = "whoever waits for it may be dropped, and its connection is not to be"
        )]
        let tried = tokio::spawn(try_once(self.writing.clone(), kept.clone(), pause, self.writer.clone()));
        // As at the end of its runtime.
        tried.await.unwrap_or_else(|error| Err(DurableError::because(Kind::Other, error)))
    }
}

/// In a transaction of its own. The next one has its turn behind it: at once, if the database is back.
async fn try_once(
    writing: Writing,
    kept: Arc<Kept>,
    mut pause: OwnedMutexGuard<Duration>,
    writer: mpsc::UnboundedSender<Op>,
) -> Result<Vec<Stored>, DurableError> {
    // Whoever waits for it has the answer from here.
    let ops = [Op::Keep { kept: kept.clone(), reply: Reply::new(oneshot::channel().0, None) }];
    let mut write = pin!(async {
        let done = writing.write(&ops, Over::Others).await;
        if let (Ok(_), Some(receipt)) = (&done, &kept.receipt) {
            // It is known to be stored. With the writer gone, its receipt expires by itself.
            let _ = writer.send(Op::Forget(vec![receipt.clone()]));
        }
        done
    });
    let Ok(result) = timeout(TURN, write.as_mut()).await else {
        // It waits for somebody's lock, perhaps, which is no reason for the others to wait.
        drop(pause);
        return write.await.map(numbers);
    };
    let (first, last) = PAUSES;
    let failed = result.as_ref().is_err_and(DurableError::may_pass);
    *pause = if failed { (*pause * 2).clamp(first, last) } else { Duration::ZERO };
    result.map(numbers)
}

/// One that was stored before has no numbers here: it starts when its lease ends.
fn numbers(done: Vec<Done>) -> Vec<Stored> {
    done.into_iter().flat_map(|done| if let Done::Kept(stored) = done { stored } else { Vec::new() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_has_an_end_whatever_its_size() {
        let outlasting = Outlasting::new(Duration::MAX);
        let as_many_as_fit =
            |bytes| std::iter::from_fn(|| outlasting.room(&Kept::of_a_test(bytes))).collect::<Vec<_>>();
        assert_eq!(as_many_as_fit(0).len(), 16 * 1024);
        assert_eq!(as_many_as_fit(1024 * 1024).len(), 63);
        // Where nothing else waits.
        let large = as_many_as_fit(65 * 1024 * 1024);
        assert_eq!((large.len(), as_many_as_fit(0).len()), (1, 0));
    }
}
