//! One request that has not ended, or one attempt at a durable job, as the ledger has it.

use std::{sync::Weak, time::Duration};

use crate::{pool::Straggler, status::ConnectionStatus};

/// The longest route that is shown; a path can be as long as its client likes.
const LONGEST: usize = 200;

/// Where something that is not over is: the request's phase, with the wait for a place set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Handling,
    Sending,
    Waiting,
    Continuing,
    Ending,
}

/// One request that has not ended, or one attempt at a durable job.
pub(super) struct Live {
    pub(super) straggler: Weak<dyn Straggler>,
    pub(super) stored: bool,
    /// `None` if it is not counted: it was refused, or is the page's own.
    pub(super) at: Option<At>,
    pub(super) status: ConnectionStatus,
    pub(super) class: Option<&'static str>,
    /// More was told of it than its arrival.
    pub(super) confirmed: bool,
    /// Its handler has not ended.
    pub(super) handles: bool,
    /// When it was called: once more, if a middleware does that.
    pub(super) handles_since: Duration,
    /// Its response was handed to the server, or will not be; an attempt at a job has begun.
    pub(super) answered: bool,
    /// When the continuation that runs was started.
    pub(super) began: Option<Duration>,
    /// How long its handler and its continuations ran.
    pub(super) work: Duration,
    /// A bit for each of [`FAULTS`].
    pub(super) faults: u8,
}

/// What can go wrong with a request.
const FAULTS: [&str; 4] = ["dropped", "failed", "panicked", "timed out"];
pub(super) const DROPPED: u8 = 1;
pub(super) const FAILED: u8 = 2;
pub(super) const PANICKED: u8 = 4;
pub(super) const TIMED_OUT: u8 = 8;

pub(super) fn names(faults: u8) -> Vec<&'static str> {
    let named = FAULTS.iter().enumerate().filter(|(place, _)| faults & (1 << place) != 0);
    named.map(|(_, name)| *name).collect()
}

impl Live {
    pub(super) fn go(&mut self, places: &mut [u64; 5], at: At) {
        if let Some(from) = self.at.replace(at) {
            places[from as usize] -= 1;
        }
        places[at as usize] += 1;
    }

    pub(super) fn leave(&mut self, places: &mut [u64; 5]) {
        if let Some(from) = self.at.take() {
            places[from as usize] -= 1;
        }
    }

    /// A response is gone, or will not be: the rest of a handler goes on without it.
    pub(super) fn sent(&mut self, places: &mut [u64; 5]) {
        if self.answered && self.handles {
            self.go(places, At::Continuing);
        }
    }

    /// The first one counts from the arrival.
    pub(super) fn handler_started(&mut self, places: &mut [u64; 5], at: Duration) {
        if !self.handles && !self.answered {
            (self.handles, self.handles_since) = (true, at);
            self.go(places, At::Handling);
        }
    }

    /// Its response is on its way only when it is handed over: a middleware may hold it back.
    pub(super) fn handler_ended(&mut self, places: &mut [u64; 5], at: Duration) {
        if std::mem::take(&mut self.handles) {
            self.work += at.saturating_sub(self.handles_since);
        }
        // Whose client has left may never be handed over.
        if self.at == Some(At::Handling) && self.status.is_aborted() {
            self.go(places, At::Sending);
        }
    }

    pub(super) fn continuation_ended(&mut self, at: Duration) {
        if let Some(began) = self.began.take() {
            self.work += at.saturating_sub(began);
        }
    }
}

/// As much of a route as is shown.
pub(super) fn shortened(route: &str) -> String {
    match route.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &route[..end]),
        None => route.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_little_while_it_lives() {
        assert!(size_of::<Live>() <= 112, "{}", size_of::<Live>());
    }

    #[test]
    fn faults_have_names() {
        assert_eq!(names(0), [""; 0]);
        assert_eq!(names(DROPPED | TIMED_OUT), ["dropped", "timed out"]);
        assert_eq!(names(FAILED | PANICKED), ["failed", "panicked"]);
    }

    #[test]
    fn routes_are_cut_between_characters() {
        assert_eq!(shortened("GET /"), "GET /");
        let long = "ä".repeat(LONGEST);
        assert_eq!(shortened(&long), long);
        assert_eq!(shortened(&format!("{long}ä")), format!("{long}…"));
    }
}
