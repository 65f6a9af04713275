//! What is polled on this thread: an attempt at a request, and what it is inside of.

use std::cell::Cell;

use super::{
    running::{Around, Within},
    shared::Shared,
};
use crate::sync::per_thread;

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
}

#[derive(Clone, Copy)]
struct Frame {
    /// The address of the request.
    request: usize,
    which: Which,
    /// The service that the future is in.
    number: u32,
    /// It is not what counts as the attempt, or no longer: another of our futures has begun inside of it.
    taken_over: bool,
    /// It never was, and is in no other future of ours: the services around it.
    between: Option<Around>,
}

const NOTHING: Frame =
    Frame { request: 0, which: Which::new(Which::UNKNOWN), number: 0, taken_over: false, between: None };

per_thread!(
    static FRAME: Cell<Frame> = Cell::new(NOTHING);
);

#[inline]
fn here() -> Frame {
    FRAME.with(Cell::get)
}

#[inline]
fn set(frame: Frame) {
    FRAME.with(|here| here.set(frame));
}

fn of(shared: &Shared) -> Option<Frame> {
    Some(here()).filter(|frame| frame.request == std::ptr::from_ref(shared).addr())
}

/// The poll of a future of one of our services, or of what goes on by itself: what begins in it is inside of that.
pub(super) struct Polled {
    before: Frame,
}

impl Polled {
    #[inline]
    pub(super) fn begin(shared: &Shared, which: Which, number: u32, taken_over: bool) -> Self {
        Self::enter(Frame { request: std::ptr::from_ref(shared).addr(), which, number, taken_over, between: None })
    }

    /// That of one which is never the attempt. `None` where it is inside of another: so is what begins in it, then.
    #[inline]
    pub(super) fn begin_between(shared: &Shared, around: Around, taken_over: bool) -> Option<Self> {
        let (request, which) = (std::ptr::from_ref(shared).addr(), Which::new(Which::UNKNOWN));
        of(shared)
            .is_none()
            .then(|| Self::enter(Frame { request, which, number: 0, taken_over, between: Some(around) }))
    }

    #[inline]
    fn enter(frame: Frame) -> Self {
        Self { before: FRAME.with(|here| here.replace(frame)) }
    }

    /// Whether another has begun inside of it.
    #[inline]
    pub(super) fn end(self) -> bool {
        let it = here();
        drop(self);
        it.taken_over
    }
}

impl Drop for Polled {
    #[inline]
    fn drop(&mut self) {
        set(self.before);
    }
}

/// A future of ours begins here, in the service of that `number`.
#[inline]
pub(super) fn begin_within(shared: &Shared, number: u32) -> (Within, Which) {
    let itself = Which::new(number);
    match of(shared) {
        None => (Within::Nothing(None), itself),
        Some(frame) if frame.which.alone => {
            set(Frame { taken_over: true, ..frame });
            (if frame.taken_over { Within::Alone } else { Within::Attempt(frame.number) }, frame.which)
        }
        Some(frame) if frame.taken_over => (Within::Other, itself),
        Some(frame) => {
            set(Frame { taken_over: true, ..frame });
            match frame.between {
                Some(_) => (Within::Nothing(frame.between), itself),
                None => (Within::Attempt(frame.number), frame.which),
            }
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

per_thread! {
    /// The request, and the number, of the last of our services that was called here.
    static CALLED: Cell<(usize, u32)> = Cell::new((0, 0));
}

#[inline]
pub(super) fn called(shared: &Shared, number: u32) {
    CALLED.with(|called| called.set((std::ptr::from_ref(shared).addr(), number)));
}

/// Whether the call of the service of that number has called another one inside of it.
#[inline]
pub(super) fn has_called_on(shared: &Shared, number: u32) -> bool {
    let (request, last) = CALLED.with(Cell::get);
    request == std::ptr::from_ref(shared).addr() && last != number
}
