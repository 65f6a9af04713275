//! What happened to one request, and assertions about it.

use std::fmt;

use crate::{
    event::{CONTINUATION, Event, EventKind, HANDLER, RequestId},
    status::ConnectionStatus,
};

/// What happened to one request so far, in order. A failing assertion shows all of it.
#[derive(Clone)]
pub struct Story {
    request: RequestId,
    events: Vec<Event>,
}

impl Story {
    pub(super) fn new(request: RequestId) -> Self {
        Self { request, events: Vec::new() }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The request's identifier, unique within this process.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// Its method and matched route, or path as long as no route is known; for an attempt at a durable job, `JOB /`
    /// followed by its kind.
    #[must_use]
    pub fn route(&self) -> &str {
        self.events.last().map(Event::route).unwrap_or_default()
    }

    /// Whether it is an attempt at a durable job.
    pub(super) fn is_job(&self) -> bool {
        self.events.first().is_some_and(|event| event.route.is_job)
    }

    /// Its events.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The [names](EventKind::name) of its events.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.kind().name()).collect()
    }

    /// Its status after the last event.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.events.last().map_or(ConnectionStatus::NORMAL, Event::status)
    }

    /// Whether this event has happened.
    #[must_use]
    pub fn has(&self, kind: &EventKind) -> bool {
        self.events.iter().any(|event| event.kind() == kind)
    }

    /// How many events have that [name](EventKind::name).
    ///
    /// # Panics
    ///
    /// If `name` is not the name of an event, since that would always be counted 0 times.
    #[must_use]
    #[track_caller]
    pub fn count(&self, name: &str) -> usize {
        check(name);
        self.events.iter().filter(|event| event.kind().name() == name).count()
    }

    /// Whether nothing more will happen to it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has(&EventKind::Ended)
    }

    fn first(&self, name: &str) -> Option<usize> {
        self.events.iter().position(|event| event.kind().name() == name)
    }

    fn last(&self, name: &str) -> Option<usize> {
        self.events.iter().rposition(|event| event.kind().name() == name)
    }

    fn has_panicked(&self, what: &'static str) -> bool {
        self.has(&EventKind::Panicked { what })
    }

    #[track_caller]
    fn assert(&self, holds: bool, what: impl fmt::Display) {
        assert!(holds, "{what}\n{self}");
    }

    /// What comes may change what is asserted of the end.
    #[track_caller]
    fn assert_ended(&self) {
        self.assert(self.has_ended(), "the request has not ended: wait for that first, with `settled` for example");
    }
}

/// Assertions: each panics, with the whole story, if it does not hold. Assertions about the end also panic before the
/// end.
impl Story {
    /// The whole response was flushed (contract rule 1).
    #[track_caller]
    pub fn assert_flushed(&self) {
        self.assert(self.first("flushed").is_some(), "the response should have been flushed, and was not");
    }

    /// The response was not flushed as a whole. Before the request's end, this is true of every response for a while.
    #[track_caller]
    pub fn assert_not_flushed(&self) {
        self.assert(self.first("flushed").is_none(), "the response should not have been flushed, and was");
    }

    /// The whole response was flushed, and the first continuation started after that (contract rule 1).
    #[track_caller]
    pub fn assert_flushed_before_continuation(&self) {
        self.assert_order(&["flushed", "continuation_start"]);
    }

    /// The client left before its response was flushed (contract rule 3).
    #[track_caller]
    pub fn assert_aborted(&self) {
        self.assert(self.status().is_aborted(), "the client should have aborted, and did not");
    }

    /// The status at the end was `status` (contract rule 3).
    #[track_caller]
    pub fn assert_status(&self, status: ConnectionStatus) {
        self.assert_ended();
        let seen = self.status();
        self.assert(seen == status, format_args!("the status should have been {status}, and was {seen}"));
    }

    /// The handler ran to its end, and did not panic.
    #[track_caller]
    pub fn assert_handler_ended(&self) {
        self.assert(self.first("handler_end").is_some(), "the handler should have run to its end, and did not");
        self.assert(!self.has_panicked(HANDLER), "the handler should have run to its end, and panicked");
    }

    /// The handler was dropped half-way (contract rules 4 and 6).
    #[track_caller]
    pub fn assert_handler_dropped(&self) {
        self.assert(self.first("handler_dropped").is_some(), "the handler should have been dropped, and was not");
    }

    /// `count` continuations ran in all, each to its end, and none panicked. One that returned an error has ended.
    #[track_caller]
    pub fn assert_continuations(&self, count: usize) {
        self.assert_ended();
        let (started, ended) = (self.count("continuation_start"), self.count("continuation_end"));
        self.assert(
            (started, ended) == (count, count),
            format_args!("{count} continuations should have run to their end: {started} started, {ended} ended"),
        );
        self.assert(!self.has_panicked(CONTINUATION), "the continuations should have run to their end: one panicked");
    }

