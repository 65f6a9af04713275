//! Where a request waits, for the report on what takes long.

use std::ops::Deref;
#[cfg(feature = "backtrace")]
use std::sync::OnceLock;

use super::shared::Shared;
#[cfg(feature = "backtrace")]
use crate::event::{CONTINUATION, HANDLER};
use crate::pool::caught;
#[cfg(feature = "backtrace")]
use crate::pool::{frames::Frames, lock};

/// Those of its handler and of its continuations, which may be polled at the same time; made when they first are.
#[cfg(feature = "backtrace")]
#[derive(Debug, Default)]
pub(super) struct RequestFrames {
    handler: OnceLock<Frames>,
    continuation: OnceLock<Frames>,
}

impl Shared {
    /// Has the frames of `work` known as this request's; only where what is slow is told of.
    #[cfg(feature = "backtrace")]
    #[inline]
    pub(super) fn framed<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        // What else there is may be meant to last.
        if self.pool().slow.is_none() || !matches!(what, HANDLER | CONTINUATION) {
            return work();
        }
        let frames = lock(&self.core).rare().frames.get_or_insert_default().clone();
        let frames = if what == HANDLER { &frames.handler } else { &frames.continuation };
        frames.get_or_init(Frames::new).scope(work)
    }

    #[cfg(not(feature = "backtrace"))]
    #[inline]
    #[expect(clippy::unused_self, reason = "there are no frames without the feature")]
    pub(super) fn framed<T>(&self, _: &'static str, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// The frames that its continuation waits in, or else its handler.
    #[cfg(feature = "backtrace")]
    pub(super) fn waits_in(&self) -> Option<String> {
        let frames = lock(&self.core).rare.as_ref()?.frames.clone()?;
        [&frames.continuation, &frames.handler].into_iter().filter_map(OnceLock::get).find_map(Frames::tree)
    }

    #[cfg(not(feature = "backtrace"))]
    #[expect(clippy::unused_self, reason = "there are no frames without the feature")]
    pub(super) fn waits_in(&self) -> Option<String> {
        None
    }
}

/// Work of the user's, dropped among its frames, also when the task that it is in is dropped.
///
/// The fields' order is the order of their drops: the frames' root is the request's.
pub(super) struct Framed<W, S: Deref<Target = Shared>> {
    pub(super) work: Option<W>,
    shared: S,
    what: &'static str,
}

impl<W, S: Deref<Target = Shared>> Framed<W, S> {
    pub(super) fn new(shared: S, what: &'static str, work: W) -> Self {
        Self { work: Some(work), shared, what }
    }
}

impl<W, S: Deref<Target = Shared>> Drop for Framed<W, S> {
    fn drop(&mut self) {
        let work = self.work.take();
        self.shared.framed(self.what, || caught::discard(work));
    }
}
