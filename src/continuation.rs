//! Background work that runs after the response: [`Continuation`], and the slot that carries it there.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_epilogue::Continuation;
//!
//! async fn signup(name: String) -> (Continuation, &'static str) {
//!     let mail = Continuation::new(async move {
//!         // … which takes seconds, and nobody waits for it.
//!         println!("welcome, {name}");
//!     });
//!     (mail, "We'll email you as soon as this is done.")
//! }
//!
//! let app: Router = Router::new().route("/signup", post(signup));
//! # let _ = app;
//! ```

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    sync::{Arc, Mutex},
};

use axum_core::{
    BoxError,
    response::{IntoResponse, IntoResponseParts, Response, ResponseParts},
};
use http::Extensions;
use tracing::Span;

use self::span::Whose;
pub(crate) use self::{
    alone::{Owner, run_alone},
    stray::Polling,
};
use crate::{
    pool::{
        Captured,
        carry::{Work, carried},
        caught, lock,
    },
    queue::Queue,
};

mod alone;
mod slot;
mod span;
mod stray;

/// Work that runs after the response was flushed: a background task that the server tracks.
///
/// Return it beside the response, as axum returns headers: `(Continuation, R)`, or `(StatusCode, Continuation, R)`. A
/// service that is not an axum handler [attaches](Self::attach) it. Several in one response run one after the other,
/// in the order in which they were added. Use `Option<Continuation>` if there is not always work to do.
///
/// Put it before other response parts: if one of them fails (an invalid header), axum answers with a 500 and drops
/// those after it, which then were not returned.
///
/// A returned continuation runs exactly once, whatever becomes of its response ([contract rule
/// 1](crate::manual::contract#1-a-returned-continuation-runs-exactly-once)): it starts when the response was flushed,
/// when it is known that it never will be, or when the [patience](crate::EpilogueBuilder::patience) with a slow
/// reader (30 s by default) is over. It shares the request's [time limit](crate::TimeLimitLayer), if there is one,
/// and its hooks run after it. A panic costs this request only.
///
/// # Cancel safety
///
/// At the time limit, or at a drain's deadline, it is dropped at its next `.await`, and hooks see
/// [`ConnectionStatus::TIMEOUT`](crate::ConnectionStatus::TIMEOUT). A client disconnect never ends it.
///
/// One that is dropped *without* having been put into a response was not promised to anybody: it does not run, and a
/// warning is logged.
#[must_use = "a continuation runs only if it is returned with a response"]
pub struct Continuation {
    kind: Option<Kind>,
    /// What most do not have; kept apart, since there may be very many that wait.
    extra: Option<Box<Extra>>,
}

/// What a continuation may have besides its work.
pub(crate) struct Extra {
    pub(crate) span: Span,
    whose: Whose,
    pub(crate) class: Option<&'static str>,
    /// What a fallible one came to.
    pub(crate) failure: Option<FailureSlot>,
    /// Wait for the client's acknowledgement, so long at most.
    #[cfg(feature = "acknowledged")]
    after_acknowledged: Option<std::time::Duration>,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            span: Span::none(),
            whose: Whose::Request,
            class: None,
            failure: None,
            #[cfg(feature = "acknowledged")]
            after_acknowledged: None,
        }
    }
}

/// The error of a fallible continuation.
pub(crate) type FailureSlot = Arc<Mutex<Option<BoxError>>>;

/// What a continuation does.
pub(crate) enum Kind {
    Async(Work),
    Blocking(Box<dyn FnOnce() + Send>),
    /// Of ours, done in a moment: it needs no place (contract rule 9).
    #[cfg_attr(not(any(feature = "durable-sqlite", feature = "durable-postgres")), allow(dead_code))]
    Brief(Box<dyn FnOnce() + Send>),
}

impl Continuation {
    /// Asynchronous work, for the tokio runtime. It must not block its thread: see [`blocking`](Self::blocking).
    ///
    /// It runs in a [span](crate::manual::observing#spans) of its own, which follows from the span that is current
    /// now.
    pub fn new<F>(work: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::of(Kind::Async(Box::pin(work)))
    }

    /// Work that blocks: it runs on a thread of its own, inside the tokio runtime's context.
    ///
    /// A thread cannot be stopped from outside. At the time limit its request ends without it; the thread is counted
    /// ([`Epilogue::stuck`](crate::Epilogue::stuck)) and named in the log until it ends. It does not delay the end of
    /// the process: if `main` returns first, it is lost half-way. At most 500 run at once in a process (the
    /// environment variable `BLOCKING_MAX_THREADS` changes that), or
    /// [`max_blocking`](crate::EpilogueBuilder::max_blocking) of them; the others wait.
    pub fn blocking<F>(work: F) -> Self
    where
        F: FnOnce() + Send + 'static,
    {
        Self::of(Kind::Blocking(Box::new(work)))
    }

    /// Work that can fail. An error goes to the [failure handler](crate::EpilogueBuilder::on_failure) of the
    /// `Epilogue`, which by default logs it at level error; [hooks](crate::End::failure) see it as well.
    ///
    /// It is not retried: a continuation runs once. A `Durable` (feature `durable`) is.
    ///
    /// ```
    /// use tower_epilogue::Continuation;
    ///
    /// async fn keep(text: String) -> (Continuation, &'static str) {
    ///     let work = Continuation::try_new(async move {
    ///         tokio::fs::write("last.txt", text).await?;
    ///         Ok::<_, std::io::Error>(()) // names the error type that `?` converts to
    ///     });
    ///     (work, "It will be kept.\n")
    /// }
    /// # let _ = keep;
    /// ```
    pub fn try_new<F, E>(work: F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let failure = FailureSlot::default();
        let slot = failure.clone();
        let mut this = Self::new(async move {
            if let Err(error) = work.await {
                let error = error.into();
                *lock(&slot) = Some(error);
            }
        });
        this.extra().failure = Some(failure);
        this
    }

