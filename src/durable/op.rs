//! What the writer is asked to write, and by whom.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::{
    engine::{NewJob, Stored, Unique},
    error::DurableError,
    records::{Answer, Claim, Claimed},
};

/// Something to write.
pub(super) enum Op {
    Claim {
        claim: Claim,
        reply: Reply<Claimed>,
    },
    Keep {
        kept: Arc<Kept>,
        reply: Reply<Vec<Stored>>,
    },
    Release(Claim),
    /// [Receipts](Kept::receipt) that nobody will ask for any more.
    Forget(Vec<String>),
    Promote(Vec<i64>),
    /// One that was stored in a transaction of the user's. That may never have been committed, so that it is not there, or
    /// another has its number by now.
    PromoteIfThere {
        id: i64,
        key: String,
        /// Of the request that promised it.
        route: Option<String>,
    },
    /// Answered when all before it has been written.
    Barrier(oneshot::Sender<()>),
}

/// Jobs, and the answer that is given for them: all or nothing.
pub(super) struct Kept {
    pub(super) jobs: Vec<NewJob>,
    pub(super) answer: Option<(Claim, Answer)>,
    /// A name of its own, for what is tried again: it is stored with it, and never twice.
    pub(super) receipt: Option<String>,
}

#[cfg(test)]
impl Kept {
    /// One job with so large a payload.
    pub(super) fn of_a_test(bytes: usize) -> Self {
        let job = NewJob {
            kind: "large",
            key: String::new(),
            unique: Unique::No,
            payload: "x".repeat(bytes),
            limit: Duration::ZERO,
            max_attempts: 1,
            wait: Duration::ZERO,
            from: String::new(),
        };
        Self { jobs: vec![job], answer: None, receipt: None }
    }
}

impl Kept {
    /// How much it has the database told, more or less.
    pub(super) fn bytes(&self) -> usize {
        let answer = self.answer.as_ref().map_or(0, |(_, answer)| answer.body.len());
        self.jobs.iter().map(|job| job.payload.len()).sum::<usize>() + answer
    }
}

/// Who waits for an answer, and the room in the queue that is taken until there is one.
pub(super) struct Reply<T> {
    to: oneshot::Sender<Result<T, DurableError>>,
    /// None for those whom nobody can be told of: they wait for as long as it takes. Given back when this is dropped.
    room: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl<T> Reply<T> {
    pub(super) fn new(to: oneshot::Sender<Result<T, DurableError>>, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { to, room, since: Instant::now() }
    }

    fn has_waited(&self, time: Duration) -> bool {
        self.room.is_some() && self.since.elapsed() >= time
    }

    /// Gives the answer back where nobody waits for it.
    pub(super) fn send(self, answer: Result<T, DurableError>) -> Result<(), Result<T, DurableError>> {
        self.to.send(answer)
    }
}

impl Op {
    pub(super) fn kept(&self) -> Option<&Kept> {
        if let Self::Keep { kept, .. } = self { Some(kept) } else { None }
    }

    pub(super) fn receipt(&self) -> Option<&str> {
        self.kept().and_then(|kept| kept.receipt.as_deref())
    }

    /// The client's key that it is about.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Claim { claim, .. } | Self::Release(claim) => Some(&claim.key),
            Self::Keep { kept, .. } => kept.answer.as_ref().map(|(claim, _)| claim.key.as_str()),
            Self::Forget(_) | Self::Promote(_) | Self::PromoteIfThere { .. } | Self::Barrier(_) => None,
        }
    }

    /// How much it has the database told, more or less.
    pub(super) fn bytes(&self) -> usize {
        self.kept().map_or(0, Kept::bytes)
    }

    /// Whether somebody has waited for it for so long.
    pub(super) fn has_waited(&self, time: Duration) -> bool {
        match self {
            Self::Claim { reply, .. } => reply.has_waited(time),
            Self::Keep { reply, .. } => reply.has_waited(time),
            Self::Release(_) | Self::Forget(_) | Self::Promote(_) | Self::PromoteIfThere { .. } | Self::Barrier(_) => {
                false
            }
        }
    }
}

/// How many requests may wait to be written: of a database that does not answer for minutes, and of requests that have
/// given up, there would be no end.
pub(super) const ROOM: usize = 10_000;

/// The engine refuses a key that comes twice in what it is given at once: the second is the first then. Gives also where in
/// it each job is, and whether it is there for another.
pub(super) fn once_each(jobs: &[&NewJob]) -> (Vec<NewJob>, Vec<(usize, bool)>) {
    let keyed = jobs.iter().map(|job| (job.unique != Unique::No).then_some((job.kind, job.key.as_str())));
    let mut sorted: Vec<_> = keyed.zip(0..).collect();
    // As every process does it: of two that have one each and want the other's, the database would fail one.
    sorted.sort();
    let (mut firsts, mut places) = (Vec::<NewJob>::new(), vec![(0, false); jobs.len()]);
    let mut last = None;
    for (key, at) in sorted {
        let again = key.is_some() && key == last;
        if !again {
            firsts.extend(jobs.get(at).map(|job| NewJob::clone(job)));
        }
        if let Some(place) = places.get_mut(at) {
            *place = (firsts.len().saturating_sub(1), again);
        }
        last = key;
    }
    (firsts, places)
}
