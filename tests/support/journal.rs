//! A journal of what happened to every request, in order.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Notify;
use tower_epilogue::{Epilogue, EpilogueBuilder, Event, EventKind, RequestId};

use super::{PATIENCE, noticed, soon};

/// What journals leave out, so that the suites list what they are about; `tests/observing` has it.
pub fn goes_without_saying(kind: &EventKind) -> bool {
    use EventKind::{Arrived, BodyFailed, HandedOver, HookDropped, Panicked};

    matches!(kind, Arrived | BodyFailed | HandedOver | Panicked { .. } | HookDropped { .. })
}

/// Everything that happened to every request, in order.
#[derive(Clone, Default)]
pub struct Journal {
    events: Arc<Mutex<Vec<Event>>>,
    pub(super) news: Arc<Notify>,
}

impl Journal {
    pub fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let journal = self.clone();
        move |event| {
            if goes_without_saying(event.kind()) {
                return;
            }
            journal.events.lock().unwrap().push(event.clone());
            journal.news.notify_waiters();
        }
    }

    pub fn epilogue(&self) -> EpilogueBuilder {
        Epilogue::builder().on_event(self.listener())
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// The requests that were seen, in order of arrival.
    pub fn requests(&self) -> Vec<RequestId> {
        let mut requests: Vec<_> = self.events().iter().map(Event::request).collect();
        requests.sort_unstable();
        requests.dedup();
        requests
    }

    /// `name/status` of each event of the only request.
    pub fn lines(&self) -> Vec<String> {
        let requests = self.requests();
        assert!(requests.len() <= 1, "more than one request: {:#?}", self.events());
        requests.first().map_or_else(Vec::new, |request| self.lines_of(*request))
    }

    pub fn lines_of(&self, request: RequestId) -> Vec<String> {
        self.events().iter().filter(|event| event.request() == request).map(line).collect()
    }

    pub async fn until(&self, what: &str, found: impl Fn(&[Event]) -> bool) {
        soon(what, noticed(&self.news, || found(&self.events.lock().unwrap()))).await;
    }

    /// Waits until `count` requests have ended.
    pub async fn ended(&self, count: usize) {
        self.ended_within(PATIENCE, count).await;
    }

    /// So with a patience of its own, as under a paused clock.
    pub async fn ended_within(&self, patience: Duration, count: usize) {
        let ended = |event: &&Event| *event.kind() == EventKind::Ended;
        let enough = || self.events.lock().unwrap().iter().filter(ended).count() >= count;
        if tokio::time::timeout(patience, noticed(&self.news, enough)).await.is_err() {
            panic!("{count} requests should have ended: {:#?}", self.events().iter().map(line).collect::<Vec<_>>());
        }
    }

    /// Waits for so many events of that name.
    pub async fn seen_times(&self, name: &str, times: usize) {
        let count = |events: &[Event]| events.iter().filter(|event| event.kind().name() == name).count();
        self.until(name, |events| count(events) >= times).await;
    }

    /// Waits for the first event of that name.
    pub async fn seen(&self, name: &str) -> Event {
        let find = |events: &[Event]| events.iter().find(|event| event.kind().name() == name).cloned();
        self.until(name, |events| find(events).is_some()).await;
        find(&self.events()).unwrap()
    }
}

pub fn line(event: &Event) -> String {
    let name = event.kind().name();
    let status = event.status().bits();
    match event.kind() {
        EventKind::HookStart { hook } | EventKind::HookEnd { hook } => format!("{name}:{hook}/{status}"),
        EventKind::Flushed { bytes } => format!("{name}:{bytes}/{status}"),
        _ => format!("{name}/{status}"),
    }
}

/// When the only request's first event of that name came.
pub fn at(journal: &Journal, name: &str) -> Duration {
    let event = journal.events().into_iter().find(|event| event.kind().name() == name);
    event.unwrap_or_else(|| panic!("{name}: {:?}", journal.lines())).at()
}
