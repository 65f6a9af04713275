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
    /// It is not the first, and has no place of its own among those that are woken.
    pub(super) beside: bool,
}

impl Which {
    /// Nobody can tell: it runs in a task of the user's, or around several.
    pub(super) const UNKNOWN: u32 = 0;

    pub(super) const fn new(number: u32) -> Self {
        Self { number, alone: false, beside: false }
    }

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
    /// It never was, and nobody knows what it is inside of.
    between: bool,
}

thread_local! {
    static FRAME: Cell<Frame> = const {
        Cell::new(Frame { request: 0, which: Which::new(Which::UNKNOWN), taken_over: false, between: false })
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
        Self::enter(Frame { request: std::ptr::from_ref(shared).addr(), which, taken_over, between: false })
    }

    /// That of one which is never the attempt. `None` where it is inside of another: so is what begins in it, then.
    #[inline]
    pub(super) fn begin_between(shared: &Shared, taken_over: bool) -> Option<Self> {
        let (request, which) = (std::ptr::from_ref(shared).addr(), Which::new(Which::UNKNOWN));
        of(shared).is_none().then(|| Self::enter(Frame { request, which, taken_over, between: true }))
    }

    #[inline]
    fn enter(frame: Frame) -> Self {
        Self { before: FRAME.replace(frame) }
    }

    /// Whether another has begun inside of it.
    #[inline]
    pub(super) fn end(self) -> bool {
        let it = FRAME.get();
        drop(self);
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
    let itself = Which::new(number);
    match of(shared) {
        None => (Within::Nothing, itself),
        Some(frame) if frame.which.alone => {
            FRAME.set(Frame { taken_over: true, ..frame });
            (Within::Alone, frame.which)
        }
        Some(frame) if frame.taken_over => (Within::Other, itself),
        Some(frame) => {
            FRAME.set(Frame { taken_over: true, ..frame });
            if frame.between { (Within::Nothing, itself) } else { (Within::Attempt, frame.which) }
        }
    }
}

/// Which attempt does what is done here.
pub(super) fn which(shared: &Shared) -> Which {
    let known = of(shared).filter(|frame| frame.which.alone || !frame.taken_over);
    known.map_or(Which::new(Which::UNKNOWN), |frame| frame.which)
}

/// Whether what is polled here is inside of what goes on by itself.
pub(super) fn is_alone(shared: &Shared) -> bool {
    of(shared).is_some_and(|frame| frame.which.alone)
}

thread_local! {
    /// The request, and the number, of the last of our services that was called here.
    static CALLED: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
}

#[inline]
pub(super) fn called(shared: &Shared, number: u32) {
    CALLED.set((std::ptr::from_ref(shared).addr(), number));
}

/// Whether the call of the service of that number has called another one inside of it.
#[inline]
pub(super) fn has_called_on(shared: &Shared, number: u32) -> bool {
    let (request, last) = CALLED.get();
    request == std::ptr::from_ref(shared).addr() && last != number
}
