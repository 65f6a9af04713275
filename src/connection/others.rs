//! A turn for the tasks that a server has begun.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
};

use crate::sync::AtomicWaker;

/// Woken when the tasks that were ready before it have run, as far as their runtime knows: then it wakes whoever reads. That
/// is not the connection's task where the connection was upgraded, and reads and writes in two.
#[derive(Debug)]
pub(super) struct Others {
    reader: AtomicWaker,
    over: AtomicBool,
}

impl Others {
    pub(super) fn have_their_turn(cx: &Context<'_>) -> Arc<Self> {
        let others = Arc::new(Self { reader: AtomicWaker::new(), over: AtomicBool::new(false) });
        others.reader.register(cx.waker());
        // The task's own waker would have it polled at once; and it may read again in this very poll. Outside of a runtime,
        // it is over at once.
        let waker = others.clone().into();
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        others
    }

    pub(super) fn had_their_turn(&self, cx: &Context<'_>) -> bool {
        // Registered before the look, so that what changes after it wakes us.
        self.reader.register(cx.waker());
        self.over.load(Ordering::Acquire)
    }
}

impl Wake for Others {
    fn wake(self: Arc<Self>) {
        // Release: whoever is woken sees it.
        self.over.store(true, Ordering::Release);
        self.reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, task::Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// As behind an upgrade: another task reads on.
    #[tokio::test]
    async fn who_looked_last_is_woken_when_the_others_have_run() {
        let (first, last) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let wakers = [&first, &last].map(|woken| Waker::from(woken.clone()));
        let others = Others::have_their_turn(&Context::from_waker(&wakers[0]));
        assert!(!others.had_their_turn(&Context::from_waker(&wakers[1])));
        tokio::task::yield_now().await;
        assert!(others.had_their_turn(&Context::from_waker(&wakers[1])));
        assert_eq!((first.0.load(Ordering::SeqCst), last.0.load(Ordering::SeqCst)), (0, 1));
    }
}
