//! Counts, gauges and times of all requests, through the `metrics` facade (feature `metrics`).
//!
//! Everything here is made from the [events](crate::EventKind) of requests, in the task that delivers them: what a
//! recorder costs is not paid by requests, and no recorder runs in a destructor or under a lock (contract rule 11). That
//! goes for the gauges as well: an event comes with every change of theirs, and each request's events come in order.
//!
//! Names and labels are listed in the [manual](crate::manual::observing#metrics).

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{
    Label, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{
    event::{Event, EventKind, RequestId},
    pool::{caught, lock, panic_message},
};

const REQUESTS: &str = "tower_epilogue_requests_total";
const REFUSED: &str = "tower_epilogue_refused_total";
const ABORTED: &str = "tower_epilogue_aborted_total";
const TIMED_OUT: &str = "tower_epilogue_timed_out_total";
const PANICKED: &str = "tower_epilogue_panicked_total";
const CONTINUATIONS: &str = "tower_epilogue_continuations_total";
const BODIES_FAILED: &str = "tower_epilogue_bodies_failed_total";
const HOOKS_DROPPED: &str = "tower_epilogue_hooks_dropped_total";
const ACTIVE: &str = "tower_epilogue_active_requests";
const RUNNING: &str = "tower_epilogue_running_continuations";
const WAITING: &str = "tower_epilogue_waiting_continuations";
const ARRIVAL_TO_FLUSH: &str = "tower_epilogue_arrival_to_flush_seconds";
const FLUSH: &str = "tower_epilogue_flush_seconds";
const CONTINUATION: &str = "tower_epilogue_continuation_seconds";

/// In the place of a route that no router has matched: a path would make a label of its own for each that is asked for.
const UNMATCHED: &str = "unmatched";
/// In the place of a method that is not one of the usual, as OpenTelemetry has it: it can be any token.
const OTHER: &str = "_OTHER";
/// That of attempts at durable jobs. A client that sends it sends none of the usual.
const JOB: &str = "JOB";
/// In the place of a class, for a continuation without one.
const NO_CLASS: &str = "none";

fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests and attempts at durable jobs that ended.");
    describe_counter!(REFUSED, Unit::Count, "Requests answered with a 503, because there was no place for their work.");
    describe_counter!(ABORTED, Unit::Count, "Requests whose client left before the response was flushed.");
    describe_counter!(TIMED_OUT, Unit::Count, "Requests that their time limit or a drain's deadline ended.");
    describe_counter!(PANICKED, Unit::Count, "Panics of handlers, bodies, continuations, hooks and middleware.");
    describe_counter!(CONTINUATIONS, Unit::Count, "Continuations that ended, by their outcome.");
    describe_counter!(BODIES_FAILED, Unit::Count, "Responses whose body returned an error.");
    describe_counter!(HOOKS_DROPPED, Unit::Count, "Hooks that exceeded the hook limit.");
    describe_gauge!(ACTIVE, Unit::Count, "Requests that have arrived and not ended, with all their work.");
    describe_gauge!(RUNNING, Unit::Count, "Continuations that run.");
    describe_gauge!(WAITING, Unit::Count, "Continuations that wait for a place among those that run.");
    describe_histogram!(ARRIVAL_TO_FLUSH, Unit::Seconds, "From a request's arrival until its response was flushed.");
    describe_histogram!(FLUSH, Unit::Seconds, "From a response's hand-over to the server until it was flushed.");
    describe_histogram!(CONTINUATION, Unit::Seconds, "From a continuation's start to its end.");
}

/// What has to be known of a request from one event to the next.
struct Open {
    handed_over: Option<Duration>,
    /// Under the labels that it went up with: the route may be matched meanwhile.
    waiting: Option<Labels>,
    running: Option<Running>,
    /// A continuation was started; of an attempt at a job: it is one.
    begun: bool,
}

struct Running {
    since: Duration,
    labels: Labels,
    failed: bool,
    panicked: bool,
}

type Labels = Vec<Label>;

/// Listens to the events of one pool.
pub(crate) struct Metrics {
    /// At the first event, since a recorder may be installed after an `Epilogue` was built.
    described: AtomicBool,
    /// Of the requests that have not ended.
    open: Mutex<HashMap<RequestId, Open>>,
}

/// So many requests' room is not worth giving back.
const FEW: usize = 256;

impl Metrics {
    pub(crate) fn new() -> Self {
        Self { described: AtomicBool::new(false), open: Mutex::default() }
    }

    pub(crate) fn listen(&self, event: &Event) {
        // Relaxed: events are told by one task. Once, also if that panics: it is for people alone.
        if !self.described.swap(true, Ordering::Relaxed) {
            unharmed(describe);
        }
        // No one else locks it, and recorders do not call back: but what they do is theirs, so it is not held for them.
        let mut open = match (self.take(event.request()), event.kind()) {
            (None, EventKind::Arrived) => {
                unharmed(|| gauge!(ACTIVE).increment(1.0));
                Open { handed_over: None, waiting: None, running: None, begun: false }
            }
            // It arrived before anybody listened.
            (None, _) => return,
            (Some(open), _) => open,
        };
        // What is known of it is not lost with a panic, or its gauges would never come back.
        unharmed(|| record(event, &mut open));
        if *event.kind() != EventKind::Ended {
            lock(&self.open).insert(event.request(), open);
        }
    }

