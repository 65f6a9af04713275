//! What can go wrong with the store.

use std::{error::Error as StdError, fmt};

use axum_core::response::{IntoResponse, Response};

use super::idempotency;
use crate::pool::caught;

/// The store failed, or something cannot be stored.
///
/// Its `Display` says what to do, and the cause. The cause is available from [`get_ref`](Self::get_ref), but not as
/// `source`, so that it is not printed twice. As a response it is a 503 with `Retry-After` if it
/// [`is_unavailable`](Self::is_unavailable), and a 500 otherwise; it is logged, and tells the client nothing of the
/// cause. If a job that a handler *returns* cannot be stored, the handler does not see the error:
/// [`DurableLayer`](super::DurableLayer) answers with a 503 by itself.
pub struct DurableError {
    kind: Kind,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The store does not answer.
    Unavailable,
    /// SQLite: the file cannot be opened; also where the process may open no more of them.
    CannotOpen,
    /// SQLite: somebody else holds the write lock.
    Locked,
    /// Postgres: two transactions stood in each other's way, and this one was undone.
    Conflict,
    /// Postgres lets the store's user in no more.
    Refused,
    /// The disk, or the file system's quota, is full.
    Full,
    /// Tables are missing or older than this crate's.
    Schema(String),
    /// This job cannot be stored.
    Invalid(String),
    /// The settings contradict each other, or the engine.
    Settings(String),
    /// The job runs no more, or not here.
    NotRunning,
    NoSuchJob(i64),
    /// The claim on an idempotency key was lost to another process.
    ClaimLost,
    /// The store's task has ended with its runtime, or its connections are closed for good.
    Stopped,
    Other,
}

impl DurableError {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, cause: None }
    }

    pub(super) fn because(kind: Kind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, cause: Some(cause.into()) }
    }

    /// One of many requests that failed together gets its own copy; the cause is told once, in the log.
    pub(super) fn share(&self) -> Self {
        Self { kind: self.kind.clone(), cause: self.cause.as_ref().map(|cause| cause.to_string().into()) }
    }

    /// It says which file it is about.
    #[cfg(feature = "durable-sqlite")]
    pub(super) fn at(mut self, file: &std::path::Path) -> Self {
        self.cause = self.cause.map(|cause| format!("{}: {cause}", file.display()).into());
        self
    }

    /// The error of the database or the engine, if that is the cause; for requests that failed together, only its
    /// text.
    #[must_use]
    pub fn get_ref(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// The store did not answer or could not write: a retry may succeed.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        use Kind::{CannotOpen, Conflict, Full, Locked, Refused, Stopped, Unavailable};
        matches!(self.kind, Unavailable | CannotOpen | Locked | Conflict | Refused | Full | Stopped)
    }

    /// Nothing of the transaction was done, for no fault of its own.
    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self.kind, Kind::Conflict)
    }

    /// It may succeed when it is tried again here.
    pub(super) fn may_pass(&self) -> bool {
        self.is_unavailable() && self.kind != Kind::Stopped
    }

    /// Another connection held SQLite's write lock for longer than the
    /// [`busy_timeout`](super::DurableBuilder::busy_timeout).
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        matches!(self.kind, Kind::Locked)
    }

    /// The disk is full.
    #[must_use]
    pub const fn is_disk_full(&self) -> bool {
        matches!(self.kind, Kind::Full)
    }

    /// Tables are missing or too old: see [`DurableBuilder::migrate`](super::DurableBuilder::migrate).
    #[must_use]
    pub const fn is_schema(&self) -> bool {
        matches!(self.kind, Kind::Schema(_))
    }
}

impl fmt::Display for DurableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Unavailable => f.write_str("the store of durable jobs does not answer: is its database up?")?,
            Kind::CannotOpen => f.write_str(
                "the store of durable jobs cannot open its file: its directory has to exist, and this process needs \
                 permission to write there and to open more files",
            )?,
            Kind::Locked => f.write_str(
                "the store of durable jobs is locked: another connection has held SQLite's write lock for longer than \
                 the busy timeout; look for a long transaction on its file",
            )?,
            Kind::Conflict => f.write_str(
                "the store of durable jobs rolled back a transaction that conflicted with another one: try it again",
            )?,
            Kind::Refused => f.write_str(
                "the database of the store of durable jobs refuses its user: are its name and password right, and may it \
                 log in?",
            )?,
            Kind::Full => f.write_str("the store of durable jobs cannot write: its disk is full")?,
            Kind::Schema(what) => write!(
                f,
                "the tables of the store of durable jobs are missing or too old ({what}): run the migration once, \
                 with `DurableBuilder::migrate`"
            )?,
            Kind::Invalid(what) => write!(f, "a durable job cannot be stored: {what}")?,
            Kind::Settings(what) => write!(f, "the settings of the store of durable jobs are wrong: {what}")?,
            Kind::NotRunning => f.write_str(
                "the job is no longer running: it passed its limit, and another attempt may have completed it",
            )?,
            Kind::NoSuchJob(id) => write!(
                f,
                "the store of durable jobs has no job {id}: it was deleted, or is in another store"
            )?,
            Kind::ClaimLost => f.write_str("another process has taken over the request's idempotency key: its response is the one that counts")?,
            Kind::Stopped => f.write_str("the store of durable jobs has stopped, because its runtime has ended or its pool was closed")?,
            Kind::Other => f.write_str("the store of durable jobs failed")?,
        }
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for DurableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableError").field("kind", &self.kind).field("cause", &self.cause).finish()
    }
}

// Its `Display` has the cause already, which whoever prints its sources would read twice.
impl StdError for DurableError {}

impl IntoResponse for DurableError {
    fn into_response(self) -> Response {
        caught::tell(
            || tracing::error!(error = %self, "a handler responded with an error of the store of durable jobs"),
        );
        if self.is_unavailable() { idempotency::not_stored() } else { idempotency::not_storable() }
    }
}

#[cfg(test)]
mod tests {
    use http::{StatusCode, header::RETRY_AFTER};

    use super::*;

    #[test]
    fn whoever_prints_it_with_its_sources_reads_its_cause_once() {
        use riverqueue::sqlx;
        let refused = || std::io::Error::other("connection refused");
        for error in [
            DurableError::from(sqlx::Error::Io(refused())),
            DurableError::from(sqlx::Error::Io(refused())).share(),
            DurableError::because(Kind::Other, refused()),
        ] {
            let chain = std::iter::successors(Some(&error as &dyn StdError), |&error| error.source());
            let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            assert_eq!(text.matches("connection refused").count(), 1, "{text}");
        }
    }

    #[test]
    fn as_a_response_it_says_whether_to_come_again_and_nothing_of_its_cause() {
        let down = DurableError::because(Kind::Unavailable, "postgres://shop:secret@db");
        let response = down.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        // What no later attempt can mend.
        let wrong = DurableError::because(Kind::Other, "no such table: orders").into_response();
        assert_eq!(wrong.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!wrong.headers().contains_key(RETRY_AFTER));
    }
}
