//! Work that runs after the response: [`Continuation`], and the slot that carries it there.
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
    cell::{Cell, RefCell},
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

use crate::pool::{Pool, carry::Work, caught, lock};

/// Work that runs after the response was flushed.
///
/// Return it beside the response, as axum returns headers: `(Continuation, R)`, or
/// `(StatusCode, Continuation, R)`. A service that is not an axum handler [attaches](Self::attach) it. Several
/// in one response run one after the other, in the order in which they were added.
///
/// A returned continuation runs exactly once, whatever becomes of its response (contract rule 1): it starts
/// when the response was flushed, when it is known that it never will be, or when the patience with a slow
/// reader is over. It shares the request's time limit (rule 6), its span and its hooks. A panic costs this
/// request only.
///
/// # Cancel safety
///
/// At the time limit, or at a drain's deadline, it is dropped at its next `.await`, and hooks see
/// [`ConnectionStatus::TIMEOUT`](crate::ConnectionStatus::TIMEOUT). A client that leaves never ends it.
///
/// One that is dropped *without* having been put into a response was not promised to anybody: it does not run,
/// and a warning says so.
#[must_use = "a continuation runs only if it is returned with a response"]
pub struct Continuation {
    pub(crate) kind: Option<Kind>,
    class: Option<&'static str>,
    /// What a fallible one came to.
    failure: Option<FailureSlot>,
    span: Span,
    /// Wait for the client's acknowledgement, so long at most.
    #[cfg(feature = "acknowledged")]
    after_acknowledged: Option<std::time::Duration>,
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
    /// Work for the runtime. It must not block its thread: see [`blocking`](Self::blocking).
    ///
    /// The span that is current now is current again while it runs.
    pub fn new<F>(work: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::of(Kind::Async(Box::pin(work)))
    }

    /// Work that blocks: it runs on a thread of its own, inside the runtime's context.
    ///
    /// A thread cannot be ended from outside. At the time limit its request ends without it; the thread is
    /// counted and named in the log until it ends ([`Epilogue::stuck`](crate::Epilogue::stuck)). It does not
    /// hold up the end of the process. At most 500 run at once (`BLOCKING_MAX_THREADS` in the environment
    /// changes that), the others wait.
    pub fn blocking<F>(work: F) -> Self
    where
        F: FnOnce() + Send + 'static,
    {
        Self::of(Kind::Blocking(Box::new(work)))
    }

