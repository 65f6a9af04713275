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

/// So many requests' room is not worth giving back.
const FEW: usize = 256;

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
        let mut watched = lock(&requests);
        watched.retain(|request| match request.upgrade() {
            Some(request) if request.is_slow(after) => {
                slow.push(request);
                false
            }
            Some(request) => {
                let goes_on = !request.is_over();
                seen.push(request);
                goes_on
            }
            None => false,
        });
        // A crowd is not to keep its room when it is gone.
        if watched.capacity() > FEW.max(4 * watched.len()) {
            let room = 2 * watched.len();
            watched.shrink_to(room);
        }
        drop(watched);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_room_of_a_crowd_is_given_back_when_it_is_gone() {
        let watch = SlowWatch::new(Duration::from_secs(60));
        let gone: Weak<dyn Straggler> = Weak::<crate::lifecycle::Shared>::new();
        (0..100_000).for_each(|_| watch.watch(gone.clone()));
        assert!(lock(&watch.requests).capacity() >= 100_000);
        tokio::time::sleep(2 * SELDOM).await;
        assert!(lock(&watch.requests).capacity() <= FEW);
    }
}
