//! What a drain says of what it has cut.

use std::time::Duration;

use axum::{Router, routing::get};
use tower_epilogue::TimeLimitLayer;

use crate::support::{MemoryServer, logs};

/// Where very many are cut, its text is still one that a log takes: whoever collects logs cuts records of some kilobytes off,
/// or drops them.
#[tokio::test(start_paused = true)]
async fn of_a_crowd_that_is_cut_the_text_names_the_oldest_and_each_has_a_record_of_its_own() {
    const ALL: usize = 250;
    let logs = logs();
    let app =
        Router::new().route("/crowd-that-is-cut/{id}", get(std::future::pending::<()>)).layer(TimeLimitLayer::off());
    let server = MemoryServer::with(app, |builder| builder.drain_deadline(Duration::from_secs(1)));
    let mut clients = Vec::new();
    for id in 0..ALL {
        let mut client = server.connect();
        client.send(&format!("GET /crowd-that-is-cut/{id} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        clients.push(client);
    }
    server
        .journal
        .until("all are handled", |events| {
            events.iter().filter(|event| event.kind().name() == "handler_start").count() == ALL
        })
        .await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), ALL);

    let text = report.to_string();
    assert!(text.starts_with("drained with 250 cut: GET /crowd-that-is-cut/{id} (handling, "), "{text}");
    assert!(text.ends_with("s old); and 150 more"), "{text}");
    assert_eq!(text.matches("crowd-that-is-cut").count(), ALL - 150, "{text}");

    let lines = logs.with("crowd-that-is-cut");
    let of_all: Vec<_> = lines.iter().filter(|line| line.contains("the drain's deadline has passed")).collect();
    assert!(of_all.len() == 1 && of_all[0].contains("ERROR "), "{of_all:#?}");
    assert!(of_all[0].len() < 10_000, "{}", of_all[0].len());
    assert_eq!(lines.iter().filter(|line| line.contains("a drain cuts what is left")).count(), ALL);
    drop(clients);
}
