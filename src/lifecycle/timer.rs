//! Timers that one wait has for itself.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};

/// Resolves at `at`, or at once if that has passed.
pub(super) fn poll_timer(timer: &mut Option<Pin<Box<Sleep>>>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let sleep = match timer {
        Some(sleep) => {
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            sleep
        }
        None => timer.insert(Box::pin(tokio::time::sleep_until(at))),
    };
    poll_sleep(sleep.as_mut(), cx)
}

/// Polls a timer, whatever the task has left of its budget: a task that has used it up would be told to come back
/// without the timer being set, and if its own work then waits, nothing would bring it back.
pub(crate) fn poll_sleep(sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::unconstrained(sleep)).poll(cx)
}
