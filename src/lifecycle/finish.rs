//! Letting a response leave while its handler goes on (contract rule 7).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::response::Response;

use super::{
    LifecycleError,
    error::Kind,
    nowhere::{self, Keepers},
    passage::Waits,
    polled::{self, Which},
    shared::Shared,
    word::{self, Word},
};
use crate::{
    event::EventKind,
    pool::{caught, lock},
    status::Sent,
};

/// The future of [`Lifecycle::finish`](crate::Lifecycle::finish).
#[must_use = "nothing leaves until it is awaited"]
pub struct Finish {
    shared: Arc<Shared>,
    /// Until the first poll.
    response: Option<Box<Response>>,
    sent: Option<Pin<Box<dyn Future<Output = Sent> + Send>>>,
}

impl fmt::Debug for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finish").field("begun", &self.sent.is_some()).finish_non_exhaustive()
    }
}

impl Finish {
    pub(super) fn new(shared: Arc<Shared>, response: Response) -> Self {
        Self { shared, response: Some(Box::new(response)), sent: None }
    }

    /// Resolves when the client's machine has acknowledged the whole response (TCP), not just when the kernel has
    /// accepted it.
    ///
    /// It has no timeout of its own: put a `tokio::time::timeout` around it. The socket is kept open until then.
    ///
    /// # Errors
    ///
    /// As `finish` itself.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. If it is dropped after that, the response is sent all the same.
    #[cfg(feature = "acknowledged")]
    pub async fn acknowledged(self) -> Result<crate::connection::Acknowledged, LifecycleError> {
        use crate::connection::Acknowledged;

        // Before the flush: the server may close right after it.
        let delivered = self.shared.connection().map(|connection| connection.keep_socket());
        match (self.await?, delivered) {
            (Sent::Flushed, Some(delivered)) => Ok(delivered.acknowledged().await),
            (Sent::Aborted | Sent::BrokenOff, _) => Ok(Acknowledged::Aborted),
            (Sent::Flushed | Sent::GivenUp, _) => Ok(Acknowledged::Unknown),
        }
    }
}

impl Future for Finish {
    type Output = Result<Sent, LifecycleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(response) = this.response.take() {
            this.shared.finish(response)?;
            let shared = this.shared.clone();
            this.sent = Some(Box::pin(async move {
                let sent = shared.wait_for(Word::known_sent).await;
                shared.tell(EventKind::FinishResolved);
                sent
            }));
        }
        match &mut this.sent {
            Some(sent) => Poll::Ready(Ok(ready!(sent.as_mut().poll(cx)))),
            // It was refused at the first poll.
            None => Poll::Pending,
        }
    }
}

/// What was given to `finish`, and by whom.
pub(super) struct Finished {
    by: Which,
    pub(super) response: Box<Response>,
}

impl Shared {
    pub(crate) fn is_finished(&self) -> bool {
        self.word().has(word::FINISHED)
    }

    /// Whether that attempt has called `finish`, as far as can be told.
    pub(super) fn is_finisher(&self, which: Which) -> bool {
        let finisher = || lock(&self.core).rare().finisher;
        self.is_finished() && [which.number, Which::UNKNOWN].contains(&finisher())
    }

    /// Whether a `finish` protects that attempt from an abort: its own, or that of what it may be a part of.
    pub(super) fn has_finished(&self, which: Which) -> bool {
        self.is_finished() && (self.running.is_scattered() || self.is_finisher(which))
    }

    pub(super) fn set_finisher(&self, number: u32) {
        lock(&self.core).rare().finisher = number;
    }

    /// The response that was given to `finish`, the first time. The bit is set under the lock that the response is stored
    /// under, so that who sees no bit needs no lock.
    pub(super) fn take_finished(&self, is_it: impl FnOnce(Which) -> bool) -> Option<Box<Response>> {
        let taken = || lock(&self.core).rare().finished.take_if(|finished| is_it(finished.by));
        self.is_finished().then(taken).flatten().map(|finished| finished.response)
    }

    fn finish(&self, response: Box<Response>) -> Result<(), LifecycleError> {
        let mut core = lock(&self.core);
        let changed = self.change(None, |word| {
            (!word.has(word::FINISHED) && word.has(word::HANDLER)).then(|| word.with(word::FINISHED))
        });
        let by = polled::which(self);
        // The client is gone and the handler runs on without it: there is nobody to answer.
        let leaves = changed.as_ref().is_some_and(|change| !change.new.has(word::HEAD));
        let refusal = match changed {
            None if self.is_finished() => Some(Kind::FinishedTwice),
            None => Some(Kind::AlreadyAnswered),
            Some(_) if !leaves && !by.alone => {
                core.rare().finisher = by.number;
                drop(core);
                if let Some(me) = self.arc() {
                    nowhere::finish_nowhere(&me, *response, Keepers::none());
                }
                return Ok(());
            }
            Some(_) => None,
        };
        if let Some(kind) = refusal {
            drop(core);
            caught::discard(response);
            return Err(LifecycleError::new(kind));
        }
        core.rare().finisher = by.number;
        core.rare().finished = Some(Finished { by, response });
        drop(core);
        self.wake(Waits::Handler);
        // One that goes on alone is among them.
        self.wake_awaiting();
        Ok(())
    }
}
