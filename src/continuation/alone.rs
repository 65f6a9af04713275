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
use tracing::Span;

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
    // Its span is the subscriber's to make: one that panics has it run in none.
    caught::tell(|| continuation.begin_span(|| route.clone(), owner.id()));
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
                owner.pool().count_panic();
                let panic = panic_message(&*payload);
                caught::tell(|| tracing::error!(route = alone.route, panic, "a continuation panicked"));
                caught::dispose(payload);
                "ended"
            }
            None => {
                let goes_on = if is_thread { ": its thread is stuck until it returns" } else { "" };
                let said = "a continuation that ran on its own was cut at a drain's deadline";
                caught::tell(|| tracing::warn!(route = alone.route, "{said}{goes_on}"));
                "dropped"
            }
        };
        if let Some(error) = failure.and_then(|slot| lock(&slot).take()) {
            owner.failed(error, class).await;
        }
        spans::ended(&Span::current(), outcome);
    };
    let work = spans::InSpan::new(work, span);
    match runtime {
        Some(runtime) => drop(runtime.spawn(work)),
        None => caught::discard(Pool::spawn_listed(work).err()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Mutex,
    };

    use axum_core::response::IntoResponse as _;
    use tokio::{runtime::Runtime, sync::oneshot};
    use tracing::{Event, Metadata, Subscriber, span};

    use super::*;

    /// Notes how much its pool still waits for, each time that it is asked for its route.
    struct Noting {
        pool: Arc<Pool>,
        runtime: Handle,
        notes: Arc<Mutex<Vec<usize>>>,
    }

    impl Owner for Noting {
        fn pool(&self) -> &Arc<Pool> {
            &self.pool
        }

        fn runtime(&self) -> Option<&Handle> {
            Some(&self.runtime)
        }

        fn route(&self) -> String {
            lock(&self.notes).push(self.pool.running());
            "GET /".to_owned()
        }

        fn id(&self) -> Option<RequestId> {
            None
        }

        fn failed(&self, _: BoxError, _: Option<&'static str>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(ready(()))
        }
    }

    struct NotesAtDrop(Arc<Pool>, Arc<Mutex<Vec<usize>>>);

    impl Drop for NotesAtDrop {
        fn drop(&mut self) {
            lock(&self.1).push(self.0.running());
        }
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn a_drain_waits_until_it_is_told_as_lost() {
        for begins in [false, true] {
            let (pool, notes, runtime) = (Arc::<Pool>::default(), Arc::<Mutex<Vec<usize>>>::default(), runtime());
            let owner = Noting { pool: pool.clone(), runtime: runtime.handle().clone(), notes: notes.clone() };
            let noting = NotesAtDrop(pool.clone(), notes.clone());
            let work = Continuation::new(async move {
                let _noting = noting;
                pending::<()>().await;
            });
            run_alone(work, Arc::new(owner));
            if begins {
                runtime.block_on(tokio::task::yield_now());
            }
            drop(runtime);
            // When it began; when its work was dropped; and when that was told.
            assert_eq!(*lock(&notes), [0, 1, 1], "begins: {begins}");
            assert_eq!((pool.running(), pool.lost()), (0, 1));
        }
    }

    #[test]
    fn what_came_to_its_end_or_has_a_thread_of_its_own_is_not_lost() {
        let (pool, runtime) = (Arc::<Pool>::default(), runtime());
        let alone = |work| {
            let (pool, runtime) = (pool.clone(), runtime.handle().clone());
            run_alone(work, Arc::new(Noting { pool, runtime, notes: Arc::default() }));
        };
        let (ran, runs) = oneshot::channel();
        alone(Continuation::new(async { ran.send(()).unwrap() }));
        let (begins, begun) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        alone(Continuation::blocking(move || {
            begins.send(()).unwrap();
            let _ = released.recv();
        }));
        assert_eq!(runtime.block_on(async { (runs.await, begun.await) }), (Ok(()), Ok(())));
        drop(runtime);
        assert_eq!((pool.running(), pool.lost()), (0, 0));
        drop(release);
    }

    /// Panics at what it is told, or at what it is asked for: each in a run of its own, since behind the first panic nothing more is
    /// asked of it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Panics {
        AtEvents,
        AtSpans,
    }

    impl Subscriber for Panics {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            assert_ne!(*self, Self::AtSpans);
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &Event<'_>) {
            assert_ne!(*self, Self::AtEvents);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_subscriber_that_panics_costs_no_continuation() {
        for panics in [Panics::AtEvents, Panics::AtSpans] {
            let (runs, ran) = oneshot::channel();
            let lost = move || drop((Continuation::new(async { runs.send(()).unwrap() }), "hello").into_response());
            let thread = std::thread::spawn(move || {
                runtime().block_on(async {
                    tracing::subscriber::with_default(panics, || {
                        // Other tests have none, and may have come first.
                        tracing::callsite::rebuild_interest_cache();
                        lost();
                    });
                    ran.await
                })
            });
            assert_eq!(thread.join().unwrap(), Ok(()), "{panics:?}");
        }
    }
}
