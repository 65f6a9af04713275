//! One request's life, and the handle to it: [`Lifecycle`].
//!
//! A request's state is one shared record, made by the outermost of our services and found by the others in
//! the request's extensions. The outermost watches the response until it is flushed, runs the continuations
//! and the hooks; the innermost holds the handler's future. What stands between sees ordinary requests and
//! responses.

use std::{convert::Infallible, fmt, future::Future, sync::Arc, time::Duration};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::IntoResponse,
};
use http::{Extensions, request::Parts};

pub use self::{
    clock::ClockKind,
    error::{LifecycleError, MissingLifecycle},
    finish::Finish,
    hooks::{End, HookOutcome},
    response::SendBody,
    service::ResponseFuture,
    word::Phase,
};
pub(crate) use self::{
    drive::{Drive, response_future},
    home::Home,
    hooks::Hook,
    response::{answer, is_broken_off, taken_off},
    service::{Boxed, Hold, begin, enter},
    shared::Shared,
    timer::poll_sleep,
};
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub(crate) use self::{
    keeper::{GoesOn, HeldBack, Keeper, Whose},
    nowhere::{How, Promised, Storing, store_alone},
    seat::Seat,
    transitions::Verdict,
};
use crate::{event::RequestId, status::ConnectionStatus};

mod admission;
mod after;
mod alone;
mod clock;
mod deadlines;
mod delivery;
mod drive;
mod driver;
mod ending;
mod error;
mod finish;
mod frames;
mod handling;
mod held;
mod home;
mod hooking;
mod hooks;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
mod job;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
mod keeper;
mod late;
mod measure;
#[cfg(all(test, epilogue_model))]
mod model;
mod nowhere;
mod passage;
mod places;
mod polled;
mod polls;
mod producer;
mod response;
mod running;
mod seat;
mod service;
mod shared;
mod strays;
mod telling;
mod timer;
mod told;
mod transitions;
mod word;
mod work;