    /// Work that can fail. An error goes to the [failure handler](crate::EpilogueBuilder::on_failure) of the
    /// `Epilogue`, which by default is a line in the log; [hooks](crate::End::failure) see it as well.
    ///
    /// It is not tried again: a continuation runs once (contract rule 1).
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
        this.failure = Some(failure);
        this
    }

    /// Work that blocks and can fail: [`blocking`](Self::blocking) and [`try_new`](Self::try_new) in one.
    ///
    /// The error of one that is given up at its limit comes too late for anybody.
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
        this.failure = Some(failure);
        this
    }

    /// Names the kind of work that it is, for logs and reports, and for the bound of that
    /// [class](crate::EpilogueBuilder::class), if there is one: so that slow mail does not keep thumbnails waiting.
    pub fn class(mut self, name: &'static str) -> Self {
        self.class = Some(name);
        self
    }

    pub(crate) fn class_name(&self) -> Option<&'static str> {
        self.class
    }

    pub(crate) fn is_blocking(&self) -> bool {
        matches!(self.kind, Some(Kind::Blocking(_)))
    }

    /// Where its error will be.
    pub(crate) fn failure_slot(&self) -> Option<FailureSlot> {
        self.failure.clone()
    }

    pub(crate) fn of(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            class: None,
            failure: None,
            span: Span::current(),
            #[cfg(feature = "acknowledged")]
            after_acknowledged: None,
        }
    }

    /// Has it start only when the client's machine has confirmed the whole response, and not when the kernel has
    /// taken it; or, at the latest, so long after the flush. The time counts for the request's limit.
    ///
    /// A client that resets the connection meanwhile has aborted: the continuation starts, and the status says
    /// ABORTED. Where the acknowledgement cannot be known (no tracked socket, or not Linux) it starts after the flush.
    #[cfg(feature = "acknowledged")]
    pub fn after_acknowledged(mut self, deadline: std::time::Duration) -> Self {
        self.after_acknowledged = Some(deadline);
        self
    }

    #[cfg(feature = "acknowledged")]
    pub(crate) fn acknowledgement(&self) -> Option<std::time::Duration> {
        self.after_acknowledged
    }

    /// Puts it into a response of any tower service, behind those that are there already.
    pub fn attach<B>(self, response: &mut http::Response<B>) {
        self.attach_to(response.extensions_mut());
    }

    /// Puts it into a response's extensions, behind those that are there already.
    pub fn attach_to(self, extensions: &mut Extensions) {
        let slot = extensions.get_or_insert_with(|| Slot(Arc::default()));
        lock(&slot.0.0).push(self);
    }

    /// Takes all that a response carries; nothing the second time.
    pub(crate) fn take_from(extensions: &mut Extensions) -> Vec<Self> {
        if extensions.is_empty() {
            return Vec::new();
        }
        match extensions.remove::<Slot>() {
            Some(slot) => std::mem::take(&mut *lock(&slot.0.0)),
            None => Vec::new(),
        }
    }

    /// The work and the span that it belongs to. From here on, whoever has them answers for them.
    pub(crate) fn into_work(mut self) -> (Kind, Span) {
        let span = std::mem::replace(&mut self.span, Span::none());
        let kind = self.kind.take();
        (kind.unwrap_or_else(|| Kind::Async(Box::pin(async {}))), span)
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
            let _span = self.span.enter();
            tracing::warn!("a continuation was dropped without having been returned with a response: it does not run");
            caught::discard(kind);
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

thread_local! {
    /// A handler is being polled on this thread.
    static POLLING: Cell<bool> = const { Cell::new(false) };
    /// What was lost meanwhile together with its response.
    static STRAY: RefCell<Vec<Continuation>> = const { RefCell::new(Vec::new()) };
}

/// A poll of a request's handler: the continuations whose responses are dropped in it, since an inner middleware
/// replaced them, belong to that request (contract rule 1).
pub(crate) struct Polling {
    outer: bool,
}

impl Polling {
    pub(crate) fn begin() -> Self {
        Self { outer: POLLING.replace(true) }
    }

    /// What went astray meanwhile.
    pub(crate) fn end(self) -> Vec<Continuation> {
        drop(self);
        // An empty `Vec` costs no allocation.
        STRAY.take()
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        POLLING.set(self.outer);
    }
}

/// The response extension. Cloned extensions share one list, so each continuation is taken once.
#[derive(Clone)]
struct Slot(Arc<Waiting>);

#[derive(Default)]
struct Waiting(Mutex<Vec<Continuation>>);

impl Drop for Waiting {
    /// The response was dropped before any of our services saw it: what it promised still runs (contract
    /// rule 1), with the request whose handler is being polled, or else on its own in the default pool.
    fn drop(&mut self) {
        let stray = std::mem::take(&mut *lock(&self.0));
        if stray.is_empty() {
            return;
        }
        if POLLING.get() {
            STRAY.with_borrow_mut(|all| all.extend(stray));
        } else {
            stray.into_iter().for_each(run_alone);
        }
    }
}

/// Runs a continuation that has no request (any more): without limit and hooks, but tracked and logged.
pub(crate) fn run_alone(continuation: Continuation) {
    use tracing::Instrument as _;

    let failure = continuation.failure_slot();
    let (kind, span) = continuation.into_work();
    tracing::warn!(
        parent: &span,
        "a continuation's response was dropped before its request could take it: it runs on its own"
    );
    let pool = Pool::global().clone();
    let runner = pool.clone();
    let in_span = span.clone();
    let work = async move {
        let result = match kind {
            Kind::Async(mut work) => {
                std::future::poll_fn(|cx| match caught::poll(work.as_mut(), cx) {
                    Ok(polled) => polled.map(Ok),
                    Err(payload) => std::task::Poll::Ready(Err(payload)),
                })
                .await
            }
            Kind::Blocking(work) | Kind::Brief(work) => {
                crate::pool::blocking::Blocking::start(work, runner, in_span, "unknown".to_owned()).await
            }
        };
        if let Err(payload) = result {
            tracing::error!(message = crate::pool::panic_message(&*payload), "a continuation panicked");
            caught::dispose(payload);
        }
        // It has no request, and so no failure handler.
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            if let Err(payload) = caught::call(|| tracing::error!(error, "a continuation failed")) {
                caught::dispose(payload);
            }
        }
    };
    if let Err(work) = pool.spawn(work.instrument(span)) {
        pool.report_lost("unknown", "its response was dropped where no runtime is there to run it");
        caught::discard(work);
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
        assert_eq!(
            Continuation::take_from(response.extensions_mut()).into_iter().map(Continuation::into_work).count(),
            2
        );
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
