//! Waiting for everything to end, to a deadline (contract rule 10).

use std::{
    collections::HashMap,
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use super::{DrainReport, Epilogue, Straggler};
use crate::pool::{self, Pool, caught};

const SECOND: Duration = Duration::from_secs(1);

impl Epilogue {
    /// Waits until all continuations and hooks have ended: the second half of a graceful shutdown, for servers other
    /// than [`Epilogue::serve`], which does it by itself. Stop the server first: whatever it begins afterwards is
    /// waited for as well.
    ///
    /// At the [deadline](crate::EpilogueBuilder::drain_deadline), 30 s by default, what is left is cut with status
    /// TIMEOUT, its hooks run, and the report names it. It can be called repeatedly and concurrently. Do not await it
    /// in a continuation or a hook: it would wait for itself, until the deadline or the hook limit. Notify a task
    /// outside instead.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, it no longer waits, and cuts nothing.
    pub async fn drain(&self) -> DrainReport {
        drain(&self.pool, None).await
    }

    /// Whether a drain (graceful shutdown) is under way, for a readiness probe.
    ///
    /// ```
    /// use axum::{Router, extract::State, http::StatusCode, routing::get};
    /// use tower_epilogue::Epilogue;
    ///
    /// async fn ready(State(epilogue): State<Epilogue>) -> StatusCode {
    ///     if epilogue.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    /// }
    ///
    /// let epilogue = Epilogue::new();
    /// let app: Router = Router::new().route("/ready", get(ready)).with_state(epilogue.clone());
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.pool.drains.is_under_way()
    }

    /// Resolves when a drain (graceful shutdown) begins, at once if one is under way, so that other parts of the
    /// process can end too. [`Lifecycle::draining`](crate::Lifecycle::draining) is the same for a handler.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A drain that begins after this call is not missed, even if it is over before the future is first
    /// polled.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        self.pool.drains.begun()
    }

    /// Makes the drains that are under way cut what is left now, as if their deadline had passed: for a second
    /// signal. Later drains are not affected.
    pub fn cut(&self) {
        self.pool.cut.notify_waiters();
    }
}

/// The connections that a drain waits for.
#[derive(Clone, Copy)]
pub(super) struct Serving<'a> {
    /// The tasks that they run in, and those of the streams of HTTP/2.
    pub(super) tasks: &'a TaskTracker,
    /// How many are open.
    pub(super) open: &'a (dyn Fn() -> usize + Sync),
    /// What is not (yet) the pool's: the requests on them.
    pub(super) in_flight: &'a (dyn Fn() -> Vec<Arc<dyn pool::Straggler>> + Sync),
    /// Has those closed that are left, which linger; tells how many they are.
    pub(super) close: &'a (dyn Fn() -> usize + Sync),
}

