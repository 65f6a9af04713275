//! Holding a body back, up to a number of bytes and for a time.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::body::Body;
use http_body::Body as _;
use tokio::time::Sleep;

use super::{Settings, body::Buffer};
use crate::{
    event::BODY,
    lifecycle::{Lifecycle, poll_sleep},
    pool::caught,
};

/// After so many frames the connection's task gets a turn for others.
const FRAMES_A_TURN: usize = 16;

/// A body that is being held back.
pub(super) struct Reading {
    body: Body,
    /// Nothing follows what was read, and it says so.
    ended: bool,
    buffer: Buffer,
    patience: Option<Pin<Box<Sleep>>>,
    /// Without patience: it waited, when what may be had in a turn was used up.
    used_up: bool,
}

/// What reading came to.
pub(super) enum Measured {
    Whole,
    /// Too many bytes, or too slow.
    TooMuch,
    Failed(axum_core::Error),
}

impl Reading {
    pub(super) fn new(body: Body) -> Self {
        Self { body, ended: false, buffer: Buffer::default(), patience: None, used_up: false }
    }

    pub(super) fn poll(&mut self, settings: &Settings, lifecycle: &Lifecycle, cx: &mut Context<'_>) -> Poll<Measured> {
        let before = self.buffer.length();
        for _ in 0..FRAMES_A_TURN {
            // Nobody inside watches the body of a HEAD, which otherwise is not read (contract rules 6 and 11).
            let poll = || caught::call(|| (Pin::new(&mut self.body).poll_frame(cx), self.body.is_end_stream()));
            let polled = lifecycle.0.measure(BODY, poll);
            let (polled, ended) = match polled {
                Ok(polled) => polled,
                Err(payload) => {
                    lifecycle.0.panicked(BODY, &payload);
                    caught::dispose(payload);
                    return Poll::Ready(Measured::Failed(axum_core::Error::new("the response's body panicked")));
                }
            };
            match polled {
                Poll::Ready(None) => return Poll::Ready(Measured::Whole),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Measured::Failed(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    self.used_up = false;
                    self.buffer.push(frame);
                    self.ended = ended;
                    if self.buffer.length() > settings.buffer_limit {
                        return Poll::Ready(Measured::TooMuch);
                    }
                    if ended {
                        return Poll::Ready(Measured::Whole);
                    }
                }
                Poll::Pending if settings.patience.is_zero() => {
                    // It may be tokio that has it wait, since the task has had its turn, and not what is there; but not in
                    // a turn that is its own.
                    let used_up = !tokio::task::coop::has_budget_remaining();
                    if !used_up || std::mem::replace(&mut self.used_up, true) {
                        return Poll::Ready(Measured::TooMuch);
                    }
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending => return self.poll_patience(settings, cx),
            }
        }
        // There may be more at once, and without end.
        cx.waker().wake_by_ref();
        if settings.patience.is_zero() {
            return if self.buffer.length() > before { Poll::Pending } else { Poll::Ready(Measured::TooMuch) };
        }
        self.poll_patience(settings, cx)
    }

    fn poll_patience(&mut self, settings: &Settings, cx: &mut Context<'_>) -> Poll<Measured> {
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(settings.patience)));
        poll_sleep(patience.as_mut(), cx).map(|()| Measured::TooMuch)
    }

    /// What was read, and nothing behind it.
    pub(super) fn into_buffer(self) -> Buffer {
        caught::discard(self.body);
        self.buffer
    }

    /// What was read, and behind it what was not, if there is anything.
    pub(super) fn into_body(self) -> Body {
        if self.ended { self.into_buffer().into_body(None) } else { self.buffer.into_body(Some(self.body)) }
    }

    /// Drops it, with all that is the user's in it.
    pub(super) fn discard(self) {
        caught::discard(self);
    }
}
