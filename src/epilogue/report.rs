//! What a drain had to leave behind (contract rule 10).

use std::{fmt, time::Duration};

use crate::pool::Description;

/// So many are named in its text: very many would make of it a record that no log takes.
const NAMED: usize = 100;

/// What a drain found still running at its deadline, and cut.
///
/// Its `Display` names the oldest hundred requests that were cut, and the number of the rest.
/// [`stragglers`](Self::stragglers) has all of them; each that was not already running its hooks was also logged
/// individually.
#[derive(Clone, Debug, Default)]
pub struct DrainReport {
    pub(super) stragglers: Vec<Straggler>,
    pub(super) stored: Option<u64>,
    pub(super) closed: usize,
}

impl DrainReport {
    /// Whether everything ended by itself: no request was cut, and no connection closed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.stragglers.is_empty() && self.closed == 0
    }

    /// What was cut, the oldest first.
    #[must_use]
    pub fn stragglers(&self) -> &[Straggler] {
        &self.stragglers
    }

    /// How many connections had to be closed one [hook limit](crate::EpilogueBuilder::hook_limit) after the deadline,
    /// when every request on them had ended or been cut: kept open by an upgrade on HTTP/2 (RFC 8441), or by a client
    /// that had not yet read its last response, or did not close its connection.
    #[must_use]
    pub fn closed_connections(&self) -> usize {
        self.closed
    }

    /// How many durable jobs stay stored, for the next start of this process or for another running one: those that
    /// were cut, that wait for a retry, or that were not started. `None` without durable jobs, or if one of their
    /// stores does not answer within 2 s.
    #[must_use]
    pub fn stored_jobs(&self) -> Option<u64> {
        self.stored
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            f.write_str("drained: everything ended by itself")?;
        } else if self.stragglers.is_empty() {
            f.write_str("drained: every request ended by itself")?;
        } else {
            write!(f, "drained with {} cut:", self.stragglers.len())?;
            for (place, straggler) in self.stragglers.iter().take(NAMED).enumerate() {
                write!(f, "{} {straggler}", if place > 0 { ";" } else { "" })?;
            }
            if let Some(more) = self.stragglers.len().checked_sub(NAMED).filter(|more| *more > 0) {
                write!(f, "; and {more} more")?;
            }
        }
        match self.closed {
            0 => {}
            1 => f.write_str(" (1 connection was closed)")?,
            connections => write!(f, " ({connections} connections were closed)")?,
        }
        match self.stored {
            Some(1) => f.write_str(" (1 durable job stays stored)"),
            Some(jobs @ 2..) => write!(f, " ({jobs} durable jobs stay stored)"),
            _ => Ok(()),
        }
    }
}

/// One request that a drain's deadline cut.
#[derive(Clone, Debug)]
pub struct Straggler {
    route: String,
    class: Option<&'static str>,
    age: Duration,
    phase: &'static str,
    stored: bool,
}

impl From<Description> for Straggler {
    fn from(Description { route, class, age, phase, stored }: Description) -> Self {
        Self { route, class, age, phase, stored }
    }
}

impl Straggler {
    /// Its method and matched route, or path: `POST /orders`.
    #[must_use]
    pub fn route(&self) -> &str {
        &self.route
    }

    /// The [class](crate::Continuation::class) of its continuation that was running, or waiting to run.
    #[must_use]
    pub fn class(&self) -> Option<&str> {
        self.class
    }

    /// The time from its arrival to the cut.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }

    /// The [phase](crate::Phase) in which it was cut: `handling`, `sending`, `continuing` or `ending`.
    #[must_use]
    pub fn phase(&self) -> &str {
        self.phase
    }

    /// Whether it is a durable job, which stays stored and runs again. Its route is then `JOB /` followed by its
    /// kind.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.stored
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored = if self.stored { ", stays stored" } else { "" };
        let class = self.class.map(|class| format!("class {class}, ")).unwrap_or_default();
        write!(f, "{} ({class}{}, {:.1} s old{stored})", self.route, self.phase, self.age.as_secs_f64())
    }
}
