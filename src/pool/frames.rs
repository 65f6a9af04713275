//! Where work waits, in the frames of `async-backtrace` (feature `backtrace`).
//!
//! That crate knows trees of frames and not requests. A request's work is polled inside a root of our own, whose location
//! no other root has, so that its tree is found among all.
//!
//! Frames keep pointers to the frames around them, and take them to outlive them. A handler that goes on without its
//! response leaves the futures around it: so the root belongs to the request and not to any of its futures. They are also
//! taken to be dropped where nobody reads their tree: so work is dropped inside its root, whose lock keeps readers out.

use std::{
    cell::Cell,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use async_backtrace::Location;
use scoped_tls_hkt::scoped_thread_local;

use super::{caught, lock};

/// The name of our roots.
const NAME: &str = "tower_epilogue";

/// What one root's location is told from others by.
type Place = &'static (&'static str, u32, u32);

/// Those that no root has at the moment. Locations are to live for ever: there are as many as there were roots at once.
static FREE: Mutex<(Vec<Place>, u32)> = Mutex::new((Vec::new(), 0));

scoped_thread_local!(static TURN: for<'a> &'a (dyn Fn() + 'a));

/// The root of one request's handler, or of its continuations.
pub(crate) struct Frames {
    place: Place,
    /// Locked while the user's work is polled, as the frame itself is by its crate: nobody else polls this work then.
    root: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // The root is gone before its place is another's.
        *lock(&self.root) = Box::pin(std::future::ready(()));
        lock(&FREE).0.push(self.place);
    }
}

impl Frames {
    pub(crate) fn new() -> Self {
        let mut free = lock(&FREE);
        let place = free.0.pop().unwrap_or_else(|| {
            free.1 += 1;
            Box::leak(Box::new((NAME, free.1, 0)))
        });
        drop(free);
        let turn = poll_fn(|_| {
            TURN.with(|turn| turn());
            Poll::Pending
        });
        Self { place, root: Mutex::new(Box::pin(location(place).frame(turn))) }
    }

    /// Calls `work` inside of the root, or where it is if that is inside of a frame already: a root inside of another
    /// would be none.
    pub(crate) fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        if async_backtrace::backtrace().is_some() {
            return work();
        }
        let (work, result) = (Cell::new(Some(work)), Cell::new(None));
        let turn = || result.set(work.take().map(|work| work()));
        TURN.set(&turn, || {
            let _ = lock(&self.root).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        });
        match (result.take(), work.take()) {
            (Some(result), _) => result,
            (None, Some(work)) => work(),
            // It was taken, so it was called, and gave what it gave.
            (None, None) => unreachable!("work that was called has a result"),
        }
    }

    /// The frames that it waits in, as a tree; `None` if there are none.
    pub(crate) fn tree(&self) -> Option<String> {
        let mine = location(self.place);
        let task = async_backtrace::tasks().find(|task| task.location() == mine)?;
        // It panics if a panic has left the lock of the root poisoned.
        let tree = match caught::call(|| task.pretty_tree(false)) {
            Ok(tree) => tree,
            Err(payload) => {
                caught::dispose(payload);
                return None;
            }
        };
        drop(task);
        let (_root, inside) = tree.split_once('\n')?;
        Some(format!("\n{inside}"))
    }
}

fn location(place: Place) -> Location {
    Location::from_components(NAME, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_later_have_the_places_of_those_that_are_gone() {
        let before = lock(&FREE).1;
        (0..1000).for_each(|_| drop(Frames::new()));
        // Other tests have some, too.
        assert!(lock(&FREE).1 - before < 500);
    }
}
