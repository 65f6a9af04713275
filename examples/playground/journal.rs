//! `/journal/{id}`: what happened to a request.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use serde::Serialize;
use tower_epilogue::{Event, EventKind, RequestId};

use crate::Playground;

/// At most so many are kept, the oldest out first.
const MOST: usize = 10_000;

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    event: &'static str,
    /// Microseconds since the request's arrival.
    at_us: u128,
    /// The bits of the status at that moment.
    status: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<usize>,
}

impl From<&Event> for Entry {
    fn from(event: &Event) -> Self {
        let (mut bytes, mut hook) = (None, None);
        match *event.kind() {
            EventKind::Flushed { bytes: length } => bytes = Some(length),
            EventKind::HookStart { hook: place } | EventKind::HookEnd { hook: place } => hook = Some(place),
            _ => {}
        }
        Self { event: event.kind().name(), at_us: event.at().as_micros(), status: event.status().bits(), bytes, hook }
    }
}

/// The journals of all requests.
#[derive(Debug, Default)]
pub(crate) struct Journals(Mutex<Kept>);

/// Request ids rise, so the first of a map is the oldest.
#[derive(Debug, Default)]
struct Kept {
    journals: BTreeMap<RequestId, Journal>,
    names: HashMap<String, RequestId>,
    /// Of requests without a journal. A request's first event may come before its handler has opened one; of those
    /// that never do, such as a request for a journal, it is forgotten when they end.
    early: BTreeMap<RequestId, Vec<Entry>>,
}

#[derive(Debug)]
struct Journal {
    name: String,
    entries: Vec<Entry>,
}

impl Journals {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the journal of `request`, in place of any other of that name.
    pub(crate) fn open(&self, name: &str, request: RequestId) {
        let mut kept = self.lock();
        if let Some(other) = kept.names.insert(name.to_owned(), request) {
            kept.journals.remove(&other);
        }
        let entries = kept.early.remove(&request).unwrap_or_default();
        kept.journals.insert(request, Journal { name: name.to_owned(), entries });
        if kept.journals.len() > MOST {
            if let Some((_, oldest)) = kept.journals.pop_first() {
                kept.names.remove(&oldest.name);
            }
        }
    }

    /// The event function.
    pub(crate) fn record(&self, event: &Event) {
        // Not of what a journal lists.
        use EventKind::{Arrived, BodyFailed, HandedOver, HookDropped, Panicked};
        if matches!(event.kind(), Arrived | BodyFailed | HandedOver | Panicked { .. } | HookDropped { .. }) {
            return;
        }
        let mut kept = self.lock();
        let request = event.request();
        if let Some(journal) = kept.journals.get_mut(&request) {
            journal.entries.push(event.into());
        } else if *event.kind() == EventKind::Ended {
            kept.early.remove(&request);
        } else {
            kept.early.entry(request).or_default().push(event.into());
            if kept.early.len() > MOST {
                kept.early.pop_first();
            }
        }
    }

    fn entries(&self, name: &str) -> Option<Vec<Entry>> {
        let kept = self.lock();
        let request = kept.names.get(name)?;
        Some(kept.journals.get(request)?.entries.clone())
    }
}

/// What happened to the request of that name, so far.
pub(crate) async fn journal(
    State(playground): State<Playground>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Vec<Entry>>, (StatusCode, &'static str)> {
    // Events come a little later than they happen: an answer is never behind what its client saw.
    playground.epilogue.events_delivered().await;
    name.ok()
        .and_then(|Path(name)| playground.journals.entries(&name))
        .map(Json)
        .ok_or((StatusCode::NOT_FOUND, "There is no journal of this name."))
}
