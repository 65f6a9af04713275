//! Kinds of jobs that this process promises and does not run.

use std::sync::Mutex;

use crate::pool::{caught, lock};

/// What this process runs, and of which other kinds it has said that it does not.
pub(super) struct Elsewhere {
    here: Vec<&'static str>,
    told: Mutex<Vec<&'static str>>,
}

impl Elsewhere {
    pub(super) fn new(here: impl IntoIterator<Item = &'static str>) -> Self {
        Self { here: here.into_iter().collect(), told: Mutex::default() }
    }

    /// A job is to be stored. One of a kind that was not registered may have been forgotten, and would then stay stored for
    /// ever: it is said once for each kind (contract rule 13). A process that runs none at all means to promise only.
    pub(super) fn promised(&self, kind: &'static str) {
        if self.here.is_empty() || self.here.contains(&kind) {
            return;
        }
        let mut told = lock(&self.told);
        if told.contains(&kind) {
            return;
        }
        told.push(kind);
        drop(told);
        caught::tell(|| {
            tracing::warn!(
                kind,
                "a durable job was promised that this process does not run: it stays stored until another process does, or \
             until this one has `DurableBuilder::register` called with its type"
            );
        });
    }
}
