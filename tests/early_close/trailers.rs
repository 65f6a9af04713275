//! Trailers survive wherever they could have been sent.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tower_epilogue::EarlyCloseLayer;

use crate::support::{MemoryServer, Server, h2client::Http2};

fn with_trailers() -> impl IntoResponse {
    let trailers: HeaderMap = [(header::ETAG, HeaderValue::from_static("\"end\""))].into_iter().collect();
    let data = |text: &'static str| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(text.as_bytes())));
    let frames = vec![data("a"), data("b"), Ok(Frame::trailers(trailers))];
    ([(header::TRAILER, "etag")], Body::new(StreamBody::new(stream::iter(frames))))
}

fn layers() -> [(EarlyCloseLayer, &'static str); 3] {
    [
        (EarlyCloseLayer::new(), "measured"),
        (EarlyCloseLayer::new().buffer_limit(1), "streamed"),
        (
            EarlyCloseLayer::new().map_buffer(async |parts, bytes: Bytes| Ok::<_, std::io::Error>((parts, bytes))),
            "mapped",
        ),
    ]
}

async fn server(layer: EarlyCloseLayer) -> Server {
    Server::start(Router::new().route("/", get(async || with_trailers())).layer(layer)).await
}

#[tokio::test]
async fn to_a_client_that_takes_them_on_http_1_1() {
    for (layer, what) in layers() {
        let server = server(layer).await;
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\nte: gzip;q=0.5, Trailers\r\n\r\n").await;
        let reply = client.reply().await;
        // hyper compares `TE` as a whole: what it then does with the trailers is its own.
        assert_eq!(
            (reply.header("content-length"), reply.header("transfer-encoding")),
            (None, Some("chunked")),
            "{what}"
        );

        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\nte: trailers\r\n\r\n").await;
        let reply = client.reply().await;
        assert!(reply.text().ends_with("0\r\netag: \"end\"\r\n\r\n"), "{what}: {reply:?}");
        assert_eq!(reply.header("connection"), Some("close"), "{what}");
    }
}

#[tokio::test]
async fn beside_a_length_on_http_2() {
    for (layer, what) in layers() {
        let server = server(layer).await;
        let reply = Http2::connect(server.address).await.get("/").await.unwrap();
        assert_eq!(reply.trailers.unwrap()[header::ETAG], "\"end\"", "{what}");
        let length = (what != "streamed").then_some("2");
        assert_eq!(reply.headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap()), length, "{what}");
        assert_eq!(reply.body, b"ab");
    }
}

#[tokio::test]
async fn where_they_cannot_be_sent_there_is_a_length_instead() {
    for version in ["1.0", "1.1"] {
        for (layer, what) in layers().into_iter().filter(|(_, what)| *what != "streamed") {
            let server = server(layer).await;
            let mut client = server.connect().await;
            // On HTTP/1.0 there are no chunks, whatever its client says.
            let te = if version == "1.0" { "te: trailers\r\n" } else { "" };
            client.send(&format!("GET / HTTP/{version}\r\nhost: test\r\n{te}\r\n")).await;
            let reply = client.reply().await;
            assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("2"), "ab"), "{version} {what}");
        }
    }
}

#[tokio::test]
async fn where_a_handler_gave_them_up_for_a_length_that_is_the_right_one() {
    let handler = async || ([(header::CONTENT_LENGTH, "99")], with_trailers());
    let server = Server::start(Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new())).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nte: trailers\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("2"), "ab"));
}

/// hyper sends those that a `Trailer` header names, and no others.
#[tokio::test]
async fn those_that_no_trailer_header_names_have_a_length_instead_on_http_1_1() {
    for named in [None, Some("x-other, Etag")] {
        for (layer, what) in layers().into_iter().filter(|(_, what)| *what != "streamed") {
            let handler = async move || {
                let mut response = with_trailers().into_response();
                response.headers_mut().remove(header::TRAILER);
                response.headers_mut().extend(named.map(|named| (header::TRAILER, HeaderValue::from_static(named))));
                response
            };
            let server = Server::start(Router::new().route("/", get(handler)).layer(layer)).await;
            let mut client = server.connect().await;
            client.send("GET / HTTP/1.1\r\nhost: test\r\nte: trailers\r\n\r\n").await;
            let reply = client.reply().await;
            let (length, body) = match named {
                None => (Some("2"), "ab"),
                Some(_) => (None, "2\r\nab\r\n0\r\netag: \"end\"\r\n\r\n"),
            };
            assert_eq!((reply.header("content-length"), reply.text().as_str()), (length, body), "{what}, {named:?}");
        }
    }
}

/// As a channel does whose sender lives on.
#[tokio::test(start_paused = true)]
async fn those_that_came_before_the_patience_was_over_follow_a_body_that_ends_later() {
    let handler = async || {
        let frames = stream::iter([
            Frame::data(Bytes::from_static(b"ab")),
            Frame::trailers([(header::ETAG, HeaderValue::from_static("\"end\""))].into_iter().collect()),
        ]);
        let later = stream::once(tokio::time::sleep(std::time::Duration::from_secs(5))).filter_map(async |()| None);
        let body = StreamBody::new(frames.chain(later).map(Ok::<_, std::io::Error>));
        ([(header::TRAILER, "etag")], Body::new(body))
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new()));
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\nte: trailers\r\n\r\n").await;
    let reply = client.reply().await;
    assert!(reply.text().ends_with("0\r\netag: \"end\"\r\n\r\n"), "{reply:?}");
}
