//! Continuations whose response went astray: whose they are then, and how one runs that has no request.

use std::cell::{Cell, RefCell};

use super::{Continuation, Kind};
use crate::pool::{Pool, caught, lock};

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
    /// What had gone astray before, in the poll of another request's handler that sends this one.
    before: Vec<Continuation>,
}

impl Polling {
    pub(crate) fn begin() -> Self {
        // An empty `Vec` costs no allocation.
        Self { outer: POLLING.replace(true), before: STRAY.take() }
    }

    /// What went astray meanwhile.
    pub(crate) fn end(mut self) -> Vec<Continuation> {
        STRAY.replace(std::mem::take(&mut self.before))
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        POLLING.set(self.outer);
    }
}

/// Those of a response that was dropped before any of our services saw it: with the request whose handler is being
/// polled, or else on their own in the default pool.
pub(super) fn keep(stray: Vec<Continuation>) {
    if POLLING.get() {
        STRAY.with_borrow_mut(|all| all.extend(stray));
    } else {
        stray.into_iter().for_each(run_alone);
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
                crate::pool::blocking::Blocking::start(work, runner, in_span, "unknown".to_owned()).await
            }
        };
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
    };
    if let Err(work) = pool.spawn(work.instrument(span)) {
        pool.report_lost("unknown", "its response was dropped where no runtime is there to run it");
        caught::discard(work);
    }
}
