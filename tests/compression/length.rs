//! The length of the encoded bytes, whatever is known of the plain ones.

use axum::{Router, body::Body, routing::get};
use http::{Method, header};
use tower_http::compression::CompressionLayer;

use crate::{
    ENCODINGS, early_close,
    fetch::{Framing, Version, fetch, request},
    noise, streamed,
    support::Server,
    text,
};

const LIMIT: usize = 64 * 1024;

/// Path, body, its length, and whether the encoded bytes of it are within the limit.
type Row = (&'static str, fn() -> Body, usize, bool);

fn bodies() -> [Row; 5] {
    [
        ("/known", || Body::from(text(5000)), 5000, true),
        ("/streamed", || streamed(&text(5000)), 5000, true),
        // More than the limit, but less when it is encoded.
        ("/large", || Body::from(text(200_000)), 200_000, true),
        ("/large-stream", || streamed(&text(200_000)), 200_000, true),
        ("/noise", || Body::from(noise(200_000)), 200_000, false),
    ]
}

fn app() -> Router {
    let routes = bodies().into_iter().fold(Router::new(), |router, (path, body, ..)| {
        router.route(path, get(async move || ([(header::CONTENT_TYPE, "text/plain")], body())))
    });
    routes.layer(early_close().buffer_limit(LIMIT).compress())
}

#[tokio::test]
async fn it_is_exact_in_every_encoding_and_version_and_for_head_as_for_get() {
    let server = Server::start(app()).await;
    for encoding in ENCODINGS {
        for version in Version::ALL {
            for (path, body, plain, measured) in bodies() {
                let what = format!("{encoding} {version:?} {path}");
                let accept = [(header::ACCEPT_ENCODING, encoding)];
                let got = fetch(server.address, version, request(Method::GET, path, &accept)).await;
                assert_eq!(got.text(header::CONTENT_ENCODING), Some(encoding), "{what}");
                assert_eq!(got.text(header::VARY), Some("accept-encoding"), "{what}");
                assert!(got.whole && (!measured || got.body.len() < plain / 2), "{what}: {}", got.body.len());
                let framing = match (measured, version) {
                    (true, _) => Framing::Length(got.body.len() as u64),
                    (false, Version::Http10) => Framing::Close,
                    (false, Version::Http11) => Framing::Chunks,
                    (false, Version::Http2) => Framing::Stream,
                };
                assert_eq!(got.framing, framing, "{what}");
                let close = (version != Version::Http2).then_some("close");
                assert_eq!((got.text(header::CONNECTION), got.closed), (close, close.is_some()), "{what}");
                let expected = http_body_util::BodyExt::collect(body()).await.unwrap().to_bytes();
                assert!(got.decoded().await == expected, "{what}");

                let head = fetch(server.address, version, request(Method::HEAD, path, &accept)).await;
                let mut theirs = [got.headers, head.headers];
                for headers in &mut theirs {
                    headers.remove(header::DATE);
                    headers.remove(header::TRANSFER_ENCODING);
                }
                assert_eq!(theirs[0], theirs[1], "{what}");
            }
        }
    }
}

#[tokio::test]
async fn without_an_encoding_a_known_body_is_as_it_was() {
    let server = Server::start(app()).await;
    for accept in [&[][..], &[(header::ACCEPT_ENCODING, "identity")], &[(header::ACCEPT_ENCODING, "compress")]] {
        for (path, _, plain, _) in bodies() {
            let got = fetch(server.address, Version::Http11, request(Method::GET, path, accept)).await;
            assert_eq!(got.text(header::CONTENT_ENCODING), None, "{path}");
            assert_eq!(got.text(header::VARY), Some("accept-encoding"), "{path}");
            // 200,000 bytes of unknown length are past the limit.
            let measured = path != "/large-stream";
            assert_eq!(got.length(), measured.then_some(plain as u64), "{path}");
            assert_eq!(got.body.len(), plain, "{path}");
        }
    }
}

#[tokio::test]
async fn it_is_negotiated_as_tower_http_does() {
    let ours = Server::start(app()).await;
    let theirs = bodies().into_iter().fold(Router::new(), |router, (path, body, ..)| {
        router.route(path, get(async move || ([(header::CONTENT_TYPE, "text/plain")], body())))
    });
    let theirs = Server::start(theirs.layer(CompressionLayer::new())).await;
    for accept in [
        "gzip;q=0.5, br;q=0.4",
        "*",
        "*;q=0",
        "br;q=0, *;q=0.1",
        "identity;q=0",
        "gzip;q=0, identity;q=0",
        "x-gzip",
        "deflate, nonsense",
        "gzip;q=0.001, identity;q=0.5",
        "GZIP",
    ] {
        let accept = [(header::ACCEPT_ENCODING, accept)];
        let mut answers = Vec::new();
        for server in [&ours, &theirs] {
            let got = fetch(server.address, Version::Http11, request(Method::GET, "/known", &accept)).await;
            let vary = got.text(header::VARY).map(ToOwned::to_owned);
            answers.push((
                got.status,
                got.text(header::CONTENT_ENCODING).map(ToOwned::to_owned),
                vary,
                got.decoded().await,
            ));
        }
        assert!(answers[0] == answers[1], "{accept:?}: {:?}", answers[0].1);
    }
}

/// As a router does that is nested as a service: only the length that the body had is left of it.
#[tokio::test]
async fn a_head_whose_body_was_taken_off_has_all_but_the_length() {
    let inner = Router::new()
        .route("/long", get(async || ([(header::ETAG, "\"a\"")], text(5000))))
        .route("/short", get(async || "short"));
    let server = Server::start(Router::new().fallback_service(inner).layer(early_close().compress())).await;
    let accept = [(header::ACCEPT_ENCODING, "gzip")];
    for version in Version::ALL {
        for (path, encoded) in [("/long", true), ("/short", false)] {
            let get = fetch(server.address, version, request(Method::GET, path, &accept)).await;
            let head = fetch(server.address, version, request(Method::HEAD, path, &accept)).await;
            assert_eq!(get.headers.contains_key(header::CONTENT_ENCODING), encoded);
            assert_eq!(head.length(), (!encoded).then_some(5), "{version:?} {path}");
            for name in [header::CONTENT_ENCODING, header::VARY, header::ETAG, header::CONNECTION] {
                assert_eq!(head.headers.get(&name), get.headers.get(&name), "{version:?} {path} {name}");
            }
        }
    }
}

/// Nothing tells an empty body from one that was taken off.
#[tokio::test]
async fn the_head_of_an_empty_body_is_that_of_its_get_but_for_the_length() {
    let always = |_: http::StatusCode, _: http::Version, _: &http::HeaderMap, _: &http::Extensions| true;
    let layers = [early_close().compress(), early_close().compress_with(CompressionLayer::new().compress_when(always))];
    for (layer, encoded) in layers.into_iter().zip([false, true]) {
        let app = Router::new().route("/", get(async || ([(header::ETAG, "\"a\"")], ""))).layer(layer);
        let server = Server::start(app).await;
        for (accept, status) in [("gzip", 200), ("identity;q=0", 406), ("*;q=0", 406)] {
            let accept = [(header::ACCEPT_ENCODING, accept)];
            for version in Version::ALL {
                let mut get = fetch(server.address, version, request(Method::GET, "/", &accept)).await;
                let mut head = fetch(server.address, version, request(Method::HEAD, "/", &accept)).await;
                assert_eq!((get.status, head.status), (status, status), "{version:?} {accept:?}");
                let is_encoded = encoded && status == 200;
                assert_eq!(get.headers.contains_key(header::CONTENT_ENCODING), is_encoded);
                let length = get.length().filter(|_| !is_encoded);
                assert_eq!(head.length(), length, "{version:?} {accept:?}");
                for headers in [&mut get.headers, &mut head.headers] {
                    headers.remove(header::DATE);
                    headers.remove(header::CONTENT_LENGTH);
                }
                assert_eq!(get.headers, head.headers, "{version:?} {accept:?}");
            }
        }
    }
}

#[tokio::test]
async fn kept_alive_the_next_request_follows_the_last_encoded_byte() {
    let app = Router::new().route("/", get(async || streamed(&text(5000))));
    let server = Server::start(app.layer(early_close().keep_alive().compress())).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nhost: test\r\naccept-encoding: br\r\n\r\n").await;
        let reply = client.reply_by_length(false).await;
        assert_eq!((reply.header("connection"), reply.header("content-encoding")), (None, Some("br")));
        assert!(crate::fetch::decode("br", &reply.body).await == text(5000).as_bytes());
    }
}

#[tokio::test]
async fn its_settings_are_those_of_the_layer_that_it_is_given() {
    let compression = CompressionLayer::new().no_br().no_zstd().compress_when(
        |status: http::StatusCode, _: http::Version, _: &http::HeaderMap, _: &http::Extensions| status.is_success(),
    );
    let app = Router::new()
        .route("/", get(async || "tiny"))
        .route("/missing", get(async || (http::StatusCode::NOT_FOUND, text(5000))))
        .layer(early_close().compress_with(compression));
    let server = Server::start(app).await;
    for (path, encoding) in [("/", Some("gzip")), ("/missing", None)] {
        let accept = [(header::ACCEPT_ENCODING, "gzip, br, zstd")];
        let got = fetch(server.address, Version::Http11, request(Method::GET, path, &accept)).await;
        assert_eq!(got.text(header::CONTENT_ENCODING), encoding);
        assert_eq!(got.framing, Framing::Length(got.body.len() as u64));
    }
}
