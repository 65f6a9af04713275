//! What compression does to the other headers, and which responses it leaves alone.

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::{
    early_close,
    fetch::{Got, Version, fetch, request},
    support::{Server, logs},
    text,
};

async fn answer(headers: &[(HeaderName, &str)], response: fn() -> Response) -> Got {
    let app = Router::new().route("/", get(async move || response())).layer(early_close().compress());
    let server = Server::start(app).await;
    let accept = [&[(header::ACCEPT_ENCODING, "gzip")], headers].concat();
    fetch(server.address, Version::Http11, request(Method::GET, "/", &accept)).await
}

#[tokio::test]
async fn a_strong_etag_is_weakened_and_ranges_are_no_longer_offered() {
    let got = answer(&[], || {
        let headers = [(header::ETAG, "\"abc\""), (header::ACCEPT_RANGES, "bytes"), (header::VARY, "cookie")];
        (headers, text(5000)).into_response()
    })
    .await;
    assert_eq!(got.text(header::CONTENT_ENCODING), Some("gzip"));
    assert_eq!((got.text(header::ETAG), got.text(header::ACCEPT_RANGES)), (Some("W/\"abc\""), None));
    let vary: Vec<_> = got.headers.get_all(header::VARY).iter().collect();
    assert_eq!(vary, ["cookie", "accept-encoding"]);
}

#[tokio::test]
async fn an_etag_stays_strong_where_nothing_is_encoded_here() {
    let got = answer(&[], || ([(header::ETAG, "\"abc\"")], "short").into_response()).await;
    assert_eq!((got.text(header::ETAG), got.text(header::CONTENT_ENCODING)), (Some("\"abc\""), None));
    let got = answer(&[], || {
        ([(header::ETAG, "\"abc\""), (header::CONTENT_ENCODING, "identity")], text(5000)).into_response()
    });
    assert_eq!(got.await.text(header::ETAG), Some("\"abc\""));
}

/// What is remembered of the one is not what the other wants (RFC 9110, section 5.3).
#[tokio::test]
async fn what_a_client_accepts_may_stand_in_several_lines() {
    let app = Router::new().route("/", get(async || text(5000))).layer(early_close().compress());
    let server = Server::start(app).await;
    for (lines, encoding) in [(&["br;q=0.1", "gzip"][..], "gzip"), (&["br;q=0.1"], "br")] {
        let lines: Vec<_> = lines.iter().map(|line| (header::ACCEPT_ENCODING, *line)).collect();
        let got = fetch(server.address, Version::Http11, request(Method::GET, "/", &lines)).await;
        assert_eq!(got.text(header::CONTENT_ENCODING), Some(encoding), "{lines:?}");
    }
}

#[tokio::test]
async fn the_length_of_the_plain_bytes_is_no_wrong_one() {
    let logs = logs();
    let got = answer(&[], || ([(header::CONTENT_LENGTH, "5003")], text(5003)).into_response()).await;
    assert_eq!(got.text(header::CONTENT_ENCODING), Some("gzip"));
    let said = logs.with("5003");
    assert!(said.is_empty(), "{said:#?}");
}

#[tokio::test]
async fn a_304_has_the_validator_that_its_client_asked_with() {
    fn unmodified() -> Response {
        (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"abc\"")]).into_response()
    }
    /// A comma is no end of a tag (RFC 9110, section 8.8.3).
    fn unmodified_list() -> Response {
        (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"a,b\"")]).into_response()
    }
    for (response, asked, told, vary) in [
        (unmodified as fn() -> Response, "W/\"abc\"", "W/\"abc\"", Some("accept-encoding")),
        (unmodified, "\"abc\"", "\"abc\"", None),
        (unmodified_list, "W/\"a,b\"", "W/\"a,b\"", Some("accept-encoding")),
        (unmodified_list, "\"c\", W/\"a,b\"", "W/\"a,b\"", Some("accept-encoding")),
        (unmodified_list, "W/\"a\", W/\"b\"", "\"a,b\"", None),
    ] {
        let got = answer(&[(header::IF_NONE_MATCH, asked)], response).await;
        assert_eq!((got.status, got.text(header::ETAG), got.text(header::VARY)), (304, Some(told), vary));
        assert!(got.body.is_empty());
    }
}

