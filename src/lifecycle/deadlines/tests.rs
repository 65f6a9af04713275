//! One timer for all.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Weak, atomic::AtomicUsize},
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// One who waits, and counts how often it was woken.
struct Waits {
    place: Place,
    woken: AtomicUsize,
    panics: bool,
}

impl Waits {
    fn new() -> Arc<Self> {
        Arc::new(Self { place: Place::none(), woken: AtomicUsize::new(0), panics: false })
    }

    fn put(self: &Arc<Self>, deadlines: &Arc<Deadlines<Self>>, at: Option<Instant>) {
        deadlines.put(&self.place, self.clone(), || at);
    }

    fn take_off(self: &Arc<Self>, deadlines: &Arc<Deadlines<Self>>) {
        deadlines.take_off(&self.place, self.clone());
    }

    fn woken(&self) -> usize {
        self.woken.load(Ordering::Acquire)
    }

    /// Nobody keeps it but the test.
    fn is_free(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }
}

impl Wake for Waits {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::AcqRel);
        assert!(!self.panics, "one of its tasks does");
    }
}

fn here() -> Arc<Deadlines<Waits>> {
    Deadlines::new(Handle::current())
}

/// When the timer rings, in seconds from now.
fn rings(deadlines: &Deadlines<Waits>) -> Option<u64> {
    let rings = lock(&deadlines.state).rings;
    let at = deadlines.epoch + Duration::from_nanos(rings);
    (rings != NEVER).then(|| at.duration_since(Instant::now()).as_secs())
}

