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

use super::Connection;

/// Woken when the tasks that were ready before it have run, as far as their runtime knows: then it wakes the connection's.
#[derive(Debug)]
pub(super) struct Others {
    connection: Connection,
    over: AtomicBool,
}

impl Others {
    pub(super) fn have_their_turn(connection: &Connection) -> Arc<Self> {
        let others = Arc::new(Self { connection: connection.clone(), over: AtomicBool::new(false) });
        // The task's own waker would have it polled at once; and it may read again in this very poll. Outside of a runtime,
        // it is over at once.
        let waker = others.clone().into();
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        others
    }

    pub(super) fn had_their_turn(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Wake for Others {
    fn wake(self: Arc<Self>) {
        // Release: whoever is woken sees it.
        self.over.store(true, Ordering::Release);
        self.connection.wake();
    }
}
