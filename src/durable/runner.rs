//! Runs attempts in the pool of the process's [`Epilogue`](crate::Epilogue): one lifecycle for all that runs after
//! responses.

use std::{
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    hash::{BuildHasher, Hasher},
    panic::resume_unwind,
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    DurableJob, DurableStore, JobContext, JobError,
    context::State,
    engine::{Attempt, Boxed, DiscardedJob, Outcome, Runner},
    held::{Held, still_ours},
    job::{Then, default_backoff},
    store::Inner,
};
use crate::{
    continuation::Continuation,
    lifecycle::{Lifecycle, Seat},
    pool::{
        Pool, caught, panic_message,
        spans::{self, InSpan},
    },
};

type Run = Box<dyn FnOnce(JobContext) -> Boxed<'static, Result<(), JobError>> + Send>;

/// A kind of job that this process knows.
pub(super) struct KnownKind {
    decode: fn(&str) -> Result<Run, serde_json::Error>,
    backoff: fn(u16) -> Duration,
    pub(super) class: Option<&'static str>,
}

impl KnownKind {
    pub(super) fn of<J: DurableJob>() -> Self {
        Self {
            decode: |payload| {
                let job: J = serde_json::from_str(payload)?;
                Ok(Box::new(move |cx| Box::pin(async move { job.run(cx).await })))
            },
            backoff: J::backoff,
            class: J::CLASS,
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
    /// How long past its limit a job is taken to be lost.
    pub(super) grace: Duration,
}

impl fmt::Debug for JobRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobRunner").field("kinds", &self.kinds.keys()).finish_non_exhaustive()
    }
}

/// How long a job waits whose attempt failed through no fault of its own.
const RETURNED: Duration = Duration::from_secs(30);

/// The same for one that found no place: other processes may have one.
const NO_PLACE: Duration = Duration::from_secs(1);

/// No limit would be none.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// How long an attempt waits for its place. Under the default limits everything that came before it has run or ended by
/// then; so one that waits for longer does so behind work that hangs.
pub(super) fn longest_wait(grace: Duration) -> Duration {
    grace.saturating_mul(4)
}

/// Ten per cent more or less, so that what failed together is not retried together.
fn jittered(delay: Duration) -> Duration {
    // `RandomState` is seeded at random; nothing secret hangs on this.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish() % 201;
    delay.saturating_mul(u32::try_from(900 + random).unwrap_or(1000)) / 1000
}

