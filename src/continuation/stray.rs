//! Continuations whose response went astray: whose they are then.

use std::{
    cell::{Cell, RefCell},
    marker::PhantomData,
    sync::Arc,
};

use super::{
    Continuation,
    alone::{self, Nobody},
};
use crate::{pool::caught, queue::Queue, sync::per_thread};

/// What a poll has to know of its thread. Plain numbers, which need no destructor: each poll looks at them, and hardly one has
/// anything to do with what they count.
struct Marks {
    /// How many polls of requests' handlers run on this thread, one inside of the other.
    polls: Cell<u32>,
    /// How much is in `STRAY`.
    astray: Cell<usize>,
}

per_thread!(
    static MARKS: Marks = Marks { polls: Cell::new(0), astray: Cell::new(0) };
);

per_thread! {
    /// What was lost in those polls together with its response: what an inner poll has lost is above what the outer one had.
    static STRAY: RefCell<Vec<Continuation>> = RefCell::new(Vec::new());
}

/// A poll of a request's handler: the continuations whose responses are dropped in it, since an inner middleware
/// replaced them, belong to that request (contract rule 1). Those of a poll that it is in, of the same request, or of another
/// whose handler asks an app of its own, stay with that.
///
/// One that does not come to its `end`, since something panicked, leaves what went astray to the poll that it is in.
pub(crate) struct Polling {
    before: usize,
    /// It stays on its thread: no future may hold it while it waits.
    _here: PhantomData<*const ()>,
}

impl Polling {
    #[inline]
    pub(crate) fn begin() -> Self {
        MARKS.with(|marks| {
            marks.polls.set(marks.polls.get() + 1);
            Self { before: marks.astray.get(), _here: PhantomData }
        })
    }

    /// What went astray meanwhile, if anything did.
    #[inline]
    pub(crate) fn end(self) -> Option<Vec<Continuation>> {
        (MARKS.with(|marks| marks.astray.get()) > self.before).then(|| take(self.before))
    }
}

impl Drop for Polling {
    #[inline]
    fn drop(&mut self) {
        let (polls, astray) = MARKS.with(|marks| {
            marks.polls.set(marks.polls.get() - 1);
            (marks.polls.get(), marks.astray.get())
        });
        if polls == 0 && astray > 0 {
            // What tells of them is the user's, and somebody else's panic is under way.
            caught::discarding(|| take(0).into_iter().for_each(run_alone));
        }
    }
}

/// All but the first `kept` of what went astray. A thread that ends has none any more.
#[cold]
fn take(kept: usize) -> Vec<Continuation> {
    MARKS.with(|marks| marks.astray.set(kept));
    STRAY.try_with(|all| all.borrow_mut().split_off(kept)).unwrap_or_default()
}

/// Those of a response that was dropped before any of our services saw it: with the request whose handler is being
/// polled, or else on their own in the default pool.
pub(super) fn keep(mut stray: Queue<Continuation>) {
    if MARKS.with(|marks| marks.polls.get()) > 0 {
        let _ = STRAY.try_with(|all| {
            let mut all = all.borrow_mut();
            all.extend(stray.by_ref());
            MARKS.with(|marks| marks.astray.set(all.len()));
        });
    }
    stray.for_each(run_alone);
}

/// One whose request is not known.
fn run_alone(continuation: Continuation) {
    let said = "a response was dropped that no server or layer of tower-epilogue saw: its continuation runs on its own, without \
                limit and hooks; if there is none around its handler, serve the router with `Epilogue::serve`, or add a layer";
    continuation.told(|| tracing::warn!("{said}"));
    alone::run_alone(continuation, Arc::new(Nobody));
}

#[cfg(test)]
mod tests {
    use axum_core::response::IntoResponse as _;

    use super::*;
    use crate::pool::Pool;

    #[test]
    fn a_poll_that_panics_takes_nothing_of_the_one_around_it_along() {
        let goes_astray = || drop((Continuation::new(async {}), "hello").into_response());
        let outer = Polling::begin();
        goes_astray();
        let inner = Polling::begin();
        goes_astray();
        // As unwinding does.
        drop(inner);
        assert_eq!(outer.end().map(|all| all.len()), Some(2));
    }

    #[tokio::test]
    async fn what_an_outermost_poll_leaves_behind_when_it_panics_runs_alone() {
        let (runs, ran) = tokio::sync::oneshot::channel();
        let outer = Polling::begin();
        drop((Continuation::new(async { runs.send(()).unwrap() }), "hello").into_response());
        drop(outer);
        assert_eq!(ran.await, Ok(()));
        // Nothing of it is with the next.
        assert!(Polling::begin().end().is_none());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what a test spawns is its own")]
    fn what_its_runtime_takes_along_is_lost_and_not_in_silence() {
        // One whose response goes down with the runtime, and one that runs by then.
        for drops in [false, true] {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let lost = Pool::global().lost();
            runtime.block_on(async {
                tokio::spawn(async move {
                    let response = (Continuation::new(std::future::pending()), "hello").into_response();
                    let _kept = (!drops).then_some(response);
                    std::future::pending::<()>().await;
                });
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            });
            assert_eq!(Pool::global().lost(), lost);
            drop(runtime);
            assert_eq!(Pool::global().lost(), lost + 1, "drops: {drops}");
        }
    }
}
