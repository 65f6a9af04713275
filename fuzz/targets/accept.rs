//! `Accept-Encoding`, whatever stands in it: what comes back is coded as the request allows, and decodes to the same body.

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, header},
    routing::get,
};
use http_body_util::BodyExt as _;
use tokio::io::AsyncReadExt as _;
use tower::ServiceExt as _;
use tower_epilogue::{CompressedStreamLayer, EarlyCloseLayer};

const TEXT: &str = "a text that is long enough to be worth it, and worth it, and worth it, and worth it, and worth it";

pub(crate) fn run(data: &[u8]) {
    // Lines are fields of their own; one that no field may be, hyper refuses before.
    let values: Option<Vec<_>> =
        data.split(|byte| *byte == b'\n').map(|line| HeaderValue::from_bytes(line).ok()).collect();
    let Some(values) = values else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let app = || Router::new().route("/", get(async || TEXT));
        for (app, streamed) in
            [(app().layer(CompressedStreamLayer::new()), true), (app().layer(EarlyCloseLayer::new().compress()), false)]
        {
            let mut request = Request::new(Body::empty());
            for value in &values {
                request.headers_mut().append(header::ACCEPT_ENCODING, value.clone());
            }
            let Ok(response) = app.oneshot(request).await;
            check(response, &values, streamed).await;
        }
    });
}

async fn check(response: Response<Body>, values: &[HeaderValue], streamed: bool) {
    if response.status() == StatusCode::NOT_ACCEPTABLE {
        return;
    }
    assert_eq!(response.status(), StatusCode::OK);
    let coding = response.headers().get(header::CONTENT_ENCODING).map(|value| value.to_str().expect("text").to_owned());
    let length = response.headers().get(header::CONTENT_LENGTH).cloned();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    if let Some(length) = length {
        assert_eq!(length.to_str().expect("text"), bytes.len().to_string());
    } else {
        assert!(streamed, "its length is measured");
    }
    let mut text = String::new();
    let read = match coding.as_deref() {
        None => (&bytes[..]).read_to_string(&mut text).await,
        Some("gzip") => GzipDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        // RFC 9110, section 8.4.1.2: what HTTP calls so is zlib's format.
        Some("deflate") => ZlibDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        Some("br") => BrotliDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        Some("zstd") => ZstdDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        Some(other) => panic!("nobody offers {other}"),
    };
    read.expect("it decodes");
    assert_eq!(text, TEXT);
    let Some(coding) = coding else { return };
    // Somebody must have asked for it, by its name or by a star; and a client that says nothing else of it than that it
    // is not acceptable does not get it.
    let fields: Vec<_> =
        values.iter().map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()).collect();
    let elements: Vec<_> = fields.iter().flat_map(|field| field.split(',')).map(str::trim).collect();
    let of = |name: &str| -> Vec<&str> {
        let is = |element: &&str| element.split(';').next().is_some_and(|coding| coding.trim() == name);
        elements.iter().copied().filter(is).collect()
    };
    let named: Vec<_> = [of(&coding), of(&format!("x-{coding}"))].concat();
    assert!(!named.is_empty() || !of("*").is_empty(), "{coding} was not asked for: {fields:?}");
    // One with more than its weight may be one that cannot be read, and counts as not there.
    let refused = |element: &&str| {
        let mut parts = element.split(';').map(str::trim).skip(1);
        parts.next() == Some("q=0") && parts.next().is_none()
    };
    assert!(named.is_empty() || !named.iter().all(refused), "{coding} was refused: {fields:?}");
}
