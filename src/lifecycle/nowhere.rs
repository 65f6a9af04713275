//! Responses that go nowhere: what came with them runs, what they promise is stored, and their bodies are produced where
//! aborts are ignored.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use axum_core::{body::Body, response::Response};
use tokio::runtime::Handle;

use super::{alone::News, producer, response::collect, shared::Shared};
use crate::{
    continuation::{Continuation, run_alone},
    event::BODY,
    pool::caught,
    queue::Queue,
};

const UNSTORED: &str = "the runtime ended before what it promised was known to be stored";

/// What a response promises.
pub(crate) enum Promised {
    /// Or nothing that is anybody's to store.
    Nothing(Response),
    /// It is held back until it is stored; or one that says so, if that fails.
    #[cfg_attr(
        not(any(feature = "durable-sqlite", feature = "durable-postgres")),
        expect(dead_code, reason = "there is nothing to store")
    )]
    Storing(Storing),
}

/// How a response came that goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It was given to `finish`.
    Finished,
    /// The attempt returned it.
    Returned,
    /// So after its `finish`.
    ReturnedLate,
}

pub(crate) type Storing = Pin<Box<dyn Future<Output = Response> + Send>>;

/// That of a handler that went on alone, for whom `keepers` were there when it began to. Gives the continuations in it.
pub(super) async fn returned_alone(
    owner: &Arc<Shared>,
    mut response: Response,
    how: How,
    keepers: Keepers,
) -> Queue<Continuation> {
    let continuations = Continuation::take_from(response.extensions_mut());
    let response = match owner.store_promises(response, how, keepers) {
        Promised::Storing(storing) => stored(owner, storing).await,
        Promised::Nothing(response) => {
            tell_unheard(owner, &response, how);
            Some(response)
        }
    };
    if let Some(response) = response {
        go_nowhere(owner, response, how);
    }
    continuations
}

/// A response that comes too late to be sent. After `finish` it is dropped (contract rule 7).
fn go_nowhere(shared: &Arc<Shared>, response: Response, how: How) {
    if how == How::ReturnedLate {
        tell_error(shared, &response);
        caught::discard(response);
        return;
    }
    produce_unread(shared, response.into_body());
}

/// The work did not get done, and neither its client nor a middleware hears of that (contract rule 13).
fn tell_unheard(shared: &Shared, response: &Response, how: How) {
    if response.status().is_server_error() && how == How::Returned {
        let (route, status) = (shared.route(), response.status().as_u16());
        caught::tell(|| {
            tracing::error!(
                route,
                status,
                "a handler that went on after its client had left returned an error, which nobody receives"
            );
        });
    }
}

/// The client has another answer. That the work behind it failed (a `?`, a timeout of a middleware inside) would be known to
/// nobody (contract rule 13).
fn tell_error(shared: &Shared, response: &Response) {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let (route, status) = (shared.route(), status.as_u16());
        caught::tell(|| {
            tracing::error!(route, status, "a handler returned an error after its `finish`, which nobody receives");
        });
    }
}

/// A response that was given to `finish`, and that nobody takes: by a handler for whom `keepers` were there.
pub(super) fn finish_nowhere(shared: &Arc<Shared>, mut response: Response, keepers: Keepers) {
    collect(shared, &mut response);
    let storing = match shared.store_promises(response, How::Finished, keepers) {
        Promised::Storing(storing) => storing,
        Promised::Nothing(response) => {
            return produce_unread(shared, response.into_body());
        }
    };
    let owner = shared.clone();
    go_on(shared, async move {
        if let Some(response) = stored(&owner, storing).await {
            produce_unread(&owner, response.into_body());
        }
    });
}

/// A response that was `held` back when its client left, and the rest of its way out.
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub(super) fn go_on_held(shared: &Arc<Shared>, rest: Storing, kept: Kept) {
    let owner = shared.clone();
    go_on(shared, async move {
        let Some(response) = stored(&owner, rest).await else { return };
        let how = kept.how();
        let response = match kept.store(response) {
            Promised::Storing(storing) => stored(&owner, storing).await,
            Promised::Nothing(response) => Some(response),
        };
        if let Some(response) = response {
            go_nowhere(&owner, response, how);
        }
    });
}

