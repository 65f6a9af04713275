//! What runs at a request's end: [`ShutdownHook`], and the [`End`] that it is told.

use std::{
    fmt,
    future::Future,
    ops::ControlFlow,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::StatusCode;
use tracing::Span;

use super::{LifecycleError, shared::Shared};
use crate::{
    event::RequestId,
    pool::{Captured, carry::carried},
    status::{ConnectionStatus, Sent},
};

/// How a request ended, as its hooks see it.
///
/// Handler, body and continuation are over, and the response was flushed, aborted, broken off or given up on.
pub struct End {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("route", &self.route())
            .field("status", &self.status())
            .field("sent", &self.sent())
            .field("response_status", &self.response_status())
            .finish_non_exhaustive()
    }
}

impl End {
    /// Whether the client aborted, the limit passed, both or neither: PHP's `connection_status()`.
    #[must_use]
    pub fn status(&self) -> ConnectionStatus {
        self.shared.word().status()
    }

    /// What became of the response.
    #[must_use]
    pub fn sent(&self) -> Sent {
        self.shared.word().known_sent().unwrap_or(Sent::BrokenOff)
    }

    /// The status code of the response as the outermost of this crate's services handed it to the server, whether or
    /// not it was [sent](Self::sent): PHP's `http_response_code()`. `None` if there was no response, as for an
    /// attempt at a durable job.
    ///
    /// If the request ended because its client left before the handler had responded, it is 499 (which nobody
    /// receives), or `None` if the server was the first to notice.
    #[must_use]
    pub fn response_status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.shared.answered.load(Ordering::Acquire)).ok()
    }

    /// The message of the first panic in the handler, body, continuation or an earlier hook, if there was one: PHP's
    /// `error_get_last()`.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        self.shared.panic()
    }

    /// The error of the first continuation that [failed](crate::Continuation::try_new), if one did, followed by its
    /// sources.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// The time since the request's arrival.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.elapsed()
    }

    /// How many bytes of the response body were handed to the server.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes()
    }

    /// The method and the matched route, or the path if no route is known: `GET /users/{id}`.
    #[must_use]
    pub fn route(&self) -> String {
        self.shared.route()
    }

    /// The request's identifier, unique within this process.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.shared.id()
    }

    /// Registers one more hook, which runs after those already registered.
    ///
    /// # Errors
    ///
    /// If the request has ended. It has not while the hook that was given this `End` is running.
    pub fn on_shutdown<F, Fut>(&self, hook: F) -> Result<(), LifecycleError>
    where
        F: FnOnce(End) -> Fut + Send + 'static,
        Fut: Future<Output: HookOutcome> + Send + 'static,
    {
        self.shared.add_hook(Hook::new(hook))
    }
}

/// What a hook returns: `()`, or a [`ControlFlow`] whose `Break` skips the hooks that are left.
#[diagnostic::on_unimplemented(
    message = "a hook cannot return `{Self}`",
    note = "a hook's future returns `()`, or `ControlFlow<()>`, whose `Break` skips the hooks that are left",
    note = "nobody is left to be told of an error: have the hook log it"
)]
pub trait HookOutcome: Send {
    /// Whether the hooks that are left run.
    fn goes_on(self) -> ControlFlow<()>;
}

impl HookOutcome for () {
    fn goes_on(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl HookOutcome for ControlFlow<()> {
    fn goes_on(self) -> ControlFlow<()> {
        self
    }
}

/// What a hook's future is kept as.
pub(super) type Outcome = Pin<Box<dyn Future<Output = ControlFlow<()>> + Send>>;

/// A registered hook.
pub(crate) struct Hook {
    run: Box<dyn FnOnce(End) -> Outcome + Send>,
    /// The one that was current; `None` costs nothing.
    span: Option<Box<Span>>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

impl Hook {
    pub(crate) fn new<F, Fut>(hook: F) -> Self
    where
        F: FnOnce(End) -> Fut + Send + 'static,
        Fut: Future<Output: HookOutcome> + Send + 'static,
    {
        Self {
            // The user's function is called at the first poll, where a panic is caught.
            run: Box::new(move |end| Box::pin(async move { hook(end).await.goes_on() })),
            span: Some(Span::current()).filter(|span| !span.is_none()).map(Box::new),
        }
    }

    /// Has what was captured where it was registered in scope where it runs.
    pub(super) fn carry(&mut self, captured: Vec<Box<dyn Captured>>) {
        if captured.is_empty() {
            return;
        }
        let run: Box<dyn FnOnce(End) -> Outcome + Send> = Box::new(|_| Box::pin(async { ControlFlow::Continue(()) }));
        let run = std::mem::replace(&mut self.run, run);
        self.run = Box::new(move |end| Box::pin(carried(captured, run(end))));
    }

    /// Its future, and the span that it belongs to.
    pub(super) fn start(self, end: End) -> (Outcome, Option<Box<Span>>) {
        ((self.run)(end), self.span)
    }
}