    /// `count` hooks ran in all, once each and in order (contract rule 2). A hook that panicked counts.
    #[track_caller]
    pub fn assert_hooks(&self, count: usize) {
        self.assert_ended();
        let (started, ended) = (self.count("hook_start"), self.count("hook_end"));
        self.assert(
            (started, ended) == (count, count),
            format_args!("{count} hooks should have run: {started} started, {ended} ended"),
        );
    }

    /// All these events happened, the first of each name after the first of the previous name. So each name can be
    /// listed only once.
    #[track_caller]
    pub fn assert_order(&self, names: &[&str]) {
        names.iter().copied().for_each(check);
        let places: Vec<_> = names.iter().map(|name| self.first(name)).collect();
        let holds = places.iter().all(Option::is_some) && places.is_sorted_by(|one, next| one < next);
        self.assert(holds, format_args!("this should have happened in this order: {}", names.join(", ")));
    }

    /// What the [contract](crate::manual::contract) guarantees for every request, whatever became of it: it ended,
    /// once; the status only ever gained bits; its handler ended at most once; continuations ran one after the other,
    /// and each ended; the hooks ran in order, after handler, body and continuations; and a response that was flushed
    /// was not aborted.
    #[track_caller]
    pub fn assert_contract(&self) {
        let ended = self.count("ended") == 1 && self.last("ended") == Some(self.events.len() - 1);
        self.assert(ended, "a request ends once, and nothing happens after it");
        let pairs = || self.events.windows(2).map(|pair| (&pair[0], &pair[1]));
        let grows = pairs().all(|(before, after)| after.status().contains(before.status()));
        self.assert(grows, "rule 3: bits are only ever added to the status");
        self.assert(pairs().all(|(before, after)| after.at() >= before.at()), "time does not run backwards");
        let ends = self.count("handler_end") + self.count("handler_dropped");
        self.assert(ends <= self.count("handler_start"), "a handler ends once");
        self.assert(self.count("handler_start") == 0 || ends > 0, "a handler that began ends");
        self.assert_each_continuation_ends();
        self.assert_hooks_come_last();
        self.assert(self.count("flushed") <= 1 && self.count("aborted") <= 1, "a response has one fate");
        if let (Some(flushed), Some(aborted)) = (self.first("flushed"), self.first("aborted")) {
            // A continuation may wait for the client's acknowledgement: one that leaves before that has aborted.
            let waits = cfg!(feature = "acknowledged") && self.last("continuation_start") > Some(aborted);
            self.assert(aborted < flushed || waits, "rule 3: who leaves after the whole response has not aborted");
        }
        let told = self.count("aborted") == 1;
        self.assert(told == self.status().is_aborted(), "rule 3: an abort is told of when the bit is set");
    }

    fn assert_each_continuation_ends(&self) {
        let mut running = false;
        for event in &self.events {
            match event.kind() {
                EventKind::ContinuationStart => {
                    self.assert(!running, "rule 1: continuations run one after the other");
                    running = true;
                }
                EventKind::ContinuationEnd | EventKind::ContinuationDropped => {
                    self.assert(running, "rule 1: a continuation ends once");
                    running = false;
                }
                _ => {}
            }
        }
        self.assert(!running, "rule 1: a continuation that started ends");
    }

    fn assert_hooks_come_last(&self) {
        let mut expected = Vec::new();
        for hook in 0..self.count("hook_start") {
            expected.extend([EventKind::HookStart { hook }, EventKind::HookEnd { hook }]);
        }
        let is_hook = |kind: &&EventKind| matches!(kind, EventKind::HookStart { .. } | EventKind::HookEnd { .. });
        let hooks: Vec<_> = self.events.iter().map(Event::kind).filter(is_hook).collect();
        self.assert(hooks.into_iter().eq(&expected), "rule 2: hooks run one after the other, in order, once each");
        let Some(first) = self.first("hook_start") else { return };
        let before = ["handler_start", "handler_end", "handler_dropped", "body_end", "body_dropped"];
        for name in before.into_iter().chain(["continuation_start", "continuation_end", "continuation_dropped"]) {
            let in_time = self.last(name).is_none_or(|place| place < first);
            self.assert(in_time, format_args!("rule 2: no hook runs before the last {name}"));
        }
    }
}

#[track_caller]
fn check(name: &str) {
    let names = EventKind::NAMES;
    assert!(names.contains(&name), "no event is named {name:?}; these are their names: {}", names.join(", "));
}

