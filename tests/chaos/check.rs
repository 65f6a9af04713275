//! What must hold of every request of a round, and of the server that is left.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tower_epilogue::{
    ConnectionStatus, DrainReport, EventKind, RequestId,
    test_util::{Journal, Story},
};

use super::{
    app::{Around, Notes, Record, layer_hook},
    client::{Outcome, Outcomes},
    plan::{Answer, Plan, Protocol, Visit, plan_of},
};

/// What a round came to.
pub struct Round {
    pub arounds: Vec<Around>,
    pub notes: Notes,
    pub journal: Journal,
    pub outcomes: Outcomes,
    pub report: DrainReport,
    /// It was stopped while requests were on their way.
    pub drained_early: bool,
}

/// The counts of a round, to see that it was not empty.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: usize,
    pub flushed: usize,
    pub aborted: usize,
    pub timeout: usize,
    pub continuations: usize,
    pub hooks: usize,
    pub cut: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.flushed += other.flushed;
        self.aborted += other.aborted;
        self.timeout += other.timeout;
        self.continuations += other.continuations;
        self.hooks += other.hooks;
        self.cut += other.cut;
    }
}

impl Round {
    /// Panics if the contract does not hold.
    pub fn check(&self) -> Counts {
        let stories: HashMap<RequestId, Story> =
            self.journal.stories().into_iter().map(|story| (story.request(), story)).collect();
        let mut layer_hooks = std::mem::take(&mut *self.notes.layer_hooks.lock().unwrap());
        let records = self.notes.records();
        let outcomes: HashMap<u64, Outcome> = self.outcomes.iter().copied().collect();
        assert_eq!(outcomes.len(), self.outcomes.len(), "each request has one outcome");
        let hangs: Vec<_> = self.outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Hangs).collect();
        if let Some((number, _)) = hangs.first() {
            let (seed, story) = (self.notes.seed, records.get(number).and_then(|record| record.request));
            let (plan, visit) = (Plan::of(seed, *number), Visit::of(seed, number / 16 * 16, Duration::from_millis(1)));
            let story = story.map(|request| self.journal.story(request));
            panic!("{number} waits for ever, {:?}: {plan:#?}, {visit:#?} {story:#?}", self.arounds);
        }
        let mut counts = Counts { requests: stories.len(), cut: self.report.stragglers().len(), ..Counts::default() };
        let mut known = HashSet::new();
        let cut = |record: &Record| {
            let story = record.request.and_then(|request| stories.get(&request));
            story.is_some_and(|story| story.status().is_timeout() && story.count("flushed") == 0)
        };
        let cut: HashSet<u64> = records.iter().filter(|(_, record)| cut(record)).map(|(number, _)| *number).collect();
        for (number, record) in &records {
            let request = record.request.expect("a handler notes its request");
            let story = stories.get(&request).unwrap_or_else(|| panic!("{number} is in no story: {record:?}"));
            known.insert(request);
            let ran = layer_hooks.remove(&request).unwrap_or_default();
            let outcome = outcomes[number];
            let one = One {
                round: self,
                number: *number,
                record,
                story,
                outcome,
                layer_hooks: &ran,
                cut: &cut,
                records: &records,
            };
            one.check();
        }
        for (request, story) in &stories {
            story.assert_contract();
            counts.flushed += story.count("flushed");
            counts.aborted += usize::from(story.status().is_aborted());
            counts.timeout += usize::from(story.status().is_timeout());
            counts.continuations += story.count("continuation_start");
            counts.hooks += story.count("hook_end");
            if !known.contains(request) {
                // Its handler never began; layers may have registered hooks, which then ran once each.
                let ran = layer_hooks.remove(request).unwrap_or_default();
                assert!(self.makes_attempts() || ran == self.layers()[..ran.len()], "rule 2: {ran:?}\n{story}");
                assert_eq!(story.count("hook_end"), ran.len(), "{story}");
                assert_eq!(story.count("continuation_start"), 0, "{story}");
            }
        }
        assert!(layer_hooks.is_empty(), "hooks of requests that nobody saw: {layer_hooks:?}");
        if !self.drained_early {
            assert!(self.report.is_clean(), "rule 10: nobody is cut before the deadline: {}", self.report);
        }
        counts
    }

    fn layers(&self) -> Vec<String> {
        hooks_of(&self.arounds)
    }

    fn has(&self, is: impl Fn(&Around) -> bool) -> bool {
        self.arounds.iter().any(is)
    }

    fn makes_attempts(&self) -> bool {
        self.has(|around| matches!(around, Around::Attempts(_)))
    }

    /// The layers outside of what makes the attempts, and those inside.
    fn hooks_around_attempts(&self) -> [Vec<String>; 2] {
        let mut places = self.arounds.split(|around| matches!(around, Around::Attempts(_)));
        [(); 2].map(|()| hooks_of(places.next().unwrap_or_default()))
    }
}

fn hooks_of(arounds: &[Around]) -> Vec<String> {
    let hooks = arounds.iter().filter_map(|around| match around {
        Around::Hook(place) => Some(layer_hook(*place)),
        _ => None,
    });
    hooks.collect()
}

