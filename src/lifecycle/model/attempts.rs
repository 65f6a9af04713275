//! A middleware that makes two attempts at a request.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex as StdMutex},
    task::Poll,
};

use axum_core::body::Body;
use http::{Extensions, Request};

use super::Answer;
use crate::{
    lifecycle::enter,
    sync::{AtomicWaker, Runtime},
};

/// How many a scene has, and what they run in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempts {
    One,
    /// Both in the middleware's own future: it drops the one when the other has answered.
    Hedged,
    /// The second in a task of its own, which goes on when the middleware has answered.
    Spawned,
}

pub(super) type Handler = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Attempts {
    pub(super) fn number(self) -> usize {
        if self == Self::One { 1 } else { 2 }
    }

    /// Calls the handler as often, each time in a service of ours.
    pub(super) fn make(self, extensions: Extensions, handler: impl Fn() -> Handler + Send + Sync + 'static) -> Handler {
        if self == Self::One {
            return handler();
        }
        Box::pin(async move {
            let attempt = || {
                let mut request = Request::new(Body::empty());
                *request.extensions_mut() = extensions.clone();
                Box::pin(enter(&mut request).call(&handler))
            };
            let (mut first, second) = (attempt(), attempt());
            let mut second: Pin<Box<dyn Future<Output = Answer> + Send>> = match self {
                Self::Spawned => Box::pin(spawned(second)),
                _ => second,
            };
            poll_fn(|cx| match first.as_mut().poll(cx) {
                Poll::Pending => second.as_mut().poll(cx),
                answer => answer,
            })
            .await
        })
    }
}

#[derive(Default)]
struct Slot {
    answer: StdMutex<Option<Answer>>,
    waker: AtomicWaker,
}

/// Begins at once, and goes on when this is dropped.
fn spawned(attempt: impl Future<Output = Answer> + Send + 'static) -> impl Future<Output = Answer> + Send {
    let slot = Arc::new(Slot::default());
    let theirs = slot.clone();
    let _ = Runtime::try_current().map(|runtime| {
        runtime.spawn(async move {
            let answer = attempt.await;
            *theirs.answer.lock().unwrap() = Some(answer);
            theirs.waker.wake();
        });
    });
    poll_fn(move |cx| {
        slot.waker.register(cx.waker());
        let answer = slot.answer.lock().unwrap().take();
        answer.map_or(Poll::Pending, Poll::Ready)
    })
}
