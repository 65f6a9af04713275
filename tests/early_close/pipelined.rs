//! A close that a client may retry after: no request behind the one that was answered is half-served.

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    routing::{get, post},
};
use futures_util::stream;
use tower_epilogue::EarlyCloseLayer;

use crate::support::{Notes, Server};

fn app(notes: &Notes, layer: EarlyCloseLayer) -> Router {
    let (posted, known) = (notes.clone(), notes.clone());
    let stream = async || Body::from_stream(stream::iter(["str", "eam"].map(Ok::<_, std::io::Error>)));
    Router::new()
        .route("/known", get(async move || known.add("known")))
        .route("/stream", get(stream))
        .route(
            "/order",
            post(async move |body: String| {
                posted.add(format!("order of {} bytes", body.len()));
                StatusCode::CREATED
            }),
        )
        .layer(layer)
}

/// What comes behind the first request: whole, half a body, half a head, one byte.
fn behind() -> [String; 4] {
    let order = format!("POST /order HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\n{}", "x".repeat(1000));
    [order.clone(), order[..500].to_owned(), order[..20].to_owned(), order[..1].to_owned()]
}

#[tokio::test]
async fn no_pipelined_request_is_served_behind_an_early_close() {
    for layer in [EarlyCloseLayer::new(), EarlyCloseLayer::new().buffer_limit(0)] {
        for path in ["/known", "/stream"] {
            for behind in behind() {
                let notes = Notes::default();
                let server = Server::start(app(&notes, layer.clone())).await;
                let mut client = server.connect().await;
                client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n{behind}")).await;
                let reply = client.reply().await;
                assert!(reply.error.is_none(), "in order, and no reset: {:?}", reply.error);
                assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{}", behind.len());
                let whole =
                    if reply.header("content-length").is_some() { reply.body } else { reply.dechunked().unwrap() };
                assert_eq!(whole, if path == "/stream" { &b"stream"[..] } else { b"" }, "one response, and no more");
                drop(client);
                let journal = server.journal.clone();
                assert!(server.stop().await.is_clean());
                assert_eq!(journal.requests().len(), 1, "no handler began");
                assert!(!notes.all().iter().any(|note| note.starts_with("order")), "{:?}", notes.all());
            }
        }
    }
}

#[tokio::test]
async fn kept_alive_the_pipelined_request_is_served_in_its_turn() {
    let notes = Notes::default();
    let server = Server::start(app(&notes, EarlyCloseLayer::new().keep_alive())).await;
    let mut client = server.connect().await;
    client.send(&format!("GET /known HTTP/1.1\r\nhost: test\r\n\r\n{}", behind()[0])).await;
    let replies = client.read_until("201 Created").await;
    assert!(replies.starts_with("HTTP/1.1 200 OK"), "{replies}");
    notes.seen("order of 1000 bytes").await;
    assert_eq!(notes.all(), ["known", "order of 1000 bytes"]);
}
