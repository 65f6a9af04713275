//! A middleware that calls the service inside of it once more: every attempt is treated as the first was.

use axum::{Router, routing::get};
use tower_epilogue::EarlyCloseLayer;

use crate::{common::streamed, services::Treats, support::Server};

#[tokio::test]
async fn the_response_of_the_last_attempt_is_closed_early_and_measured() {
    let app = Router::new().route("/", get(async || streamed(&["hel", "lo"])));
    let (closes, keeps) = (EarlyCloseLayer::new(), EarlyCloseLayer::new().keep_alive());
    for app in [
        app.clone().layer((Treats::CallsTwice, closes.clone())),
        // Of two the inner one decides, in every attempt.
        app.clone().layer((Treats::CallsTwice, keeps.clone(), closes.clone())),
        app.clone().layer((keeps, Treats::CallsTwice, closes)),
    ] {
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        // A client that does not ask for the close.
        let reply = client.reply().await;
        assert_eq!((reply.header("connection"), reply.header("content-length")), (Some("close"), Some("5")));
        assert_eq!(reply.text(), "hello");
    }
}
