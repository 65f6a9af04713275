//! Waiting for everything to end, to a deadline (contract rule 10).

use std::{
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

use super::{DrainReport, Epilogue, Straggler};
use crate::pool::{self, Pool};

const SECOND: Duration = Duration::from_secs(1);

impl Epilogue {
    /// Waits until nothing runs any more after responses; for servers other than [`Epilogue::serve`], which does it
    /// by itself. Stop the server first: what it begins afterwards is waited for as well.
    ///
    /// At the [deadline](crate::EpilogueBuilder::drain_deadline) what is left is cut with status TIMEOUT, its hooks
    /// run, and the report names it. It can be called again, and several times at once.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it waits no longer, and cuts nothing.
    pub async fn drain(&self) -> DrainReport {
        drain(&self.pool, None, Vec::new).await
    }

    /// Has the drains that are under way cut what is left now, as if their deadline had passed: for a second signal. Those
    /// that begin later are not concerned.
    pub fn cut(&self) {
        self.pool.cut.notify_waiters();
    }
}

/// Waits for the connections, and then for the pool, to the pool's deadline; then cuts what is left, and gives the hooks their time.
///
/// `in_flight` gives what is not (yet) the pool's: the requests on connections.
pub(super) async fn drain(
    pool: &Arc<Pool>,
    connections: Option<&TaskTracker>,
    in_flight: impl Fn() -> Vec<Arc<dyn pool::Straggler>>,
) -> DrainReport {
    // What runs after responses comes after the connections: once none is left, only what runs itself can add to
    // it, and the pool waits for that.
    let companions = pool.companions();
    companions.iter().for_each(|companion| companion.stop());
    let ended = || async {
        if let Some(connections) = connections {
            connections.wait().await;
        }
        pool.idle().await;
        for companion in &companions {
            companion.stopped().await;
        }
        // What these had just taken up when they were stopped.
        pool.idle().await;
    };
    let mut report = DrainReport::default();
    if !in_time(pool, connections, ended()).await {
        report = cut(pool, in_flight());
        tracing::warn!(%report, "what is left was cut");
        // Hooks have a limit each. Twice that is enough for all but the most stubborn.
        if tokio::time::timeout(pool.settings.hook_limit.saturating_mul(2), ended()).await.is_err() {
            tracing::error!(running = pool.running(), "the drain ends with work still running");
        }
    }
    for companion in &companions {
        report.stored = report.stored.max(Some(0)).zip(companion.left().await).map(|(some, more)| some + more);
    }
    if let Some(feed) = &pool.feed {
        feed.delivered().await;
    }
    report
}

/// Waits for the end, to the pool's deadline, or until somebody has it cut; says each second how much is left.
async fn in_time(pool: &Pool, connections: Option<&TaskTracker>, ended: impl Future<Output = ()>) -> bool {
    let (mut ended, mut cut) = (pin!(ended), pin!(pool.cut.notified()));
    cut.as_mut().enable();
    let mut deadline = pin!(async {
        match pool.settings.drain_deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => pending().await,
        }
    });
    let began = Instant::now();
    let mut progress = tokio::time::interval_at(began + SECOND, SECOND);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = &mut ended => return true,
            () = &mut cut => {
                tracing::warn!("the drain is cut short");
                return false;
            }
            () = &mut deadline => {
                tracing::warn!("the drain's deadline has passed");
                return false;
            }
            // Level info: a drain that takes seconds is something that whoever stops a server looks at.
            _ = progress.tick() => tracing::info!(
                elapsed = began.elapsed().as_secs(),
                running = pool.running(),
                connections = connections.map(TaskTracker::len),
                "draining"
            ),
        }
    }
}

/// Cuts what is left, and names it.
fn cut(pool: &Pool, in_flight: Vec<Arc<dyn pool::Straggler>>) -> DrainReport {
    let mut stragglers = pool.stragglers();
    for request in in_flight {
        // A request with a continuation or a hook is on both lists.
        if !stragglers.iter().any(|other| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(&request))) {
            stragglers.push(request);
        }
    }
    let mut report = DrainReport {
        stragglers: stragglers.iter().map(|straggler| Straggler::from(straggler.describe())).collect(),
        stored: None,
    };
    report.stragglers.sort_by_key(|straggler| std::cmp::Reverse(straggler.age()));
    for straggler in stragglers {
        straggler.cut();
    }
    report
}
