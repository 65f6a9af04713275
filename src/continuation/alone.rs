//! Continuations that no request can take (any more): each runs on its own, without limit and hooks, but tracked, logged, waited
//! for by its pool's drain, and cut at that one's deadline (contract rules 1 and 10).

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
use tokio::{runtime::Handle, time::Instant};
use tracing::{Instrument as _, Span};

use super::{Continuation, Kind};
use crate::{
    event::RequestId,
    pool::{
        Description, OnTheList, Pool, Straggler, blocking::Blocking, carry::Work, caught, lock, panic_message, spans,
    },
    sync::AtomicWaker,
};

/// Whose a continuation was.
pub(crate) trait Owner: Send + Sync {
    fn pool(&self) -> &Arc<Pool>;
    /// Where its requests are served, if that is known.
    fn runtime(&self) -> Option<&Handle>;
    fn route(&self) -> String;
    fn id(&self) -> Option<RequestId>;
    /// Tells of its error.
    fn failed(&self, error: BoxError, class: Option<&'static str>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Of one whose response was dropped where no request is known.
pub(super) struct Nobody;

impl Owner for Nobody {
    fn pool(&self) -> &Arc<Pool> {
        Pool::global()
    }

    fn runtime(&self) -> Option<&Handle> {
        None
    }

    fn route(&self) -> String {
        "unknown".to_owned()
    }

    fn id(&self) -> Option<RequestId> {
        None
    }

    fn failed(&self, error: BoxError, class: Option<&'static str>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            caught::tell(|| tracing::error!(error, class, "a continuation failed"));
        })
    }
}

/// What a drain sees of it.
struct Alone {
    began: Instant,
    route: String,
    class: Option<&'static str>,
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Straggler for Alone {
    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn describe(&self) -> Description {
        let (route, class, age) = (self.route.clone(), self.class, self.began.elapsed());
        Description { route, class, age, phase: "continuing", stored: false }
    }

    // It is no request, and no watch for slow ones knows of it.
    fn is_slow(&self, _: Duration) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        true
    }

    fn tell_slow(&self) {}
}

enum Running {
    Async(Work),
    Thread(Blocking),
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), caught::Payload>> {
        match self {
            Self::Async(work) => match caught::poll(work.as_mut(), cx) {
                Ok(polled) => polled.map(Ok),
                Err(payload) => Poll::Ready(Err(payload)),
            },
            Self::Thread(thread) => Pin::new(thread).poll(cx),
        }
    }

    /// False if it has ended already.
    fn give_up(&mut self) -> bool {
        match self {
            Self::Async(_) => true,
            Self::Thread(thread) => thread.give_up(),
        }
    }
}

/// One that has not come to its end, and may go down with its runtime: then it is lost, which is told (contract rule 13).
struct Unended {
    owner: Option<Arc<dyn Owner>>,
    /// Last: a drain that waits for this waits for nothing more.
    _listed: OnTheList,
}

impl Unended {
    fn is_over(&mut self) {
        self.owner = None;
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            let why = "it ran on its own, and no runtime is there to run it to its end";
            owner.pool().report_lost(&owner.route(), why);
        }
    }
}

/// Runs one that has no request (any more).
pub(crate) fn run_alone(mut continuation: Continuation, owner: Arc<dyn Owner>) {
    let (route, class) = (owner.route(), continuation.class_name());
    continuation.begin_span(|| route.clone(), owner.id());
    let failure = continuation.failure_slot();
    let (kind, span) = continuation.into_work();
    let (waker, cut) = (AtomicWaker::new(), AtomicBool::new(false));
    let alone = Arc::new(Alone { began: Instant::now(), route, class, cut, waker });
    let weak: Weak<dyn Straggler> = Arc::downgrade(&alone) as _;
    let pool = owner.pool().clone();
    let unended = Unended { owner: Some(owner.clone()), _listed: OnTheList { key: pool.list(weak), pool } };
    // In the order in which they are dropped, if no runtime is there.
    let task = (kind, unended);
    let runtime = owner.runtime().cloned();
    let work = async move {
        let (kind, mut unended) = task;
        let mut running = match kind {
            Kind::Async(work) => Running::Async(work),
            Kind::Blocking(work) | Kind::Brief(work) => {
                // It needs its runtime no more.
                unended.is_over();
                Running::Thread(Blocking::start(work, owner.pool().clone(), Span::current(), alone.route.clone()))
            }
        };
        let ended = poll_fn(|cx| {
            // Registered before the look, so that a cut after it wakes us.
            alone.waker.register(cx.waker());
            match running.poll(cx) {
                Poll::Pending if !alone.cut.load(Ordering::Acquire) => Poll::Pending,
                Poll::Pending if running.give_up() => Poll::Ready(None),
                Poll::Pending => {
                    // It ended in this moment; the next poll has its result.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(result) => Poll::Ready(Some(result)),
            }
        });
        let ended = ended.await;
        let is_thread = matches!(running, Running::Thread(_));
        caught::discard(running);
        unended.is_over();
        let outcome = match ended {
            Some(Ok(())) => "ended",
            Some(Err(payload)) => {
                tracing::error!(route = alone.route, panic = panic_message(&*payload), "a continuation panicked");
                owner.pool().count_panic();
                caught::dispose(payload);
                "ended"
            }
            None => {
                let goes_on = if is_thread { ": its thread is stuck until it returns" } else { "" };
                tracing::warn!(route = alone.route, "a continuation that ran on its own was cut by a drain{goes_on}");
                "dropped"
            }
        };
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            owner.failed(error, class).await;
        }
        spans::ended(&Span::current(), outcome);
    };
    let work = work.instrument(span);
    match runtime {
        Some(runtime) => drop(runtime.spawn(work)),
        None => caught::discard(Pool::spawn_listed(work).err()),
    }
}
