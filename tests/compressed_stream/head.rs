//! What is compressed, and what its head says.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    response::Response,
    routing::{any, get},
};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::ServiceExt;
use tower_epilogue::CompressedStreamLayer;
use tower_http::services::ServeFile;

use super::decode::{Decoded, request};
use crate::support::streamed;

/// What a handler answers.
#[derive(Clone, Default)]
struct Answer {
    status: StatusCode,
    headers: &'static [(&'static str, &'static str)],
    known_length: bool,
}

fn asked_for(answer: &Answer) -> Router {
    let answer = answer.clone();
    let handler = async move || {
        let body = if answer.known_length { Body::from("some text") } else { streamed(&["some", " text"]) };
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        for (name, value) in answer.headers {
            response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    };
    Router::new().route("/", get(handler))
}

async fn answered(answer: Answer, method: Method, accepts: &str) -> Response {
    let app = asked_for(&answer).layer(CompressedStreamLayer::new());
    let mut request = request("/", accepts);
    *request.method_mut() = method;
    app.oneshot(request).await.unwrap()
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_stream_is_encoded_as_its_client_accepts() {
    for (accepts, encoding) in [
        ("gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("deflate", ""),
        ("", ""),
    ] {
        let response = answered(Answer::default(), Method::GET, accepts).await;
        assert_eq!(all(response.headers(), "vary"), ["accept-encoding"], "{accepts}");
        assert!(!response.headers().contains_key("content-length"));
        let decoded = Decoded::of(response);
        assert_eq!(decoded.encoding(), encoding, "{accepts}");
        assert_eq!(decoded.rest().await.unwrap(), b"some text");
    }
}

#[tokio::test]
async fn an_encoding_that_is_not_offered_is_not_used() {
    let app = |layer: CompressedStreamLayer| {
        Router::new().route("/", get(async || streamed(&["some", " text"]))).layer(layer)
    };
    let all = CompressedStreamLayer::new;
    for (layer, encoding) in
        [(all().zstd(false), "br"), (all().zstd(false).br(false), "gzip"), (all().gzip(false), "zstd")]
    {
        let response = app(layer).oneshot(request("/", "gzip, br, zstd")).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], encoding);
    }
}

#[tokio::test]
async fn what_must_not_be_compressed_is_left_alone() {
    let known = Answer { known_length: true, ..Answer::default() };
    let head = |headers| Answer { headers, ..Answer::default() };
    let status = |status| Answer { status, ..Answer::default() };
    for (what, answer) in [
        ("known length", known),
        ("declared length", head(&[("content-length", "9")])),
        ("encoded already", head(&[("content-encoding", "identity")])),
        ("a part", head(&[("content-range", "bytes 0-8/100")])),
        ("206", status(StatusCode::PARTIAL_CONTENT)),
        ("101", status(StatusCode::SWITCHING_PROTOCOLS)),
        ("204", status(StatusCode::NO_CONTENT)),
        ("304", status(StatusCode::NOT_MODIFIED)),
        ("no-transform", head(&[("cache-control", "private, No-Transform")])),
        ("no-transform in a line of its own", head(&[("cache-control", "private"), ("cache-control", "no-transform")])),
        ("a digest", head(&[("content-digest", "sha-256=:AAAA:")])),
        ("an old digest", head(&[("content-md5", "AAAA")])),
        ("a digest in the trailers", head(&[("trailer", "x-checksum , Content-Digest")])),
        ("a picture", head(&[("content-type", "image/png")])),
        ("a film", head(&[("content-type", "Video/MP4")])),
        ("gRPC", head(&[("content-type", "application/grpc+proto")])),
        ("an archive", head(&[("content-type", "application/zip")])),
        ("another", head(&[("content-type", "application/zstd")])),
        ("a font", head(&[("content-type", "font/woff2")])),
    ] {
        let encoded = answer.headers.iter().any(|(name, _)| *name == "content-encoding");
        let response = answered(answer, Method::GET, "gzip").await;
        assert_eq!(response.headers().contains_key("content-encoding"), encoded, "{what}");
        assert!(!response.headers().contains_key("vary"), "{what}");
        let read = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(read, "some text", "{what}");
    }
    for also in ["text/event-stream", "image/svg+xml", "application/json"] {
        let headers: &'static [_] = Box::leak(Box::new([("content-type", also)]));
        let response = answered(head(headers), Method::GET, "gzip").await;
        assert!(response.headers().contains_key("content-encoding"), "{also}");
    }
}

/// Of a successful CONNECT there is none (RFC 9110, section 9.3.6), and of one that was taken off nothing more comes.
#[tokio::test]
async fn where_no_body_follows_nothing_is_said_of_its_encoding() {
    struct TakenOff;

    impl http_body::Body for TakenOff {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
            Poll::Ready(None)
        }

        fn is_end_stream(&self) -> bool {
            true
        }
    }

    let app = Router::new()
        .route("/", any(async || streamed(&["some", " text"])))
        .route("/taken-off", any(async || Body::new(TakenOff)))
        .layer(CompressedStreamLayer::new());
    for (method, path, encoded) in
        [(Method::POST, "/", true), (Method::CONNECT, "/", false), (Method::GET, "/taken-off", false)]
    {
        let mut request = request(path, "gzip");
        *request.method_mut() = method;
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers().contains_key("content-encoding"), encoded, "{path}");
    }
}