#[tokio::test(start_paused = true)]
async fn each_is_woken_at_its_time_and_once() {
    let (deadlines, now) = (here(), Instant::now());
    let all: Vec<_> = [5, 1, 3, 3, 9].into_iter().map(|seconds| (seconds, Waits::new())).collect();
    for (seconds, waits) in &all {
        waits.put(&deadlines, Some(now + SECOND * *seconds));
    }
    for second in 1..=10 {
        tokio::time::advance(SECOND - Duration::from_millis(1)).await;
        assert!(all.iter().all(|(at, waits)| waits.woken() == usize::from(*at < second)), "just before {second} s");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(all.iter().all(|(at, waits)| waits.woken() == usize::from(*at <= second)), "at {second} s");
    }
    assert!(all.iter().all(|(_, waits)| waits.is_free()));
    assert_eq!(rings(&deadlines), None);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_woken_who_was_taken_off() {
    let (deadlines, now) = (here(), Instant::now());
    let (first, second) = (Waits::new(), Waits::new());
    first.put(&deadlines, Some(now + SECOND));
    second.put(&deadlines, Some(now + SECOND * 2));
    first.take_off(&deadlines);
    assert!(first.is_free());
    assert_eq!(rings(&deadlines), Some(1), "it is left as it is for the second");
    tokio::time::advance(SECOND).await;
    assert_eq!(rings(&deadlines), Some(1), "and set for the next when it rings");
    // Twice is as good as once, and so is one who was woken.
    first.take_off(&deadlines);
    tokio::time::advance(SECOND).await;
    second.take_off(&deadlines);
    assert_eq!((first.woken(), second.woken()), (0, 1));
    assert!(second.is_free());
}

#[tokio::test(start_paused = true)]
async fn the_time_that_was_given_last_is_the_one_that_counts() {
    let (deadlines, now) = (here(), Instant::now());
    let [later, sooner, lifted, again] = [(); 4].map(|()| Waits::new());
    for (waits, times) in [(&later, [1, 5]), (&sooner, [5, 1]), (&again, [5, 5])] {
        for seconds in times {
            waits.put(&deadlines, Some(now + SECOND * seconds));
        }
        assert_eq!(Arc::strong_count(waits), 2);
    }
    lifted.put(&deadlines, Some(now + SECOND));
    lifted.put(&deadlines, None);
    assert!(lifted.is_free());
    let woken = || [&later, &sooner, &lifted, &again].map(|waits| waits.woken());
    tokio::time::advance(SECOND).await;
    assert_eq!(woken(), [0, 1, 0, 0]);
    tokio::time::advance(SECOND * 4).await;
    assert_eq!(woken(), [1, 1, 0, 1]);
    // And once more, as with a limit that is set again.
    sooner.put(&deadlines, Some(now + SECOND * 6));
    tokio::time::advance(SECOND).await;
    assert_eq!(woken(), [1, 2, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_late_is_woken_there_and_then() {
    let (deadlines, now) = (here(), Instant::now());
    tokio::time::advance(SECOND).await;
    // Before there was any, by its own clock.
    for at in [now, now + SECOND, now.checked_sub(SECOND).unwrap_or(now)] {
        let waits = Waits::new();
        waits.put(&deadlines, Some(at));
        assert_eq!(waits.woken(), 1);
        assert!(waits.is_free());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_further_than_a_timer_reaches_is_woken_at_its_time() {
    let (deadlines, now) = (here(), Instant::now());
    let year = Duration::from_nanos(FURTHEST);
    let [three_years, far_away] = [(); 2].map(|()| Waits::new());
    three_years.put(&deadlines, Some(now + year * 3));
    far_away.put(&deadlines, now.checked_add(Duration::from_secs(u64::MAX >> 2)));
    for _ in 0..3 {
        assert_eq!(three_years.woken(), 0);
        tokio::time::advance(year).await;
    }
    assert_eq!((three_years.woken(), far_away.woken()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_one_is_not_the_others() {
    let (deadlines, at) = (here(), Instant::now() + SECOND);
    let panics = Arc::new(Waits { place: Place::none(), woken: AtomicUsize::new(0), panics: true });
    let others = [(); 8].map(|()| Waits::new());
    panics.put(&deadlines, Some(at));
    for waits in &others {
        waits.put(&deadlines, Some(at));
    }
    tokio::time::advance(SECOND).await;
    assert_eq!(panics.woken(), 1);
    assert!(others.iter().all(|waits| waits.woken() == 1));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
}

/// It rings all of its timers, and has none any more.
#[test]
fn a_runtime_that_ends_wakes_nobody_and_keeps_nobody() {
    for before in [0, 1, 2] {
        let runtime = runtime();
        let deadlines = Deadlines::new(runtime.handle().clone());
        let put = |minutes: u32| {
            let waits = Waits::new();
            waits.put(&deadlines, Some(Instant::now() + SECOND * 60 * minutes));
            waits
        };
        let all: Vec<_> = (1..=before).map(put).collect();
        drop(runtime);
        // Who comes after it waits for nothing.
        let late = put(1);
        assert!(all.iter().chain([&late]).all(|waits| waits.woken() == 0 && waits.is_free()), "{before}");
        assert!(lock(&deadlines.state).is_over);
        let weak: Weak<_> = Arc::downgrade(&deadlines);
        drop(deadlines);
        assert!(weak.upgrade().is_none(), "nor does its timer keep it");
    }
}

/// Where it is set: what it would wake is not kept.
#[test]
fn a_timer_that_has_rung_where_it_was_set_keeps_nobody() {
    let runtime = runtime();
    let deadlines = Deadlines::new(runtime.handle().clone());
    let other = Waits::new();
    other.put(&deadlines, Some(Instant::now() + SECOND * 60));
    // The runtime has looked at its timers since.
    let at = Instant::now();
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
    let waits = Waits::new();
    waits.put(&deadlines, Some(at));
    assert!(waits.woken() == 1 && waits.is_free());
    let weak = Arc::downgrade(&deadlines);
    other.take_off(&deadlines);
    drop(deadlines);
    assert!(weak.upgrade().is_none());
}

/// Nor would a clock that a test has stopped go on to where it rings.
#[tokio::test(start_paused = true)]
async fn there_is_no_timer_where_nobody_waits() {
    let deadlines = here();
    let taken_off = || {
        let waits = Waits::new();
        waits.put(&deadlines, Some(Instant::now() + SECOND * 60));
        waits.take_off(&deadlines);
    };
    let lifted = || {
        let waits = Waits::new();
        waits.put(&deadlines, Some(Instant::now() + SECOND * 60));
        waits.put(&deadlines, None);
    };
    for leaves in [&taken_off as &dyn Fn(), &lifted] {
        leaves();
        assert!(lock(&deadlines.state).timer.is_none() && rings(&deadlines).is_none());
    }
    let began = Instant::now();
    let (tells, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(|| tells.send(()).unwrap());
    told.await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    thread.join().unwrap();
    let waits = Waits::new();
    waits.put(&deadlines, Some(began + SECOND));
    tokio::time::advance(SECOND).await;
    assert_eq!(waits.woken(), 1);
    assert!(lock(&deadlines.state).timer.is_none());
}

/// As a guard does that gives itself more time.
#[test]
fn it_is_set_also_while_a_panic_unwinds() {
    struct Guard<'a>(&'a Arc<Deadlines<Waits>>, &'a Arc<Waits>);

    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.1.put(self.0, Some(Instant::now() + Duration::from_millis(20)));
        }
    }

    let (tells, told) = std::sync::mpsc::channel();
    // It may hang.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (deadlines, waits) = (here(), Waits::new());
            let panics = || {
                let _guard = Guard(&deadlines, &waits);
                panic!("the user's");
            };
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            assert_eq!(waits.woken(), 0);
            tokio::time::sleep(Duration::from_millis(40)).await;
            tells.send(waits.woken()).unwrap();
        });
    });
    assert_eq!(told.recv_timeout(SECOND * 20), Ok(1));
}

/// Somebody holds the lock while the timer rings: what was known before it does not count.
#[test]
fn who_comes_to_the_lock_late_does_not_take_the_ring_for_the_runtimes_end() {
    let runtime = runtime();
    let deadlines = Deadlines::new(runtime.handle().clone());
    let all = [40, 120].map(|millis| {
        let waits = Waits::new();
        waits.put(&deadlines, Some(Instant::now() + Duration::from_millis(millis)));
        waits
    });
    let state = lock(&deadlines.state);
    let late = deadlines.clone();
    let late = std::thread::spawn(move || late.wake());
    std::thread::sleep(Duration::from_millis(80));
    drop(state);
    late.join().unwrap();
    wait_for(|| all.iter().all(|waits| waits.woken() == 1));
    assert!(!lock(&deadlines.state).is_over);
}

fn wait_for(happens: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !happens() {
        assert!(began.elapsed() < SECOND * 30, "somebody was forgotten");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_woken_whole() {
    let (deadlines, at) = (here(), Instant::now() + SECOND);
    let all: Vec<_> = (0..3 * BATCH + 7).map(|_| Waits::new()).collect();
    for waits in &all {
        waits.put(&deadlines, Some(at));
    }
    tokio::time::advance(SECOND).await;
    assert!(all.iter().all(|waits| waits.woken() == 1));
}

#[test]
fn a_runtime_without_timers_says_so_each_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let deadlines = Deadlines::new(runtime.handle().clone());
    for _ in 0..2 {
        let waits = Waits::new();
        let put = || waits.put(&deadlines, Some(Instant::now() + SECOND));
        assert!(catch_unwind(AssertUnwindSafe(put)).is_err());
        waits.take_off(&deadlines);
        assert!(waits.is_free());
    }
}

/// Every moment in which it may ring: while it is set, while it is moved, while one is taken off.
#[test]
fn of_many_on_many_threads_none_is_forgotten() {
    const EACH: usize = if cfg!(miri) { 20 } else { 1_000 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let deadlines = Deadlines::new(runtime.handle().clone());
    let threads: Vec<_> = (0..16)
        .map(|thread| {
            let deadlines = deadlines.clone();
            std::thread::spawn(move || {
                let wait = |number: usize| {
                    let waits = Waits::new();
                    let micros = u64::try_from((number * 7 + thread * 13) % 3_000).unwrap_or_default();
                    waits.put(&deadlines, Some(Instant::now() + Duration::from_micros(micros)));
                    let leaves = number % 3 == 0;
                    if leaves {
                        waits.take_off(&deadlines);
                    }
                    (leaves, waits)
                };
                (0..EACH).map(wait).collect::<Vec<_>>()
            })
        })
        .collect();
    let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    wait_for(|| all.iter().all(|(leaves, waits)| waits.is_free() && (*leaves || waits.woken() == 1)));
    assert!(all.iter().all(|(_, waits)| waits.woken() <= 1));
    assert!(!lock(&deadlines.state).is_over);
}
