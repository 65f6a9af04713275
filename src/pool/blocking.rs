//! Work that blocks its thread: on threads that do not hold up the process's end.
//!
//! tokio's own blocking pool will not do: a runtime that is dropped waits without end for what runs there.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use tokio::runtime::Handle;
use tracing::Span;

use super::{Pool, caught};

const RUNNING: u8 = 0;
const ENDED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A closure on a thread of its own. Resolves when it has returned or panicked.
///
/// Dropping this neither ends nor loses the closure; say [`give_up`](Self::give_up) first, so that the thread
/// is counted and named until it ends.
#[derive(Debug)]
pub(crate) struct Blocking {
    task: Option<blocking::Task<Result<(), caught::Payload>>>,
    state: Arc<AtomicU8>,
    pool: Arc<Pool>,
}

impl Blocking {
    pub(crate) fn start(work: Box<dyn FnOnce() + Send>, pool: Arc<Pool>, span: Span, route: String) -> Self {
        let state = Arc::new(AtomicU8::new(RUNNING));
        let runtime = Handle::try_current().ok();
        let (their_state, their_pool) = (state.clone(), pool.clone());
        let task = blocking::unblock(move || {
            let _runtime = runtime.as_ref().map(Handle::enter);
            let _span = span.enter();
            let result = caught::call(work);
            // AcqRel: whoever comes second sees what the first wrote, so the count goes up before it goes down.
            if their_state.swap(ENDED, Ordering::AcqRel) == GIVEN_UP {
                their_pool.stuck_ended();
                tracing::warn!(route, "a blocking continuation that was given up has ended");
            }
            result
        });
        Self { task: Some(task), state, pool }
    }

    /// Stops waiting. The thread counts as stuck until it ends. False if it has ended already.
    pub(crate) fn give_up(&mut self) -> bool {
        // Counted before it is published: the thread may end at any moment.
        self.pool.stuck_started();
        let given_up = self.state.compare_exchange(RUNNING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !given_up {
            self.pool.stuck_ended();
        }
        given_up
    }
}

impl Future for Blocking {
    type Output = Result<(), caught::Payload>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.task {
            Some(task) => Pin::new(task).poll(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            // A dropped task that has not started yet would never start.
            task.detach();
        }
    }
}
