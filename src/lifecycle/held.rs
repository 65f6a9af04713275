//! The innermost response future: the handler's, which may have to go on without its client.

use std::{
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::response::Response;
use tracing::Span;

use super::{
    alone::{News, detach},
    handling::HandlerEnd,
    nowhere::{Keepers, finish_nowhere, returned_late},
    passage::Waits,
    polled::{Polled, Which, begin_within, is_alone},
    response::{SendBody, answer, collect, watched},
    running::{Around, Count, Within},
    shared::Shared,
    strays::{keep_dropped, poll_handler},
    transitions::Verdict,
};
use crate::{
    continuation::Continuation,
    event::{BODY, HANDLER},
    pool::{Captured, Detached, caught},
};

/// What goes along when a handler moves to a task of its own.
pub(super) struct Surroundings {
    pub(super) span: Span,
    pub(super) captured: Vec<Box<dyn Captured>>,
    /// It goes on without its client already, in its connection's task.
    pub(super) detached: Option<Detached>,
}

type Detach<F> = fn(Pin<Box<F>>, &Arc<Shared>, Which, Count, Surroundings);

/// A handler's future that can be moved to a task of its own: when it is dropped while aborts are ignored, and
/// after `finish`.
pub(super) struct Held<F> {
    future: Option<Pin<Box<F>>>,
    shared: Arc<Shared>,
    depth: u32,
    around: Around,
    started: bool,
    /// Which attempt it is, or is around; when it has begun.
    which: Which,
    /// Another of ours has begun in its polls, and is the attempt.
    taken_over: bool,
    /// For one [beside](Which::beside) the first.
    news: Option<Box<News>>,
    /// Taken when the handler first waits; a handler that never does pays nothing for it.
    context: Option<Surroundings>,
    /// Kept as a pointer, since a destructor cannot ask for the bounds that it takes.
    detach: Detach<F>,
}

impl<F, B, E> Held<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: SendBody,
{
    pub(super) fn new(future: Pin<Box<F>>, shared: Arc<Shared>, depth: u32, around: Around) -> Self {
        Self {
            future: Some(future),
            shared,
            depth,
            around,
            started: false,
            which: Which::new(Which::UNKNOWN),
            taken_over: false,
            news: None,
            context: None,
            detach: detach::<F, B, E>,
        }
    }

    /// Polls the handler; answers for it when it may not go on, or has finished its response.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, E>> {
        if self.future.is_none() {
            return Poll::Pending;
        }
        let first = !self.started;
        if first {
            if self.shared.verdict() == Some(Verdict::TimedOut) {
                // A retry calls it again for the answer that it got at the limit: nothing of it begins any more.
                self.discard();
                return Poll::Ready(Ok(answer(Verdict::TimedOut)));
            }
            self.begin();
        } else if self.which.alone && !is_alone(&self.shared) {
            self.is_elsewhere();
        }
        self.give_way();
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let shared = &self.shared;
        let around = Polled::begin(shared, self.which, self.depth, self.taken_over);
        let polled = poll_handler(shared, first, future.as_mut(), cx);
        if around.end() {
            self.is_taken_over();
        }
        if !matches!(polled, Ok(Poll::Pending)) {
            self.give_way();
        }
        let innermost = !self.taken_over;
        match polled {
            Ok(Poll::Ready(result)) => {
                self.discard();
                let result = match result {
                    Ok(response) => Ok(self.returned(response, innermost)),
                    Err(error) => match self.failed(innermost) {
                        Some(finished) => {
                            caught::discard(error);
                            Ok(finished)
                        }
                        None => Err(error),
                    },
                };
                Poll::Ready(result)
            }
            Ok(Poll::Pending) if innermost => self.waits(cx).map(Ok),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => {
                self.discard();
                // Before its end. The panic of what is around the handler goes on, and is told of where it arrives.
                if innermost {
                    self.shared.panicked(HANDLER, &payload);
                }
                match self.failed(innermost) {
                    Some(finished) => {
                        if !innermost {
                            self.shared.panicked(HANDLER, &payload);
                        }
                        caught::dispose(payload);
                        Poll::Ready(Ok(finished))
                    }
                    None => resume_unwind(payload),
                }
            }
        }
    }

    /// The handler panicked, or gave an error. What it had given to `finish` before, without waiting for it, leaves all the
    /// same (contract rule 7).
    fn failed(&self, innermost: bool) -> Option<Response> {
        let finished = self.finished(innermost);
        if innermost {
            self.shared.handler_ended(HandlerEnd::Ended, self.count());
        }
        finished
    }

    /// What is its answer, whatever it has come to. Of what is around the handler: what it finished in the very poll in which
    /// that began in a task.
    fn finished(&self, innermost: bool) -> Option<Response> {
        let mut response = (innermost || self.is_around()).then(|| self.take_finished()).flatten()?;
        collect(&self.shared, &mut response);
        let told = |payload| {
            self.shared.panicked(BODY, &payload);
            caught::dispose(payload);
        };
        caught::call(|| watched(&self.shared, *response)).map_err(told).ok()
    }

    /// The handler returned.
    fn returned(&self, response: http::Response<B>, innermost: bool) -> Response {
        let mut response = response.map(SendBody::into_body);
        if !innermost {
            collect(&self.shared, &mut response);
            return match self.finished(false) {
                Some(finished) => {
                    returned_late(&self.shared, response);
                    finished
                }
                None => response,
            };
        }
        let continuations = Continuation::take_from(response.extensions_mut());
        // It may have called `finish` without ever waiting for it: then that is its answer.
        let response = match self.take_finished() {
            Some(finished) => {
                returned_late(&self.shared, response);
                *finished
            }
            None => response,
        };
        // The body's producer begins before the handler ends, so that the request does not end in between. What it says
        // of its length is the user's code.
        let response = caught::call(|| watched(&self.shared, response));
        self.shared.handler_returned(continuations, self.count());
        response.unwrap_or_else(|payload| {
            self.shared.panicked(BODY, &payload);
            resume_unwind(payload)
        })
    }

    /// The handler waits: for something of its own, or for us.
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let shared = &self.shared;
        if self.context.is_none() {
            self.context = Some(Surroundings::capture(shared));
        }
        if self.which.alone {
            // The task that it is inside of waits for us.
            return Poll::Pending;
        }
        // Registered before the looks, so that what changes after them wakes us.
        match self.which.beside {
            true => self.news.get_or_insert_with(|| Box::new(News::of(shared))).enlist(cx),
            false => shared.register(Waits::Handler, cx),
        }
        let finished = self.take_finished();
        if let Some(response) = finished {
            let mut response = *response;
            collect(shared, &mut response);
            self.go_on_alone();
            return Poll::Ready(watched(&self.shared, response));
        }
        if self.is_around() {
            self.give_way();
            return Poll::Pending;
        }
        shared.arm_for_work();
        match shared.verdict_on(self.which) {
            Some(verdict) => {
                if verdict == Verdict::Abandoned {
                    // Its client may have left before the request arrived: of what is answered nothing is to leave.
                    self.shared.abandon();
                }
                self.discard();
                self.shared.handler_ended(HandlerEnd::Dropped, self.count());
                Poll::Ready(answer(verdict))
            }
            None => {
                let survives = self.shared.survives_drop(self.shared.has_finished(self.which));
                if let Some(context) = self.context.as_mut().filter(|_| survives) {
                    context.detached.get_or_insert_with(|| self.shared.pool().detach());
                }
                Poll::Pending
            }
        }
    }
}

