//! What the page knows: counts, and what is not over yet. Filled by the pool's events.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use super::{
    connections::Connections,
    entry::{At, DROPPED, FAILED, Live, PANICKED, TIMED_OUT, names, shortened},
    history::{History, Point},
    lists::{Failures, Past, Slowest},
    sheet::{Page, Row, Totals},
};
use crate::{
    event::{Event, EventKind, RequestId},
    pool::{
        Straggler,
        census::{Census, Open},
        lock,
    },
    status::ConnectionStatus,
};

/// How many pages are kept up to date at once.
const VIEWERS: usize = 16;

/// Everything that the page shows, but what it asks of the pool itself.
pub(super) struct Ledger {
    pub(super) began: Instant,
    state: Mutex<State>,
    pub(super) connections: Connections,
    pub(super) viewers: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<RequestId, Live>,
    totals: Totals,
    /// How much is where, in the order of [`At`].
    places: [u64; 5],
    requests: u64,
    jobs: u64,
    /// Those of both of which nothing but their arrival was told. That of the page's own comes to light before more is
    /// told of them, or in the same moment, unless a middleware has it wait: so they are not in the picture.
    unconfirmed: u64,
    history: History,
    slowest: Slowest,
    failures: Failures,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            state: Mutex::default(),
            connections: Connections::default(),
            viewers: Arc::new(Semaphore::new(VIEWERS)),
        }
    }

    fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// A request turns out to be one for this page: it is not counted. False if it is none of this pool's.
    pub(super) fn disregard(&self, request: RequestId) -> bool {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let Some(live) = state.live.get_mut(&request) else { return false };
        if live.at.is_some() {
            live.leave(&mut state.places);
            state.requests -= 1;
            state.unconfirmed -= u64::from(!live.confirmed);
            // Where something in front of the page has waited, it was in the picture so long.
            state.note_history(self.uptime());
        }
        true
    }

    /// What went down with its runtime never tells of its end.
    pub(super) fn lost(&self, request: RequestId) {
        let uptime = self.uptime();
        lock(&self.state).lost(request, uptime);
    }

    pub(super) fn note(&self, event: &Event) {
        let uptime = self.uptime();
        lock(&self.state).note(event, uptime);
    }

    /// What there is now, with the oldest of what is not over.
    pub(super) fn page(&self, most_rows: usize) -> Page {
        let uptime = self.uptime();
        let mut state = lock(&self.state);
        let points = state.history.points(uptime);
        let counted = state.live.values().filter_map(|live| {
            let at = live.at?;
            Some(Row { straggler: live.straggler.clone(), at, status: live.status })
        });
        Page {
            uptime,
            totals: state.totals,
            places: state.places,
            requests: state.requests,
            jobs: state.jobs,
            points,
            rows: counted.take(most_rows).collect(),
            slowest: state.slowest.iter().cloned().collect(),
            failures: state.failures.iter().cloned().collect(),
        }
    }
}

impl Census for Ledger {
    fn arrived(&self, request: RequestId, stored: bool, straggler: Weak<dyn Straggler>) {
        let live = Live {
            straggler,
            stored,
            at: Some(At::Handling),
            status: ConnectionStatus::NORMAL,
            class: None,
            confirmed: false,
            handles: !stored,
            handles_since: Duration::ZERO,
            answered: false,
            began: None,
            work: Duration::ZERO,
            faults: 0,
        };
        let mut state = lock(&self.state);
        state.places[At::Handling as usize] += 1;
        *if stored { &mut state.jobs } else { &mut state.requests } += 1;
        state.unconfirmed += 1;
        state.live.insert(request, live);
    }