impl fmt::Display for Story {
    /// A line for the request and its route, and one for each event: the time since its arrival, the name, the class of the
    /// continuation that it is about, the status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "request {}: {}", self.request, self.route())?;
        for event in &self.events {
            let ms = event.at().as_secs_f64() * 1000.0;
            write!(f, "  {ms:>10.3} ms  {}", event.kind().name())?;
            match event.kind() {
                EventKind::HookStart { hook } | EventKind::HookDropped { hook } | EventKind::HookEnd { hook } => {
                    write!(f, " {hook}")?;
                }
                EventKind::Flushed { bytes } => write!(f, " ({bytes} bytes of body)")?,
                EventKind::Panicked { what } => write!(f, " ({what})")?,
                _ => {}
            }
            if let Some(class) = event.class() {
                write!(f, " [{class}]")?;
            }
            if event.status().is_normal() { writeln!(f)? } else { writeln!(f, "  {}", event.status())? }
        }
        Ok(())
    }
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::{panic::catch_unwind, sync::Arc, time::Duration};

    use super::*;
    use crate::event::Route;

    /// Of what never happens, since the contract is kept: ABORTED from the event of that name on.
    fn story(kinds: &[EventKind]) -> Story {
        let request = RequestId::next();
        let mut story = Story::new(request);
        let mut status = ConnectionStatus::NORMAL;
        for kind in kinds {
            if *kind == EventKind::Aborted {
                status |= ConnectionStatus::ABORTED;
            }
            let route = Arc::new(Route { name: "GET /".into(), method: 3, matched: false, is_job: false });
            story.push(Event { request, kind: kind.clone(), status, at: Duration::ZERO, route, class: None });
        }
        story
    }

    #[test]
    fn who_leaves_after_the_whole_response_has_not_aborted() {
        use EventKind::{
            Aborted, Arrived, ContinuationEnd, ContinuationStart, Ended, Flushed, HandedOver, HandlerEnd, HandlerStart,
        };

        let around = |middle: &[EventKind]| {
            story(&[&[Arrived, HandlerStart, HandlerEnd, HandedOver], middle, &[Ended][..]].concat())
        };
        let flushed = Flushed { bytes: 1 };
        around(std::slice::from_ref(&flushed)).assert_contract();
        // Ignored, and still flushed.
        around(&[Aborted, flushed.clone()]).assert_contract();
        let late = around(&[flushed.clone(), Aborted]);
        assert!(catch_unwind(|| late.assert_contract()).is_err());
        let later = around(&[flushed, ContinuationStart, Aborted, ContinuationEnd]);
        assert!(catch_unwind(|| later.assert_contract()).is_err());
    }

    #[test]
    fn what_did_not_happen_is_in_no_order() {
        let story = story(&[EventKind::Arrived, EventKind::Ended]);
        story.assert_order(&["arrived", "ended"]);
        for names in [["handler_start", "ended"], ["ended", "handler_start"], ["ended", "arrived"]] {
            assert!(catch_unwind(|| story.assert_order(&names)).is_err(), "{names:?}");
        }
    }

    fn reason(story: &Story) -> Option<String> {
        catch_unwind(|| story.assert_contract()).err().map(|payload| *payload.downcast::<String>().unwrap())
    }

    #[test]
    fn each_part_of_the_contract_is_missed() {
        use EventKind::{
            Arrived, ContinuationEnd, ContinuationStart, Ended, Flushed, HandlerEnd, HandlerStart, HookEnd, HookStart,
        };

        let (flushed, [first, second]) =
            (Flushed { bytes: 1 }, [0, 1].map(|hook| (HookStart { hook }, HookEnd { hook })));
        for (kinds, missed) in [
            (&[Arrived][..], "a request ends once"),
            (&[Ended, Ended], "a request ends once"),
            (&[Ended, Arrived], "a request ends once"),
            (&[HandlerStart, Ended], "a handler that began ends"),
            (&[HandlerStart, HandlerEnd, HandlerEnd, Ended], "a handler ends once"),
            (&[ContinuationStart, ContinuationStart, ContinuationEnd, Ended], "one after the other"),
            (&[ContinuationEnd, Ended], "a continuation ends once"),
            (&[ContinuationStart, Ended], "a continuation that started ends"),
            (&[first.0.clone(), second.0, first.1.clone(), second.1, Ended], "hooks run one after the other"),
            (&[first.0.clone(), Ended], "hooks run one after the other"),
            (&[HandlerStart, first.0, first.1, HandlerEnd, Ended], "no hook runs before the last handler_end"),
            (&[flushed.clone(), flushed, Ended], "a response has one fate"),
        ] {
            let reason = reason(&story(kinds)).unwrap_or_default();
            assert!(reason.contains(missed), "{missed}: {reason}");
        }

        let whole = || story(&[Arrived, Ended]);
        assert_eq!(reason(&whole()), None);
        let (mut loses, mut untold, mut earlier) = (whole(), whole(), whole());
        loses.events[0].status = ConnectionStatus::TIMEOUT;
        untold.events[1].status = ConnectionStatus::ABORTED;
        earlier.events[0].at = Duration::from_secs(1);
        for (story, missed) in [
            (loses, "bits are only ever added"),
            (untold, "an abort is told of"),
            (earlier, "time does not run backwards"),
        ] {
            assert!(reason(&story).unwrap().contains(missed), "{missed}");
        }
    }
}