    /// A request went down with its runtime: its end is never told, and its gauges come back all the same.
    pub(crate) fn lost(&self, request: RequestId) {
        let Some(mut open) = self.take(request) else { return };
        unharmed(|| {
            stop_waiting(&mut open);
            gauge!(ACTIVE).decrement(1.0);
            if let Some(running) = open.running.take() {
                gauge!(RUNNING, running.labels).decrement(1.0);
            }
        });
    }

    fn take(&self, request: RequestId) -> Option<Open> {
        let mut all = lock(&self.open);
        let open = all.remove(&request);
        // A crowd is not to keep its room when it is gone.
        if all.capacity() > FEW.max(4 * all.len()) {
            let room = 2 * all.len();
            all.shrink_to(room);
        }
        open
    }
}

/// A recorder's panic costs what is left of the event that it is told of, and nothing later (contract rule 11).
fn unharmed(tell: impl FnOnce()) {
    if let Err(payload) = caught::call(tell) {
        let panic = panic_message(&*payload);
        caught::tell(|| tracing::error!(panic, "the recorder of the `metrics` facade panicked"));
        caught::dispose(payload);
    }
}

fn record(event: &Event, open: &mut Open) {
    match event.kind() {
        EventKind::Refused => counter!(REFUSED, with_class(event)).increment(1),
        EventKind::Aborted => counter!(ABORTED, of_request(event)).increment(1),
        EventKind::Panicked { what } => {
            if let Some(running) = open.running.as_mut().filter(|_| *what == crate::event::CONTINUATION) {
                running.panicked = true;
            }
            counter!(PANICKED, with(of_request(event), "what", what)).increment(1);
        }
        EventKind::HandedOver => open.handed_over = Some(event.at()),
        EventKind::Flushed { .. } => {
            histogram!(ARRIVAL_TO_FLUSH, of_request(event)).record(event.at().as_secs_f64());
            if let Some(handed_over) = open.handed_over {
                histogram!(FLUSH, of_request(event)).record(event.at().saturating_sub(handed_over).as_secs_f64());
            }
        }
        EventKind::ContinuationWaits => {
            let labels = with_class(event);
            gauge!(WAITING, labels.clone()).increment(1.0);
            open.waiting = Some(labels);
        }
        EventKind::ContinuationStart => {
            open.begun = true;
            stop_waiting(open);
            let labels = with_class(event);
            gauge!(RUNNING, labels.clone()).increment(1.0);
            open.running = Some(Running { since: event.at(), labels, failed: false, panicked: false });
        }
        EventKind::ContinuationFailed => {
            if let Some(running) = &mut open.running {
                running.failed = true;
            }
        }
        EventKind::ContinuationEnd => stop_running(open, event, false),
        EventKind::ContinuationDropped => stop_running(open, event, true),
        EventKind::BodyFailed => counter!(BODIES_FAILED, of_request(event)).increment(1),
        EventKind::HookDropped { .. } => counter!(HOOKS_DROPPED, of_request(event)).increment(1),
        EventKind::Ended => {
            stop_waiting(open);
            gauge!(ACTIVE).decrement(1.0);
            if event.route.is_job && !open.begun {
                // It was put back into its store.
                return;
            }
            counter!(REQUESTS, of_request(event)).increment(1);
            if event.status().is_timeout() {
                counter!(TIMED_OUT, of_request(event)).increment(1);
            }
        }
        _ => {}
    }
}

fn stop_waiting(open: &mut Open) {
    if let Some(labels) = open.waiting.take() {
        gauge!(WAITING, labels).decrement(1.0);
    }
}

fn stop_running(open: &mut Open, event: &Event, dropped: bool) {
    let Some(Running { since, labels, failed, panicked }) = open.running.take() else { return };
    gauge!(RUNNING, labels.clone()).decrement(1.0);
    let outcome = match (dropped, panicked, failed) {
        (true, ..) => "dropped",
        (_, true, _) => "panicked",
        (.., true) => "failed",
        _ => "ended",
    };
    counter!(CONTINUATIONS, with(labels.clone(), "outcome", outcome)).increment(1);
    histogram!(CONTINUATION, labels).record(event.at().saturating_sub(since).as_secs_f64());
}

fn of_request(event: &Event) -> Labels {
    let route = event.matched_route().map_or(SharedString::const_str(UNMATCHED), |route| route.to_owned().into());
    let method = if event.route.is_job { JOB } else { method(event.method()) };
    vec![Label::from_static_parts("method", method), Label::new("route", route)]
}

fn with_class(event: &Event) -> Labels {
    with(of_request(event), "class", event.class().unwrap_or(NO_CLASS))
}

fn with(mut labels: Labels, name: &'static str, value: &'static str) -> Labels {
    labels.push(Label::from_static_parts(name, value));
    labels
}

fn method(method: &str) -> &'static str {
    const USUAL: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    USUAL.into_iter().find(|usual| *usual == method).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{event::Route, status::ConnectionStatus};

    #[test]
    fn what_is_known_of_a_crowd_is_forgotten_with_it() {
        let metrics = Metrics::new();
        let route = Arc::new(Route { name: "GET /".into(), method: 3, matched: false, is_job: false });
        let tell = |request: u64, kind| {
            let (status, at) = (ConnectionStatus::NORMAL, Duration::ZERO);
            metrics.listen(&Event { request: RequestId(request), kind, status, at, route: route.clone(), class: None });
        };
        (0..100_000).for_each(|request| tell(request, EventKind::Arrived));
        assert_eq!(lock(&metrics.open).len(), 100_000);
        (0..100_000).for_each(|request| tell(request, EventKind::Ended));
        let open = lock(&metrics.open);
        assert!(open.is_empty() && open.capacity() <= 1000, "{}", open.capacity());
    }
}
