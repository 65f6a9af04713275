//! A response whose body is that of another request, made in this process.

use std::{future::pending, time::Duration};

use axum::{Router, body::Body, http::Request, routing::get};
use futures_util::{StreamExt as _, stream};
use tower::ServiceExt as _;
use tower_epilogue::{EarlyCloseLayer, TimeLimitLayer};

use crate::support::{MemoryServer, logs};

const SECOND: Duration = Duration::from_secs(1);

/// By its own limit: to the request around it that is an error like any other.
#[tokio::test(start_paused = true)]
async fn one_that_is_broken_off_has_failed() {
    let stream =
        async || Body::from_stream(stream::iter([Ok::<_, std::io::Error>("a")]).chain(stream::once(pending())));
    let inner = Router::new().route("/", get(stream)).layer(TimeLimitLayer::new(SECOND));
    let handler = async || inner.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let app = Router::new().route("/inner", get(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
    let logs = logs();
    let server = MemoryServer::start(app);
    let mut client = server.connect();
    client.send("GET /inner HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 500);
    let said = |line: &&String| line.contains("failed before its head was sent");
    assert_eq!(logs.with("/inner").iter().filter(said).count(), 1, "{:?}", logs.with("/inner"));
}