impl<F> Held<F> {
    /// Its first poll.
    fn begin(&mut self) {
        self.started = true;
        let (within, which) = begin_within(&self.shared, self.depth);
        self.which = which;
        match within {
            // With its count.
            Within::Attempt(_) if which.alone => {}
            Within::Attempt(from) if self.shared.running.hand_over(from, self.depth) => {}
            Within::Attempt(_) => {
                self.which = Which::new(self.depth);
                self.begin_attempt(Within::Other);
            }
            Within::Alone => self.shared.running.begin_alone(Count::NOTHING),
            Within::Nothing(_) | Within::Other => self.begin_attempt(within),
        }
    }

    /// Inside of no other attempt, or nobody can tell of which.
    fn begin_attempt(&mut self, within: Within) {
        let is_apart = self.shared.running.begin(within, self.depth, self.around);
        self.shared.handler_started();
        self.which.beside = is_apart || within == Within::Other;
        if is_apart {
            self.tell_around();
        }
    }

    /// It began inside of what goes on by itself, and was moved out of that.
    fn is_elsewhere(&mut self) {
        self.which = Which::new(self.depth);
        if !self.taken_over {
            self.begin_attempt(Within::Nothing(None));
            self.shared.running.leave(Count::ALONE);
        }
    }

    /// What is around it, in other tasks, gives way at once, and not when it is polled next.
    fn tell_around(&self) {
        self.shared.wake(Waits::Handler);
        self.shared.wake_awaiting();
    }

