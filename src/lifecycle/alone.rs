//! A handler that goes on in a task of its own: without its client, or after its `finish`.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::response::Response;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    task::coop::{Unconstrained, unconstrained},
};
use tracing::Span;

use super::{
    frames::Framed,
    handling::HandlerEnd,
    held::Surroundings,
    nowhere::{How, finish_nowhere, returned_alone},
    polled::{Polled, Which},
    response::SendBody,
    running::Count,
    shared::Shared,
    strays::{keep_strays, poll_handler},
    word,
};
use crate::{
    continuation::{self, Continuation},
    event::HANDLER,
    pool::{carry::carried, caught, spans},
    queue::Queue,
};

/// How it ended.
enum Alone {
    Returned(Response),
    Failed,
    Dropped,
    Panicked(caught::Payload),
}

/// Lets a handler go on in a tracked task.
pub(super) fn detach<F, B, E>(
    future: Pin<Box<F>>,
    shared: &Arc<Shared>,
    which: Which,
    count: Count,
    context: Surroundings,
) where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    let owner = shared.clone();
    let framed = Framed::new(shared.clone(), HANDLER, future);
    let detached = context.detached.unwrap_or_else(|| shared.pool().detach());
    let keepers = shared.keepers();
    let is_rest = shared.is_finisher(which);
    // There may be another attempt. The handler has ended when the last of them has.
    let lone = Lone { counted: Counted::begin(owner.clone(), count), framed };
    let which = Which { alone: true, ..which };
    let work = async move {
        let _detached = detached;
        // Whole, so that it is dropped in order also where this never begins.
        let Lone { counted, mut framed } = lone;
        // Not by the one place that the handler in service has, which may be another attempt's by now.
        let mut news = News::of(&owner);
        let ended = poll_fn(|cx| {
            news.enlist(cx);
            let Some(future) = framed.work.as_mut() else { return Poll::Pending };
            let around = Polled::begin(&owner, which, 0, true);
            let polled = poll_handler(&owner, false, future.as_mut(), cx);
            drop(around);
            // The middleware that dropped it may not have answered yet: the head that leaves is not that of this one.
            if let Some(response) = owner.take_finished(|by| by == which) {
                finish_nowhere(&owner, *response, keepers.again());
            }
            match polled {
                Ok(Poll::Ready(Ok(response))) => {
                    return Poll::Ready(Alone::Returned(response.map(SendBody::into_body)));
                }
                Ok(Poll::Ready(Err(error))) => {
                    caught::discard(error);
                    return Poll::Ready(Alone::Failed);
                }
                Err(payload) => return Poll::Ready(Alone::Panicked(payload)),
                Ok(Poll::Pending) => {}
            }
            owner.arm_for_work();
            if owner.verdict_on(which).is_some() { Poll::Ready(Alone::Dropped) } else { Poll::Pending }
        })
        .await;
        let polling = continuation::Polling::begin();
        drop(framed);
        keep_strays(&owner, polling);
        let is_dropped = matches!(ended, Alone::Dropped);
        if is_rest {
            spans::ended(&Span::current(), if is_dropped { "dropped" } else { "ended" });
        }
        let continuations = match ended {
            Alone::Returned(response) => {
                let how = if owner.is_finisher(which) { How::ReturnedLate } else { How::Returned };
                returned_alone(&owner, response, how, keepers).await
            }
            Alone::Failed | Alone::Dropped => Queue::Empty,
            Alone::Panicked(payload) => {
                owner.panicked(HANDLER, &payload);
                caught::dispose(payload);
                Queue::Empty
            }
        };
        match is_dropped {
            true => drop(counted),
            false => counted.returned(continuations),
        }
    };
    let span = match is_rest {
        // It is its own continuation now (contract rule 7).
        true => spans::continuation(&context.span, || shared.route(), None, Some(shared.id())),
        false => context.span,
    };
    let work = spans::InSpan::new(carried(context.captured, work), span);
    if let Err(work) = shared.pool().spawn(work) {
        caught::discard(work);
    }
    // Whoever waits for the handler's end is the task that runs the hooks.
    shared.ensure_ending();
}

/// The fields' order is the order of their drops.
struct Lone<F> {
    framed: F,
    counted: Counted,
}

/// It is counted among what goes on, until it has returned, or until it is dropped: at its limit, or with its runtime.
struct Counted {
    owner: Arc<Shared>,
    told: bool,
}

impl Counted {
    fn begin(owner: Arc<Shared>, before: Count) -> Self {
        owner.running.begin_alone(before);
        Self { owner, told: false }
    }

    fn returned(mut self, continuations: Queue<Continuation>) {
        self.told = true;
        self.owner.handler_returned(continuations, Count::ALONE);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.told {
            self.owner.handler_ended(HandlerEnd::Dropped, Count::ALONE);
        }
    }
}

/// Whatever there is to hear of a request, for a task that has no place of its own among those that it wakes.
pub(super) struct News {
    changed: Arc<Notify>,
    next: Pin<Box<Unconstrained<OwnedNotified>>>,
}

impl News {
    pub(super) fn of(shared: &Shared) -> Self {
        let changed = shared.changed();
        shared.change(None, |word| Some(word.with(word::AWAITED)));
        Self { next: Box::pin(unconstrained(changed.clone().notified_owned())), changed }
    }

    /// Before a look, so that what changes after it wakes the task of `cx`.
    pub(super) fn enlist(&mut self, cx: &mut Context<'_>) {
        while self.next.as_mut().poll(cx).is_ready() {
            self.next.set(unconstrained(self.changed.clone().notified_owned()));
        }
    }
}
