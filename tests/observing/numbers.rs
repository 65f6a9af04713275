//! What the recorder of metrics is told.

use std::time::Duration;

use axum::{Router, routing::any};
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower_epilogue::{Bound, Continuation, ReserveLayer, TimeLimitLayer, WhenFull};

use crate::support::MemoryServer;

/// Name with labels, and value: of histograms all of them. A snapshot has what is new since the last.
fn numbers(snapshotter: &Snapshotter, before: &[(String, Vec<f64>)]) -> Vec<(String, Vec<f64>)> {
    let mut all: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let values = match value {
                #[expect(clippy::cast_precision_loss, reason = "a test counts to ten")]
                DebugValue::Counter(count) => vec![count as f64],
                DebugValue::Gauge(value) => vec![value.into_inner()],
                DebugValue::Histogram(values) => values.into_iter().map(f64::from).collect(),
            };
            let name = key.name().strip_prefix("tower_epilogue_").unwrap().to_owned();
            let name = format!("{name}{{{}}}", labels.join(","));
            let mut all =
                before.iter().find(|(other, _)| *other == name).map_or_else(Vec::new, |before| before.1.clone());
            match (name.contains("_seconds{"), all.as_mut_slice()) {
                (false, [sum]) => *sum += values[0],
                _ => all.extend(values),
            }
            (name, all)
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

#[track_caller]
fn value(numbers: &[(String, Vec<f64>)], name: &str) -> f64 {
    let values = &numbers.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}: {numbers:#?}")).1;
    assert_eq!(values.len(), 1, "{name}: {numbers:#?}");
    values[0]
}

fn app() -> Router {
    let work = async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mail = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        (Continuation::new(mail).class("mail"), "accepted")
    };
    let failing = async || (Continuation::try_new(async { Err::<(), _>("no") }), "accepted");
    let panicking = async || (Continuation::new(async { panic!("boom") }), "accepted");
    Router::new()
        .route("/mail/{id}", any(work).layer(ReserveLayer::class("mail")))
        .route("/failing", any(failing))
        .route("/panicking", any(panicking))
        .route("/pending", any(std::future::pending::<()>))
        .layer(TimeLimitLayer::new(Duration::from_secs(60)))
}

