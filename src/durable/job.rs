//! What a user writes: [`DurableJob`], and how a run of it can fail: [`JobError`].

use std::{error::Error as StdError, fmt, future::Future, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::JobContext;
use crate::pool::chain;

/// Work that is stored before the response leaves, and that runs after it, in this process or another.
///
/// The value itself is what is stored (as JSON). It should hold what the work needs and nothing else; what lives in
/// the process (a mailer, a pool) comes from [`JobContext::state`].
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_epilogue::durable::{DurableJob, JobContext, JobError};
///
/// #[derive(Serialize, Deserialize)]
/// struct Welcome {
///     to: String,
///     #[serde(default)] // a field that later versions added
///     language: Option<String>,
/// }
///
/// impl DurableJob for Welcome {
///     const KIND: &'static str = "welcome_mail";
///
///     async fn run(self, cx: JobContext) -> Result<(), JobError> {
///         println!("mail to {} with key {}", self.to, cx.idempotency_key());
///         Ok(())
///     }
/// }
/// ```
///
/// # At least once
///
/// A process can die after an effect and before it is recorded. Then the job runs again, with the same
/// [`idempotency_key`](JobContext::idempotency_key): pass it to whatever the job calls.
pub trait DurableJob: Serialize + DeserializeOwned + Send + 'static {
    /// The name under which jobs of this type are stored: 1 to 64 characters, words of lower-case letters and digits
    /// that are separated by a single `_` or `-`. It must stay the same as long as any of them is stored.
    const KIND: &'static str;

    /// How often it is tried before it is given up on, including the first attempt; 20 by default.
    const MAX_ATTEMPTS: u16 = 20;

    /// How long one attempt may take, from the moment it has its place; 60 s by default. Then it is dropped at its
    /// next `.await`, and counts as failed. There is always a limit: work without one could not be told from work
    /// whose process has died. A running attempt cannot change it.
    const LIMIT: Duration = Duration::from_secs(60);

    /// How many of this kind run at once in one process; 16 by default, 10,000 at most, and no more than the bounds
    /// of the [`Epilogue`](crate::Epilogue) allow.
    const CONCURRENCY: usize = 16;

    /// The [class](crate::Continuation::class) of its attempts, for logs and reports, and for the bound of that
    /// [class](crate::EpilogueBuilder::class), if there is one, which they share with continuations; none by default.
    const CLASS: Option<&'static str> = None;

    /// How long after the failure of attempt number `attempt` (from 1) the next one starts: by default 2 s, 4 s, 8 s
    /// and so on, up to 1 h. Up to a tenth is added or subtracted at random, so that jobs that failed together are
    /// not retried together.
    #[must_use]
    fn backoff(attempt: u16) -> Duration {
        default_backoff(attempt)
    }

    /// Runs one attempt.
    ///
    /// # Errors
    ///
    /// After an error or a panic the job is retried later, unless the error is [`JobError::give_up`].
    ///
    /// # Cancel safety
    ///
    /// It is dropped at its limit, and at a drain's deadline, at its next `.await`; it then runs again.
    fn run(self, cx: JobContext) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// What is wrong with a [`DurableJob::KIND`].
pub(super) fn kind_error(kind: &str) -> Option<String> {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits = kind.len() <= 64 && kind.split(['_', '-']).all(is_word);
    (!fits).then(|| {
        format!(
            "{kind:?} cannot be a `KIND`: it is 1 to 64 lower-case letters and digits, in words that single `_` or `-` \
             separate"
        )
    })
}

pub(super) fn default_backoff(attempt: u16) -> Duration {
    Duration::from_secs(2u64.saturating_pow(u32::from(attempt.clamp(1, 12))).min(3600))
}

/// Why an attempt failed. `?` converts any error into one, after which the job is retried.
pub struct JobError {
    pub(super) cause: Box<dyn StdError + Send + Sync>,
    pub(super) then: Then,
}

/// What becomes of a job whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Tried again after its kind's back-off.
    Retry,
    /// Tried again after so long.
    RetryAfter(Duration),
    GiveUp,
}

impl JobError {
    /// The job is retried after `delay` instead of the kind's back-off: for example, as a `Retry-After` header asked
    /// for.
    pub fn retry_after(cause: impl Into<Box<dyn StdError + Send + Sync>>, delay: Duration) -> Self {
        Self { cause: cause.into(), then: Then::RetryAfter(delay) }
    }

    /// The job is not retried, because no later attempt could succeed. It is discarded and reported, as after its
    /// last attempt.
    pub fn give_up(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { cause: cause.into(), then: Then::GiveUp }
    }

    /// The cause, with its sources.
    pub(super) fn chain(&self) -> String {
        chain(&*self.cause)
    }
}

// `JobError` itself is no `Error`, so that every error can become one.
impl<E> From<E> for JobError
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn from(cause: E) -> Self {
        Self { cause: cause.into(), then: Then::Retry }
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobError").field("cause", &self.chain()).field("then", &self.then).finish()
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_backoff_doubles_up_to_an_hour() {
        let seconds: Vec<_> = [0, 1, 2, 3, 11, 12, 20].map(|attempt| default_backoff(attempt).as_secs()).into();
        assert_eq!(seconds, [2, 2, 4, 8, 2048, 3600, 3600]);
    }

    #[test]
    fn kinds_are_lower_case_words() {
        for kind in ["mail", "welcome_mail", "a-1", &"x".repeat(64)] {
            assert_eq!(kind_error(kind), None);
        }
        for kind in ["", "Mail", "a b", "_a", "a-", "a__b", "ä", &"x".repeat(65)] {
            assert!(kind_error(kind).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn an_error_says_its_sources() {
        let error = std::io::Error::other(std::io::Error::other("no route"));
        assert_eq!(JobError::from(error).to_string(), "no route");
        assert_eq!(JobError::give_up("card expired").then, Then::GiveUp);
    }
}