    /// Work that blocks and can fail: [`blocking`](Self::blocking) and [`try_new`](Self::try_new) in one.
    ///
    /// If it is given up on at its limit, its error comes too late and is discarded.
    pub fn try_blocking<F, E>(work: F) -> Self
    where
        F: FnOnce() -> Result<(), E> + Send + 'static,
        E: Into<BoxError>,
    {
        let failure = FailureSlot::default();
        let slot = failure.clone();
        let mut this = Self::blocking(move || {
            if let Err(error) = work() {
                let error = error.into();
                *lock(&slot) = Some(error);
            }
        });
        this.extra().failure = Some(failure);
        this
    }

    /// Names the kind of work, for logs and reports, and for the [bound of that
    /// class](crate::EpilogueBuilder::class), if it has one: so that slow mail does not keep thumbnails waiting.
    pub fn class(mut self, name: &'static str) -> Self {
        self.extra().class = Some(name);
        self
    }

    pub(crate) fn class_name(&self) -> Option<&'static str> {
        self.extra.as_ref()?.class
    }

    pub(crate) fn is_blocking(&self) -> bool {
        matches!(self.kind, Some(Kind::Blocking(_)))
    }

    /// It needs no place.
    pub(crate) fn is_brief(&self) -> bool {
        matches!(self.kind, Some(Kind::Brief(_)))
    }

    /// Where its error will be.
    pub(crate) fn failure_slot(&self) -> Option<FailureSlot> {
        self.extra.as_ref()?.failure.clone()
    }

    pub(crate) fn of(kind: Kind) -> Self {
        let span = Span::current();
        let extra = (!span.is_disabled()).then(|| Box::new(Extra { span, ..Extra::default() }));
        Self { kind: Some(kind), extra }
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Has what was captured where it was added in scope where it runs.
    pub(crate) fn carry(&mut self, captured: Vec<Box<dyn Captured>>) {
        if captured.is_empty() {
            return;
        }
        self.kind = self.kind.take().map(|kind| match kind {
            Kind::Async(work) => Kind::Async(Box::pin(carried(captured, work))),
            Kind::Blocking(work) => {
                Kind::Blocking(captured.into_iter().fold(work, |work, value| value.around_blocking(work)))
            }
            Kind::Brief(work) => Kind::Brief(work),
        });
    }

    /// Delays its start until the client's machine has acknowledged the whole response (TCP), at the latest until
    /// `deadline` after the flush. The wait counts towards the request's time limit.
    ///
    /// A client that resets the connection meanwhile has aborted: the continuation starts, and the status says
    /// ABORTED. Where the acknowledgement cannot be known (no tracked socket, or not Linux) it starts after the
    /// flush.
    ///
    /// Until then the connection's socket is kept open, even if the server drops the connection. Other continuations
    /// of its response that come first are run before the wait.
    #[cfg(feature = "acknowledged")]
    pub fn after_acknowledged(mut self, deadline: std::time::Duration) -> Self {
        self.extra().after_acknowledged = Some(deadline);
        self
    }

    #[cfg(feature = "acknowledged")]
    pub(crate) fn acknowledgement(&self) -> Option<std::time::Duration> {
        self.extra.as_ref()?.after_acknowledged
    }

    /// Adds it to a response of any tower service, after those already in it.
    pub fn attach<B>(self, response: &mut http::Response<B>) {
        self.attach_to(response.extensions_mut());
    }

    /// Adds it to a response's extensions, after those already in them.
    pub fn attach_to(self, extensions: &mut Extensions) {
        slot::put(extensions, self);
    }

    /// Takes all that a response carries; nothing the second time.
    #[inline]
    pub(crate) fn take_from(extensions: &mut Extensions) -> Queue<Self> {
        slot::take(extensions)
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Some(Kind::Async(_)) => "async",
            Some(Kind::Blocking(_) | Kind::Brief(_)) => "blocking",
            None => "taken",
        };
        f.debug_tuple("Continuation").field(&kind).finish()
    }
}

impl Drop for Continuation {
    fn drop(&mut self) {
        if let Some(kind) = self.kind.take() {
            let said = "a continuation was dropped and does not run: return it as a part of the response";
            caught::within(self.extra.as_ref().map(|extra| &extra.span), || {
                caught::tell(|| tracing::warn!("{said}"));
                caught::discard(kind);
            });
            caught::close(self.extra.take());
        }
    }
}

impl IntoResponseParts for Continuation {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        self.attach_to(parts.extensions_mut());
        Ok(parts)
    }
}

impl IntoResponse for Continuation {
    fn into_response(self) -> Response {
        (self, ()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counting(count: &Arc<AtomicUsize>) -> Continuation {
        let count = count.clone();
        Continuation::new(async move {
            count.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[tokio::test]
    async fn rule_01_cloned_extensions_give_a_continuation_once() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut response = (counting(&count), counting(&count), "body").into_response();
        let mut copy = response.extensions().clone();
        assert_eq!(Continuation::take_from(response.extensions_mut()).map(Continuation::into_work).count(), 2);
        assert!(Continuation::take_from(&mut copy).is_empty());
        assert!(Continuation::take_from(response.extensions_mut()).is_empty());
    }

    #[tokio::test]
    async fn rule_01_a_response_that_no_layer_saw_still_keeps_its_promise() {
        let count = Arc::new(AtomicUsize::new(0));
        drop((counting(&count), "body").into_response());
        while count.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_continuation_that_was_never_returned_does_not_run() {
        let count = Arc::new(AtomicUsize::new(0));
        drop(counting(&count));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
