//! Where work that outlives its response runs: tracked, so that a drain can wait for it and name it.

use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use slab::Slab;
use tokio::runtime::Handle;
#[cfg(not(epilogue_model))]
use tokio::runtime::Handle as Runtime;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

pub use self::failure::Failure;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub(crate) use self::failure::chain;
pub(crate) use self::{
    carry::{Captured, Carry, CarryKey},
    failure::{FailureHandler, message},
    feed::{Feed, Listener, Told},
    slow::SlowWatch,
};
#[cfg(epilogue_model)]
use crate::sync::Runtime;

pub(crate) mod blocking;
pub(crate) mod bounds;
pub(crate) mod carry;
pub(crate) mod caught;
#[cfg(feature = "status-page")]
pub(crate) mod census;
pub(crate) mod drains;
mod failure;
mod feed;
#[cfg(feature = "backtrace")]
pub(crate) mod frames;
mod slow;
pub(crate) mod spans;
mod throttle;

/// What can be told of, and done to, something that a drain still waits for.
pub(crate) trait Straggler: Send + Sync {
    /// Ends its work at the next await, with status TIMEOUT.
    fn cut(&self);
    /// What it is, for the drain's report.
    fn describe(&self) -> Description;
    /// Whether its work has taken so long and goes on.
    fn is_slow(&self, after: Duration) -> bool;
    /// Whether there is nothing to watch any more.
    fn is_over(&self) -> bool;
    /// Names it.
    fn tell_slow(&self);
}

/// A straggler in words.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) route: String,
    /// The class of the continuation that runs or waits.
    pub(crate) class: Option<&'static str>,
    pub(crate) age: Duration,
    pub(crate) phase: &'static str,
    /// It is a durable job: cut, it is run again.
    pub(crate) stored: bool,
}

/// Something that works beside the pool and through it: the stores of durable jobs.
pub(crate) trait Companion: Send + Sync {
    /// A drain begins: no more work is taken up.
    fn stop(&self);
    /// Resolves when what was taken up has ended and is noted.
    fn stopped(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// How much is left for later, or for others; `None` if that cannot be told.
    fn left(&self) -> Pin<Box<dyn Future<Output = Option<u64>> + Send + '_>>;
}

/// The settings that everything of one pool shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long a slow reader is waited for before the continuation starts.
    pub(crate) patience: Duration,
    /// How long one hook may run.
    pub(crate) hook_limit: Duration,
    /// How long a drain waits before it cuts; `None` is for ever.
    pub(crate) drain_deadline: Option<Duration>,
    /// The poll that is told of, since it held its thread up so long.
    pub(crate) slow_poll: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            hook_limit: Duration::from_secs(5),
            drain_deadline: Some(Duration::from_secs(30)),
            slow_poll: None,
        }
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    pub(crate) settings: Settings,
    feed: OnceLock<Feed>,
    pub(crate) carries: Vec<Box<dyn Carry>>,
    /// `None` where nothing is bounded: then nothing is counted either.
    pub(crate) bounds: Option<Box<bounds::Bounds>>,
    pub(crate) threads: blocking::Threads,
    pub(crate) failures: Option<FailureHandler>,
    pub(crate) slow: Option<SlowWatch>,
    #[cfg(feature = "status-page")]
    pub(crate) census: Option<Arc<dyn census::Census>>,
    pub(crate) drains: drains::Drains,
    /// Has the drains that are under way cut at once.
    pub(crate) cut: tokio::sync::Notify,
    panics: AtomicUsize,
    companions: Mutex<Vec<Arc<dyn Companion>>>,
    tracker: TaskTracker,
    live: Mutex<Live>,
    /// Blocking continuations that passed their limit and whose thread has not ended.
    stuck: AtomicUsize,
    /// Continuations that could not be run, because no runtime was left to run them.
    lost: AtomicUsize,
    /// Handlers and bodies that outlived their response.
    detached: Arc<AtomicUsize>,
}

/// So many places are not worth giving back.
const FEW: usize = 256;

/// The stragglers. One token tracks them all, so that each of a crowd costs the tracker nothing.
#[derive(Default)]
struct Live {
    list: Slab<Weak<dyn Straggler>>,
    /// `None` where the list is empty.
    tracked: Option<TaskTrackerToken>,
}

/// A task's place on its pool's list, which a drain waits for: given back also where a subscriber panics at what it is told.
pub(crate) struct OnTheList {
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: usize,
}

impl Drop for OnTheList {
    fn drop(&mut self) {
        self.pool.unlist(self.key);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("settings", &self.settings)
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

/// Locks, also after a panic under the lock: no user code runs under any of our locks (contract rule 11), so
/// what they guard is whole.
#[cfg(not(epilogue_model))]
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(epilogue_model)]
pub(crate) fn lock<L: crate::sync::Lock + ?Sized>(mutex: &L) -> L::Guard<'_> {
    mutex.guard()
}

/// One handler or body that outlives its response; counted while it lives.
#[derive(Debug)]
pub(crate) struct Detached(Arc<AtomicUsize>);

