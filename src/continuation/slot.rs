//! The slot among a response's extensions that carries continuations from the handler to our services.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
};

use http::Extensions;

use super::{Continuation, stray};
use crate::{pool::lock, queue::Queue};

thread_local! {
    /// Extensions with an empty slot and nothing else: those that the last response on this thread came with. Most
    /// responses have no others, so that the next need not allocate a map, a table, and what stands in it.
    static SPARE: Cell<Option<Extensions>> = const { Cell::new(None) };
}

/// The response extension. Cloned extensions share one list, so each continuation is taken once.
#[derive(Clone)]
struct Slot(Arc<Waiting>);

struct Waiting(Mutex<Queue<Continuation>>);

impl Waiting {
    fn queue(&mut self) -> &mut Queue<Continuation> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting {
    /// The response was dropped before any of our services saw it: what it promised still runs (contract
    /// rule 1), with the request whose handler is being polled, or else on its own in the default pool.
    fn drop(&mut self) {
        let stray = std::mem::take(self.queue());
        if stray.is_empty() {
            return;
        }
        stray::keep(stray);
    }
}

/// Adds it after those that the extensions have already.
pub(super) fn put(extensions: &mut Extensions, continuation: Continuation) {
    if extensions.is_empty() {
        // There is none in a thread that is ending.
        if let Some(spare) = SPARE.try_with(Cell::take).ok().flatten() {
            *extensions = spare;
        }
    }
    if let Some(slot) = extensions.get_mut::<Slot>() {
        if let Some(waiting) = Arc::get_mut(&mut slot.0) {
            return waiting.queue().push_back(continuation);
        }
        let mut waiting = lock(&slot.0.0);
        // One that was emptied may be shared with the copies that a cache gives to other requests.
        if !waiting.is_empty() {
            return waiting.push_back(continuation);
        }
    }
    extensions.insert(Slot(Arc::new(Waiting(Mutex::new(Queue::One(continuation))))));
}

/// Takes all; nothing the second time.
#[inline]
pub(super) fn take(extensions: &mut Extensions) -> Queue<Continuation> {
    if extensions.is_empty() {
        return Queue::Empty;
    }
    take_some(extensions)
}

fn take_some(extensions: &mut Extensions) -> Queue<Continuation> {
    let Some(slot) = extensions.get_mut::<Slot>() else { return Queue::Empty };
    match Arc::get_mut(&mut slot.0) {
        Some(waiting) => {
            let taken = std::mem::take(waiting.queue());
            if extensions.len() == 1 {
                let spare = std::mem::take(extensions);
                // Without the thread's own storage it is dropped here, as it would be there.
                let _ = SPARE.try_with(|kept| kept.set(Some(spare)));
            } else {
                extensions.remove::<Slot>();
            }
            taken
        }
        // Seldom shared with copies of the response.
        None => {
            let taken = std::mem::take(&mut *lock(&slot.0.0));
            extensions.remove::<Slot>();
            taken
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Continuation {
        Continuation::new(async {})
    }

    fn run(queue: Queue<Continuation>) -> usize {
        queue.map(Continuation::into_work).count()
    }

    #[test]
    fn what_is_used_again_is_nobodys() {
        let mut first = Extensions::new();
        put(&mut first, empty());
        let copy = first.clone();
        assert_eq!((run(take(&mut first)), first.len()), (1, 0), "of extensions that have a copy nothing is kept");
        let mut second = Extensions::new();
        put(&mut second, empty());
        assert_eq!((run(take(&mut second)), second.len()), (1, 0));
        let mut third = Extensions::new();
        put(&mut third, empty());
        put(&mut third, empty());
        assert!(run(take(&mut copy.clone())) == 0 && second.is_empty(), "neither gets what the third was given");
        assert_eq!(run(take(&mut third)), 2);
    }

    #[test]
    fn what_else_is_there_stays_with_its_response() {
        let mut extensions = Extensions::new();
        extensions.insert("the app's");
        put(&mut extensions, empty());
        assert_eq!(run(take(&mut extensions)), 1);
        assert_eq!((extensions.len(), extensions.get()), (1, Some(&"the app's")));
        let mut next = Extensions::new();
        put(&mut next, empty());
        assert_eq!((next.len(), next.get::<&str>()), (1, None));
        assert_eq!(run(take(&mut next)), 1);
    }
}
