//! The life of a durable job: that of a request whose response has left.

use std::sync::Arc;

use axum_core::response::{IntoResponse, Response};
use http::{Method, StatusCode, Version};

use super::{
    Lifecycle,
    home::Home,
    running::Around,
    seat::Seat,
    service::OUTERMOST,
    shared::{Arrival, Shared},
    word,
};
use crate::{
    continuation::{Continuation, Kind},
    durable::take_unkept,
    pool::{Pool, caught, lock},
    status::Sent,
};

impl Lifecycle {
    /// An attempt at a job: it has its place, is waited for and cut by drains, and told of, as requests are. Its limit
    /// counts from when it has its place.
    pub(crate) fn of_job(pool: Arc<Pool>, kind: &str, seat: Arc<Seat>) -> Self {
        let shared = Shared::new(Arrival {
            home: Home::of_job(pool, seat),
            connection: None,
            // A name and nothing more: a client can send it, too.
            method: Method::from_bytes(b"JOB").unwrap_or_default(),
            path: format!("/{kind}").parse().ok(),
            version: Version::HTTP_11,
            uploaded: true,
            is_job: true,
        });
        shared.change(None, |word| Some(word.with(word::HEAD).with_sent(Sent::Flushed)));
        Self(shared, Around::NOTHING.and(OUTERMOST))
    }
}

impl Continuation {
    /// Something of ours, done in a moment.
    pub(crate) fn brief(work: impl FnOnce() + Send + 'static) -> Self {
        Self::of(Kind::Brief(Box::new(work)))
    }
}

impl Shared {
    /// Takes in a continuation that starts before those that are there. `Err` if the request has ended.
    pub(crate) fn add_first_continuation(&self, continuation: Continuation) -> Result<(), Continuation> {
        // It is ours, and over at once: no span is worth it, and nothing is carried into it.
        let continuation = continuation.in_span(tracing::Span::none());
        let mut core = lock(&self.core);
        if self.change(None, |word| (!word.has(word::HOOKS)).then(|| word.with(word::WORK))).is_none() {
            return Err(continuation);
        }
        core.continuations.push_front(continuation);
        drop(core);
        self.more_work();
        Ok(())
    }
}

/// A promise that no layer has stored must not be made (contract rule 13).
pub(super) fn refuse_unkept(shared: &Shared, response: &mut Response) {
    if !take_unkept(response.extensions_mut()) {
        return;
    }
    caught::tell(|| {
        tracing::error!(
            route = shared.route(),
            "a handler returned a `Durable`, but no `DurableLayer` is around it: nothing is stored, and its client gets a 500. \
         Add `.layer(store.layer())`"
        );
    });
    let text = "The work of this request could not be stored.\n";
    let refusal = (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    caught::discard(std::mem::replace(response, refusal));
}