#[tokio::test]
async fn the_head_is_that_of_the_compressed_representation() {
    let headers = &[("etag", "\"v1\""), ("accept-ranges", "bytes"), ("vary", "Origin"), ("cache-control", "public")];
    let answer = Answer { headers, ..Answer::default() };
    let response = answered(answer.clone(), Method::GET, "gzip").await;
    let headers = response.headers();
    assert_eq!(headers["etag"], "W/\"v1\"");
    assert_eq!(all(headers, "vary"), ["Origin", "accept-encoding"]);
    assert_eq!(headers["cache-control"], "public");
    assert!(!headers.contains_key("accept-ranges"));
    assert_eq!(response.body().size_hint().exact(), None);

    let plain = answered(answer, Method::GET, "").await;
    assert_eq!(plain.headers()["etag"], "\"v1\"");
    assert_eq!(all(plain.headers(), "vary"), ["Origin", "accept-encoding"]);

    for (headers, vary) in [
        (&[("vary", "Accept-Encoding, Origin"), ("etag", "W/\"v1\"")], "Accept-Encoding, Origin"),
        (&[("vary", "*"), ("etag", "W/\"v1\"")], "*"),
    ] {
        let response = answered(Answer { headers, ..Answer::default() }, Method::GET, "gzip").await;
        assert_eq!(all(response.headers(), "vary"), [vary]);
        assert_eq!(response.headers()["etag"], "W/\"v1\"");
    }
}

#[tokio::test]
async fn head_is_answered_with_the_head_of_its_get() {
    for known_length in [false, true] {
        let answer = Answer { known_length, headers: &[("etag", "\"v1\"")], ..Answer::default() };
        let get = answered(answer.clone(), Method::GET, "br").await;
        let head = answered(answer, Method::HEAD, "br").await;
        assert_eq!(head.headers(), get.headers(), "known length: {known_length}");
        assert_eq!(head.headers().contains_key("content-encoding"), !known_length);
        assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn trailers_come_behind_the_end_of_the_compressed_stream() {
    let handler = async || {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("x-checksum", "123"), ("repr-digest", "sha-256=:AAAA:"), ("etag", "\"v1\"")] {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        let frames = [Frame::data(bytes::Bytes::from("some text")), Frame::trailers(trailers)];
        Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>))))
    };
    let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new());
    let response = app.oneshot(request("/", "zstd")).await.unwrap();
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    // A digest of the plain bytes is not one of these.
    let trailers = collected.trailers().unwrap();
    assert_eq!((&trailers["x-checksum"], &trailers["etag"]), (&"123".parse().unwrap(), &"W/\"v1\"".parse().unwrap()));
    assert!(!trailers.contains_key("repr-digest"));
    let whole = Decoded::of(Response::from_parts(parts, Body::from(collected.to_bytes())));
    assert_eq!(whole.rest().await.unwrap(), b"some text");
}