impl Runner for JobRunner {
    fn run(&self, attempt: Attempt) -> Boxed<'_, Outcome> {
        let span = || {
            let Attempt { kind, id, attempt, from, .. } = &attempt;
            tracing::info_span!("durable_job", kind, job = id, attempt, from)
        };
        let span = spans::made(span);
        Box::pin(InSpan::new(self.attempt(attempt), span))
    }

    fn backoff(&self, kind: &str, attempt: u16) -> Duration {
        let Some(known) = self.kinds.get(kind) else { return jittered(default_backoff(attempt)) };
        // The engine asks too, from where a panic would take all other jobs with it (contract rule 11).
        jittered(caught::call(|| (known.backoff)(attempt)).unwrap_or_else(|payload| {
            caught::tell(|| {
                tracing::error!(kind, panic = panic_message(&*payload), "the back-off of a durable job panicked");
            });
            caught::dispose(payload);
            default_backoff(attempt)
        }))
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
        // The user's deserializer may panic.
        let run = match caught::call(|| (kind.decode)(&attempt.payload)) {
            Ok(Ok(run)) => run,
            Ok(Err(error)) => return undecodable(&attempt, &error.to_string()),
            Err(payload) => {
                let message = panic_message(&*payload);
                caught::dispose(payload);
                return undecodable(&attempt, &message);
            }
        };
        let seat = Seat::new(attempt.limit);
        let lifecycle = Lifecycle::of_job(pool.clone(), &attempt.kind, seat.clone());
        let completes = Arc::new(AtomicBool::new(false));
        let context = JobContext {
            id: attempt.id,
            kind: attempt.kind.clone(),
            key: attempt.key.clone(),
            attempt: attempt.attempt,
            max_attempts: attempt.max_attempts,
            deadline: Instant::now(),
            lifecycle: lifecycle.clone(),
            state: self.state.clone(),
            store: DurableStore(inner.clone(), pool),
            completes: completes.clone(),
        };
        let (ended, mut outcome) = oneshot::channel();
        let claim = Held::new(&attempt);
        let still_ours = still_ours(claim.clone(), inner.clone(), self.grace);
        let work = work(run, context, attempt.limit, still_ours, ended);
        let work = match kind.class {
            Some(class) => work.class(class),
            None => work,
        };
        if lifecycle.0.add_continuation(work).is_err() {
            return Outcome::Returned { after: RETURNED };
        }
        if let Err(after) = self.seated(&seat, &lifecycle, &inner, &attempt, &claim).await {
            return Outcome::Returned { after };
        }
        let deadline = Instant::now() + attempt.limit;
        let outcome = tokio::select! {
            biased;
            outcome = &mut outcome => outcome,
            () = attempt.cancelled.cancelled() => {
                caught::tell(|| tracing::warn!(kind = attempt.kind, job = attempt.id, "a durable job was cancelled"));
                lifecycle.set_time_limit(AT_ONCE);
                outcome.await
            }
        };
        let cancelled = attempt.cancelled.is_cancelled() && Instant::now() < deadline;
        let error = match outcome {
            Ok(Ended::Completed) => return Outcome::Completed,
            // However it failed, its engine makes it cancelled.
            Ok(Ended::Failed(_)) if cancelled => return Outcome::Returned { after: Duration::ZERO },
            Ok(Ended::Failed(error)) => error,
            Ok(Ended::Unsure) => return Outcome::Returned { after: self.meanwhile(&attempt) },
            // What a drain has cut is stored as it was, and counts no attempt. So is what was cancelled, if its engine does
            // not know better.
            Err(_) if cancelled || inner.is_stopping() && Instant::now() < deadline => {
                return Outcome::Returned { after: Duration::ZERO };
            }
            Err(_) if lifecycle.status().is_timeout() => {
                Failed::from(format!("the limit of {:?} passed", attempt.limit))
            }
            // The runtime is going away.
            Err(_) => return Outcome::Returned { after: Duration::ZERO },
        };
        // Acquire: what was done in the transaction came before.
        if completes.load(Ordering::Acquire) && self.is_completed(&inner, &attempt).await {
            let error = error.text;
            caught::tell(|| {
                tracing::warn!(error, "a durable job failed after it was completed: it is not retried");
            });
            return Outcome::Completed;
        }
        self.failed(&attempt, error)
    }

    /// Whether a job was completed in a transaction of the user's that was committed.
    async fn is_completed(&self, store: &Inner, attempt: &Attempt) -> bool {
        let job = attempt.id;
        // One that has not ended is waited for, and not for ever.
        let asked = tokio::time::timeout(self.grace / 4, store.engine.is_completed(job)).await;
        asked.ok().and_then(Result::ok).unwrap_or_else(|| {
            caught::tell(|| {
                tracing::warn!(
                    job,
                    "the store does not say whether a durable job that failed is completed; if it is, it is not retried"
                );
            });
            false
        })
    }

    /// Waits for the attempt's place (contract rule 9), and says meanwhile that it is not lost. `Err` if it goes back
    /// into the store, for so long: it has not been polled then, and never is.
    async fn seated(
        &self,
        seat: &Seat,
        lifecycle: &Lifecycle,
        store: &Inner,
        attempt: &Attempt,
        claim: &Held,
    ) -> Result<(), Duration> {
        // If the engine stops hard, nobody is left to say so.
        let _gives_up = GivesUp(lifecycle);
        let began = Instant::now();
        let (mut taken, mut lost) = (pin!(seat.taken()), false);
        loop {
            let after = tokio::select! {
                biased;
                taken = &mut taken => return if taken { Ok(()) } else { Err(Duration::ZERO) },
                () = store.stopping.cancelled() => Duration::ZERO,
                () = attempt.cancelled.cancelled() => Duration::ZERO,
                () = tokio::time::sleep(self.grace / 4) => {
                    // It is another's by now.
                    lost |= claim.hold(store, self.grace).await == Some(false);
                    if !lost && began.elapsed() < longest_wait(self.grace) && claim.age() < self.grace / 2 {
                        continue;
                    }
                    if lost { self.meanwhile(attempt) } else { NO_PLACE }
                }
            };
            if lifecycle.0.give_up_seat() {
                caught::tell(|| {
                    tracing::debug!(
                        kind = attempt.kind,
                        job = attempt.id,
                        ?after,
                        "a durable job found no place and was put back"
                    );
                });
                return Err(after);
            }
            // It was taken in this moment.
            return Ok(());
        }
    }

    /// The engine puts a job back whoever runs it: then not to be run a second time while it may still run.
    fn meanwhile(&self, attempt: &Attempt) -> Duration {
        attempt.limit.saturating_add(self.grace)
    }

    fn failed(&self, attempt: &Attempt, error: Failed) -> Outcome {
        let text = error.text;
        let last = attempt.attempt >= attempt.max_attempts;
        if !last && error.then != Then::GiveUp {
            let after = match error.then {
                Then::RetryAfter(delay) => delay,
                _ => self.backoff(&attempt.kind, attempt.attempt),
            };
            caught::tell(|| tracing::warn!(error = text, ?after, "a durable job failed and will be retried"));
            return Outcome::Failed { error: text, after };
        }
        caught::tell(|| tracing::error!(error = text, attempts = attempt.attempt, "a durable job was discarded"));
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
                caught::tell(|| {
                    tracing::error!(panic = panic_message(&*payload), "the function for discarded jobs panicked");
                });
                caught::dispose(payload);
            }
        }
        if last { Outcome::Failed { error: text, after: Duration::ZERO } } else { Outcome::GivenUp { error: text } }
    }
}

