//! What happened to a request, phase by phase, for logs, metrics and tests.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::status::ConnectionStatus;

/// Identifies one request within this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a request's events carry of it: made once, and once more if its route is matched after its first event.
#[derive(Debug)]
pub(crate) struct Route {
    /// The method, a space, and the matched route or the path.
    pub(crate) name: Box<str>,
    /// The length of the method.
    pub(crate) method: usize,
    pub(crate) matched: bool,
    /// It is an attempt at a durable job, and no request: a client can send that method, too.
    #[cfg_attr(not(any(feature = "metrics", feature = "test-util")), expect(dead_code, reason = "they tell it apart"))]
    pub(crate) is_job: bool,
}

/// One thing that happened to one request.
///
/// Passed to the function given to [`EpilogueBuilder::on_event`](crate::EpilogueBuilder::on_event): for each request
/// in order, from [`EventKind::Arrived`] to [`EventKind::Ended`].
#[derive(Clone)]
pub struct Event {
    pub(crate) request: RequestId,
    pub(crate) kind: EventKind,
    pub(crate) status: ConnectionStatus,
    pub(crate) at: Duration,
    pub(crate) route: Arc<Route>,
    pub(crate) class: Option<&'static str>,
}

/// By hand, with what the methods tell.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("request", &self.request)
            .field("route", &self.route())
            .field("kind", &self.kind)
            .field("class", &self.class)
            .field("status", &self.status)
            .field("at", &self.at)
            .finish()
    }
}

impl Event {
    /// The request that it happened to.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// What happened.
    #[must_use]
    pub fn kind(&self) -> &EventKind {
        &self.kind
    }

    /// The request's status right after the event.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.status
    }

    /// The time since the request's arrival; never less than that of the request's previous event.
    #[must_use]
    pub fn at(&self) -> Duration {
        self.at
    }

    /// The method and the matched route, or the path as long as no route is known: `GET /users/{id}`. It never
    /// contains a query string. Non-ASCII characters of a path are percent-encoded, as its client should have sent
    /// them.
    ///
    /// The route is known once one of this crate's layers inside the router, or the [`Lifecycle`](crate::Lifecycle)
    /// extractor, has seen the request: its first events carry the path.
    #[must_use]
    pub fn route(&self) -> &str {
        &self.route.name
    }

    /// The method, as the client sent it: it can be any token.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.route.name[..self.route.method]
    }

    /// The matched route alone, such as `/users/{id}`; `None` as long as none is known. The number of routes is
    /// bounded, so it can be a metric label.
    #[must_use]
    pub fn matched_route(&self) -> Option<&str> {
        self.route.matched.then(|| &self.route.name[self.route.method + 1..])
    }

    /// The [class](crate::Continuation::class) of the continuation that the event is about, if there is one and it
    /// has a class. For a request that [`ReserveLayer`](crate::ReserveLayer) refused: the class without room.
    #[must_use]
    pub fn class(&self) -> Option<&'static str> {
        self.class
    }
}

/// What is polled, or panicked.
pub(crate) const HANDLER: &str = "handler";
pub(crate) const BODY: &str = "body";
pub(crate) const CONTINUATION: &str = "continuation";

/// What happened: see [`Event::kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A request arrived; the first event of each.
    Arrived,
    /// The request was answered with a 503 before its handler ran, because a bound was reached. If a
    /// [`ReserveLayer`](crate::ReserveLayer) refused it, what is around that counts as the handler: its start came
    /// before, and its end follows.
    Refused,
    /// The handler (everything inside the innermost of our layers) was first polled.
    HandlerStart,
    /// The handler returned, or panicked; also after a [`finish`](crate::Lifecycle::finish).
    HandlerEnd,
    /// The handler was dropped before it returned.
    HandlerDropped,
    /// The response was handed to the server: its head, and its body, still to be polled. Not reported for a response
    /// that the server no longer waited for.
    HandedOver,
    /// A [`finish`](crate::Lifecycle::finish) resolved.
    FinishResolved,
    /// The whole response was flushed.
    Flushed {
        /// The length of its body, in bytes.
        bytes: u64,
    },
    /// The client left before its response was flushed; or, where a continuation waits for the acknowledgement,
    /// before that.
    Aborted,
    /// A body of unknown length was produced to its end.
    BodyEnd,
    /// A body of unknown length was dropped before its end.
    BodyDropped,
    /// A body returned an error: its response is broken off, or replaced by a 500 if it was held back. If it failed
    /// after the end of its request, whose slow reader had been given up on, only the log reports it.
    BodyFailed,
    /// User code panicked; the end of what panicked is reported next.
    Panicked {
        /// What panicked: `handler`, `body`, `continuation`, `hook`, `middleware`, `failure handler`, or `function on
        /// buffered bodies`.
        what: &'static str,
    },
    /// The request takes longer than [`slow_after`](crate::EpilogueBuilder::slow_after); reported once per request.
    Slow,
    /// A continuation waits for a place, because as many as allowed are running.
    ContinuationWaits,
    /// A continuation was started.
    ContinuationStart,
    /// The continuation returned an error; its end comes next.
    ContinuationFailed,
    /// The continuation returned, or panicked.
    ContinuationEnd,
    /// The continuation was dropped before its end; a blocking one was given up on.
    ContinuationDropped,
    /// A hook was started.
    HookStart {
        /// Its position in the order of running, from 0.
        hook: usize,
    },
    /// A hook exceeded the [hook limit](crate::EpilogueBuilder::hook_limit) and was dropped; its end is reported
    /// next.
    HookDropped {
        /// Its position in the order of running, from 0.
        hook: usize,
    },
    /// A hook returned, panicked, or exceeded the hook limit.
    HookEnd {
        /// Its position in the order of running, from 0.
        hook: usize,
    },
    /// Nothing more will happen to this request.
    Ended,
}

