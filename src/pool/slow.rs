//! Names what takes long, while it still does.

use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle};

use super::{Straggler, caught, lock};

/// How often the watch looks, at most and at least.
const OFTEN: Duration = Duration::from_millis(10);
const SELDOM: Duration = Duration::from_secs(1);

/// The requests that are watched, and the task that does it.
pub(crate) struct SlowWatch {
    after: Duration,
    requests: Arc<Mutex<Vec<Weak<dyn Straggler>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for SlowWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowWatch").field("after", &self.after).finish_non_exhaustive()
    }
}

impl SlowWatch {
    pub(crate) fn new(after: Duration) -> Self {
        Self { after, requests: Arc::default(), task: Mutex::default() }
    }

    /// Watches a request until it is named, or gone.
    pub(crate) fn watch(&self, request: Weak<dyn Straggler>) {
        lock(&self.requests).push(request);
        let mut task = lock(&self.task);
        // Again after the runtime that it ran on has ended.
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        *task = Some(runtime.spawn(look(Arc::downgrade(&self.requests), self.after)));
    }
}

async fn look(requests: Weak<Mutex<Vec<Weak<dyn Straggler>>>>, after: Duration) {
    let every = (after / 4).clamp(OFTEN, SELDOM);
    loop {
        tokio::time::sleep(every).await;
        // Until the pool is gone.
        let Some(requests) = requests.upgrade() else { return };
        let (mut slow, mut seen) = (Vec::new(), Vec::new());
        lock(&requests).retain(|request| match request.upgrade() {
            Some(request) if request.is_slow(after) => {
                slow.push(request);
                false
            }
            Some(request) => {
                let watched = !request.is_over();
                seen.push(request);
                watched
            }
            None => false,
        });
        for request in &slow {
            // A subscriber may panic, which is not to cost the others their report.
            if let Err(payload) = caught::call(|| request.tell_slow()) {
                caught::dispose(payload);
            }
        }
        // Not under the lock: each may be the last that keeps its request, and what of the user's is in it.
        caught::discard((slow, seen));
    }
}
