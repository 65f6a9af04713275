//! Work that blocks its thread: on threads that do not hold up the process's end.
//!
//! tokio's own blocking pool will not do: a runtime that is dropped waits without end for what runs there.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::oneshot};
use tracing::Span;

use super::{Pool, caught, lock, panic_message};

const RUNNING: u8 = 0;
const ENDED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A closure on a thread of its own. Resolves when it has returned or panicked.
///
/// Dropping this neither ends nor loses the closure; say [`give_up`](Self::give_up) first, so that the thread
/// is counted and named until it ends.
#[derive(Debug)]
pub(crate) struct Blocking {
    outcome: oneshot::Receiver<Result<(), caught::Payload>>,
    state: Arc<AtomicU8>,
    pool: Arc<Pool>,
}

impl Blocking {
    pub(crate) fn start(work: Box<dyn FnOnce() + Send>, pool: Arc<Pool>, span: Span, route: String) -> Self {
        let state = Arc::new(AtomicU8::new(RUNNING));
        let runtime = Handle::try_current().ok();
        let (their_state, their_pool) = (state.clone(), pool.clone());
        let (tell, outcome) = oneshot::channel();
        pool.threads.run(Box::new(move || {
            let _runtime = runtime.as_ref().map(Handle::enter);
            caught::within(Some(&span), || {
                let result = caught::call(work);
                // AcqRel: whoever comes second sees what the first wrote, so the count goes up before it goes down.
                if their_state.swap(ENDED, Ordering::AcqRel) == GIVEN_UP {
                    their_pool.stuck_ended();
                    match &result {
                        Ok(()) => {
                            caught::tell(|| {
                                tracing::warn!(
                                    route,
                                    "a blocking continuation that was stuck past its limit has ended"
                                );
                            });
                        }
                        Err(payload) => panicked(&their_pool, &route, payload),
                    }
                }
                if let Err(Err(payload)) = tell.send(result) {
                    // Nobody waits for it any more.
                    caught::dispose(payload);
                }
            });
            caught::close(span);
        }));
        Self { outcome, state, pool }
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

/// One that its request waits for no longer has panicked.
pub(crate) fn panicked(pool: &Pool, route: &str, payload: &caught::Payload) {
    pool.count_panic();
    let panic = panic_message(&**payload);
    caught::tell(|| tracing::error!(route, panic, "a blocking continuation panicked after its limit"));
}

impl Future for Blocking {
    type Output = Result<(), caught::Payload>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The thread sends before it lets go of its end, panic or not.
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| outcome.unwrap_or(Ok(())))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// How many threads of blocking continuations one pool has, and what waits for them.
#[derive(Default)]
pub(crate) struct Threads {
    /// `None`: as many as the process allows.
    pub(crate) most: Option<usize>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    running: usize,
    waiting: VecDeque<Job>,
}

impl Threads {
    /// Runs `job` on a thread of its own, or when one of them is free; first come, first served.
    fn run(&self, job: Job) {
        let Some(most) = self.most else {
            // A dropped task that has not started yet would never start.
            return blocking::unblock(job).detach();
        };
        let mut queue = lock(&self.queue);
        if queue.running >= most.max(1) {
            queue.waiting.push_back(job);
            return;
        }
        queue.running += 1;
        drop(queue);
        let queue = self.queue.clone();
        blocking::unblock(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                // What is caught in it is the work; a subscriber may panic as well.
                if let Err(payload) = caught::call(job) {
                    caught::dispose(payload);
                }
                let mut queue = lock(&queue);
                next = queue.waiting.pop_front();
                if next.is_none() {
                    queue.running -= 1;
                }
            }
        })
        .detach();
    }

    /// How many threads are busy, where they are bounded.
    #[cfg(feature = "status-page")]
    pub(crate) fn running(&self) -> usize {
        lock(&self.queue).running
    }

    /// What waits for a thread.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.queue).waiting.len()
    }
}
