//! What the ledger gives out.

use std::{sync::Weak, time::Duration};

use super::{entry::At, history::Point, lists::Past};
use crate::{pool::Straggler, status::ConnectionStatus};

/// What only ever grows. Requests that were refused are in `refused` alone, the page's own nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// Requests that were accepted and have ended.
    pub(super) ended: u64,
    pub(super) refused: u64,
    pub(super) flushed: u64,
    pub(super) aborted: u64,
    pub(super) timed_out: u64,
    /// Continuations that were started.
    pub(super) continuations: u64,
    /// Those that were dropped before their end.
    pub(super) dropped: u64,
    /// Those that returned an error.
    pub(super) failed: u64,
    /// Responses whose body gave an error.
    pub(super) bodies_failed: u64,
    /// Hooks that ran out of their own time.
    pub(super) hooks_dropped: u64,
    /// Attempts at durable jobs that have ended.
    pub(super) jobs: u64,
}

/// One row of what is not over.
pub(super) struct Row {
    pub(super) straggler: Weak<dyn Straggler>,
    pub(super) at: At,
    pub(super) status: ConnectionStatus,
}

/// What the ledger holds at one moment.
pub(super) struct Page {
    pub(super) uptime: Duration,
    pub(super) totals: Totals,
    pub(super) places: [u64; 5],
    pub(super) requests: u64,
    pub(super) jobs: u64,
    pub(super) points: Vec<Point>,
    /// The oldest first.
    pub(super) rows: Vec<Row>,
    pub(super) slowest: Vec<Past>,
    pub(super) failures: Vec<Past>,
}
