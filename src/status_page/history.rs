//! How much ran and waited in each of the last seconds.

use std::time::Duration;

/// How many seconds are kept.
pub(super) const SECONDS: usize = 180;

/// The most that ran, and the most that waited, in each of the last [`SECONDS`] seconds.
///
/// It needs no timer: what is not told is as it was before.
#[derive(Debug)]
pub(super) struct History {
    /// A ring: the second of an uptime modulo its length.
    most: Box<[Point; SECONDS]>,
    /// The second that is the last written.
    second: u64,
    now: Point,
}

/// What ran and waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) running: u64,
    pub(super) waiting: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { most: Box::new([Point::default(); SECONDS]), second: 0, now: Point::default() }
    }
}

impl History {
    /// From now on, so much runs and waits.
    pub(super) fn set(&mut self, uptime: Duration, now: Point) {
        self.advance(uptime);
        self.now = now;
        let most = &mut self.most[place(self.second)];
        most.running = most.running.max(now.running);
        most.waiting = most.waiting.max(now.waiting);
    }

    /// The oldest first; fewer than [`SECONDS`] until so many have passed.
    pub(super) fn points(&mut self, uptime: Duration) -> Vec<Point> {
        self.advance(uptime);
        let first = (self.second + 1).saturating_sub(SECONDS as u64);
        (first..=self.second).map(|second| self.most[place(second)]).collect()
    }

    fn advance(&mut self, uptime: Duration) {
        let second = uptime.as_secs().max(self.second);
        // Of more than a whole round, the last is enough.
        let first = (self.second + 1).max((second + 1).saturating_sub(SECONDS as u64));
        for passed in first..=second {
            self.most[place(passed)] = self.now;
        }
        self.second = second;
    }
}

fn place(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(running: u64, waiting: u64) -> Point {
        Point { running, waiting }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_most_of_each_second_is_kept_and_goes_on_until_it_changes() {
        let mut history = History::default();
        assert_eq!(history.points(at(0)), [point(0, 0)]);
        history.set(at(100), point(3, 0));
        history.set(at(200), point(1, 2));
        history.set(at(900), point(0, 0));
        history.set(at(2_100), point(5, 1));
        // The second second had nothing, the third began with nothing.
        assert_eq!(history.points(at(4_999)), [point(3, 2), point(0, 0), point(5, 1), point(5, 1), point(5, 1)]);
    }

    #[test]
    fn only_the_last_seconds_are_kept() {
        let mut history = History::default();
        history.set(at(0), point(9, 9));
        history.set(at(500), point(1, 0));
        history.set(at(1_000), point(2, 0));
        let last = 1_000 * (SECONDS as u64 - 1);
        let points = history.points(at(last));
        assert_eq!((points.len(), points[0], points[1], points[2]), (SECONDS, point(9, 9), point(2, 0), point(2, 0)));
        assert_eq!(history.points(at(last + 1_000))[0], point(2, 0));
        history.set(at(1_000_000_000), point(7, 0));
        let points = history.points(at(1_000_000_500));
        assert_eq!((points.len(), points[0], points[SECONDS - 1]), (SECONDS, point(2, 0), point(7, 0)));
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing_of_the_past() {
        let mut history = History::default();
        history.set(at(5_000), point(1, 0));
        history.set(at(3_000), point(2, 0));
        assert_eq!(history.points(at(1_000)).last(), Some(&point(2, 0)));
    }
}