#[tokio::test]
async fn a_body_that_fails_ends_without_the_end_of_its_compressed_stream() {
    for encoding in super::decode::ENCODINGS {
        let handler = async || {
            let parts = [Ok("some text"), Err(std::io::Error::other("no more of it")), Ok("never")];
            Body::from_stream(stream::iter(parts))
        };
        let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new());
        let request = Request::get("/").header("accept-encoding", encoding).body(Body::empty()).unwrap();
        let mut body = app.oneshot(request).await.unwrap().into_body();
        let (mut bytes, mut failed) = (Vec::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    assert!(!failed, "{encoding}: nothing comes behind the error");
                    bytes.extend(frame.into_data().unwrap());
                }
                Err(error) => {
                    assert!(error.to_string().contains("no more of it"), "{error}");
                    failed = true;
                }
            }
        }
        assert!(failed, "{encoding}");
        let response = Response::builder().header("content-encoding", encoding).body(Body::from(bytes)).unwrap();
        assert!(Decoded::of(response).rest().await.is_err(), "{encoding}: a decoder notices");
    }
}

/// There is nothing to compress in an empty body, and nothing that tells it from one that was taken off.
#[tokio::test]
async fn head_of_an_empty_body_is_that_of_its_get() {
    let app = Router::new().route("/", get(async || StatusCode::ACCEPTED)).layer(CompressedStreamLayer::new());
    let mut heads = Vec::new();
    for method in [Method::GET, Method::HEAD] {
        let mut request = request("/", "gzip");
        *request.method_mut() = method;
        heads.push(app.clone().oneshot(request).await.unwrap().headers().clone());
    }
    assert_eq!(heads[0], heads[1]);
    assert!(!heads[0].contains_key("content-encoding"));
}

/// It is of known length, which its `HEAD` declares, whose body was taken off already; and ranges of it are served.
#[tokio::test]
async fn a_file_is_left_to_other_layers() {
    let file = ServeFile::new(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let app = Router::new().route_service("/readme", file).layer(CompressedStreamLayer::new());
    let mut heads = Vec::new();
    for method in [Method::GET, Method::HEAD] {
        let mut request = request("/readme", "gzip");
        *request.method_mut() = method;
        heads.push(app.clone().oneshot(request).await.unwrap().headers().clone());
    }
    assert_eq!(heads[0], heads[1]);
    assert!(heads[0].contains_key("content-length") && heads[0].contains_key("accept-ranges"));
}

/// A 304 has the validator of the 200 that it stands for (RFC 9110, section 15.4.5): a cache that finds another one must
/// not use it (RFC 9111, section 4.3.4).
#[tokio::test]
async fn a_304_has_the_validator_that_its_client_asked_with() {
    let headers = &[("etag", "\"v,1\"")];
    let unmodified = Answer { headers, status: StatusCode::NOT_MODIFIED, known_length: true };
    for (asked, told, vary) in [
        ("W/\"v,1\"", "W/\"v,1\"", Some("accept-encoding")),
        ("\"a\", W/\"v,1\" , \"b\"", "W/\"v,1\"", Some("accept-encoding")),
        ("\"v,1\"", "\"v,1\"", None),
        ("W/\"v\"", "\"v,1\"", None),
    ] {
        let app = asked_for(&unmodified).layer(CompressedStreamLayer::new());
        let mut request = request("/", "gzip");
        // It may be in one line of several.
        request.headers_mut().append("if-none-match", HeaderValue::from_static("\"another\""));
        request.headers_mut().append("if-none-match", HeaderValue::from_static(asked));
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.headers()["etag"], told, "{asked}");
        assert_eq!(response.headers().get("vary").map(|vary| vary.to_str().unwrap()), vary, "{asked}");
    }
}
