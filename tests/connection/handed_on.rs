//! Responses as a proxy hands them on, that has them of another server: of another version, or with a head of theirs.

use std::{io, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Response, Version, header},
    routing::get,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tower_epilogue::{ConnectionStatus, Sent, TimeLimitLayer};

use crate::support::{Server, ends, soon};

/// Of unknown length; after the first piece comes an error, or nothing any more.
fn old(error: Option<io::Error>) -> Response<Body> {
    let first = stream::iter([Ok(Bytes::from_static(b"the first half"))]);
    let body = match error {
        Some(error) => Body::from_stream(first.chain(stream::iter([Err(error)]))),
        None => Body::from_stream(first.chain(stream::pending())),
    };
    let mut response = Response::new(body);
    *response.version_mut() = Version::HTTP_10;
    response
}

/// hyper sends them as they say, without chunks: the end of the connection is that of the response (RFC 9112, section 6.3).
#[tokio::test]
async fn one_of_http_1_0_that_is_broken_off_ends_with_a_reset_whatever_was_asked_for() {
    let app = Router::new()
        .route("/fails", get(async || old(Some(io::Error::other("the old server is gone")))))
        .route("/waits", get(async || old(None)).layer(TimeLimitLayer::new(Duration::from_millis(100))));
    let server = Server::start(app).await;
    for path in ["/fails", "/waits"] {
        let mut client = server.connect().await;
        client.send_get(path).await;
        let reply = client.reply().await;
        assert!(reply.error.is_some(), "{path} looks whole: {reply:?}");
    }
}

/// axum declares its length, and hyper sends no head with both (RFC 9112, section 6.2): it ends the connection in order.
#[tokio::test]
async fn one_whose_head_cannot_be_sent_was_not_flushed() {
    let (layer, mut ends) = ends();
    let app = Router::new().route("/", get(async || ([(header::TRANSFER_ENCODING, "chunked")], "hello"))).layer(layer);
    let server = Server::start(app).await;
    for version in ["1.0", "1.1"] {
        let mut client = server.connect().await;
        client.send(&format!("GET / HTTP/{version}\r\nhost: test\r\n\r\n")).await;
        let reply = client.reply().await;
        let sent = if reply.status == 0 { Sent::BrokenOff } else { Sent::Flushed };
        let end = soon("its end", ends.recv()).await.unwrap();
        assert_eq!((reply.status, end), (if version == "1.0" { 200 } else { 0 }, (ConnectionStatus::NORMAL, sent)));
    }
}
