//! HTTP/2: who lets go of what a server was handed.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize};

/// The thread in which a server acts on what it has read, until it does something else.
///
/// It writes nothing meanwhile: of what it lets go of then, in that thread, nothing has left, for its stream was reset. What is
/// let go of in another thread, or at another time, was written, or was given to somebody else than the server.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// 0 if it does something else.
    thread: AtomicUsize,
    /// It acts on what it has read, or goes on to write: what it does next tells.
    unsure: AtomicBool,
    /// How often it has begun to do something.
    steps: AtomicU64,
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
        // Changed by the one task that reads and writes.
        self.steps.store(self.steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.thread.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.thread.store(0, Ordering::Relaxed);
        self.unsure.load(Ordering::Relaxed)
    }

    /// From 1. As long as a thread finds the same, the server has done nothing in that.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed) + 1
    }

    pub(super) fn drops(&self) -> Drops {
        match self.thread.load(Ordering::Relaxed) {
            thread if thread != here() => Drops::Other,
            _ if self.unsure.load(Ordering::Relaxed) => Drops::Perhaps,
            _ => Drops::Thrown,
        }
    }
}

/// A number that no other thread has at the same time, and that is not 0.
pub(super) fn here() -> usize {
    // The address of a byte of its own.
    std::thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
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
            (exchange.guard_end(), exchange)
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