impl Drop for Detached {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// The process's default pool, for layers that no [`Epilogue`](crate::Epilogue) stands around.
    pub(crate) fn global() -> &'static Arc<Self> {
        static GLOBAL: LazyLock<Arc<Pool>> = LazyLock::new(Arc::default);
        &GLOBAL
    }

    /// Runs `work` as a tracked task. `Err` gives it back where no runtime is there to run it.
    pub(crate) fn spawn<F>(&self, work: F) -> Result<(), F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(runtime) = Runtime::try_current() else { return Err(work) };
        runtime.spawn(self.tracker.track_future(work));
        Ok(())
    }

    /// The same for a task that is [on the list](Self::list), which tracks it.
    pub(crate) fn spawn_listed<F>(work: F) -> Result<(), F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(runtime) = Runtime::try_current() else { return Err(work) };
        runtime.spawn(work);
        Ok(())
    }

    /// Has one more listener told of every event from now on.
    pub(crate) fn listen(&self, listener: Listener) {
        self.feed.get_or_init(Feed::new).add(listener);
    }

    /// Has one of ours told of each request that will never tell of its end.
    #[cfg(any(feature = "metrics", feature = "status-page"))]
    pub(crate) fn listen_for_lost(&self, listener: feed::LostListener) {
        self.feed.get_or_init(Feed::new).add_for_lost(listener);
    }

    /// `None` where nobody listens: then no event is made.
    #[inline]
    pub(crate) fn feed(&self) -> Option<&Feed> {
        self.feed.get()
    }

    /// Has something stopped and waited for by a drain: at once by one that is under way, which may have looked before.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(crate) fn accompany(&self, companion: &Arc<dyn Companion>) {
        lock(&self.companions).push(companion.clone());
        if self.drains.is_under_way() {
            companion.stop();
        }
    }

    pub(crate) fn companions(&self) -> Vec<Arc<dyn Companion>> {
        lock(&self.companions).clone()
    }

    /// Puts a straggler on the list that a drain's report is made from, and tracks it, for the one that gets the key to
    /// [take off](Self::unlist) again.
    pub(crate) fn list(&self, straggler: Weak<dyn Straggler>) -> usize {
        let mut live = lock(&self.live);
        live.tracked.get_or_insert_with(|| self.tracker.token());
        live.list.insert(straggler)
    }

    pub(crate) fn unlist(&self, key: usize) {
        let mut live = lock(&self.live);
        let straggler = live.list.try_remove(key);
        let tracked = if live.list.is_empty() { live.tracked.take() } else { None };
        // A crowd is not to keep its room when it is gone; what is on it stays in its place, so all of it has to be.
        if live.list.is_empty() && live.list.capacity() > FEW {
            live.list = Slab::new();
        }
        drop(live);
        // Not under the lock: it may be the last that keeps the request's memory, or that a drain waits for.
        drop((straggler, tracked));
    }

    /// Everything on the list that is still alive.
    pub(crate) fn stragglers(&self) -> Vec<Arc<dyn Straggler>> {
        lock(&self.live).list.iter().filter_map(|(_, straggler)| straggler.upgrade()).collect()
    }

    pub(crate) fn running(&self) -> usize {
        let live = lock(&self.live);
        (self.tracker.len() + live.list.len()).saturating_sub(usize::from(live.tracked.is_some()))
    }

    /// Waits until nothing runs. A tracker counts as ended only when closed, and it can be opened again.
    pub(crate) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// A blocking continuation passed its limit; its thread cannot be ended.
    pub(crate) fn stuck_started(&self) {
        self.stuck.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stuck_ended(&self) {
        self.stuck.fetch_sub(1, Ordering::Relaxed);
    }

    /// Something of the user's panicked.
    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn panics(&self) -> usize {
        self.panics.load(Ordering::Relaxed)
    }

    pub(crate) fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Says that a continuation could not be run (contract rule 13).
    pub(crate) fn report_lost(&self, route: &str, why: &'static str) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        caught::tell(|| tracing::error!(route, why, "the work of a request after its response was lost"));
    }

    /// Counts a handler or a body that goes on without its response, as long as the value lives.
    pub(crate) fn detach(&self) -> Detached {
        self.detached.fetch_add(1, Ordering::Relaxed);
        Detached(self.detached.clone())
    }

    pub(crate) fn detached(&self) -> usize {
        self.detached.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Whether a runtime is here that has not begun to end.
///
/// A runtime that ends drops its tasks, which looks like a client that left. A task that never ends tells: an
/// ending runtime refuses it at once.
pub(crate) fn runtime_lives() -> bool {
    if cfg!(epilogue_model) {
        return true;
    }
    let Ok(runtime) = Handle::try_current() else {
        return false;
    };
    let probe = runtime.spawn(std::future::pending::<()>());
    let lives = !probe.is_finished();
    probe.abort();
    lives
}

/// A panic's message, as far as it has one.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_a_crowd_is_given_back_with_the_last_of_it() {
        let pool = Pool::default();
        let nobody: Weak<dyn Straggler> = Weak::<crate::lifecycle::Shared>::new();
        let keys: Vec<_> = (0..10_000).map(|_| pool.list(nobody.clone())).collect();
        assert!(lock(&pool.live).list.capacity() >= keys.len());
        assert_eq!(pool.running(), keys.len());
        keys.into_iter().for_each(|key| pool.unlist(key));
        assert!(lock(&pool.live).list.capacity() <= FEW);
        assert_eq!(pool.running(), 0);
    }
}
