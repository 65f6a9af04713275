//! What is logged once a second, with its number: an overload must not be made worse by its log.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time::Sleep};

use super::{caught, lock};

/// Lets a message through once a second, with the number of those since the last.
#[derive(Default)]
pub(super) struct Throttle {
    /// In milliseconds of the process, plus one; 0 before the first.
    last: AtomicU64,
    count: AtomicU64,
    /// A task tells of those that are counted, when the second is over.
    is_kept: AtomicBool,
}

const SECOND: u64 = 1000;

fn now() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGAN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX) + 1
}

impl Throttle {
    /// Counts one. Says how many are to be told of now; those that come too soon for that are told of by `later`, together,
    /// when the second is over, also where none comes any more by then.
    pub(super) fn hit<F>(self: &Arc<Self>, later: impl FnOnce() -> F) -> Option<u64>
    where
        F: FnOnce(u64) + Send + 'static,
    {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (now, last) = (now(), self.last.load(Ordering::Relaxed));
        let passed = now - last.min(now);
        let due = last == 0 || passed >= SECOND;
        // Of several at once, the one that changes it speaks.
        if due && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Some(self.count.swap(0, Ordering::Relaxed));
        }
        // Who finds it set has counted before its task takes the count: that task clears it first.
        if !self.is_kept.swap(true, Ordering::AcqRel) {
            let rest = Duration::from_millis(SECOND - passed.min(SECOND));
            match Handle::try_current().map(|runtime| (runtime, caught::call(|| tokio::time::sleep(rest)))) {
                Ok((runtime, Ok(timer))) => drop(runtime.spawn(Kept(self.clone()).tell(timer, later()))),
                // It has no timers: this stays set, so that none is asked for again.
                Ok((_, Err(payload))) => caught::dispose(payload),
                // Elsewhere the next one that is due tells of them.
                Err(_) => drop(Kept(self.clone())),
            }
        }
        None
    }
}

/// The task, which may end with its runtime.
struct Kept(Arc<Throttle>);

impl Kept {
    async fn tell(self, rest: Sleep, say: impl FnOnce(u64)) {
        rest.await;
        let throttle = self.0.clone();
        drop(self);
        let count = throttle.count.swap(0, Ordering::Relaxed);
        if count > 0 {
            throttle.last.store(now(), Ordering::Relaxed);
            say(count);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // An exchange, so that what was counted before somebody found it set is seen after it.
        self.0.is_kept.swap(false, Ordering::AcqRel);
    }
}

/// One throttle for what no gate refuses.
#[derive(Default)]
pub(crate) struct Refusals(Arc<Throttle>);

impl Refusals {
    pub(crate) fn tell(&self, route: &str, why: &'static str) {
        caught::tell(|| tracing::debug!(route, why, "a request was refused with a 503"));
        let say = move |route: &str, count| {
            caught::tell(|| tracing::warn!(route, count, why, "requests are refused with a 503"));
        };
        let later = || {
            let route = route.to_owned();
            move |count| say(&route, count)
        };
        if let Some(count) = self.0.hit(later) {
            say(route, count);
        }
    }
}

/// What is to be told of once each, for good.
#[derive(Default)]
pub(crate) struct Once(Mutex<Vec<&'static str>>);

impl Once {
    /// Whether that is the first time.
    pub(crate) fn is_news(&self, name: &'static str) -> bool {
        let mut told = lock(&self.0);
        let is_news = !told.contains(&name);
        if is_news {
            told.push(name);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_runtime_has_no_timers_is_found_out_once() {
        let throttle = Arc::<Throttle>::default();
        let hit = || throttle.hit(|| |_| {});
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            assert_eq!((hit(), hit()), (Some(1), None));
            tokio::task::yield_now().await;
            assert_eq!(hit(), None);
        });
        assert!(throttle.is_kept.load(Ordering::Relaxed));
        assert_eq!(throttle.count.load(Ordering::Relaxed), 2, "they are for the next one that is due");
    }
}