/// The handle to one request: an extractor through which a handler reads its connection's status, ignores aborts,
/// sets the time limit, registers hooks, or sends its response early.
///
/// It works with any one of this crate's layers, or under [`Epilogue::serve`](crate::Epilogue::serve) or
/// [`make_service`](crate::Epilogue::make_service) without any. With none of these it is rejected with a 500 that says what to add;
/// `Option<Lifecycle>` is then `None`. Cloning is cheap, and clones may be kept: after the request's end, reading
/// still works and setting does nothing.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use tower_epilogue::{IgnoreAbortLayer, Lifecycle, LifecycleError};
///
/// async fn report(lifecycle: Lifecycle) -> Result<(), LifecycleError> {
///     lifecycle.ignore_abort(true);
///     lifecycle.set_time_limit(Duration::from_secs(20));
///     lifecycle.on_shutdown(|end| async move {
///         println!("{} ended: {}", end.route(), end.status());
///     })?;
///     lifecycle.finish("working on it").await?;
///     // … the client no longer waits.
///     Ok(())
/// }
///
/// let app: Router = Router::new().route("/report", post(report)).layer(IgnoreAbortLayer::new());
/// # let _ = app;
/// ```
#[derive(Clone)]
pub struct Lifecycle(pub(crate) Arc<Shared>, running::Around);

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Lifecycle {
    /// The request's identifier, unique within this process.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.0.id()
    }

    /// Whether the client has left, and whether the time limit has passed, so far: PHP's `connection_status()`.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.0.word().status()
    }

    /// Which phase the request is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.word().phase()
    }

    /// Whether the client left (disconnected) before its response was flushed: PHP's `connection_aborted()`. Makes no
    /// system call.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.status().is_aborted()
    }

    /// Waits until the client has left (disconnected) before its response was flushed; for ever if it does not.
    ///
    /// A handler that has not responded sees this only while [aborts are ignored](Self::ignore_abort): otherwise an
    /// abort drops it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be dropped, as in `tokio::select!`, and called again.
    pub async fn aborted(&self) {
        self.0.wait_for(|word| word.status().is_aborted().then_some(())).await;
    }

    /// Resolves when the server's graceful shutdown ([drain](crate::Epilogue::drain)) begins, at once if one is under
    /// way, and never if there is none. Use it to end an event stream, a long poll or an endless loop, which would
    /// otherwise hold up the drain until its deadline:
    ///
    /// ```
    /// use std::convert::Infallible;
    /// use axum::response::sse::{Event, Sse};
    /// use futures_util::{Stream, StreamExt as _, stream};
    /// use tower_epilogue::Lifecycle;
    ///
    /// async fn ticks(lifecycle: Lifecycle) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    ///     let ticks = stream::repeat(()).then(|()| async {
    ///         tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ///         Ok(Event::default().data("tick"))
    ///     });
    ///     Sse::new(ticks.take_until(lifecycle.draining()))
    /// }
    /// # let _ = ticks;
    /// ```
    ///
    /// Under [`Epilogue::serve`](crate::Epilogue::serve) the drain begins with the signal; under another server, when
    /// [`Epilogue::drain`](crate::Epilogue::drain) is called. If several servers share an `Epilogue`, it begins with the first
    /// of them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be dropped, as in `tokio::select!`, and called again. A drain that begins after this call
    /// is not missed, even if the future has not been polled yet.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        self.0.pool().drains.begun()
    }

    /// Sets whether the handler and the body's producer run on when the client disconnects, and returns the previous
    /// setting: PHP's `ignore_user_abort(true)`. The default is `false`, or what an
    /// [`IgnoreAbortLayer`](crate::IgnoreAbortLayer) says. To read it, see [`ignores_abort`](Self::ignores_abort).
    ///
    /// If it is turned off after an abort, the work ends at its next `.await`.
    #[expect(clippy::must_use_candidate, reason = "called for what it sets")]
    pub fn ignore_abort(&self, ignore: bool) -> bool {
        self.0.set_ignore_abort(ignore)
    }

    /// Whether an abort is ignored, by the setting or by a [`shield`](Self::shield).
    #[must_use]
    pub fn ignores_abort(&self) -> bool {
        self.0.word().ignores_abort()
    }

    /// Ignores aborts while the returned guard lives: a critical section that a client disconnect cannot interrupt.
    /// Guards nest, and leave the setting alone.
    ///
    /// Bind it to a name, as in `let _shield = lifecycle.shield();`: `let _ = …` drops it at once, and shields
    /// nothing.
    ///
    /// If aborts are not ignored otherwise and the client has left, the work ends at its next `.await` once the last
    /// guard is dropped.
    ///
    /// # Panics
    ///
    /// If the request already has 4,095 guards.
    pub fn shield(&self) -> Shield {
        self.0.shield();
        Shield(self.0.clone())
    }

    /// Restarts the request timeout from now: PHP's `set_time_limit`. A limit of 20 s that is set after 25 s allows
    /// 45 s in all. `Duration::ZERO` lifts it, as does one too long for the clock (centuries). The kind of clock
    /// stays: see [`TimeLimitLayer::busy`](crate::TimeLimitLayer::busy).
    ///
    /// It also works without a [`TimeLimitLayer`](crate::TimeLimitLayer), then in wall-clock time. Once the
    /// [status](Self::status) says [`TIMEOUT`](crate::ConnectionStatus::TIMEOUT) it does nothing. A limit that passes while code
    /// runs without an `.await` is noticed at the next one, and until then it can still be restarted.
    ///
    /// # Panics
    ///
    /// If the limit is to be waited for in a tokio runtime without timers
    /// ([`enable_time`](tokio::runtime::Builder::enable_time)). Outside of all runtimes it can be called.
    pub fn set_time_limit(&self, limit: Duration) {
        self.0.restart_clock(limit);
    }

    /// The time left until the limit; `None` without a limit. In busy time, the time of a blocking continuation's
    /// thread is subtracted only when the thread has ended.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.0.clock.left()
    }

    /// Registers a hook for the request's end: PHP's `register_shutdown_function`. ("Shutdown" is the request's end,
    /// not a graceful shutdown of the server.)
    ///
    /// Hooks run once, in the order of their registration, when handler, body and continuation have ended and the
    /// response was flushed, or will not be. Each has a time limit of its own
    /// ([`hook_limit`](crate::EpilogueBuilder::hook_limit), 5 s by default). It returns a future of `()`, or of a
    /// [`ControlFlow`](std::ops::ControlFlow) whose `Break` skips the remaining hooks.
    ///
    /// # Errors
    ///
    /// If the request's last hook has run, or its runtime has ended: the hook is dropped.
    pub fn on_shutdown<F, Fut>(&self, hook: F) -> Result<(), LifecycleError>
    where
        F: FnOnce(End) -> Fut + Send + 'static,
        Fut: Future<Output: HookOutcome> + Send + 'static,
    {
        self.0.add_hook(Hook::new(hook))
    }

    /// Sends the response now, while the handler goes on: PHP's `fastcgi_finish_request`.
    ///
    /// The response passes through the middleware outside our innermost service, as a returned one does. The future
    /// resolves when the response was [flushed](crate::Sent::Flushed), or is known never to be, with [what became of
    /// it](crate::Sent). From then on the handler is its own continuation, which a client disconnect no longer ends.
    ///
    /// What the handler returns afterwards is discarded, except for a continuation in it, which runs, and durable
    /// jobs, which are stored. If that response is an error (a status of 400 or more), its status is logged, but not
    /// its body.
    ///
    /// The rest of the request body can still be read. While somebody holds it, an HTTP/1 connection accepts no
    /// further request, nor does it close: if you do not need it, drop it before you go on.
    ///
    /// # Errors
    ///
    /// If it was called before, or the handler has returned already; the response is dropped.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. If it is dropped after that, the response is sent all the same.
    pub fn finish(&self, response: impl IntoResponse) -> Finish {
        Finish::new(self.0.clone(), response.into_response())
    }
}

