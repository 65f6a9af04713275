//! What the outermost of our services does with the response: answers for a handler that may not, holds it back where
//! bounds ask for that, and hands it over.

use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

use super::{
    admission::Reserving, delivery::Delivery, drive::Inner, measure::Measure, passage::Waits, response, shared::Shared,
    transitions::Verdict,
};
use crate::{event::BODY, pool::caught};

/// What the outermost of our services does beside its inner future.
#[derive(Debug)]
pub(super) struct Driver {
    /// `None` once the response was handed over.
    shared: Option<Arc<Shared>>,
    catches_panics: bool,
    /// The response waits for a place for its continuations (contract rule 9).
    holding: Option<Box<Holding>>,
}

/// A response that is held back.
struct Holding {
    response: Option<Response>,
    reserving: Reserving,
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").finish_non_exhaustive()
    }
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, catches_panics: bool) -> Self {
        Self { shared: Some(shared), catches_panics, holding: None }
    }

    /// Whether the response is there and waits for places.
    pub(super) fn is_holding(&self) -> bool {
        self.holding.is_some()
    }

    /// The inner future waits. If it may not, the innermost service is let answer, so that the middleware
    /// between sees an ordinary response; if that is not to be had at once, the answer is ours.
    pub(super) fn poll<F, E>(&self, mut inner: Pin<&mut Inner<F>>, cx: &mut Context<'_>) -> Poll<Result<Response, E>>
    where
        F: Future<Output = Result<Response, E>>,
    {
        let Some(shared) = &self.shared else { return Poll::Pending };
        // Registered before the look, so that what changes after it wakes us.
        shared.register(Waits::Response, cx);
        shared.arm();
        shared.watch_client(cx);
        let Some(verdict) = shared.verdict() else {
            return Poll::Pending;
        };
        if verdict == Verdict::Abandoned {
            // The client had left before the request arrived, and by now the layers have not said to ignore it.
            shared.abandon();
        }
        shared.wake(Waits::Handler);
        shared.wake_awaiting();
        match caught::poll(inner.as_mut(), cx) {
            Ok(Poll::Pending) => {
                inner.leave();
                Poll::Ready(Ok(response::answer(verdict)))
            }
            Ok(ready) => ready,
            Err(payload) => {
                inner.leave();
                self.panicked(payload)
            }
        }
    }

    /// Under our own server a panic is a 500; elsewhere it goes on as if we were not there.
    pub(super) fn panicked<E>(&self, payload: caught::Payload) -> Poll<Result<Response, E>> {
        Poll::Ready(Ok(self.answer_panic("middleware", payload)))
    }

    fn answer_panic(&self, what: &'static str, payload: caught::Payload) -> Response {
        if let Some(shared) = self.shared.as_ref().filter(|shared| shared.panic().is_none()) {
            shared.panicked(what, &payload);
        }
        if !self.catches_panics {
            // Said before the unwinding drops us: that drop is not the client's.
            if let Some(shared) = &self.shared {
                shared.response_failed();
            }
            resume_unwind(payload);
        }
        caught::dispose(payload);
        internal_error()
    }

    /// Keeps the response back, if the bounds ask for that.
    pub(super) fn hold_back(&mut self, mut response: Response, cx: &mut Context<'_>) -> Poll<Response> {
        let Some(shared) = self.shared.as_ref().filter(|shared| shared.pool().bounds.is_some()) else {
            return Poll::Ready(response);
        };
        response::collect(shared, &mut response);
        match shared.reserving() {
            None => Poll::Ready(response),
            Some(reserving) => {
                self.holding = Some(Box::new(Holding { response: Some(response), reserving }));
                self.poll_holding(cx)
            }
        }
    }

    pub(super) fn poll_holding(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let (Some(shared), Some(holding)) = (&self.shared, &mut self.holding) else { return Poll::Pending };
        if let Poll::Ready(tickets) = holding.reserving.as_mut().poll(cx) {
            shared.keep_tickets(tickets);
        } else {
            shared.register(Waits::Response, cx);
            shared.arm();
            shared.watch_client(cx);
            let Some(verdict) = shared.producer_verdict() else { return Poll::Pending };
            if verdict == Verdict::Abandoned {
                shared.abandon();
            }
            // The limit passed before the head: a 503 takes its place (contract rule 6). Its continuation runs.
            caught::discard(holding.response.replace(response::answer(verdict)));
        }
        let response = holding.response.take();
        self.holding = None;
        response.map_or(Poll::Pending, Poll::Ready)
    }

    pub(super) fn hand_over<E>(&mut self, result: Result<Response, E>) -> Result<Response, E> {
        let Some(shared) = &self.shared else { return result };
        match result {
            Ok(mut response) => {
                response::collect(shared, &mut response);
                if self.catches_panics && response::is_unfinal(shared, response.status()) {
                    let (route, status) = (shared.route(), response.status().as_u16());
                    caught::tell(|| {
                        tracing::error!(route, status, "this status is no final response: a 500 was answered");
                    });
                    caught::discard(std::mem::replace(&mut response, internal_error()));
                }
                #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
                super::job::refuse_unkept(shared, &mut response);
                // What its body says of itself is the code of whoever made it.
                let measure = caught::call(|| Measure::take(shared, &mut response)).unwrap_or_else(|payload| {
                    let answer = self.answer_panic(BODY, payload);
                    caught::discard(std::mem::replace(&mut response, answer));
                    Measure::take(shared, &mut response)
                });
                let Some(shared) = self.shared.take() else { return Ok(response) };
                if measure.bodiless && shared.http2() && shared.connection().is_some() {
                    // Before it leaves: what a limit finds of it is whole.
                    shared.hands_over();
                }
                shared.response_leaves(&response);
                Ok(response.map(|body| Delivery::watch(body, shared, measure)))
            }
            Err(error) => {
                shared.response_failed();
                self.shared = None;
                Err(error)
            }
        }
    }
}

fn internal_error() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response()
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.response_lost();
        }
        // With its body, which is the user's.
        caught::discard(self.holding.take());
    }
}