/// Waits for the connections, and then for the pool, to the pool's deadline; then cuts what is left, and gives the hooks
/// their time.
pub(super) async fn drain(pool: &Arc<Pool>, serving: Option<Serving<'_>>) -> DrainReport {
    let began = Instant::now();
    let in_flight = || serving.map(|serving| (serving.in_flight)()).unwrap_or_default();
    let _draining = pool.drains.begin();
    // What runs after responses comes after the connections: once none is left, only what runs itself can add to
    // it, and the pool waits for that.
    pool.companions().iter().for_each(|companion| companion.stop());
    let ended = || async {
        if let Some(serving) = serving {
            serving.tasks.wait().await;
        }
        pool.idle().await;
        // Those, too, that have come since.
        for companion in pool.companions() {
            companion.stopped().await;
        }
        // What these had just taken up when they were stopped.
        pool.idle().await;
    };
    let mut report = DrainReport::default();
    // Until when its event function is waited for.
    let twice = pool.settings.hook_limit.saturating_mul(2);
    let mut ends = pool.settings.drain_deadline.map(|deadline| (began, deadline.saturating_add(twice)));
    if let Some(why) = cut_short(pool, serving, ended()).await {
        let mut cut = Cut::default();
        cut.all(pool, in_flight());
        if cut.named.is_empty() && only_stores(pool, serving) {
            caught::tell(|| {
                tracing::warn!(
                    "{why}: all work has ended, and stores of durable jobs have twice the hook limit to note what became of \
                     theirs"
                );
            });
        } else if cut.named.is_empty() {
            let connections = serving.map(|serving| (serving.open)());
            caught::tell(|| {
                tracing::warn!(
                    running = pool.running(),
                    connections,
                    "{why}: no request is left to cut, what still runs has twice the hook limit to end"
                );
            });
        } else if !cut.breaks_promises() {
            // What is stored runs again.
            caught::tell(|| tracing::warn!(report = %cut.report(), "{why}: durable jobs were cut and run again"));
        } else {
            // Level error: promises that were not kept.
            caught::tell(|| tracing::error!(report = %cut.report(), "{why}: unfinished work was cut and is lost"));
        }
        let broke_promises = cut.breaks_promises();
        // Hooks have a limit each. Twice that is enough for all but the most stubborn. In the first half of it connections
        // come to their own end; in the second, those that did not are closed, and linger.
        let (half, cut_at) = (pool.settings.hook_limit, Instant::now());
        ends = Some((cut_at, twice));
        let mut closed = 0;
        let enough = tokio::time::timeout(twice, async {
            let mut ended = pin!(ended());
            let mut close = serving.map(|serving| serving.close);
            // A request may be between its connection, which has closed, and its own task, or may come as the last
            // on its connection: then it is cut when it shows.
            while tokio::time::timeout(AGAIN, ended.as_mut()).await.is_err() {
                cut.all(pool, in_flight());
                if cut_at.elapsed() >= half {
                    closed += close.take().map_or(0, |close| close());
                }
            }
        });
        if enough.await.is_err() {
            if only_stores(pool, serving) {
                caught::tell(|| {
                    tracing::error!(
                        "the drain ended before a store of durable jobs had noted what became of its jobs: its database is \
                         slow, or does not answer, and some may run again"
                    );
                });
            } else {
                caught::tell(|| {
                    tracing::error!(
                        running = pool.running(),
                        "the drain ended with work still running: it blocks its thread or never awaits"
                    );
                });
            }
            // Those that are left now are ended as they are, whether or not there was time to close them first.
            closed = closed.max(serving.map_or(0, |serving| (serving.open)()));
        }
        if !broke_promises && cut.breaks_promises() {
            caught::tell(|| tracing::error!(report = %cut.report(), "{why}: work that came after it was cut, too"));
        }
        if closed > 0 {
            caught::tell(|| {
                tracing::warn!(connections = closed, "connections that did not end by themselves were closed");
            });
        }
        report = DrainReport { closed, ..cut.report() };
    }
    let companions = pool.companions();
    report.stored = (!companions.is_empty()).then_some(0);
    for companion in companions {
        // One that nobody knows makes the sum unknown.
        report.stored = report.stored.zip(companion.left().await).map(|(some, more)| some + more);
    }
    if let Some(feed) = pool.feed() {
        // An event function may be slow, or hang; the server ends all the same.
        match ends.map(|(from, time)| time.saturating_sub(from.elapsed()).max(SECOND)) {
            None => feed.delivered().await,
            Some(left) if tokio::time::timeout(left, feed.delivered()).await.is_ok() => {}
            Some(_) => caught::tell(|| {
                tracing::error!(
                    "the drain ended before all events were delivered: the event function (`on_event`) is too slow"
                );
            }),
        }
    }
    report
}

/// Whether nothing is waited for any more but what stores of durable jobs have to note.
fn only_stores(pool: &Pool, serving: Option<Serving<'_>>) -> bool {
    pool.running() == 0 && serving.is_none_or(|serving| serving.tasks.is_empty()) && !pool.companions().is_empty()
}

