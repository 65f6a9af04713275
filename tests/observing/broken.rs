//! Gauges come back whatever breaks: a runtime that ends before its requests, and a recorder that panics. And a hook that is
//! dropped is counted, as whatever is cut.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
    routing::get,
};
use futures_util::stream;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::io::AsyncReadExt as _;
use tower::ServiceExt as _;
use tower_epilogue::{Bound, Continuation, EarlyCloseLayer, Epilogue, EpilogueBuilder, Event, EventKind, Lifecycle};
use tracing_subscriber::layer::SubscriberExt as _;

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

async fn page(epilogue: &Epilogue) -> serde_json::Value {
    let request = Request::get("/json").body(Body::empty()).unwrap();
    let page = epilogue.status_page::<()>().oneshot(request).await.unwrap();
    serde_json::from_slice(&to_bytes(page.into_body(), usize::MAX).await.unwrap()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[test]
fn what_goes_down_with_its_runtime_leaves_the_gauges() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let first = runtime();
    let epilogue: Epilogue = first.block_on(async {
        let server = MemoryServer::with(app(), |builder| builder.metrics().status_page().class("mail", Bound::new(1)));
        for _ in 0..2 {
            assert_eq!(server.get("/mail").await.status, 200);
        }
        let mut client = server.connect();
        client.send("GET /pending HTTP/1.1\r\nhost: test\r\n\r\n").await;
        server.journal.seen("continuation_waits").await;
        server
            .journal
            .until("all are handled", |events| {
                events.iter().filter(|event| event.kind().name() == "handler_start").count() == 3
            })
            .await;
        server.epilogue.events_delivered().await;
        let up = [("active_requests", 3.0), ("running_continuations", 1.0), ("waiting_continuations", 1.0)];
        assert_eq!(changes(&snapshotter), named(&up));
        server.epilogue.clone()
    });
    drop(first);
    assert_eq!(epilogue.lost(), 2);
    // Told in the next runtime that there is.
    let page = runtime().block_on(page(&epilogue));
    let requests = &page["requests"];
    assert_eq!((&requests["in_flight"], &requests["ended"]), (&0.into(), &1.into()), "{page:#}");
    assert_eq!((&page["now"]["running"], &page["live"]), (&0.into(), &serde_json::json!([])), "{page:#}");
    let down = [
        ("active_requests", -3.0),
        // The handler's: of the others, whose work was lost, no end is told.
        ("requests_total", 1.0),
        ("running_continuations", -1.0),
        ("waiting_continuations", -1.0),
    ];
    assert_eq!(changes(&snapshotter), named(&down));
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
    let server = MemoryServer::with(app(), EpilogueBuilder::metrics);
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

/// Panics at whatever it is told.
struct Deaf;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Deaf {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        panic!("as this test wants it: {event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_whose_panic_makes_a_subscriber_panic_is_told_the_rest_too() {
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(Deaf));
    assert_eq!(told(true, Some("tower_epilogue_flush_seconds")).await, all_told());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_is_told_of_counted_and_shown() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let failing = || Body::from_stream(stream::iter([Ok("half"), Err(std::io::Error::other("broke off"))]));
    // One breaks off, and one is held back until it has failed, and is a 500.
    let held = get(async move || failing()).layer(EarlyCloseLayer::new());
    let app = Router::new().route("/streams", get(async move || failing())).route("/held", held);
    let told = Arc::<Mutex<Vec<_>>>::default();
    let theirs = told.clone();
    let tells = move |event: &Event| theirs.lock().unwrap().push(event.kind().name());
    let server = MemoryServer::with(app, |builder| builder.metrics().status_page().on_event(tells));
    for path in ["/streams", "/held"] {
        let mut client = server.connect();
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
        let _ = client.stream.read_to_end(&mut Vec::new()).await;
    }
    server.ended(2).await;
    server.epilogue.events_delivered().await;
    let count = |name| told.lock().unwrap().iter().filter(|told| **told == name).count();
    assert_eq!((count("body_failed"), count("body_dropped")), (2, 2), "{told:?}");
    let bodies_failed = changes(&snapshotter).into_iter().filter(|(name, _)| name == "bodies_failed_total");
    assert_eq!(bodies_failed.map(|(_, count)| count).collect::<Vec<_>>(), [1.0, 1.0]);
    let page = page(&server.epilogue).await;
    assert_eq!((&page["bodies_failed"], &page["continuations"]["failed"]), (&2.into(), &0.into()), "{page:#}");
    for (row, route) in ["GET /held", "GET /streams"].into_iter().enumerate() {
        let row = &page["failures"][row];
        assert_eq!((&row["route"], &row["faults"][0]), (&route.into(), &"failed".into()), "{page:#}");
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_runs_out_of_its_time_is_told_of_counted_and_shown() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| std::future::pending::<()>().await).unwrap();
        lifecycle.on_shutdown(async |_| {}).unwrap();
    };
    let app = Router::new().route("/hooks", get(handler));
    let told = Arc::<Mutex<Vec<_>>>::default();
    let theirs = told.clone();
    let tells = move |event: &Event| theirs.lock().unwrap().push(event.kind().clone());
    let server = MemoryServer::with(app, |builder| builder.metrics().status_page().on_event(tells));
    server.get("/hooks").await;
    server.ended(1).await;
    server.epilogue.events_delivered().await;
    let told = told.lock().unwrap().clone();
    let of_hooks = [
        EventKind::HookStart { hook: 0 },
        EventKind::HookDropped { hook: 0 },
        EventKind::HookEnd { hook: 0 },
        EventKind::HookStart { hook: 1 },
        EventKind::HookEnd { hook: 1 },
        EventKind::Ended,
    ];
    assert!(told.ends_with(&of_hooks), "{told:?}");
    assert_eq!(changes(&snapshotter), named(&[("hooks_dropped_total", 1.0), ("requests_total", 1.0)]));
    let page = page(&server.epilogue).await;
    assert_eq!((&page["hooks_dropped"], &page["continuations"]["dropped"]), (&1.into(), &0.into()), "{page:#}");
    assert_eq!(
        (&page["failures"][0]["route"], &page["failures"][0]["faults"][0]),
        (&"GET /hooks".into(), &"dropped".into())
    );
    server.stop().await;
}
