//! A write that waits for its client.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

#[derive(Debug, Default)]
pub(super) struct Stall {
    pub(super) since: Option<Instant>,
    /// What had been written to the socket below.
    pub(super) sent: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn poll(&mut self, limit: Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        let Some(ends) = self.since.get_or_insert_with(Instant::now).checked_add(limit) else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends)));
        if timer.deadline() != ends {
            timer.as_mut().reset(ends);
        }
        timer.as_mut().poll(cx)
    }
}
