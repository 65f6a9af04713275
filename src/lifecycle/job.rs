//! The life of a durable job: that of a request whose response has left.

use std::{sync::Arc, time::Duration};

use axum_core::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri, Version};

use super::{
    ClockKind, Lifecycle,
    shared::{Arrival, Home, Shared},
    word,
};
use crate::{
    continuation::Continuation,
    durable::is_unkept,
    pool::{Pool, caught, lock},
    status::Sent,
};

impl Lifecycle {
    /// An attempt at a job: it is waited for and cut by drains, and told of, as requests are. What is added to it as a
    /// continuation starts at once.
    pub(crate) fn of_job(pool: Arc<Pool>, kind: &str, limit: Duration) -> Self {
        let shared = Shared::new(Arrival {
            home: Some(Arc::new(Home { pool })),
            connection: None,
            // No client can send this, since the name of a route is made of a method and a path.
            method: Method::from_bytes(b"JOB").unwrap_or_default(),
            uri: format!("/{kind}").parse().unwrap_or_else(|_| Uri::from_static("/")),
            version: Version::HTTP_11,
            uploaded: true,
            is_job: true,
        });
        shared.change(None, |word| Some(word.with(word::HEAD).with_sent(Sent::Flushed)));
        shared.start_time_limit(limit, ClockKind::Wall);
        Self(shared)
    }
}

impl Shared {
    /// Takes in a continuation that starts before those that are there. `Err` if the request has ended.
    pub(crate) fn add_first_continuation(&self, mut continuation: Continuation) -> Result<(), Continuation> {
        continuation.carry(self.captured());
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
    if !is_unkept(response.extensions()) {
        return;
    }
    tracing::error!(
        route = shared.route(),
        "a handler returned a `Durable`, and no `DurableLayer` stands around it: nothing is stored, and its client is \
         answered with a 500. Add `.layer(store.layer())`"
    );
    let text = "The work of this request could not be stored.\n";
    let refusal = (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    caught::discard(std::mem::replace(response, refusal));
}
