//! Which attempt of a request is polled on this thread, of those that go on by themselves.

use std::cell::Cell;

use super::{running::Apart, shared::Shared};

#[derive(Clone, Copy)]
struct Now {
    /// The address of the request whose handler is polled behind its `finish`.
    rest: usize,
    /// Where the poll of one begins whose client has left.
    attempt: usize,
}

thread_local! {
    static NOW: Cell<Now> = const { Cell::new(Now { rest: 0, attempt: 0 }) };
}

/// Whether what is polled here runs inside of a handler that has called `finish`.
pub(super) fn is_in_rest(shared: &Shared) -> bool {
    NOW.get().rest == std::ptr::from_ref(shared).addr()
}

/// What tells one that goes on without its client from all others; 0 in the service, and in tasks of the user's.
pub(super) fn attempt() -> usize {
    NOW.get().attempt
}

/// The time of such a poll; over also when that panics.
pub(super) struct Polled {
    before: Now,
}

impl Polled {
    pub(super) fn begin(shared: &Shared, why: Apart, attempt: usize) -> Self {
        let before = NOW.get();
        NOW.set(match why {
            Apart::Finished => Now { rest: std::ptr::from_ref(shared).addr(), ..before },
            Apart::Left => Now { attempt, ..before },
        });
        Self { before }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        NOW.set(self.before);
    }
}
