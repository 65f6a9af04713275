//! Continuations whose response went astray while a request's handler was polled, or dropped: they are that request's.

use std::{
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll},
};

use super::{polled::Polled, running::Around, shared::Shared};
use crate::{
    continuation::{self, Continuation},
    event::HANDLER,
    pool::{Captured, caught},
};

/// One poll of the handler, on its request's clock.
#[inline]
pub(super) fn poll_handler<F: Future>(
    shared: &Shared,
    first: bool,
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Result<Poll<F::Output>, caught::Payload> {
    let polling = continuation::Polling::begin();
    let polled = shared.measure_first(HANDLER, first, || caught::poll(future, cx));
    keep_strays(shared, polling);
    polled
}

/// Polls what is around the handler.
#[inline]
pub(super) fn poll_around<F: Future>(
    shared: &Shared,
    outside: Around,
    begun: &mut bool,
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    let polling = continuation::Polling::begin();
    let around = Polled::begin_between(shared, outside, *begun);
    let polled = caught::poll(future, cx);
    if let Some(around) = around {
        *begun = around.end();
    }
    keep_strays(shared, polling);
    polled.unwrap_or_else(|payload| resume_unwind(payload))
}

/// Drops what is the user's, in a destructor perhaps: a middleware may have had a response in it. Nobody is called but for
/// that; what goes along was `captured` before.
#[inline]
pub(super) fn keep_dropped<T>(shared: &Shared, captured: &[Box<dyn Captured>], drops: impl FnOnce() -> T) -> T {
    let polling = continuation::Polling::begin();
    let dropped = drops();
    if let Some(strays) = polling.end() {
        shared.keep_all(strays, || captured.iter().map(|value| value.another()).collect());
    }
    dropped
}

/// Those of responses that were dropped meanwhile belong to this request.
#[inline]
pub(super) fn keep_strays(shared: &Shared, polling: continuation::Polling) {
    if let Some(strays) = polling.end() {
        shared.keep_all(strays, || shared.captured());
    }
}

impl Shared {
    #[cold]
    fn keep_all(&self, strays: Vec<Continuation>, captured: impl Fn() -> Vec<Box<dyn Captured>>) {
        for continuation in strays {
            self.tell_of_stray();
            self.keep_with(continuation, captured());
        }
    }

    fn tell_of_stray(&self) {
        let said =
            "a response with a continuation was dropped before any layer saw it: the continuation runs all the same";
        caught::tell(|| tracing::warn!(route = self.route(), "{said}"));
    }
}