    /// Whether something inside of it has begun in another task, and is the handler.
    fn is_around(&self) -> bool {
        self.started && self.shared.running.is_around(self.depth)
    }

    fn give_way(&mut self) {
        if !self.taken_over && self.is_around() {
            self.give_up(HandlerEnd::Ended);
            self.is_taken_over();
        }
    }

    /// Another is the handler, and has its own place among those that go on without their clients.
    fn is_taken_over(&mut self) {
        self.taken_over = true;
        if let Some(context) = &mut self.context {
            context.detached = None;
        }
    }

    /// What it counts for until now: it ends, or goes on by itself.
    fn count(&self) -> Count {
        if self.which.alone { Count::ALONE } else { self.shared.running.give_up(self.depth) }
    }

    /// It ends without an answer of its own. It counts, unless another has taken its place.
    fn give_up(&self, how: HandlerEnd) {
        if !self.taken_over {
            self.shared.handler_ended(how, self.count());
        }
    }

    /// What its attempt has finished. Inside of what goes on by itself, it is for that.
    fn take_finished(&self) -> Option<Box<Response>> {
        let (number, is_around) = (self.which.number, self.is_around());
        let is_its = |by: Which| !by.alone && (by.number == number || by.number == Which::UNKNOWN && !is_around);
        let taken = (!self.which.alone).then(|| self.shared.take_finished(is_its)).flatten()?;
        if !self.taken_over {
            self.shared.set_finisher(number);
        }
        Some(taken)
    }

    fn go_on_alone(&mut self) {
        if let Some(future) = self.future.take() {
            let context = self.context.take().unwrap_or_else(|| Surroundings::capture(&self.shared));
            (self.detach)(future, &self.shared, self.which, self.count(), context);
        }
    }

    fn nobody_took_it(&self) {
        if let Some(response) = self.take_finished() {
            finish_nowhere(&self.shared, *response, Keepers::none());
        }
    }

    /// Drops what is the user's.
    fn discard(&mut self) {
        let (future, context) = (self.future.take(), self.context.take());
        let captured = context.as_ref().map_or(&[][..], |context| &context.captured);
        keep_dropped(&self.shared, captured, || self.shared.framed(HANDLER, || caught::discard(future)));
        if let Some(context) = context {
            caught::discard(context);
        }
    }
}

impl<F> Drop for Held<F> {
    fn drop(&mut self) {
        if self.future.is_none() {
            return;
        }
        if !self.started {
            // A middleware made it and threw it away.
            self.discard();
            return;
        }
        self.give_way();
        let innermost = !self.taken_over;
        // A finished response that nobody took. One of ours that is inside decides for itself, and what stands between goes
        // before it does.
        if innermost {
            self.nobody_took_it();
            if self.shared.survives_drop(self.shared.has_finished(self.which)) {
                return self.go_on_alone();
            }
        }
        self.discard();
        if !innermost {
            self.nobody_took_it();
        }
        self.give_up(HandlerEnd::Dropped);
    }
}

impl Surroundings {
    fn capture(shared: &Shared) -> Self {
        Self { span: Span::current(), captured: shared.captured(), detached: None }
    }
}