/// Waits for the end, to the pool's deadline, or until somebody has it cut; says each second how much is left. Gives what
/// ended the wait before all was over.
async fn cut_short(pool: &Pool, serving: Option<Serving<'_>>, ended: impl Future<Output = ()>) -> Option<&'static str> {
    // It hears of what is cut from here on, polled or not.
    let (mut ended, mut cut) = (pin!(ended), pin!(pool.cut.notified()));
    let mut deadline = pin!(async {
        match pool.settings.drain_deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => pending().await,
        }
    });
    let began = Instant::now();
    caught::tell(|| {
        tracing::info!(
            running = pool.running(),
            connections = serving.map(|serving| (serving.open)()),
            deadline = pool.settings.drain_deadline.map(tracing::field::debug),
            "a drain begins"
        );
    });
    let mut progress = tokio::time::interval_at(began + SECOND, SECOND);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => return None,
            () = &mut cut => return Some("the drain is cut short"),
            () = &mut deadline => return Some("the drain's deadline has passed"),
            // Level info: a drain that takes seconds is something that whoever stops a server looks at.
            _ = progress.tick() => caught::tell(|| tracing::info!(
                elapsed = began.elapsed().as_secs(),
                running = pool.running(),
                connections = serving.map(|serving| (serving.open)()),
                "draining"
            )),
        }
    }
}

/// How often a drain whose deadline has passed looks for what is left.
const AGAIN: Duration = Duration::from_millis(10);

/// What a drain has cut.
#[derive(Default)]
struct Cut {
    named: Vec<Straggler>,
    /// Kept, so that no other is taken for one of these.
    known: HashMap<usize, Arc<dyn pool::Straggler>>,
}

impl Cut {
    /// Cuts what is left, and names it, unless it was before.
    fn all(&mut self, pool: &Pool, in_flight: Vec<Arc<dyn pool::Straggler>>) {
        // A request with a continuation or a hook is on both lists.
        let mut stragglers = pool.stragglers();
        stragglers.extend(in_flight);
        stragglers.retain(|straggler| {
            let address = Arc::as_ptr(straggler).cast::<()>().addr();
            self.known.insert(address, straggler.clone()).is_none()
        });
        self.named.extend(stragglers.iter().map(|straggler| Straggler::from(straggler.describe())));
        for straggler in stragglers {
            straggler.cut();
        }
    }

    /// Whether anything was cut that is not stored.
    fn breaks_promises(&self) -> bool {
        !self.named.iter().all(Straggler::is_stored)
    }

    /// All of it, the oldest first.
    fn report(&self) -> DrainReport {
        let mut stragglers = self.named.clone();
        stragglers.sort_by_key(|straggler| std::cmp::Reverse(straggler.age()));
        DrainReport { stragglers, ..DrainReport::default() }
    }
}

#[cfg(all(test, any(feature = "durable-sqlite", feature = "durable-postgres")))]
mod tests {
    use std::{future::ready, pin::Pin};

    use super::*;
    use crate::pool::Companion;

    /// A store with so many jobs, or one that does not answer.
    struct Store(Option<u64>);

    impl Companion for Store {
        fn stop(&self) {}

        fn stopped(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(ready(()))
        }

        fn left(&self) -> Pin<Box<dyn Future<Output = Option<u64>> + Send + '_>> {
            Box::pin(ready(self.0))
        }
    }

    #[tokio::test]
    async fn how_much_is_stored_is_known_if_every_store_answers() {
        for (stores, expected) in [
            (vec![], None),
            (vec![Some(2)], Some(2)),
            (vec![Some(2), Some(3)], Some(5)),
            (vec![None, Some(3)], None),
            (vec![Some(2), None], None),
        ] {
            let epilogue = Epilogue::new();
            stores.iter().for_each(|jobs| epilogue.pool.accompany(&(Arc::new(Store(*jobs)) as Arc<dyn Companion>)));
            assert_eq!(epilogue.drain().await.stored_jobs(), expected, "{stores:?}");
        }
    }
}