impl EventKind {
    /// Whether it is about the continuation that runs, or waits to run.
    pub(crate) fn is_of_continuation(&self) -> bool {
        match self {
            Self::ContinuationWaits
            | Self::ContinuationStart
            | Self::ContinuationFailed
            | Self::ContinuationEnd
            | Self::ContinuationDropped
            // Of a handler only if no continuation has begun.
            | Self::Slow
            // The class without room.
            | Self::Refused => true,
            Self::Panicked { what } => *what == CONTINUATION,
            _ => false,
        }
    }

    /// All that [`name`](Self::name) gives.
    #[cfg(feature = "test-util")]
    pub(crate) const NAMES: [&str; 23] = [
        "arrived",
        "refused",
        "handler_start",
        "handler_end",
        "handler_dropped",
        "handed_over",
        "finish_resolved",
        "flushed",
        "aborted",
        "body_end",
        "body_dropped",
        "body_failed",
        "panicked",
        "slow",
        "continuation_waits",
        "continuation_start",
        "continuation_failed",
        "continuation_end",
        "continuation_dropped",
        "hook_start",
        "hook_dropped",
        "hook_end",
        "ended",
    ];

    /// The event's name in snake case, for logs and metrics: `handler_start`, for example.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Refused => "refused",
            Self::HandlerStart => "handler_start",
            Self::HandlerEnd => "handler_end",
            Self::HandlerDropped => "handler_dropped",
            Self::HandedOver => "handed_over",
            Self::FinishResolved => "finish_resolved",
            Self::Flushed { .. } => "flushed",
            Self::Aborted => "aborted",
            Self::BodyEnd => "body_end",
            Self::BodyDropped => "body_dropped",
            Self::BodyFailed => "body_failed",
            Self::Panicked { .. } => "panicked",
            Self::Slow => "slow",
            Self::ContinuationWaits => "continuation_waits",
            Self::ContinuationFailed => "continuation_failed",
            Self::ContinuationStart => "continuation_start",
            Self::ContinuationEnd => "continuation_end",
            Self::ContinuationDropped => "continuation_dropped",
            Self::HookStart { .. } => "hook_start",
            Self::HookDropped { .. } => "hook_dropped",
            Self::HookEnd { .. } => "hook_end",
            Self::Ended => "ended",
        }
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::{
        Event,
        EventKind::{self, *},
        RequestId, Route,
    };
    use crate::ConnectionStatus;

    #[test]
    fn an_event_shows_what_its_methods_tell() {
        let route = Route { name: "GET /users/{id}".into(), method: 3, matched: true, is_job: false };
        let event = Event {
            request: RequestId(7),
            kind: Flushed { bytes: 5 },
            status: ConnectionStatus::ABORTED,
            at: Duration::from_millis(20),
            route: Arc::new(route),
            class: Some("mail"),
        };
        let shown = "Event { request: RequestId(7), route: \"GET /users/{id}\", kind: Flushed { bytes: 5 }, \
                     class: Some(\"mail\"), status: ABORTED, at: 20ms }";
        assert_eq!(format!("{event:?}"), shown);
    }

    #[test]
    fn every_name_is_listed() {
        let all = [
            Arrived,
            Refused,
            HandlerStart,
            HandlerEnd,
            HandlerDropped,
            HandedOver,
            FinishResolved,
            Flushed { bytes: 0 },
            Aborted,
            BodyEnd,
            BodyDropped,
            BodyFailed,
            Panicked { what: "" },
            Slow,
            ContinuationWaits,
            ContinuationStart,
            ContinuationFailed,
            ContinuationEnd,
            ContinuationDropped,
            HookStart { hook: 0 },
            HookDropped { hook: 0 },
            HookEnd { hook: 0 },
            Ended,
        ];
        // Whoever adds a kind is to add it above, too.
        let added = |kind: &EventKind| match kind {
            Arrived
            | Refused
            | HandlerStart
            | HandlerEnd
            | HandlerDropped
            | HandedOver
            | FinishResolved
            | Flushed { .. }
            | Aborted
            | BodyEnd
            | BodyDropped
            | BodyFailed
            | Panicked { .. }
            | Slow
            | ContinuationWaits
            | ContinuationStart
            | ContinuationFailed
            | ContinuationEnd
            | ContinuationDropped
            | HookStart { .. }
            | HookDropped { .. }
            | HookEnd { .. }
            | Ended => (),
        };
        all.iter().for_each(added);
        assert_eq!(all.map(|kind| kind.name()), EventKind::NAMES);
    }
}
