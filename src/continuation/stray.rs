//! Continuations whose response went astray: whose they are then, and how one runs that has no request.

use std::cell::{Cell, RefCell};

use tracing::Span;

use super::{Continuation, Kind};
use crate::pool::{Pool, caught, lock, spans};

thread_local! {
    /// A handler is being polled on this thread.
    static POLLING: Cell<bool> = const { Cell::new(false) };
    /// What was lost meanwhile together with its response.
    static STRAY: RefCell<Vec<Continuation>> = const { RefCell::new(Vec::new()) };
}

/// A poll of a request's handler: the continuations whose responses are dropped in it, since an inner middleware
/// replaced them, belong to that request (contract rule 1).
pub(crate) struct Polling {
    outer: bool,
    /// Those of a poll that this one is in: of the same request, or of another, whose handler asks an app of its own.
    before: Vec<Continuation>,
}

/// What went astray so far; with `before` in its place. A thread that ends has none any more.
fn exchange(before: Vec<Continuation>) -> Vec<Continuation> {
    STRAY.try_with(|all| all.replace(before)).unwrap_or_default()
}

impl Polling {
    pub(crate) fn begin() -> Self {
        // An empty `Vec` costs no allocation.
        Self { outer: POLLING.replace(true), before: exchange(Vec::new()) }
    }

    /// What went astray meanwhile.
    pub(crate) fn end(mut self) -> Vec<Continuation> {
        exchange(std::mem::take(&mut self.before))
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        POLLING.set(self.outer);
        // One that has not come to its end, since something panicked: what went astray is with the poll that this one was in.
        if !self.before.is_empty() {
            keep(std::mem::take(&mut self.before));
        }
    }
}

/// Those of a response that was dropped before any of our services saw it: with the request whose handler is being
/// polled, or else on their own in the default pool.
pub(super) fn keep(stray: Vec<Continuation>) {
    let mut stray = Some(stray);
    if POLLING.get() {
        let _ = STRAY.try_with(|all| all.borrow_mut().extend(stray.take().into_iter().flatten()));
    }
    stray.into_iter().flatten().for_each(run_alone);
}

/// A continuation that has not come to its end, and may go down with its runtime: then it is lost, which is told (contract rule
/// 13).
struct Unended(bool);

impl Unended {
    fn is_over(&mut self) {
        self.0 = false;
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        if self.0 {
            Pool::global().report_lost("unknown", "it ran on its own, and no runtime is there to run it to its end");
        }
    }
}

/// Runs a continuation that has no request (any more): without limit and hooks, but tracked and logged.
pub(crate) fn run_alone(mut continuation: Continuation) {
    use tracing::Instrument as _;

    let failure = continuation.failure_slot();
    {
        let _span = continuation.extra.as_ref().map(|extra| extra.span.enter());
        tracing::warn!("a continuation's response was dropped before its request could take it: it runs on its own");
    }
    continuation.begin_span(|| "unknown".to_owned(), None);
    let (kind, span) = continuation.into_work();
    let pool = Pool::global().clone();
    let runner = pool.clone();
    let in_span = span.clone();
    let mut unended = Unended(true);
    let work = async move {
        let result = match kind {
            Kind::Async(mut work) => {
                std::future::poll_fn(|cx| match caught::poll(work.as_mut(), cx) {
                    Ok(polled) => polled.map(Ok),
                    Err(payload) => std::task::Poll::Ready(Err(payload)),
                })
                .await
            }
            Kind::Blocking(work) | Kind::Brief(work) => {
                let thread = crate::pool::blocking::Blocking::start(work, runner, in_span, "unknown".to_owned());
                // It needs its runtime no more.
                unended.is_over();
                thread.await
            }
        };
        unended.is_over();
        if let Err(payload) = result {
            tracing::error!(panic = crate::pool::panic_message(&*payload), "a continuation panicked");
            caught::dispose(payload);
        }
        // It has no request, and so no failure handler.
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            if let Err(payload) = caught::call(|| tracing::error!(error, "a continuation failed")) {
                caught::dispose(payload);
            }
        }
        spans::ended(&Span::current(), "ended");
    };
    caught::discard(pool.spawn(work.instrument(span)).err());
}

#[cfg(test)]
mod tests {
    use axum_core::response::IntoResponse as _;

    use super::*;

    #[test]
    fn a_poll_that_panics_takes_nothing_of_the_one_around_it_along() {
        let goes_astray = || drop((Continuation::new(async {}), "hello").into_response());
        let outer = Polling::begin();
        goes_astray();
        let inner = Polling::begin();
        goes_astray();
        // As unwinding does.
        drop(inner);
        assert_eq!(outer.end().len(), 2);
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