/// The request does not end before that has, if it has not yet, so that its jobs start behind it.
fn go_on(shared: &Arc<Shared>, work: impl Future<Output = ()> + Send + 'static) {
    shared.producer_started();
    let owner = shared.clone();
    let work = async move {
        work.await;
        owner.producer_ended(None);
    };
    let _served = shared.runtime().map(Handle::enter);
    if let Err(work) = shared.pool().spawn(work) {
        shared.pool().report_lost(&shared.route(), UNSTORED);
        caught::discard(work);
        shared.producer_ended(None);
    }
    shared.ensure_ending();
}

/// What a handler returned whose answer was another, given to `finish`.
pub(super) fn returned_late(shared: &Arc<Shared>, response: Response) {
    tell_error(shared, &response);
    match shared.store_promises(response, How::ReturnedLate, Keepers::none()) {
        Promised::Nothing(response) => caught::discard(response),
        Promised::Storing(storing) => store_alone(shared, storing),
    }
}

/// Nothing of the request waits for it: jobs that are stored behind its end start at once. A drain does, and names it.
pub(crate) fn store_alone<T: Send>(shared: &Arc<Shared>, storing: impl Future<Output = T> + Send + 'static) {
    // It may wait for long.
    shared.let_go();
    let work = Continuation::new(async move { caught::discard(storing.await) });
    // No span is worth it: what there is to tell of it has the route.
    run_alone(work.in_span(tracing::Span::none()), shared.clone());
}

/// Waits until it is stored, no longer than to the request's limit. `None` where there is no response left.
async fn stored(owner: &Arc<Shared>, mut storing: Storing) -> Option<Response> {
    let mut news = News::of(owner);
    let stored = poll_fn(|cx| {
        news.enlist(cx);
        // Its body is the user's, and is read to be kept.
        match caught::poll(storing.as_mut(), cx) {
            Ok(Poll::Ready(response)) => return Poll::Ready(Some(response)),
            Err(payload) => {
                owner.panicked(BODY, &payload);
                caught::dispose(payload);
                return Poll::Ready(None);
            }
            Ok(Poll::Pending) => {}
        }
        owner.arm();
        // Not where only its client has left: it is promised. That it is given up, it says itself.
        if owner.word().status().is_timeout() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await;
    caught::discard(storing);
    stored
}

/// A body that nobody reads. If its client left and that is ignored, it is still produced to its end (contract rule 5).
fn produce_unread(shared: &Arc<Shared>, body: Body) {
    if shared.is_head() || !shared.producer_survives_drop() {
        return caught::discard(body);
    }
    // What it says of its length is the user's code, and this may be a destructor, or a task that nobody watches.
    let asked = || (http_body::Body::is_end_stream(&body), http_body::Body::size_hint(&body).exact().is_none());
    let (bodiless, streamed) = caught::call(asked).unwrap_or_else(|payload| {
        shared.panicked(BODY, &payload);
        caught::dispose(payload);
        (true, false)
    });
    if bodiless {
        return caught::discard(body);
    }
    shared.producer_started();
    producer::drain(shared, body, streamed);
}

#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub(super) use super::keeper::{Keepers, Kept};

#[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
pub(super) struct Keepers;

#[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
impl Keepers {
    pub(super) const fn none() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "with durable jobs there are some")]
    pub(super) const fn again(&self) -> Self {
        Self
    }
}

#[cfg(not(any(feature = "durable-sqlite", feature = "durable-postgres")))]
impl Shared {
    #[expect(clippy::unused_self, reason = "with durable jobs there are some")]
    pub(super) fn keepers(&self) -> Keepers {
        Keepers
    }

    #[expect(clippy::unused_self, reason = "with durable jobs there is something to store")]
    fn store_promises(self: &Arc<Self>, response: Response, _: How, _: Keepers) -> Promised {
        Promised::Nothing(response)
    }
}
