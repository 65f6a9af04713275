//! Everything that is logged in this process.

use std::{
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
        // What these tell of every frame and statement is most of it, and all of it is looked through each time.
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
    bytes: Arc<Mutex<Vec<u8>>>,
    news: Arc<Notify>,
}

impl Logs {
    /// The lines that contain `marker`.
    pub fn with(&self, marker: &str) -> Vec<String> {
        let bytes = self.bytes.lock().unwrap();
        String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(marker)).map(ToOwned::to_owned).collect()
    }

    /// Waits until `found` says so of them.
    pub async fn until(&self, what: &str, found: impl Fn(&Self) -> bool) {
        soon(what, noticed(&self.news, || found(self))).await;
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.news.notify_waiters();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