#[tokio::test]
async fn what_is_to_stay_as_it_is_does() {
    type Row = (&'static str, fn() -> Response);
    let rows: [Row; 10] = [
        ("no-transform", || ([(header::CACHE_CONTROL, "no-transform, max-age=5")], text(5000)).into_response()),
        ("digest", || ([("content-digest", "sha-256=:AAAA:")], text(5000)).into_response()),
        ("digest in the trailers", || ([(header::TRAILER, "repr-digest")], text(5000)).into_response()),
        ("encoded", || ([(header::CONTENT_ENCODING, "identity")], text(5000)).into_response()),
        ("range", || {
            let range = [(header::CONTENT_RANGE, "bytes 0-4999/9000")];
            (StatusCode::PARTIAL_CONTENT, range, text(5000)).into_response()
        }),
        ("ranges", || {
            let ranges = [(header::CONTENT_TYPE, "multipart/byteranges; boundary=range")];
            (StatusCode::PARTIAL_CONTENT, ranges, text(5000)).into_response()
        }),
        ("no range", || {
            let range = [(header::CONTENT_RANGE, "bytes */5000")];
            (StatusCode::RANGE_NOT_SATISFIABLE, range, text(5000)).into_response()
        }),
        ("image", || ([(header::CONTENT_TYPE, "image/png")], text(5000)).into_response()),
        ("short", || "short".into_response()),
        ("empty", || StatusCode::NOT_FOUND.into_response()),
    ];
    for (what, response) in rows {
        let got = answer(&[], response).await;
        let plain = http_body_util::BodyExt::collect(response().into_body()).await.unwrap().to_bytes();
        assert_eq!(got.body, plain, "{what}");
        assert_eq!(got.length(), Some(plain.len() as u64), "{what}");
        let encoding = (what == "encoded").then_some("identity");
        assert_eq!((got.text(header::CONTENT_ENCODING), got.text(header::VARY)), (encoding, None), "{what}");
    }
}

#[tokio::test]
async fn trailers_say_nothing_of_the_plain_bytes() {
    let trailers = || {
        let trailers = [("x-note", "kept"), ("repr-digest", "sha-256=:AAAA:"), ("etag", "\"abc\"")];
        let named = trailers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        async move { Some(Ok(named.into_iter().collect::<HeaderMap>())) }
    };
    let streams = async move || axum::body::Body::new(crate::streamed(&text(5000)).with_trailers(trailers()));
    // Its length is known.
    let whole = async move || axum::body::Body::new(axum::body::Body::from(text(5000)).with_trailers(trailers()));
    let app = Router::new().route("/streams", get(streams)).route("/whole", get(whole));
    for encoding in crate::ENCODINGS {
        for (path, limit) in [("/streams", 1 << 20), ("/streams", 1), ("/whole", 1 << 20)] {
            let app = app.clone().layer(early_close().compress().buffer_limit(limit));
            let mut request = request(Method::GET, path, &[(header::ACCEPT_ENCODING, encoding)]);
            *request.version_mut() = http::Version::HTTP_2;
            let response = app.oneshot(request.map(|()| axum::body::Body::empty())).await.unwrap();
            assert_eq!(response.headers()[header::CONTENT_ENCODING], encoding);
            let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap();
            let expected = [("x-note", "kept"), ("etag", "W/\"abc\"")];
            let expected = expected.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            assert_eq!(trailers, expected.into_iter().collect::<HeaderMap>(), "{encoding} {path} {limit}");
        }
    }
}

#[tokio::test]
async fn event_streams_are_neither_held_back_nor_encoded() {
    let got =
        answer(&[], || ([(header::CONTENT_TYPE, "text/event-stream")], crate::streamed(&text(5000))).into_response())
            .await;
    assert_eq!(got.framing, crate::fetch::Framing::Chunks);
    assert_eq!((got.text(header::CONTENT_ENCODING), got.body.len()), (None, 5000));
}

#[tokio::test]
async fn of_two_early_closes_the_inner_one_decides() {
    let app = Router::new()
        .route("/", get(async || text(5000)).layer(early_close().keep_alive()))
        .layer(early_close().compress());
    let server = Server::start(app).await;
    let accept = [(header::ACCEPT_ENCODING, "gzip")];
    let got = fetch(server.address, Version::Http11, request(Method::GET, "/", &accept)).await;
    assert_eq!(
        (got.length(), got.text(header::CONTENT_ENCODING), got.text(header::CONNECTION)),
        (Some(5000), None, None)
    );
}

#[tokio::test]
async fn the_function_on_buffered_bodies_sees_plain_bytes() {
    let layer = early_close().compress().map_buffer(async |parts, bytes: bytes::Bytes| {
        assert_eq!(bytes, text(5000));
        Ok::<_, std::io::Error>((parts, text(9000)))
    });
    let server = Server::start(Router::new().route("/", get(async || text(5000))).layer(layer)).await;
    for method in [Method::GET, Method::HEAD] {
        let accept = [(header::ACCEPT_ENCODING, "gzip")];
        let got = fetch(server.address, Version::Http11, request(method.clone(), "/", &accept)).await;
        assert_eq!(got.text(header::CONTENT_ENCODING), Some("gzip"));
        assert!(got.length().is_some_and(|length| length < 4000));
        if method == Method::GET {
            assert!(got.decoded().await == text(9000).as_bytes());
        }
    }
}

/// One that makes a tag of what a handler gave, and compares it.
#[tokio::test]
async fn a_304_that_the_function_on_buffered_bodies_makes_has_the_validator_that_its_client_asked_with() {
    for (asked, told) in [("W/\"abc\"", "W/\"abc\""), ("\"abc\"", "\"abc\"")] {
        let layer =
            early_close().compress().map_buffer(async |mut parts: http::response::Parts, bytes: bytes::Bytes| {
                parts.status = StatusCode::NOT_MODIFIED;
                parts.headers.insert(header::ETAG, HeaderValue::from_static("\"abc\""));
                Ok::<_, std::io::Error>((parts, bytes))
            });
        let server = Server::start(Router::new().route("/", get(async || text(5000))).layer(layer)).await;
        let asked = [(header::ACCEPT_ENCODING, "gzip"), (header::IF_NONE_MATCH, asked)];
        let got = fetch(server.address, Version::Http11, request(Method::GET, "/", &asked)).await;
        assert_eq!((got.status, got.text(header::ETAG)), (304, Some(told)));
    }
}
