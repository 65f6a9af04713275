//! Early close: what a client reads as it comes passes through.

use axum::{Router, body::Body, http::header::CONTENT_TYPE, routing::get};
use futures_util::{StreamExt as _, stream};
use tower_epilogue::{EarlyCloseLayer, test_util::TestServer};

#[tokio::test]
async fn streams_of_events_are_not_held_back_to_be_measured() {
    for kind in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/grpc+proto"] {
        let handler = async move || {
            let event = stream::iter([Ok::<_, std::io::Error>("data: 1\n\n")]);
            ([(CONTENT_TYPE, kind)], Body::from_stream(event.chain(stream::pending())))
        };
        let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new());
        let server = TestServer::on_socket(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let head = client.read_until("data: 1\n\n").await;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("connection: close"), "{head}");
    }
}
