//! What is polled on this thread: an attempt at a request, and what it is inside of.

use std::cell::Cell;

use super::{
    running::{Count, Within},
    shared::Shared,
};

/// Which attempt at a request, of those beside each other. What is inside of another is the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Which {
    /// The number of the first service that it entered.
    pub(super) number: u32,
    /// Nobody waits for it any more: it is polled in a task of its own.
    pub(super) alone: bool,
}

impl Which {
    /// Nobody can tell: it runs in a task of the user's, or around several.
    pub(super) const UNKNOWN: u32 = 0;

    /// What a future of ours is counted by. What goes on by itself is counted as a whole.
    pub(super) fn count(self) -> Count {
        if self.alone { Count::NOTHING } else { Count::IN_SERVICE }
    }
}

#[derive(Clone, Copy)]
struct Frame {
    /// The address of the request.
    request: usize,
    which: Which,
    /// It is not what counts as the attempt, or no longer: another of our futures has begun inside of it.
    taken_over: bool,
}

thread_local! {
    static FRAME: Cell<Frame> = const {
        Cell::new(Frame { request: 0, which: Which { number: Which::UNKNOWN, alone: false }, taken_over: false })
    };
}

fn of(shared: &Shared) -> Option<Frame> {
    Some(FRAME.get()).filter(|frame| frame.request == std::ptr::from_ref(shared).addr())
}

/// The poll of a future of one of our services, or of what goes on by itself: what begins in it is inside of that.
pub(super) struct Polled {
    before: Frame,
}

impl Polled {
    #[inline]
    pub(super) fn begin(shared: &Shared, which: Which, taken_over: bool) -> Self {
        Self { before: FRAME.replace(Frame { request: std::ptr::from_ref(shared).addr(), which, taken_over }) }
    }

    /// That of one which is never the attempt. `None` where it is inside of another: so is what begins in it, then.
    #[inline]
    pub(super) fn begin_between(shared: &Shared) -> Option<Self> {
        let around = Which { number: Which::UNKNOWN, alone: false };
        of(shared).is_none().then(|| Self::begin(shared, around, true))
    }

    /// Whether another has begun inside of it.
    #[inline]
    pub(super) fn end(self) -> bool {
        let it = FRAME.replace(self.before);
        it.taken_over
    }
}

impl Drop for Polled {
    #[inline]
    fn drop(&mut self) {
        FRAME.set(self.before);
    }
}

/// A future of ours begins here, in the service of that `number`.
#[inline]
pub(super) fn begin_within(shared: &Shared, number: u32) -> (Within, Which) {
    let itself = Which { number, alone: false };
    match of(shared) {
        None => (Within::Nothing, itself),
        Some(frame) if frame.which.alone => (Within::Alone, frame.which),
        Some(frame) if frame.taken_over => (Within::Other, itself),
        Some(frame) => {
            FRAME.set(Frame { taken_over: true, ..frame });
            (Within::Attempt, frame.which)
        }
    }
}

/// Which attempt does what is done here.
pub(super) fn which(shared: &Shared) -> Which {
    let known = of(shared).filter(|frame| frame.which.alone || !frame.taken_over);
    known.map_or(Which { number: Which::UNKNOWN, alone: false }, |frame| frame.which)
}
