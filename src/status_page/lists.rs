//! Two short lists of requests that are over: the slowest, and the last that failed.

use std::{collections::VecDeque, time::Duration};

use crate::status::ConnectionStatus;

/// How long each list is at most.
pub(super) const LENGTH: usize = 20;

/// One request, or one attempt at a durable job, that is over.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) route: Box<str>,
    pub(super) class: Option<&'static str>,
    pub(super) stored: bool,
    pub(super) status: ConnectionStatus,
    /// How long its handler and its continuations ran.
    pub(super) work: Duration,
    /// From its arrival to its end.
    pub(super) age: Duration,
    /// When it ended, since the page was switched on.
    pub(super) ended: Duration,
    /// What went wrong: empty for most.
    pub(super) faults: Vec<&'static str>,
}

/// Those whose work took longest.
#[derive(Debug, Default)]
pub(super) struct Slowest(Vec<Past>);

impl Slowest {
    pub(super) fn takes(&self, work: Duration) -> bool {
        self.0.len() < LENGTH || self.0.last().is_some_and(|last| work > last.work)
    }

    pub(super) fn push(&mut self, past: Past) {
        // Behind those that took as long.
        let place = self.0.partition_point(|other| other.work >= past.work);
        if place < LENGTH {
            self.0.truncate(LENGTH - 1);
            self.0.insert(place, past);
        }
    }

    /// The slowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Past> {
        self.0.iter()
    }
}

/// The last that failed.
#[derive(Debug, Default)]
pub(super) struct Failures(VecDeque<Past>);

impl Failures {
    pub(super) fn push(&mut self, past: Past) {
        self.0.truncate(LENGTH - 1);
        self.0.push_front(past);
    }

    /// The last first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Past> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(work: u64) -> Past {
        Past {
            route: format!("GET /{work}").into(),
            class: None,
            stored: false,
            status: ConnectionStatus::NORMAL,
            work: Duration::from_millis(work),
            age: Duration::ZERO,
            ended: Duration::ZERO,
            faults: Vec::new(),
        }
    }

    #[test]
    fn the_slowest_are_sorted_and_few() {
        let mut slowest = Slowest::default();
        // Every number once, in no order.
        for number in 0..100 {
            let work = number * 37 % 100;
            assert_eq!(slowest.takes(Duration::from_millis(work)), {
                let longer = slowest.iter().filter(|other| other.work >= Duration::from_millis(work)).count();
                longer < LENGTH
            });
            slowest.push(past(work));
        }
        let kept: Vec<_> = slowest.iter().map(|past| past.work.as_millis()).collect();
        assert_eq!(kept, (80..100).rev().collect::<Vec<_>>());
    }

    #[test]
    fn the_last_failures_are_kept_and_the_last_is_first() {
        let mut failures = Failures::default();
        (0..50).for_each(|number| failures.push(past(number)));
        let kept: Vec<_> = failures.iter().map(|past| past.work.as_millis()).collect();
        assert_eq!(kept, (30..50).rev().collect::<Vec<_>>());
    }
}
