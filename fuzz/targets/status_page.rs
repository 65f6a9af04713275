//! The status page, asked in any way: it answers, in the form that its path says, and what it gives out is whole and
//! repeats nothing of the question.
//!
//! The first byte chooses the path; the others, up to the first line feed, are the query, and the rest is the `Accept`
//! header.

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderValue, Request, StatusCode, Uri, header},
};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::Epilogue;

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const EVENTS: &str = "text/event-stream";

/// Part of each query; it is on no page.
const MARKER: &str = "zq7marker";

thread_local! {
    static PAGE: Router = Epilogue::builder().status_page().build().status_page();
}

pub(crate) fn run(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let (query, accept) = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&rest[..end], Some(&rest[end + 1..])),
        None => (rest, None),
    };
    let path = ["/", "/json", "/metrics"][usize::from(first % 3)];
    let target = [path.as_bytes(), b"?", query, b"&", MARKER.as_bytes()].concat();
    // As hyper gives it: a target with bytes that none may have is refused before, and so is a header.
    let Ok(uri) = Uri::from_maybe_shared(Bytes::from(target)) else { return };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    if let Some(accept) = accept {
        let Ok(accept) = HeaderValue::from_bytes(accept) else { return };
        request.headers_mut().insert(header::ACCEPT, accept);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(ask(path, request));
}

async fn ask(path: &str, request: Request<Body>) {
    let Ok(response) = PAGE.with(Clone::clone).oneshot(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let content_type = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
    let mut body = response.into_body();
    let text = if content_type == EVENTS {
        // It has no end.
        let frame = body.frame().await.expect("an event").expect("whole");
        frame.into_data().expect("data").to_vec()
    } else {
        body.collect().await.expect("whole").to_bytes().to_vec()
    };
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(!text.contains(MARKER), "{text}");
    match (path, content_type.as_str()) {
        ("/", HTML) => assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>"), "{text}"),
        ("/", EVENTS) => assert!(text.starts_with("retry: 2000\n") && text.ends_with("\n\n"), "{text}"),
        ("/" | "/json", JSON) => {
            let page: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(page["requests"]["accepted"], 0);
        }
        ("/" | "/metrics", OPENMETRICS) => {
            assert!(text.contains("\nepilogue_pool_requests_total 0\n") && text.ends_with("\n# EOF\n"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}
