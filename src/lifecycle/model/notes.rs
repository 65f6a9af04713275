//! What happened in one order.

use std::sync::{Arc, Mutex as StdMutex};

/// What happened, in std's own locks: to look at it changes no order.
#[derive(Clone, Default)]
pub(super) struct Notes(pub(super) Arc<StdMutex<Vec<&'static str>>>);

impl Notes {
    pub(super) fn add(&self, note: &'static str) {
        self.0.lock().unwrap().push(note);
    }

    pub(super) fn count(&self, note: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|other| **other == note).count()
    }

    pub(super) fn place(&self, note: &str) -> Option<usize> {
        self.0.lock().unwrap().iter().position(|other| *other == note)
    }
}

/// Notes its drop.
pub(super) struct Dropped(pub(super) Notes, pub(super) &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}