    fn connected(&self, connection: Weak<dyn Open>) {
        self.connections.add(connection);
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl State {
    fn note_history(&mut self, uptime: Duration) {
        let all: u64 = self.places.iter().sum();
        let waiting = self.places[At::Waiting as usize];
        self.history.set(uptime, Point { running: all - waiting - self.unconfirmed, waiting });
    }

    fn note(&mut self, event: &Event, uptime: Duration) {
        let Self { live, totals, places, .. } = self;
        let Some(entry) = live.get_mut(&event.request()) else { return };
        if *event.kind() == EventKind::Ended {
            return self.ended(event, uptime);
        }
        // The page's own, or refused: of interest no more.
        if entry.at.is_none() || *event.kind() == EventKind::Arrived {
            return;
        }
        if !std::mem::replace(&mut entry.confirmed, true) {
            self.unconfirmed -= 1;
        }
        entry.class = event.class().or(entry.class);
        let added = event.status().difference(entry.status);
        entry.status = event.status();
        totals.aborted += u64::from(added.is_aborted());
        totals.timed_out += u64::from(added.is_timeout());
        let at = event.at();
        match event.kind() {
            EventKind::Refused => {
                totals.refused += 1;
                self.requests -= 1;
                entry.leave(places);
            }
            EventKind::HandlerStart => entry.handler_started(places, at),
            EventKind::HandedOver => {
                entry.answered = true;
                entry.go(places, At::Sending);
            }
            EventKind::Flushed { .. } => {
                totals.flushed += 1;
                entry.sent(places);
            }
            EventKind::Aborted => entry.sent(places),
            EventKind::FinishResolved => {
                // Where its client had left, its response goes nowhere.
                entry.answered = true;
                entry.sent(places);
            }
            EventKind::HandlerEnd | EventKind::HandlerDropped => entry.handler_ended(places, at),
            EventKind::ContinuationWaits => entry.go(places, At::Waiting),
            EventKind::ContinuationStart => {
                totals.continuations += 1;
                (entry.began, entry.answered) = (Some(at), true);
                entry.go(places, At::Continuing);
            }
            EventKind::ContinuationEnd => entry.continuation_ended(at),
            EventKind::ContinuationDropped => {
                totals.dropped += 1;
                entry.continuation_ended(at);
                entry.faults |= DROPPED;
            }
            EventKind::ContinuationFailed => {
                totals.failed += 1;
                entry.faults |= FAILED;
            }
            EventKind::Panicked { .. } => entry.faults |= PANICKED,
            EventKind::HookStart { .. } => entry.go(places, At::Ending),
            EventKind::BodyFailed => {
                totals.bodies_failed += 1;
                entry.faults |= FAILED;
            }
            EventKind::HookDropped { .. } => {
                totals.hooks_dropped += 1;
                entry.faults |= DROPPED;
            }
            _ => {}
        }
        self.note_history(uptime);
    }

    fn lost(&mut self, request: RequestId, uptime: Duration) {
        let Some(mut live) = self.live.remove(&request) else { return };
        if live.at.is_some() {
            live.leave(&mut self.places);
            self.unconfirmed -= u64::from(!live.confirmed);
            *if live.stored { &mut self.jobs } else { &mut self.requests } -= 1;
            self.note_history(uptime);
        }
    }

    fn ended(&mut self, event: &Event, uptime: Duration) {
        let Some(mut entry) = self.live.remove(&event.request()) else { return };
        if entry.at.is_none() {
            return;
        }
        entry.leave(&mut self.places);
        self.unconfirmed -= u64::from(!entry.confirmed);
        if entry.stored && !entry.answered {
            // Its job went back into the store: that was no attempt.
            self.jobs -= 1;
            return self.note_history(uptime);
        }
        let added = event.status().difference(entry.status);
        self.totals.aborted += u64::from(added.is_aborted());
        self.totals.timed_out += u64::from(added.is_timeout());
        if entry.stored {
            self.jobs -= 1;
            self.totals.jobs += 1;
        } else {
            self.requests -= 1;
            self.totals.ended += 1;
        }
        entry.handler_ended(&mut self.places, event.at());
        entry.continuation_ended(event.at());
        if event.status().is_timeout() {
            entry.faults |= TIMED_OUT;
        }
        let failed = entry.faults != 0;
        if failed || self.slowest.takes(entry.work) {
            let past = Past {
                route: shortened(event.route()).into(),
                class: entry.class,
                stored: entry.stored,
                status: event.status(),
                work: entry.work,
                age: event.at(),
                ended: uptime,
                faults: names(entry.faults),
            };
            if failed {
                self.failures.push(past.clone());
            }
            self.slowest.push(past);
        }
        self.note_history(uptime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Route;

    fn arrives(ledger: &Ledger) -> RequestId {
        let request = RequestId::next();
        ledger.arrived(request, false, Weak::<crate::lifecycle::Shared>::new());
        request
    }

    fn tell(ledger: &Ledger, request: RequestId, kind: EventKind) {
        tell_at(ledger, request, kind, 5);
    }

    fn tell_at(ledger: &Ledger, request: RequestId, kind: EventKind, milliseconds: u64) {
        let route = Arc::new(Route { name: "GET /".into(), method: 3, matched: false, is_job: false });
        let (status, at) = (ConnectionStatus::NORMAL, Duration::from_millis(milliseconds));
        ledger.note(&Event { request, kind, status, at, route, class: None });
    }

    fn most(page: &Page) -> u64 {
        page.points.iter().map(|point| point.running).max().unwrap()
    }

    #[test]
    fn a_request_for_the_page_is_never_in_the_picture() {
        let ledger = Ledger::new();
        let (own, other) = (arrives(&ledger), arrives(&ledger));
        tell(&ledger, own, EventKind::Arrived);
        // Before the own is known as such, something happens to the other.
        tell(&ledger, other, EventKind::HandlerStart);
        assert!(ledger.disregard(own));
        tell(&ledger, own, EventKind::HandlerStart);
        tell(&ledger, own, EventKind::Ended);
        let page = ledger.page(10);
        assert_eq!((page.requests, page.places, page.rows.len(), most(&page)), (1, [1, 0, 0, 0, 0], 1, 1));
        tell(&ledger, other, EventKind::Ended);
        assert!(!ledger.disregard(other), "it has ended");
        let page = ledger.page(10);
        assert_eq!((page.requests, page.totals.ended, page.rows.len(), most(&page)), (0, 1, 0, 1));
        assert!(lock(&ledger.state).live.is_empty());
        assert_eq!(lock(&ledger.state).unconfirmed, 0);
    }

    #[test]
    fn what_was_refused_or_never_told_of_more_is_forgotten_with_its_end() {
        let ledger = Ledger::new();
        let (refused, short) = (arrives(&ledger), arrives(&ledger));
        tell(&ledger, refused, EventKind::Refused);
        tell(&ledger, refused, EventKind::Flushed { bytes: 1 });
        tell(&ledger, refused, EventKind::Ended);
        tell(&ledger, short, EventKind::Ended);
        let page = ledger.page(10);
        assert_eq!((page.totals.refused, page.totals.flushed, page.totals.ended), (1, 0, 1));
        assert_eq!((page.requests, page.places, page.rows.len()), (0, [0; 5], 0));
        assert_eq!(lock(&ledger.state).unconfirmed, 0);
    }

    #[test]
    fn a_handler_that_runs_again_has_worked_as_long_as_both() {
        let ledger = Ledger::new();
        let request = arrives(&ledger);
        let (start, end) = (EventKind::HandlerStart, EventKind::HandlerEnd);
        for (kind, at) in [(start.clone(), 10), (end.clone(), 20), (start, 100), (end, 130), (EventKind::Ended, 200)] {
            tell_at(&ledger, request, kind, at);
        }
        assert_eq!(ledger.page(1).slowest[0].work, Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_counted_leaves_the_picture() {
        let ledger = Ledger::new();
        // It is known for the page's own only after a middleware in front of the page had waited for something.
        let (own, lost) = (arrives(&ledger), arrives(&ledger));
        tell(&ledger, own, EventKind::HandlerStart);
        assert!(ledger.disregard(own));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(ledger.page(10).points.last().unwrap().running, 0);
        tell(&ledger, lost, EventKind::HandlerStart);
        ledger.lost(lost);
        tokio::time::advance(Duration::from_secs(5)).await;
        let page = ledger.page(10);
        assert_eq!((page.requests, page.places, page.totals.ended), (0, [0; 5], 0));
        assert_eq!((lock(&ledger.state).unconfirmed, page.points.last().unwrap().running), (0, 0));
        let job = RequestId::next();
        ledger.arrived(job, true, Weak::<crate::lifecycle::Shared>::new());
        assert_eq!((ledger.page(1).requests, ledger.page(1).jobs), (0, 1));
        ledger.lost(job);
        assert_eq!((ledger.page(1).requests, ledger.page(1).jobs), (0, 0));
    }
}
