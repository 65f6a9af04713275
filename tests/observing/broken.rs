//! Gauges come back whatever breaks: a runtime that ends before its requests, and a recorder that panics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
    routing::get,
};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::ServiceExt as _;
use tower_epilogue::{Bound, Continuation, Epilogue};

use crate::support::MemoryServer;

/// How much gauges and counters have changed since the last look, those that did not left out.
fn changes(snapshotter: &Snapshotter) -> Vec<(String, f64)> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    let all = all.map(|(key, _, _, value)| {
        let value = match value {
            DebugValue::Gauge(value) => value.into_inner(),
            #[expect(clippy::cast_precision_loss, reason = "a test counts to ten")]
            DebugValue::Counter(count) => count as f64,
            DebugValue::Histogram(_) => 0.0,
        };
        (key.key().name().strip_prefix("tower_epilogue_").unwrap().to_owned(), value)
    });
    let mut all: Vec<_> = all.filter(|(_, value)| *value != 0.0).collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn named(changes: &[(&str, f64)]) -> Vec<(String, f64)> {
    changes.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn app() -> Router {
    let mail = async || (Continuation::new(std::future::pending()).class("mail"), "accepted");
    let soon = async || (Continuation::new(tokio::time::sleep(Duration::from_secs(1))), "accepted");
    Router::new().route("/mail", get(mail)).route("/soon", get(soon)).route("/pending", get(std::future::pending::<()>))
}

/// Panics where it is asked for.
struct Fragile {
    inner: DebuggingRecorder,
    describes: bool,
    /// The histogram that it panics at.
    histogram: Option<&'static str>,
}

impl Recorder for Fragile {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        assert!(self.describes, "as this test wants it");
        self.inner.describe_counter(key, unit, text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.inner.describe_gauge(key, unit, text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.inner.describe_histogram(key, unit, text);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.inner.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.inner.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        assert!(self.histogram != Some(key.name()), "as this test wants it");
        self.inner.register_histogram(key, metadata)
    }
}

async fn told(describes: bool, histogram: Option<&'static str>) -> Vec<(String, f64)> {
    let inner = DebuggingRecorder::new();
    let snapshotter = inner.snapshotter();
    let recorder = Arc::new(Fragile { inner, describes, histogram });
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let server = MemoryServer::with(app(), |builder| builder.metrics());
    for _ in 0..3 {
        server.get("/soon").await;
    }
    server.ended(3).await;
    server.stop().await;
    changes(&snapshotter)
}

fn all_told() -> Vec<(String, f64)> {
    named(&[("continuations_total", 3.0), ("requests_total", 3.0)])
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_while_it_is_described_is_told_all_the_rest() {
    assert_eq!(told(false, None).await, all_told());
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_at_one_figure_is_told_the_others() {
    for histogram in [
        "tower_epilogue_arrival_to_flush_seconds",
        "tower_epilogue_flush_seconds",
        "tower_epilogue_continuation_seconds",
    ] {
        let told = told(true, Some(histogram)).await;
        assert_eq!(told, all_told(), "{histogram}");
    }
}
