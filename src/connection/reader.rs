//! HTTP/2: who lets go of what a server was handed.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64 as Counter, Ordering},
};

use crate::sync::{AtomicBool, AtomicU64, per_thread};

/// The thread in which a server acts on what it has read, until it does something else.
///
/// It writes nothing meanwhile: of what it lets go of then, in that thread, nothing has left, for its stream was reset. What is
/// let go of in another thread, or at another time, was written, or was given to somebody else than the server.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// 0 if it does something else.
    thread: AtomicU64,
    /// It acts on what it has read, or goes on to write: what it does next tells.
    unsure: AtomicBool,
}

/// What is known when a chunk is let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drops {
    /// It was thrown away.
    Thrown,
    /// It was, if the server reads next.
    Perhaps,
    /// Nothing says so.
    Other,
}

impl Reader {
    /// The server goes on with what it has read, or, if that is `unsure`, with writing.
    pub(super) fn acts(&self, unsure: bool) {
        // Relaxed, all of them: whoever finds its own thread has written that itself, and the rest before.
        self.unsure.store(unsure, Ordering::Relaxed);
        self.thread.store(here(), Ordering::Relaxed);
    }

    /// The server does something else: whether it was not sure until now what that would be.
    pub(super) fn stops(&self) -> bool {
        if self.thread.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.thread.store(0, Ordering::Relaxed);
        self.unsure.load(Ordering::Relaxed)
    }

    pub(super) fn drops(&self) -> Drops {
        match self.thread.load(Ordering::Relaxed) {
            thread if thread != here() => Drops::Other,
            _ if self.unsure.load(Ordering::Relaxed) => Drops::Perhaps,
            _ => Drops::Thrown,
        }
    }
}

/// Of a thread's number, and the count of its steps.
const STEPS: u64 = u32::MAX as u64;

per_thread!(
    static HERE: Cell<u64> = Cell::new(0);
);

/// Changes with each step of a server in this thread, and is the same in no other: who finds the same twice has had no server
/// between. Not 0.
pub(super) fn moment() -> u64 {
    static THREADS: Counter = Counter::new(1);
    HERE.with(|here| {
        if here.get() == 0 {
            here.set(THREADS.fetch_add(1, Ordering::Relaxed) << STEPS.count_ones());
        }
        here.get()
    })
}

/// A server reads or writes in this thread.
pub(super) fn step() {
    let now = moment();
    HERE.with(|here| here.set(now & !STEPS | now.wrapping_add(1) & STEPS));
}

/// A number that no other thread has, and that is not 0.
pub(super) fn here() -> u64 {
    moment() >> STEPS.count_ones()
}

#[cfg(all(test, not(epilogue_model)))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::connection::{TrackedIo, exchange::Exchange};

    /// Its stream answers in another thread, while the server is at what it has read: that its client resets it.
    #[tokio::test]
    async fn the_first_response_of_a_connection_is_thrown_away_as_any_other() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = TrackedIo::new(server);
        client.write_all(b"a reset").await.unwrap();
        assert_eq!(server.read(&mut [0; 7]).await.unwrap(), 7);
        let (exchange, connection) = (Exchange::default(), server.connection().clone());
        let end = std::thread::spawn(move || {
            connection.guards(&exchange);
            (exchange.guard_last(bytes::Bytes::new()), exchange)
        });
        let (end, exchange) = end.join().unwrap();
        drop(end);
        assert!(!exchange.end_flushed(true, true) && exchange.is_discarded());
    }

    #[test]
    fn only_the_thread_that_reads_throws_away() {
        let reader = Reader::default();
        assert_eq!(reader.drops(), Drops::Other);
        reader.acts(false);
        let elsewhere = std::thread::scope(|scope| scope.spawn(|| reader.drops()).join().unwrap());
        assert_eq!((reader.drops(), elsewhere), (Drops::Thrown, Drops::Other));
        assert!(!reader.stops());
        assert_eq!(reader.drops(), Drops::Other);
        reader.acts(true);
        assert_eq!(reader.drops(), Drops::Perhaps);
        assert!(reader.stops() && !reader.stops());
    }
}
