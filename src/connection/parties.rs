//! The exchanges in flight on a connection.

use std::sync::{Arc, atomic::Ordering};

use super::exchange::Exchange;
#[cfg(feature = "serve")]
use crate::pool::Straggler;
use crate::{
    pool::lock,
    sync::{AtomicUsize, Mutex},
};

/// Who is told what became of an exchange: the request's lifecycle.
///
/// None of this runs user code (contract rule 11): it is called from the connection's reads and flushes.
pub(crate) trait Party: Send + Sync {
    /// For a drain.
    #[cfg(feature = "serve")]
    fn as_straggler(self: Arc<Self>) -> Arc<dyn Straggler>;
    fn exchange(&self) -> &Exchange;
    fn is_http2(&self) -> bool;
    /// Whether the end of the connection may be the end of its response.
    fn ends_by_close(&self) -> bool;
    /// Every byte of the response was taken by the kernel.
    fn flushed(&self);
    /// Every chunk of a held body was flushed: its end may go.
    fn released(&self);
    /// The client closed its side, or reset the connection.
    fn left(&self);
    /// It had done so before this request arrived.
    fn had_left(&self);
    /// The connection is gone, and the response was not flushed.
    fn closed(&self);
    /// The kernel takes no more bytes for now.
    fn stalled(&self);
    /// Whether the server has more of its response than it has sent, or asks for no more.
    fn waits_for_reader(&self) -> bool;
    /// Whether the handler is to finish in place although the client closed its side.
    fn hides_end_of_input(&self, serves_half_closed: bool) -> bool;
}

/// The list of them, and how many they are, which is asked with each turn and costs no lock.
#[derive(Default)]
pub(super) struct Parties {
    list: Mutex<Vec<Arc<dyn Party>>>,
    count: AtomicUsize,
}

impl Parties {
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Runs under the lock.
    pub(super) fn read<T>(&self, read: impl FnOnce(&[Arc<dyn Party>]) -> T) -> T {
        read(&lock(&self.list))
    }

    /// Runs under the lock, too, and is counted.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<dyn Party>>) -> T) -> T {
        let mut list = lock(&self.list);
        let changed = change(&mut list);
        self.count.store(list.len(), Ordering::Release);
        changed
    }
}
