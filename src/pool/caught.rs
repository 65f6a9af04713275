//! A panic anywhere in user code costs that request only (contract rule 11).

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use tracing::Span;

/// What a panic carried.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Polls a future of the user's; a panic comes back as a value.
///
/// Unwind safety is asserted because a future that panicked is never polled again, only dropped.
pub(crate) fn poll<F>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Result<Poll<F::Output>, Payload>
where
    F: Future + ?Sized,
{
    catch_unwind(AssertUnwindSafe(|| future.poll(cx)))
}

/// Calls a function of the user's.
pub(crate) fn call<T>(f: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(f))
}

/// Says something to a subscriber, which is the user's: a panic of it is not to cost what is to come after it.
pub(crate) fn tell(says: impl FnOnce()) {
    if let Err(payload) = call(says) {
        dispose(payload);
    }
}

/// Drops a value of the user's, whose destructor may panic while a connection's task is polled, which would
/// take the other requests of that connection with it.
pub(crate) fn discard<T>(value: T) {
    discarding(move || drop(value));
}

/// The same for one that is dropped in its place.
pub(crate) fn discarding(drops: impl FnOnce()) {
    if let Err(payload) = call(drops) {
        let panic = super::panic_message(&*payload);
        tell(|| tracing::error!(panic, "a destructor panicked while a request's work was dropped"));
        dispose(payload);
    }
}

/// The same in the span that it belongs to, if there is one.
pub(crate) fn discard_in<T>(span: Option<&Span>, value: T) {
    within(span, || discard(value));
}

/// Does something in a span, if there is one. The subscriber that is told of it may panic: that is not to cost what is done.
pub(crate) fn within<T>(span: Option<&Span>, does: impl FnOnce() -> T) -> T {
    let Some(span) = span.filter(|span| !span.is_none()) else { return does() };
    let entered = call(|| span.enter()).map_err(|payload| {
        dispose(payload);
        // Some of what makes it up may have been told, and would take it for the current one for good.
        span.with_subscriber(|(id, subscriber)| tell(|| subscriber.exit(id)));
    });
    let done = does();
    tell(|| drop(entered));
    done
}

/// Lets go of a span, which is closed with the last one that has it: then the subscriber is told.
pub(crate) fn close<T>(span: T) {
    tell(|| drop(span));
}

/// Drops what a panic carried, which is the user's too and may panic once more. That is then leaked: somewhere it has
/// to end.
#[expect(clippy::mem_forget, reason = "the payload of a panic in the destructor of a payload of a panic")]
pub(crate) fn dispose(payload: Payload) {
    if let Err(payload) = call(move || drop(payload)) {
        let told = call(|| tracing::error!("the payload of a panic panicked while it was dropped"));
        std::mem::forget((payload, told));
    }
}
