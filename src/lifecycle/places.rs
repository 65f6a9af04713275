//! What a continuation waits for besides its response, and where its error goes.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::BoxError;
use tokio::time::{Instant, Sleep};
use tracing::Span;

use super::{clock::poll_timer, ending::OnTheList, shared::Shared, transitions::Verdict};
use crate::{
    continuation::Continuation,
    event::EventKind,
    pool::{
        Failure, Pool,
        blocking::Blocking,
        bounds::{Place, enter},
        caught, lock, panic_message,
    },
};

/// A continuation's way to its places.
pub(super) type Entering = Pin<Box<dyn Future<Output = Vec<Place>> + Send>>;

impl Shared {
    /// Waits for a place among those that run (contract rule 9). The time counts for the limit; when that passes, the
    /// wait comes back unfinished.
    pub(super) async fn wait_for_places(
        &self,
        class: Option<&'static str>,
        blocking: bool,
    ) -> Result<Vec<Place>, Entering> {
        let shared = self;
        let tickets = shared.tickets(class, blocking);
        let mut entering: Entering = Box::pin(enter(tickets));
        let mut told = false;
        let places = poll_fn(|cx| {
            shared.ending_waker.register(cx.waker());
            if let Poll::Ready(places) = entering.as_mut().poll(cx) {
                return Poll::Ready(Some(places));
            }
            if shared.seat_given_up() {
                return Poll::Ready(None);
            }
            if !std::mem::replace(&mut told, true) {
                shared.tell(EventKind::ContinuationWaits);
            }
            shared.arm();
            if shared.verdict() == Some(Verdict::TimedOut) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        places.ok_or(entering)
    }

    /// An attempt at a job whose place was given up: it is dropped without having been polled, and its job is in the store.
    /// So nothing began, and nothing is told but the end.
    pub(super) fn put_back(continuation: Continuation) {
        let (kind, span) = continuation.into_work();
        span.in_scope(|| caught::discard(kind));
    }

    /// The limit passed while it waited for its place: for the contract it has ended, and it runs when its turn comes.
    pub(super) fn run_blocking_later(
        self: &Arc<Self>,
        work: Box<dyn FnOnce() + Send>,
        entering: Entering,
        class: Option<&'static str>,
        span: Span,
    ) {
        let (pool, route) = (self.pool().clone(), self.route());
        tracing::warn!(route, "a blocking continuation reached its limit before its turn: it runs when that comes");
        let (late, stuck) = (Late::begin(self, class), Stuck::begin(&pool));
        let later = async move {
            let places = entering.await;
            let work = move || {
                let (_places, _stuck) = (places, stuck);
                late.has_its_thread();
                work();
            };
            if let Err(payload) = Blocking::start(Box::new(work), pool, span, route).await {
                tracing::error!(message = panic_message(&*payload), "a continuation panicked");
                caught::dispose(payload);
            }
        };
        if let Err(later) = Pool::spawn_listed(later) {
            caught::discard(later);
        }
    }

    /// A continuation returned an error.
    pub(super) async fn tell_failure(&self, error: BoxError, class: Option<&'static str>) {
        let shared = self;
        // Its `Display` is the user's.
        let message = caught::call(|| error.to_string()).unwrap_or_else(|payload| {
            caught::dispose(payload);
            "an error whose message panicked".to_owned()
        });
        lock(&shared.core).rare().failure.get_or_insert_with(|| message.as_str().into());
        shared.tell(EventKind::ContinuationFailed);
        let Some(handler) = &shared.pool().failures else {
            if shared.is_job {
                // Whoever runs it says that, and what becomes of it.
                return caught::discard(error);
            }
            tracing::error!(route = shared.route(), class, error = message, "a continuation failed");
            return caught::discard(error);
        };
        let failure = Failure {
            request: shared.id(),
            route: shared.route(),
            class,
            error,
            status: shared.word().status(),
            elapsed: shared.elapsed(),
        };
        let result = match caught::call(|| handler(failure)) {
            Ok(mut work) => {
                let mut time = HookTime::default();
                let result = poll_fn(|cx| time.poll(shared, work.as_mut(), cx)).await;
                caught::discard(work);
                result
            }
            Err(payload) => Some(Err(payload)),
        };
        match result {
            Some(Ok(())) => {}
            Some(Err(payload)) => {
                shared.panicked("failure handler", &payload);
                caught::dispose(payload);
            }
            None => tracing::warn!(route = shared.route(), "the failure handler ran past the hook limit: dropped"),
        }
    }
}

/// A blocking continuation that waits for its turn past its limit. Its request may have ended, but a drain waits for it, and
/// names it, until it has its thread (contract rule 1).
struct Late {
    shared: Arc<Shared>,
    class: Option<&'static str>,
    begun: bool,
    /// The last to go.
    _listed: OnTheList,
}

impl Late {
    fn begin(shared: &Arc<Shared>, class: Option<&'static str>) -> Self {
        lock(&shared.core).rare().late.push(class);
        let (pool, weak) = (shared.pool().clone(), Arc::downgrade(shared));
        let key = pool.list(weak);
        Self { shared: shared.clone(), class, begun: false, _listed: OnTheList { pool, key } }
    }

    fn has_its_thread(mut self) {
        self.begun = true;
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let mut core = lock(&self.shared.core);
        let late = &mut core.rare().late;
        if let Some(place) = late.iter().position(|class| *class == self.class) {
            late.remove(place);
        }
        drop(core);
        if !self.begun {
            self.shared.pool().report_lost(&self.shared.route(), "the runtime ended before its turn came");
        }
    }
}

/// A thread that is busy past the limit of its work, or work that waits for one.
struct Stuck(Arc<Pool>);

impl Stuck {
    fn begin(pool: &Arc<Pool>) -> Self {
        pool.stuck_started();
        Self(pool.clone())
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.stuck_ended();
    }
}

/// The time that one hook, or what is treated as one, may take.
#[derive(Default)]
pub(super) struct HookTime {
    /// Most hooks never wait, and need no timer.
    timer: Option<Pin<Box<Sleep>>>,
    /// Known since its first wait. One that cannot be reckoned with never comes.
    ends: Option<Option<Instant>>,
}

impl HookTime {
    /// Polls something of the user's; `None` when its time is over.
    pub(super) fn poll<F>(
        &mut self,
        shared: &Shared,
        mut work: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<F::Output, caught::Payload>>>
    where
        F: Future + ?Sized,
    {
        match shared.timed("hook", || caught::poll(work.as_mut(), cx)) {
            Ok(Poll::Ready(outcome)) => return Poll::Ready(Some(Ok(outcome))),
            Err(payload) => return Poll::Ready(Some(Err(payload))),
            Ok(Poll::Pending) => {}
        }
        let limit = shared.pool().settings.hook_limit;
        match *self.ends.get_or_insert_with(|| Instant::now().checked_add(limit)) {
            Some(ends) => poll_timer(&mut self.timer, ends, cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

impl Shared {
    /// A hook panicked, or ran past its time.
    pub(super) fn hook_failed<T>(&self, outcome: Option<Result<T, caught::Payload>>) {
        match outcome {
            Some(Ok(_)) => {}
            Some(Err(payload)) => {
                self.panicked("hook", &payload);
                caught::dispose(payload);
            }
            None => {
                let limit = self.pool().settings.hook_limit;
                tracing::warn!(route = self.route(), ?limit, "a hook ran past its own limit and was dropped");
            }
        }
    }
}
