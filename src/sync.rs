//! The locks and atomics that a request's state is made of: std's, or, when the model is checked, loom's.
//!
//! `tests/loom` builds this crate with `cfg(epilogue_model)` and runs `lifecycle::model`: then each operation of these
//! is a point where another thread may come in between, and all such orders are tried. What stays std's has no part in
//! the order of a request's transitions: the clock, the pool's lists, reference counts.

#[cfg(epilogue_model)]
pub(crate) use self::model_room::*;
#[cfg(not(epilogue_model))]
pub(crate) use self::std_room::*;

/// A value of each thread's own. Those of a model are all on one of the system's.
#[cfg(not(epilogue_model))]
macro_rules! per_thread {
    ($(#[$about:meta])* static $name:ident: $type:ty = $value:expr;) => {
        std::thread_local! {
            $(#[$about])*
            static $name: $type = const { $value };
        }
    };
}

#[cfg(epilogue_model)]
macro_rules! per_thread {
    ($(#[$about:meta])* static $name:ident: $type:ty = $value:expr;) => {
        loom::thread_local! {
            $(#[$about])*
            static $name: $type = $value;
        }
    };
}

pub(crate) use per_thread;

#[cfg(not(epilogue_model))]
mod std_room {
    pub(crate) use std::sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize},
    };

    pub(crate) use atomic_waker::AtomicWaker;
}

#[cfg(epilogue_model)]
mod model_room {
    use std::{
        future::Future,
        sync::{Arc, atomic::Ordering},
        task::{Context, Poll, Wake, Waker},
    };

    pub(crate) use loom::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize},
    };
    use loom::{sync::Notify, thread};

    /// A locked slot: what `atomic_waker` promises, without its own race inside.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicWaker(Mutex<Option<Waker>>);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn register(&self, waker: &Waker) {
            let old = self.0.lock().map(|mut slot| slot.replace(waker.clone()));
            drop(old);
        }

        pub(crate) fn take(&self) -> Option<Waker> {
            self.0.lock().ok()?.take()
        }

        pub(crate) fn wake(&self) {
            if let Ok(Some(waker)) = self.0.lock().map(|mut slot| slot.take()) {
                waker.wake();
            }
        }
    }

    /// Whoever sees the value sees what was done before it was set; std's cell alone would not tell the model so.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        cell: std::sync::OnceLock<T>,
        is_set: AtomicBool,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self { cell: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
        }
    }

    impl<T> OnceLock<T> {
        pub(crate) fn get(&self) -> Option<&T> {
            self.is_set.load(Ordering::Acquire).then(|| self.cell.get()).flatten()
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            let value = self.cell.get_or_init(make);
            self.is_set.store(true, Ordering::Release);
            value
        }
    }

    /// Locks std's mutexes and loom's alike.
    pub(crate) trait Lock {
        type Guard<'a>
        where
            Self: 'a;
        fn guard(&self) -> Self::Guard<'_>;
    }

    impl<T> Lock for std::sync::Mutex<T> {
        type Guard<'a>
            = std::sync::MutexGuard<'a, T>
        where
            T: 'a;

        fn guard(&self) -> Self::Guard<'_> {
            self.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    impl<L: Lock> Lock for std::sync::Arc<L> {
        type Guard<'a>
            = L::Guard<'a>
        where
            L: 'a;

        fn guard(&self) -> Self::Guard<'_> {
            (**self).guard()
        }
    }

    impl<T> Lock for Mutex<T> {
        type Guard<'a>
            = loom::sync::MutexGuard<'a, T>
        where
            T: 'a;

        fn guard(&self) -> Self::Guard<'_> {
            self.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    struct Thread(Notify);

    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            self.0.notify();
        }
    }

    /// Runs a future on this thread. One that is never woken is found as a deadlock.
    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        let thread = Arc::new(Thread(Notify::new()));
        let waker = Waker::from(thread.clone());
        let mut future = Box::pin(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            thread.0.wait();
        }
    }

    thread_local! {
        // One model runs on one thread of the system, with all of its own.
        static SPAWNED: std::cell::RefCell<Vec<thread::JoinHandle<()>>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    /// In the place of a runtime: each of its tasks is a thread.
    pub(crate) struct Runtime;

    impl Runtime {
        /// There is always one.
        pub(crate) fn try_current() -> Result<Self, std::convert::Infallible> {
            Ok(Self)
        }

        pub(crate) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
            let handle = thread::spawn(move || block_on(work));
            SPAWNED.with_borrow_mut(|all| all.push(handle));
        }
    }

    /// Waits for everything that was spawned, also by what was spawned.
    pub(crate) fn join_all() {
        loop {
            let handle = SPAWNED.with_borrow_mut(Vec::pop);
            let Some(handle) = handle else { return };
            if handle.join().is_err() {
                panic!("a task panicked");
            }
        }
    }
}
