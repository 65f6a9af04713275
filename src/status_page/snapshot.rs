//! What the page shows at one moment, as its JSON has it; HTML and OpenMetrics are made from it.

use std::{sync::atomic::Ordering, time::Duration};

use serde::Serialize;

use super::{
    entry::{At, shortened},
    ledger::Ledger,
    lists::Past,
    sheet::Row,
};
use crate::pool::{
    Description, Pool,
    bounds::{Gate, Load},
};

/// How many rows of what is not over are shown, and how many in full.
const FEW: usize = 20;
const MANY: usize = 1000;

#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    pub(super) uptime_seconds: f64,
    pub(super) draining: bool,
    pub(super) connections_open: usize,
    pub(super) requests: Requests,
    pub(super) jobs: Jobs,
    pub(super) now: Now,
    pub(super) continuations: Continuations,
    pub(super) bodies_failed: u64,
    pub(super) hooks_dropped: u64,
    pub(super) panicked: usize,
    pub(super) lost: usize,
    pub(super) bounds: Vec<BoundLoad>,
    pub(super) history: Vec<HistoryPoint>,
    pub(super) live: Vec<LiveRow>,
    /// Those that are not over and not in `live`.
    pub(super) live_left_out: u64,
    pub(super) slowest: Vec<PastRow>,
    pub(super) failures: Vec<PastRow>,
}

#[derive(Debug, Serialize)]
pub(super) struct Requests {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) in_flight: u64,
    pub(super) ended: u64,
    pub(super) flushed: u64,
    pub(super) aborted: u64,
    pub(super) timed_out: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Jobs {
    pub(super) in_flight: u64,
    pub(super) ended: u64,
}

/// How much is where.
#[derive(Debug, Serialize)]
pub(super) struct Now {
    pub(super) running: u64,
    pub(super) waiting: u64,
    pub(super) handling: u64,
    pub(super) sending: u64,
    pub(super) continuing: u64,
    pub(super) ending: u64,
    pub(super) detached: usize,
    pub(super) stuck: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Continuations {
    pub(super) started: u64,
    pub(super) dropped: u64,
    pub(super) failed: u64,
}

/// A bound of `all` continuations, of a `class`, of the `blocking` ones, or of what is `detached`.
#[derive(Debug, Serialize)]
pub(super) struct BoundLoad {
    pub(super) bound: &'static str,
    pub(super) class: Option<&'static str>,
    pub(super) max_running: usize,
    /// `None` where any number may.
    pub(super) max_waiting: Option<usize>,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) reserved: usize,
    pub(super) refused: u64,
    pub(super) over: u64,
}

/// The most in one second.
#[derive(Debug, Serialize)]
pub(super) struct HistoryPoint {
    pub(super) running: u64,
    pub(super) waiting: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LiveRow {
    pub(super) route: String,
    pub(super) class: Option<&'static str>,
    pub(super) phase: &'static str,
    pub(super) age_seconds: f64,
    pub(super) status: String,
    pub(super) durable_job: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct PastRow {
    pub(super) route: Box<str>,
    pub(super) class: Option<&'static str>,
    pub(super) work_seconds: f64,
    pub(super) age_seconds: f64,
    pub(super) ended_seconds_ago: f64,
    pub(super) status: String,
    pub(super) faults: Vec<&'static str>,
    pub(super) durable_job: bool,
}

impl Snapshot {
    pub(super) fn take(ledger: &Ledger, pool: &Pool, full: bool) -> Self {
        let page = ledger.page(if full { MANY } else { FEW });
        let count = |at: At| page.places[at as usize];
        let waiting = count(At::Waiting);
        let all: u64 = page.places.iter().sum();
        // Described without the ledger's lock. What has ended meanwhile is not there any more.
        let live: Vec<_> = page.rows.iter().filter_map(live_row).collect();
        let past = |past: &Past| past_row(past, page.uptime);
        Self {
            uptime_seconds: seconds(page.uptime),
            draining: pool.drains.is_under_way(),
            connections_open: ledger.connections.open(),
            requests: Requests {
                accepted: page.totals.ended + page.requests,
                refused: page.totals.refused,
                in_flight: page.requests,
                ended: page.totals.ended,
                flushed: page.totals.flushed,
                aborted: page.totals.aborted,
                timed_out: page.totals.timed_out,
            },
            jobs: Jobs { in_flight: page.jobs, ended: page.totals.jobs },
            now: Now {
                running: all - waiting,
                waiting,
                handling: count(At::Handling),
                sending: count(At::Sending),
                continuing: count(At::Continuing),
                ending: count(At::Ending),
                detached: pool.detached(),
                stuck: pool.stuck(),
            },
            continuations: Continuations {
                started: page.totals.continuations,
                dropped: page.totals.dropped,
                failed: page.totals.failed,
            },
            bodies_failed: page.totals.bodies_failed,
            hooks_dropped: page.totals.hooks_dropped,
            panicked: pool.panics(),
            lost: pool.lost(),
            bounds: bounds(pool),
            history: page
                .points
                .iter()
                .map(|point| HistoryPoint { running: point.running, waiting: point.waiting })
                .collect(),
            live_left_out: all.saturating_sub(page.rows.len() as u64),
            live,
            slowest: page.slowest.iter().map(past).collect(),
            failures: page.failures.iter().map(past).collect(),
        }
    }
}

fn live_row(row: &Row) -> Option<LiveRow> {
    let Description { route, class, age, phase, stored } = row.straggler.upgrade()?.describe();
    Some(LiveRow {
        route: shortened(&route),
        class,
        // The request itself knows best, but not whether its continuation waits.
        phase: if row.at == At::Waiting { "waiting" } else { phase },
        age_seconds: seconds(age),
        status: row.status.to_string(),
        durable_job: stored,
    })
}

fn past_row(past: &Past, uptime: Duration) -> PastRow {
    PastRow {
        route: past.route.clone(),
        class: past.class,
        work_seconds: seconds(past.work),
        age_seconds: seconds(past.age),
        ended_seconds_ago: seconds(uptime.saturating_sub(past.ended)),
        status: past.status.to_string(),
        faults: past.faults.clone(),
        durable_job: past.stored,
    }
}

/// That of all first.
fn bounds(pool: &Pool) -> Vec<BoundLoad> {
    let Some(bounds) = &pool.bounds else { return Vec::new() };
    let gates = bounds.all.iter().chain(&bounds.classes).map(|gate| bound_load(gate));
    let blocking = pool.threads.most.map(|most| BoundLoad {
        bound: "blocking",
        class: None,
        max_running: most.max(1),
        max_waiting: bounds.max_blocking_waiting,
        running: pool.threads.running(),
        waiting: pool.threads.waiting(),
        reserved: 0,
        refused: bounds.refused_blocking.load(Ordering::Relaxed),
        over: 0,
    });
    let detached = bounds.max_detached.map(|most| BoundLoad {
        bound: "detached",
        class: None,
        max_running: most,
        max_waiting: Some(0),
        running: pool.detached(),
        waiting: 0,
        reserved: 0,
        refused: bounds.refused_detached.load(Ordering::Relaxed),
        over: 0,
    });
    gates.chain(blocking).chain(detached).collect()
}

fn bound_load(gate: &Gate) -> BoundLoad {
    let bound = gate.bound();
    let Load { running, waiting, reserved, refused, over } = gate.load();
    BoundLoad {
        bound: if gate.class.is_some() { "class" } else { "all" },
        class: gate.class,
        max_running: bound.max_running,
        max_waiting: Some(bound.max_waiting),
        running,
        waiting,
        reserved,
        refused,
        over,
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
