//! The user's function on whole buffered bodies: PHP's `ob_start(callback)`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::BoxError;
use bytes::Bytes;
use http::response::Parts;

use tracing::Span;

use crate::{
    continuation::Continuation,
    lifecycle::Lifecycle,
    pool::{Captured, caught, message},
};

type Outcome = Result<(Parts, Bytes), BoxError>;
type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The function, whatever it is.
#[derive(Clone)]
pub(super) struct MapBuffer(Arc<dyn Fn(Parts, Bytes) -> Running + Send + Sync>);

impl fmt::Debug for MapBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapBuffer").finish_non_exhaustive()
    }
}

impl MapBuffer {
    pub(super) fn new<F, Fut, B, E>(map: F) -> Self
    where
        F: Fn(Parts, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(Parts, B), E>> + Send + 'static,
        B: Into<Bytes>,
        E: Into<BoxError>,
    {
        Self(Arc::new(move |parts, bytes| {
            let mapped = map(parts, bytes);
            Box::pin(async move {
                match mapped.await {
                    Ok((parts, bytes)) => Ok((parts, bytes.into())),
                    Err(error) => Err(error.into()),
                }
            })
        }))
    }

    /// Begins. What it panics with is as good as an error.
    pub(super) fn call(&self, parts: Parts, bytes: Bytes, lifecycle: &Lifecycle) -> Mapping {
        let map = &self.0;
        let called = lifecycle.0.measure(WHAT, || caught::call(|| map(parts, bytes)));
        let running = called.map(Some).unwrap_or_else(|payload| {
            panicked(lifecycle, payload);
            None
        });
        if running.is_some() {
            // It is a part of what produces the body: the request does not end before it.
            lifecycle.0.producer_started();
        }
        Mapping { running, lifecycle: lifecycle.clone(), surroundings: None }
    }
}

const WHAT: &str = "function on buffered bodies";

fn panicked(lifecycle: &Lifecycle, payload: caught::Payload) {
    lifecycle.0.panicked("function on buffered bodies", &payload);
    caught::dispose(payload);
}

/// One call of the function.
pub(super) struct Mapping {
    running: Option<Running>,
    lifecycle: Lifecycle,
    /// Taken when it first waits: a destructor must not, which has it run on.
    surroundings: Option<(Span, Vec<Box<dyn Captured>>)>,
}

impl Mapping {
    /// `None` if it failed or panicked, which has been told.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Parts, Bytes)>> {
        let Self { running: Some(running), lifecycle, surroundings } = self else {
            return Poll::Ready(None);
        };
        let mapped = match lifecycle.0.measure(WHAT, || caught::poll(running.as_mut(), cx)) {
            Ok(Poll::Pending) => {
                surroundings.get_or_insert_with(|| (Span::current(), lifecycle.0.captured()));
                return Poll::Pending;
            }
            Ok(Poll::Ready(Ok(mapped))) => Some(mapped),
            Ok(Poll::Ready(Err(error))) => {
                let route = lifecycle.0.route();
                caught::tell(|| {
                    tracing::error!(
                        error = message(&*error),
                        route,
                        "the function given to `map_buffer` failed: the client gets a 500"
                    );
                });
                caught::discard(error);
                None
            }
            Err(payload) => {
                panicked(lifecycle, payload);
                None
            }
        };
        caught::discard((self.running.take(), self.surroundings.take()));
        self.lifecycle.0.producer_ended(None);
        Poll::Ready(mapped)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        if self.lifecycle.0.producer_survives_drop() {
            // The server has dropped the response of a client that left, and that is ignored (contract rule 5).
            let (span, captured) = self.surroundings.take().unwrap_or_else(|| (Span::none(), Vec::new()));
            let owner = self.lifecycle.clone();
            let work = async move {
                if let Err(error) = running.await {
                    let error = message(&*error);
                    caught::tell(|| {
                        tracing::warn!(
                            route = owner.0.route(),
                            error,
                            "the function given to `map_buffer` failed after the client had left"
                        );
                    });
                }
            };
            let work = caught::within(Some(&span), || Continuation::new(work));
            caught::close(span);
            self.lifecycle.0.keep_with(work, captured);
        } else {
            caught::discard((running, self.surroundings.take()));
        }
        self.lifecycle.0.producer_ended(None);
    }
}
