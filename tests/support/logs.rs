//! Everything that is logged in this process.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _};

use super::{noticed, soon};

/// Everything that is logged in this process from the first call on, one line a record, its spans in front:
/// look for what only your test can have logged.
pub fn logs() -> Logs {
    static LOGS: std::sync::OnceLock<Logs> = std::sync::OnceLock::new();
    LOGS.get_or_init(|| {
        let logs = Logs::default();
        let writer = logs.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        // What these tell of every frame and statement is most of it, and nothing is looked for in it.
        let quiet = ["h2", "hyper", "hyper_util", "sqlx"].map(|target| (target, tracing::Level::INFO));
        let filter = Targets::new().with_targets(quiet).with_default(tracing::Level::DEBUG);
        tracing::subscriber::set_global_default(subscriber.with(filter)).unwrap();
        logs
    })
    .clone()
}

/// What [`logs`] gives.
#[derive(Clone, Default)]
pub struct Logs {
    told: Arc<Mutex<Told>>,
    news: Arc<Notify>,
}

#[derive(Default)]
struct Told {
    lines: Vec<String>,
    /// What was found of each marker, and in how many of the lines it was looked for: who waits for a line looks once
    /// for each that is written, and whoever logs waits for that. All of them looked at each time took a tenth of a
    /// second at the end of a long run.
    found: HashMap<String, (usize, Vec<String>)>,
}

impl Logs {
    /// The lines that contain `marker`.
    pub fn with(&self, marker: &str) -> Vec<String> {
        let told = &mut *self.told.lock().unwrap();
        let (seen, found) = told.found.entry(marker.to_owned()).or_default();
        found.extend(told.lines[*seen..].iter().filter(|line| line.contains(marker)).cloned());
        *seen = told.lines.len();
        found.clone()
    }

    /// Waits until `found` says so of them.
    pub async fn until(&self, what: &str, found: impl Fn(&Self) -> bool) {
        soon(what, noticed(&self.news, || found(self))).await;
    }
}

impl io::Write for Logs {
    /// A whole record, as its formatter writes them.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let lines = String::from_utf8_lossy(record);
        self.told.lock().unwrap().lines.extend(lines.lines().map(ToOwned::to_owned));
        self.news.notify_waiters();
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