/// Gives an attempt's place up with whoever waits for it.
struct GivesUp<'a>(&'a Lifecycle);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        self.0.0.give_up_seat();
    }
}

/// What an attempt failed with. The error itself goes to the failure handler.
struct Failed {
    text: String,
    then: Then,
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self { text, then: Then::Retry }
    }
}

/// What became of an attempt that had its place.
enum Ended {
    Completed,
    Failed(Failed),
    /// It was not begun: it may be another's.
    Unsure,
}

/// One attempt, as a continuation that can fail.
fn work(
    run: Run,
    mut context: JobContext,
    limit: Duration,
    still_ours: impl Future<Output = bool> + Send + 'static,
    ended: oneshot::Sender<Ended>,
) -> Continuation {
    Continuation::try_new(async move {
        if !still_ours.await {
            let _ = ended.send(Ended::Unsure);
            return Ok(());
        }
        // Its place was found in this moment.
        context.deadline = Instant::now() + limit;
        let mut attempt = pin!(async {
            match run(context).await {
                Ok(()) => (Ended::Completed, Ok(())),
                // What the error says of itself is the user's, too.
                Err(error) => (Ended::Failed(Failed { text: error.chain(), then: error.then }), Err(error.cause)),
            }
        });
        let attempted = poll_fn(|cx| match caught::poll(attempt.as_mut(), cx) {
            Ok(polled) => polled.map(Ok),
            Err(payload) => Poll::Ready(Err(payload)),
        });
        // Nobody waits for the outcome any more if the engine has stopped hard.
        match attempted.await {
            Ok((outcome, result)) => {
                let _ = ended.send(outcome);
                result
            }
            // Said before the unwinding, which drops the sender: who waits would see no panic yet, and count no attempt.
            Err(payload) => {
                let _ = ended.send(Ended::Failed(format!("panicked: {}", panic_message(&*payload)).into()));
                resume_unwind(payload)
            }
        }
    })
}

/// A payload of another version. Not the job's fault: it stays stored, no attempt is counted, and a process that can
/// read it runs it.
fn undecodable(attempt: &Attempt, error: &str) -> Outcome {
    caught::tell(|| {
        tracing::error!(
            kind = attempt.kind,
            job = attempt.id,
            error,
            "a durable job was stored by another version of this program, and does not decode: it stays stored. Give \
         fields that were added a default (`#[serde(default)]`), or run a version that knows both"
        );
    });
    Outcome::Returned { after: RETURNED }
}