/// One request, from all sides.
struct One<'a> {
    round: &'a Round,
    number: u64,
    record: &'a Record,
    story: &'a Story,
    outcome: Outcome,
    layer_hooks: &'a [String],
    /// The requests whose limit broke their response off, as far as the server knew.
    cut: &'a HashSet<u64>,
    records: &'a HashMap<u64, Record>,
}

impl One<'_> {
    #[track_caller]
    fn assert(&self, holds: bool, what: &str) {
        assert!(
            holds,
            "{what}\nrequest {}: {:?}, {:?}\n{:?}\n{:?}\n{:?}\n{}{}\nbefore it, on the same connection:\n{}",
            self.number,
            self.outcome,
            Plan::of(self.round.notes.seed, self.number),
            Visit::of(self.round.notes.seed, self.number / 16 * 16, Duration::from_millis(1)),
            self.round.arounds,
            self.record,
            self.story,
            self.round.report,
            self.before(),
        );
    }

    /// What a client asked for before that.
    fn before(&self) -> String {
        let told = |number: u64| {
            let outcome = self.round.outcomes.iter().find(|(other, _)| *other == number);
            let story = self.records.get(&number).and_then(|record| record.request);
            let story = story.map_or_else(String::new, |request| self.round.journal.story(request).to_string());
            format!("{outcome:?}, {:?}\n{story}\n", Plan::of(self.round.notes.seed, number))
        };
        (self.number / 16 * 16..self.number).map(told).collect()
    }

    fn check(&self) {
        let several = self.round.makes_attempts();
        let spawns = self.round.has(|around| matches!(around, Around::Attempts(attempts) if attempts.spawns()));
        self.assert(self.record.late == 0 || spawns, "a handler begins in its request");
        self.assert(self.record.handlers == 1 || several && self.record.handlers == 2, "a handler begins once");
        if several {
            self.hooks_of_attempts();
        } else {
            self.hooks();
        }
        let ran = self.layer_hooks.len() + self.record.hooks.len();
        self.assert(self.story.count("hook_end") == ran, "rule 13: every hook is told of");
        let last = self.story.status();
        self.assert(self.record.statuses.iter().all(|status| *status == last), "rule 3: the hooks see the last status");
        self.continuations();
        self.status();
        self.order();
    }

    fn hooks(&self) {
        let mut expected = self.round.layers();
        expected.extend(self.record.registered.iter().cloned());
        let ran: Vec<_> = self.layer_hooks.iter().chain(&self.record.hooks).cloned().collect();
        if self.record.broke {
            self.assert(expected.starts_with(&ran), "rule 2: hooks in order, up to the one that stopped the rest");
        } else {
            self.assert(ran == expected, "rule 2: every hook exactly once, in order");
        }
    }

    /// Those of different attempts are in no order; a layer inside of what makes them adds its own for each.
    fn hooks_of_attempts(&self) {
        let [outside, inside] = self.round.hooks_around_attempts();
        let least = (self.record.handlers - self.record.late) as usize;
        let mut ran = self.layer_hooks.to_vec();
        ran.retain(|hook| !inside.contains(hook));
        self.assert(ran == outside, "rule 2: every hook of a layer around the attempts exactly once, in order");
        let broke = self.record.broke;
        for hook in &inside {
            let times = self.layer_hooks.iter().filter(|other| *other == hook).count();
            self.assert((times >= least || broke) && times <= 2, "rule 2: every hook of a layer once an attempt");
        }
        let (mut registered, mut ran) = (self.record.registered.clone(), self.record.hooks.clone());
        registered.sort_unstable();
        ran.sort_unstable();
        if broke {
            registered.retain(|hook| ran.contains(hook));
        }
        self.assert(registered == ran, "rule 2: every hook exactly once");
    }

    /// Whether an attempt that began answers so.
    fn answers(&self, is: impl Fn(Answer) -> bool) -> bool {
        let seed = self.round.notes.seed;
        if !self.round.makes_attempts() {
            return is(Plan::of(seed, self.number).answer);
        }
        (0..self.record.handlers).any(|attempt| is(plan_of(seed, self.number, attempt).answer))
    }

    fn breaks_off(&self) -> bool {
        self.answers(|answer| matches!(answer, Answer::BrokenStream(_) | Answer::PanickingStream(_)))
    }

    fn continuations(&self) {
        let (mut promised, mut began) = (self.record.promised.clone(), self.record.began.clone());
        // Of several, what `finish` got and what was returned after it.
        promised.sort_unstable();
        began.sort_unstable();
        self.assert(promised == began, "rule 1: what was returned runs exactly once");
        let (told, late) = (self.story.count("continuation_start"), self.record.promised_late);
        self.assert((began.len().saturating_sub(late)..=began.len()).contains(&told), "rule 13: each is told of");
    }

    fn status(&self) {
        let status = self.story.status();
        let stayed = matches!(self.outcome, Outcome::Whole(_) | Outcome::Broken);
        let in_one_moment = self.is_bodiless_on_http2() && self.left_after_the_end();
        self.assert(!stayed || !status.is_aborted() || in_one_moment, "rule 3: ABORTED, although the client stayed");
        if matches!(self.outcome, Outcome::Whole(_)) {
            // A cut comes too late for what the kernel, or on HTTP/2 the server's queue, has already.
            let late = status.is_timeout() || (in_one_moment && status.is_aborted());
            let flushed = self.story.count("flushed") == 1 || late;
            self.assert(flushed, "a response that came whole was flushed");
        }
        let limited = self.record.limited
            || self.round.has(|around| matches!(around, Around::TimeLimit(_) | Around::BusyLimit(_)))
            || !self.round.report.is_clean();
        self.assert(limited || !status.is_timeout(), "rule 3: TIMEOUT, although there was no limit");
        if self.outcome == Outcome::Broken && self.story.has(&EventKind::HandlerStart) {
            let broken = self.breaks_off();
            // Its bytes had left, and were lost on the way: a pipelined request behind it was broken off, whose bytes came when
            // its connection had been closed.
            let lost = self.story.count("flushed") == 1 && self.has_pipelined_behind();
            // The connection had ended with the response before it.
            let behind = self.is_behind_a_broken_one();
            self.assert(broken || lost || behind || status.is_timeout(), "a response is broken off for a reason");
        }
        if !self.round.makes_attempts() && self.answers(|answer| answer == Answer::Never) {
            let ended = self.story.count("handler_dropped") == 1 || self.round.has(|a| matches!(a, Around::Timeout(_)));
            self.assert(ended, "a handler that never answers was dropped");
            // Or its connection ended with the response before it.
            let known = !status.is_empty()
                || self.round.has(|around| matches!(around, Around::Timeout(_)))
                || self.is_behind_a_broken_one();
            self.assert(known, "rule 3: what ended it is known");
        }
        if status == ConnectionStatus::NORMAL && self.outcome == Outcome::Left {
            // Or its connection was closed with the response before it, which a limit cut before the client had left.
            let told = self.story.count("flushed") == 1 || self.breaks_off() || self.is_behind_a_broken_one();
            self.assert(told, "rule 3: a client that left before the flush has aborted");
        }
    }

    fn is_behind_a_broken_one(&self) -> bool {
        let first = self.number / 16 * 16;
        let visit = Visit::of(self.round.notes.seed, first, Duration::from_millis(1));
        let broken = |number| self.round.outcomes.contains(&(number, Outcome::Broken));
        // Of one that was cut the kernel may have had every byte: then its client reads it whole, and may send the next.
        let broken = |number| visit.pipelined && broken(number) || self.cut.contains(&number);
        visit.protocol == Protocol::Http11 && (first..self.number).any(broken)
    }

    fn has_pipelined_behind(&self) -> bool {
        let visit = Visit::of(self.round.notes.seed, self.number / 16 * 16, Duration::from_millis(1));
        let last = visit.requests.last().is_none_or(|(last, _)| *last == self.number);
        visit.protocol == Protocol::Http11 && visit.pipelined && !last
    }

    /// Of such a response nothing can be guarded: which came first, the flush of its head or the end of its connection, is
    /// not always to be known (see `manual::connection`).
    fn is_bodiless_on_http2(&self) -> bool {
        let empty =
            self.answers(|answer| matches!(answer, Answer::Whole(0) | Answer::Finish(0) | Answer::Stream(_, 0)));
        // 204, and the 408 of somebody else's timeout, have no body either.
        let bodiless =
            matches!(self.outcome, Outcome::Whole(204 | 408)) || (empty && matches!(self.outcome, Outcome::Whole(200)));
        bodiless && self.is_http2()
    }

    fn is_http2(&self) -> bool {
        let first = self.number / 16 * 16;
        Visit::of(self.round.notes.seed, first, Duration::from_millis(1)).protocol == Protocol::Http2
    }

    /// Whether the abort was noticed when all of the response had been handed over.
    fn left_after_the_end(&self) -> bool {
        let names = self.story.names();
        let place = |name: &str| names.iter().position(|other| *other == name);
        place("aborted") > place("handed_over")
    }

    fn order(&self) {
        let names = self.story.names();
        let place = |name: &str| names.iter().position(|other| *other == name);
        if let (Some(flushed), Some(started)) = (place("flushed"), place("continuation_start")) {
            // At the limit nothing waits for what HTTP/2's queue has already, and it may leave all the same.
            let given_up = self.story.status().is_timeout() && self.is_http2();
            self.assert(flushed < started || given_up, "rule 1: a continuation starts after the flush");
        }
        if let (Some(flushed), Some(aborted)) = (place("flushed"), place("aborted")) {
            self.assert(aborted < flushed, "rule 3: a whole response is not aborted");
        }
        // Before the first of several attempts what makes them is the handler.
        let most = if self.round.makes_attempts() { self.record.handlers as usize + 1 } else { 1 };
        let all = (1..=most).contains(&self.story.count("handler_start"));
        self.assert(all, "a handler that began is told of");
    }
}
