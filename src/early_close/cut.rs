//! Responses that are not shaped to their end: something of them failed, or nobody waits for them any longer.

#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
use std::{future::poll_fn, task::Poll};

use axum_core::response::{IntoResponse as _, Response};
use http::StatusCode;

#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
use super::shaping::Next;
use super::shaping::{Shaping, Step};
use crate::lifecycle::answer;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
use crate::lifecycle::{HeldBack, Verdict};

impl Shaping {
    /// Something failed while nothing of the response had left: a 500, or what broke it off, if that was us, has the
    /// better answer.
    pub(super) fn fail(&self) -> Response {
        let response = match self.lifecycle.0.producer_verdict() {
            Some(verdict) => answer(verdict),
            None => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response(),
        };
        let (parts, body) = response.into_parts();
        self.leave(parts, body)
    }

    /// Its request is over before it is whole.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) fn cut(&mut self) -> Response {
        // What it promises is kept by those who stand outside. (A client that is told of its limit is promised nothing.)
        let left = self.lifecycle.0.producer_verdict() == Some(Verdict::Abandoned);
        match self.held.take().filter(|_| left) {
            Some(held) => {
                let (parts, body) = held.into_response().into_parts();
                self.leave(parts, body)
            }
            None => self.fail(),
        }
    }

    #[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
    pub(super) fn cut(&self) -> Response {
        self.fail()
    }

    /// Its future is dropped while it waits.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) fn left(&mut self, step: Box<Step>) {
        let Some(held) = self.held.take() else { return };
        let (mut shaping, mut waits) = (self.again(), Some(step));
        held.left(move |itself: HeldBack| {
            shaping.held = Some(itself);
            Box::pin(poll_fn(move |cx| match waits.take() {
                Some(step) => shaping.poll_on(Next::Wait(step), &mut waits, cx),
                None => Poll::Pending,
            }))
        });
    }

    /// Its future is dropped while it waits: nobody stores anything of it.
    #[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
    #[expect(clippy::unused_self, reason = "with durable jobs it may promise some")]
    pub(super) fn left(&mut self, step: Box<Step>) {
        drop(step);
    }

    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    fn again(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            lifecycle: self.lifecycle.clone(),
            inside: self.inside,
            asked: self.asked,
            #[cfg(feature = "compression")]
            accepts: self.accepts.clone(),
            held: None,
        }
    }
}
