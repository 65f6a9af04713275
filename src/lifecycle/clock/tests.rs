//! The clock by itself.

use super::*;

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
    let clock = Clock::new(Instant::now());
    for limit in [Duration::ZERO, Duration::MAX] {
        clock.set(limit, Start::Now, None);
        assert_eq!(clock.left(), None, "{limit:?}");
        assert!(!clock.arm(None, || Waker::noop().clone()));
    }
    clock.set(Duration::from_secs(1), Start::Now, Some(ClockKind::Busy));
    assert_eq!(clock.left(), Some(Duration::from_secs(1)));
    clock.set(Duration::ZERO, Start::Now, None);
    assert_eq!(clock.left(), None);
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_given_back_keeps_nobody() {
    struct Woken;

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    for after in [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(30)] {
        let (clock, woken) = (Clock::new(Instant::now()), std::sync::Arc::new(Woken));
        clock.set(Duration::from_secs(30), Start::Now, None);
        assert!(!clock.arm(None, || woken.clone().into()));
        assert_eq!(std::sync::Arc::strong_count(&woken), 2);
        // Lifted, moved, or left as it is.
        clock.set(after, Start::Now, None);
        clock.stop();
        assert_eq!(std::sync::Arc::strong_count(&woken), 1, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_time_is_the_time_of_polls_alone() {
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(1), Start::Now, Some(ClockKind::Busy));
    tokio::time::advance(Duration::from_secs(60)).await;
    let ((), measured) = clock.measure(false, || ());
    assert!(!measured.exhausted);
    assert!(!clock.arm(None, || Waker::noop().clone()));
    assert_eq!(clock.left(), Some(Duration::from_secs(1)));
}

/// One thread polls the request while another restarts its limit.
#[test]
fn a_limit_that_is_set_while_the_timer_is_being_set_is_the_timers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _runtime = runtime.enter();
    let clock = Clock::new(Instant::now());
    clock.set(Duration::from_secs(3600), Start::Now, None);
    let timer = lock(&clock.timer);
    std::thread::scope(|threads| {
        let polls = threads.spawn(|| {
            let _runtime = runtime.enter();
            assert!(!clock.arm(None, || Waker::noop().clone()));
        });
        // It has looked at the limit, and waits for the lock.
        while !clock.armed.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        clock.set(Duration::from_secs(60), Start::Now, None);
        drop(timer);
        polls.join().unwrap();
    });
    let ends = lock(&clock.timer).as_ref().map(|timer| nanos(timer.deadline() - clock.arrived));
    assert_eq!(ends, Some(clock.deadline.load(Ordering::Acquire)));
}