/// Ignores aborts while it lives. Made by [`Lifecycle::shield`].
#[derive(Debug)]
#[must_use = "a shield holds only while it lives: bind it to a name"]
pub struct Shield(Arc<Shared>);

impl Drop for Shield {
    fn drop(&mut self) {
        self.0.unshield();
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Lifecycle {
    type Rejection = MissingLifecycle;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        found(&parts.extensions).ok_or(MissingLifecycle(()))
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Lifecycle {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(found(&parts.extensions))
    }
}

fn found(extensions: &Extensions) -> Option<Lifecycle> {
    let lifecycle = extensions.get::<Lifecycle>()?;
    // There may be none of our layers inside of the router.
    service::note_route(&lifecycle.0, extensions);
    Some(lifecycle.clone())
}

// === what the handle asks of the record ===

impl Shared {
    /// What a layer says: the limit counts from the request's arrival.
    pub(crate) fn start_time_limit(&self, limit: Duration, kind: ClockKind) {
        self.clock.set(limit, clock::Start::Arrival, Some(kind));
    }

    pub(crate) fn set_ignore_abort(&self, ignore: bool) -> bool {
        let changed =
            self.change(None, |word| Some(if ignore { word.with(word::IGNORE) } else { word.without(word::IGNORE) }));
        self.reconsider();
        changed.is_some_and(|change| change.old.has(word::IGNORE))
    }

    fn shield(&self) {
        let too_many = self.change(None, word::Word::shielded).is_none() && self.word().shielded().is_none();
        assert!(!too_many, "a request has at most 4,095 shields at a time");
    }

    fn unshield(&self) {
        self.change(None, |word| Some(word.unshielded()));
        self.reconsider();
    }

    /// An abort may no longer be ignored.
    fn reconsider(&self) {
        if self.word().is_abandoned() {
            self.abandon();
            self.wake_all();
        }
    }

    pub(super) async fn wait_for<T>(&self, found: impl Fn(word::Word) -> Option<T>) -> T {
        loop {
            // Enlisted before the look, so that what changes after it is heard of.
            let notify = self.changed();
            let changed = notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.change(None, |word| Some(word.with(word::AWAITED)));
            if let Some(value) = found(self.word()) {
                return value;
            }
            changed.await;
        }
    }
}
