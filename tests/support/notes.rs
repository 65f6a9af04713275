//! Notes of what the code of the test's own app did, in order.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{PATIENCE, noticed};

/// What the code of the test's own app did, in order.
#[derive(Clone, Default)]
pub struct Notes {
    list: Arc<Mutex<Vec<String>>>,
    news: Arc<Notify>,
}

impl Notes {
    pub fn add(&self, note: impl Into<String>) {
        self.list.lock().unwrap().push(note.into());
        self.news.notify_waiters();
    }

    pub fn all(&self) -> Vec<String> {
        self.list.lock().unwrap().clone()
    }

    pub fn has(&self, note: &str) -> bool {
        self.list.lock().unwrap().iter().any(|other| other == note)
    }

    /// Waits until `note` has been made.
    pub async fn seen(&self, note: &str) {
        self.until(note, |notes| notes.iter().any(|other| other == note)).await;
    }

    /// Waits until `count` notes have been made.
    pub async fn count(&self, count: usize) {
        self.until(&format!("{count} notes"), |notes| notes.len() >= count).await;
    }

    async fn until(&self, what: &str, found: impl Fn(&[String]) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, noticed(&self.news, || found(&self.list.lock().unwrap())));
        assert!(waited.await.is_ok(), "it never happened: {what}, of {:?}", self.all());
    }

    /// Makes a note when it is dropped.
    pub fn on_drop(&self, note: &'static str) -> NoteOnDrop {
        NoteOnDrop { notes: self.clone(), note }
    }
}

/// Made by [`Notes::on_drop`].
pub struct NoteOnDrop {
    notes: Notes,
    note: &'static str,
}

impl Drop for NoteOnDrop {
    fn drop(&mut self) {
        self.notes.add(self.note);
    }
}
