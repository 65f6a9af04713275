//! The clock by itself.

use tokio::runtime::Handle;

use super::*;

/// One who waits.
#[derive(Default)]
struct Waits(AtomicBool);

impl Waits {
    /// Whether the limit had passed already.
    fn arm(self: &Arc<Self>, clock: &Clock, deadlines: &Arc<Deadlines<Self>>) -> bool {
        clock.arm(|| Cow::Borrowed(deadlines), || Some(self.clone()))
    }

    fn was_woken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Wake for Waits {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn one() -> (Arc<Waits>, Arc<Deadlines<Waits>>) {
    (Arc::default(), Deadlines::new(Handle::current()))
}

#[tokio::test(start_paused = true)]
async fn setting_the_limit_restarts_it() {
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(30), Start::Now, None);
    tokio::time::advance(Duration::from_secs(25)).await;
    assert_eq!(clock.left(), Some(Duration::from_secs(5)));
    clock.set(Duration::from_secs(20), Start::Now, None);
    tokio::time::advance(Duration::from_secs(19)).await;
    assert!(!clock.is_past());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(clock.is_past(), "25 s + 20 s = 45 s");
}

#[tokio::test(start_paused = true)]
async fn zero_and_absurd_limits_are_no_limits() {
    let (waits, deadlines) = one();
    let clock = Clock::new(Instant::now());
    for limit in [Duration::ZERO, Duration::MAX] {
        clock.set(limit, Start::Now, None);
        assert_eq!(clock.left(), None, "{limit:?}");
        assert!(!waits.arm(&clock, &deadlines));
    }
    assert_eq!(Arc::strong_count(&waits), 1);
    clock.set(Duration::from_secs(1), Start::Now, Some(ClockKind::Busy));
    assert_eq!(clock.left(), Some(Duration::from_secs(1)));
    clock.set(Duration::ZERO, Start::Now, None);
    assert_eq!(clock.left(), None);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_no_longer_waited_for_keeps_nobody() {
    for after in [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(30)] {
        let (waits, deadlines) = one();
        let clock = Clock::new(Instant::now());
        assert!(!clock.was_placed());
        clock.set(Duration::from_secs(30), Start::Now, None);
        assert!(!waits.arm(&clock, &deadlines));
        assert_eq!(Arc::strong_count(&waits), 2);
        // Lifted, moved, or left as it is.
        clock.set(after, Start::Now, None);
        assert!(clock.was_placed());
        clock.stop(&deadlines, waits.clone());
        assert_eq!(Arc::strong_count(&waits), 1, "{after:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!waits.was_woken() && !clock.was_placed());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_when_the_limit_as_it_was_set_last_has_passed() {
    let (waits, deadlines) = one();
    let clock = Clock::new(Instant::now());
    for seconds in [30, 60, 10] {
        clock.set(Duration::from_secs(seconds), Start::Now, None);
        assert!(!waits.arm(&clock, &deadlines));
    }
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert!(!waits.was_woken() && !waits.arm(&clock, &deadlines));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(waits.was_woken() && waits.arm(&clock, &deadlines));
}

#[tokio::test(start_paused = true)]
async fn whose_limit_had_passed_is_woken_at_once() {
    let (waits, deadlines) = one();
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(1), Start::Arrival, None);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!waits.arm(&clock, &deadlines));
    assert!(waits.was_woken() && waits.arm(&clock, &deadlines));
}

#[tokio::test(start_paused = true)]
async fn busy_time_is_the_time_of_polls_alone() {
    let (waits, deadlines) = one();
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(1), Start::Now, Some(ClockKind::Busy));
    tokio::time::advance(Duration::from_secs(60)).await;
    let ((), measured) = clock.measure(false, || ());
    assert!(!measured.exhausted);
    assert!(!waits.arm(&clock, &deadlines));
    assert_eq!(clock.left(), Some(Duration::from_secs(1)));
}

/// One thread polls the request while another restarts its limit.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_while_it_is_being_armed_is_the_one_that_is_waited_for() {
    let (waits, deadlines) = one();
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(3600), Start::Now, None);
    let restarts = || {
        // It has looked at the limit, and has not been put where it is waited for.
        clock.set(Duration::from_secs(60), Start::Now, None);
        Some(waits.clone())
    };
    assert!(!clock.arm(|| Cow::Borrowed(&deadlines), restarts));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(waits.was_woken());
}