#[tokio::test(start_paused = true)]
async fn everything_is_counted_and_timed_under_labels_that_no_client_can_multiply() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let bound = Bound::new(1).max_waiting(1).when_full(WhenFull::Refuse);
    let server = MemoryServer::with(app(), |builder| builder.metrics().class("mail", bound));
    let (first, second, refused) =
        tokio::join!(server.get("/mail/1?q=1"), server.get("/mail/2"), server.get("/mail/3"));
    let mut statuses = [first.status, second.status, refused.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503]);
    server.journal.seen("continuation_waits").await;
    server.epilogue.events_delivered().await;
    let now = numbers(&snapshotter, &[]);
    let mail = "{method=GET,route=/mail/{id},class=mail}";
    assert_eq!(value(&now, &format!("running_continuations{mail}")), 1.0, "{now:#?}");
    assert_eq!(value(&now, &format!("waiting_continuations{mail}")), 1.0, "{now:#?}");
    assert_eq!(value(&now, &format!("refused_total{mail}")), 1.0, "{now:#?}");
    assert_eq!(value(&now, "active_requests{}"), 2.0, "{now:#?}");
    let flushed = now.iter().find(|(name, _)| name == "arrival_to_flush_seconds{method=GET,route=/mail/{id}}").unwrap();
    assert_eq!(flushed.1.iter().filter(|seconds| (2.0..2.1).contains(*seconds)).count(), 2, "{now:#?}");
    let flush = now.iter().find(|(name, _)| name == "flush_seconds{method=GET,route=/mail/{id}}").unwrap();
    assert!(flush.1.len() == 3 && flush.1.iter().all(|seconds| *seconds < 0.1), "{now:#?}");

    // The clock is paused: by then the first one has ended, and the second runs.
    tokio::time::sleep(Duration::from_secs(11)).await;
    server.epilogue.events_delivered().await;
    let now = numbers(&snapshotter, &now);
    assert_eq!(value(&now, &format!("running_continuations{mail}")), 1.0, "{now:#?}");
    assert_eq!(value(&now, &format!("waiting_continuations{mail}")), 0.0, "{now:#?}");

    for path in ["/failing", "/panicking", "/pending", "/no/such/path", "/no/such/other"] {
        server.get(path).await;
    }
    // The second is no durable job, which has that for a method.
    for method in ["BREW", "JOB"] {
        let mut client = server.connect();
        client.send(&format!("{method} /failing HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let mut client = server.connect();
    client.send("GET /pending HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server
        .journal
        .until("all have begun", |events| {
            events.iter().filter(|event| event.kind().name() == "handler_start").count() == 11
        })
        .await;
    drop(client);
    server.ended(11).await;
    server.epilogue.events_delivered().await;
    let end = numbers(&snapshotter, &now);
    assert_eq!(value(&end, &format!("running_continuations{mail}")), 0.0);
    assert_eq!(value(&end, &format!("waiting_continuations{mail}")), 0.0);
    assert_eq!(value(&end, "active_requests{}"), 0.0);
    let times = end.iter().find(|(name, _)| *name == format!("continuation_seconds{mail}")).unwrap();
    assert_eq!(times.1.iter().filter(|seconds| (10.0..10.1).contains(*seconds)).count(), 2, "{end:#?}");
    for (name, count) in [
        ("requests_total{method=GET,route=/mail/{id}}", 3.0),
        ("requests_total{method=GET,route=unmatched}", 2.0),
        ("continuations_total{method=GET,route=/mail/{id},class=mail,outcome=ended}", 2.0),
        ("continuations_total{method=GET,route=/failing,class=none,outcome=failed}", 1.0),
        ("continuations_total{method=_OTHER,route=/failing,class=none,outcome=failed}", 2.0),
        ("continuations_total{method=GET,route=/panicking,class=none,outcome=panicked}", 1.0),
        ("panicked_total{method=GET,route=/panicking,what=continuation}", 1.0),
        ("timed_out_total{method=GET,route=/pending}", 1.0),
        ("aborted_total{method=GET,route=/pending}", 1.0),
    ] {
        assert_eq!(value(&end, name), count, "{name}: {end:#?}");
    }
    assert!(
        !end.iter().any(|(name, _)| name.contains("such") || name.contains("BREW") || name.contains('?')),
        "{end:#?}"
    );
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn prometheus_renders_it() {
    let recorder = PrometheusBuilder::new().set_buckets(&[0.1, 1.0, 30.0]).unwrap().build_recorder();
    let handle = recorder.handle();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    // Given twice, it counts once.
    let server = MemoryServer::with(app(), |builder| builder.metrics().metrics());
    server.get("/mail/1").await;
    server.ended(1).await;
    server.epilogue.events_delivered().await;
    let text = handle.render();
    for line in [
        "# TYPE tower_epilogue_requests_total counter",
        "# HELP tower_epilogue_requests_total Requests and attempts at durable jobs that ended.",
        "tower_epilogue_requests_total{method=\"GET\",route=\"/mail/{id}\"} 1",
        "# TYPE tower_epilogue_running_continuations gauge",
        "tower_epilogue_running_continuations{method=\"GET\",route=\"/mail/{id}\",class=\"mail\"} 0",
        "# TYPE tower_epilogue_continuation_seconds histogram",
        "tower_epilogue_continuation_seconds_bucket{method=\"GET\",route=\"/mail/{id}\",class=\"mail\",le=\"1\"} 0",
        "tower_epilogue_continuation_seconds_bucket{method=\"GET\",route=\"/mail/{id}\",class=\"mail\",le=\"30\"} 1",
        "tower_epilogue_continuation_seconds_count{method=\"GET\",route=\"/mail/{id}\",class=\"mail\"} 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    server.stop().await;
}
