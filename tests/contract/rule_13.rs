//! Nothing is silent: what is cut is logged once, with its route.

use std::{future::pending, time::Duration};

use axum::{Router, body::Body, routing::get};
use tower_epilogue::{TimeLimitLayer, test_util::TestServer};

use crate::support::logs;

#[tokio::test(start_paused = true)]
async fn a_limit_that_passed_is_logged_once_with_its_route() {
    let logs = logs();
    let app = Router::new()
        .route("/limit-in-the-handler", get(pending::<()>))
        .route(
            "/limit-in-the-body",
            get(async || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>())),
        )
        .layer(TimeLimitLayer::new(Duration::from_secs(1)));
    let server = TestServer::in_memory(app);
    for (route, phase) in [("/limit-in-the-handler", "handling"), ("/limit-in-the-body", "sending")] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        client.response().await;
        server.settled().await;
        let lines = logs.with(route);
        let passed: Vec<_> = lines.iter().filter(|line| line.contains("the time limit passed")).collect();
        assert_eq!(passed.len(), 1, "{lines:#?}");
        assert!(passed[0].contains("WARN") && passed[0].contains(phase), "{passed:?}");
    }
}
