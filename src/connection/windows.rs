//! HTTP/2: a client that closed its sending side can widen no window any more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use super::Connection;

/// Longer than a task waits that has a frame to hand over, or to ask for, and short for whoever waits for nothing.
const SURE: Duration = Duration::from_secs(1);

/// A wait for room in windows (RFC 9113, section 5.2) that stay as they are.
#[derive(Debug)]
pub(super) struct Full {
    /// The bytes that the connection had written when it began.
    written: u64,
    timer: Pin<Box<Sleep>>,
}

/// Ready when the client's windows are full, for all that is known. For a connection whose end of input is kept from its
/// server; `stalled` if it is the kernel that takes no more.
///
/// Asked in each turn of the server, which begins with reading: whoever hands it a frame has it begin one.
pub(super) fn poll(
    full: &mut Option<Box<Full>>,
    connection: &Connection,
    stalled: bool,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if !connection.waits_for_windows() {
        *full = None;
        return Poll::Pending;
    }
    let written = connection.written();
    // Begun anew, and not given up, by a turn that finds the kernel full: it may be the last.
    let begun = full.take().filter(|full| !stalled && full.written == written);
    let full =
        full.insert(begun.unwrap_or_else(|| Box::new(Full { written, timer: Box::pin(tokio::time::sleep(SURE)) })));
    full.timer.as_mut().poll(cx)
}
