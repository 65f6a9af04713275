//! The exchanges in flight on a connection.

use std::sync::{Arc, atomic::Ordering};

use super::state::Party;
use crate::{
    pool::lock,
    sync::{AtomicUsize, Mutex},
};

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
