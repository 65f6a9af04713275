//! Clients that are slow to send a request's head, or send none.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{connection::Connection, pool::caught};

/// After how long it looks again, at least, while there is a request.
const SOON: Duration = Duration::from_millis(10);

/// The time in which a connection has no request: from its beginning, or from the end of a response, to the end of the next
/// head. HTTP/2 has pings for that, once it is known to be spoken.
///
/// hyper has such a limit too, and sets a timer for each request; here one goes on from request to request, and looks
/// only when it is over how long the client has really been idle.
pub(super) struct Idle {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when, and how many requests there had been; `None` while there are some.
    since: Option<(Instant, u64)>,
}

impl Idle {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        let now = Instant::now();
        let timer = limit.and_then(|limit| now.checked_add(limit)).map(|ends| Box::pin(tokio::time::sleep_until(ends)));
        Self { limit: limit.unwrap_or_default(), timer, since: Some((now, 0)) }
    }

    /// Ready when the client was idle for too long. To be called after the server has done what it can.
    pub(super) fn poll(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_none() {
            return Poll::Pending;
        }
        match connection.requests() {
            // Once for each request, if it was answered at once.
            Some(count) if self.since.is_none_or(|(_, before)| before != count) => {
                self.since = Some((Instant::now(), count));
            }
            Some(_) => {}
            None => self.since = None,
        }
        if connection.is_http2() {
            self.timer = None;
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let ends = match self.since {
                Some((since, _)) => since.checked_add(self.limit),
                None => now.checked_add(self.limit.max(SOON)),
            };
            match ends {
                Some(ends) if ends > now => timer.as_mut().reset(ends),
                _ => {
                    let said = "a client sent no request, or no whole head, in time: it is disconnected";
                    caught::tell(|| tracing::debug!("{said}"));
                    return Poll::Ready(());
                }
            }
        }
    }
}
