//! Rows of the PHP table: a declared length and an encoding that changes it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::convert::Infallible;

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::BodyExt;
use support::{Gate, Server, h2client::Http2};
use tower::{Layer, ServiceExt, service_fn};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, LifecycleError, Sent};
use tower_http::{compression::CompressionLayer, decompression::DecompressionLayer};

/// 5,000 bytes that compress well.
fn text() -> String {
    (0..250).map(|number| format!("the {number:3}rd line here\n")).collect()
}

/// Undoes gzip; fails unless it is whole.
async fn gunzip(bytes: Vec<u8>) -> Vec<u8> {
    let bytes = Bytes::from(bytes);
    let server = service_fn(move |_: Request<Body>| {
        let response = Response::builder().header(header::CONTENT_ENCODING, "gzip").body(Body::from(bytes.clone()));
        async { Ok::<_, Infallible>(response.unwrap()) }
    });
    let response = DecompressionLayer::new().layer(server).oneshot(Request::new(Body::empty())).await.unwrap();
    response.into_body().collect().await.expect("valid gzip").to_bytes().to_vec()
}

/// A response as a client got it, whatever the version.
struct Got {
    encoding: Option<String>,
    length: Option<usize>,
    chunked: bool,
    /// Without the chunks' framing.
    body: Vec<u8>,
}

impl Got {
    fn new(headers: &HeaderMap, body: Vec<u8>) -> Self {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        Self {
            encoding: text(header::CONTENT_ENCODING),
            length: text(header::CONTENT_LENGTH).map(|length| length.parse().unwrap()),
            chunked: text(header::TRANSFER_ENCODING).is_some(),
            body,
        }
    }

    /// Whatever was declared is true of the bytes, and they are the text.
    async fn check(self, what: &str) {
        assert!(!(self.chunked && self.length.is_some()), "a length and chunks: {what}");
        if let Some(length) = self.length {
            assert_eq!(length, self.body.len(), "{what}");
        }
        let body = match self.encoding.as_deref() {
            Some("gzip") => {
                assert!(self.body.len() < 4000, "{what}");
                gunzip(self.body).await
            }
            None => self.body,
            Some(other) => panic!("{other}: {what}"),
        };
        assert!(body == text().into_bytes(), "{what}");
    }
}

const VERSIONS: [&str; 3] = ["1.0", "1.1", "2"];

/// One request, read to its end.
async fn fetch(server: &Server, version: &str, path: &str, accept: &str) -> Got {
    if version == "2" {
        let mut client = Http2::connect(server.address).await;
        let request = Request::get(format!("http://test{path}")).header(header::ACCEPT_ENCODING, accept);
        let mut send = client.send.ready().await.unwrap();
        let (response, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
        client.send = send;
        let whole =
            support::soon("a response", async { support::h2client::read(response.await?).await }).await.unwrap();
        return Got::new(&whole.headers, whole.body);
    }
    let mut client = server.connect().await;
    let request =
        format!("GET {path} HTTP/{version}\r\nhost: test\r\naccept-encoding: {accept}\r\nconnection: close\r\n\r\n");
    client.send(&request).await;
    let reply = client.reply().await;
    assert!(reply.error.is_none(), "{reply:?}");
    let mut headers = HeaderMap::new();
    for line in reply.head.trim_end().lines().skip(1) {
        let (name, value) = line.split_once(':').unwrap();
        headers.append(http::HeaderName::try_from(name).unwrap(), value.trim().parse().unwrap());
    }
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    assert!(!(chunked && version == "1.0"), "HTTP/1.0 knows no chunks");
    let body = if chunked { reply.dechunked().expect("chunks to their end") } else { reply.body };
    Got::new(&headers, body)
}

fn parts() -> Body {
    let parts: Vec<_> = text().as_bytes().chunks(700).map(<[u8]>::to_vec).collect();
    Body::from_stream(tokio_stream::iter(parts.into_iter().map(Ok::<_, Infallible>)))
}

/// Everything that answers with the text, each with a continuation that waits at the gate.
fn app(gate: &Gate) -> Router {
    let held = {
        let gate = gate.clone();
        move || {
            let gate = gate.clone();
            Continuation::new(async move { gate.passed().await })
        }
    };
    let (streams, declares, streams_and_declares) = (held.clone(), held.clone(), held.clone());
    let finish_gate = gate.clone();
    Router::new()
        .route("/known", get(async move || (held(), text())))
        .route("/streamed", get(async move || (streams(), parts())))
        .route("/declared", get(async move || (declares(), [(header::CONTENT_LENGTH, "5000")], text())))
        .route(
            "/declared-stream",
            get(async move || (streams_and_declares(), [(header::CONTENT_LENGTH, "5000")], parts())),
        )
        .route(
            "/finished",
            get(async move |lifecycle: Lifecycle| {
                assert_eq!(lifecycle.finish(text()).await?, Sent::Flushed);
                finish_gate.passed().await;
                Ok::<_, LifecycleError>(())
            }),
        )
}

const PATHS: [&str; 5] = ["/known", "/streamed", "/declared", "/declared-stream", "/finished"];

/// Early close and compression, each outside of the other; the last also with a service of ours within both.
fn orders(gate: &Gate) -> [(&'static str, Router); 3] {
    let (close, compression) = (EarlyCloseLayer::new(), CompressionLayer::new());
    [
        ("early close inside", app(gate).layer(close.clone()).layer(compression.clone())),
        (OUTSIDE, app(gate).layer(compression.clone()).layer(close.clone())),
        ("early close outside, one within", app(gate).layer(IgnoreAbortLayer::new()).layer(compression).layer(close)),
    ]
}

const OUTSIDE: &str = "early close outside";

/// A finished response starts at the innermost of our services: what stands inside of that never sees it.
fn is_compressed(order: &str, path: &str) -> bool {
    path != "/finished" || order != OUTSIDE
}

#[test]
fn the_text_has_5000_bytes() {
    assert_eq!(text().len(), 5000);
}

#[tokio::test]
async fn s3a_a_declared_length_and_a_re_encoding_never_coexist() {
    let gate = Gate::closed();
    gate.open();
    for (order, app) in orders(&gate) {
        let server = Server::start(app).await;
        for version in VERSIONS {
            for path in PATHS {
                for accept in ["gzip", "identity"] {
                    let encoding = (accept == "gzip" && is_compressed(order, path)).then_some("gzip");
                    let what = format!("{order}, HTTP/{version}, {path}, accepts {accept}");
                    let got = fetch(&server, version, path, accept).await;
                    assert_eq!(got.encoding.as_deref(), encoding, "{what}");
                    if encoding.is_none() {
                        assert_eq!(got.length, Some(5000), "{what}");
                    }
                    got.check(&what).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn s3b_a_length_set_before_the_compression_starts_is_not_sent() {
    let gate = Gate::closed();
    gate.open();
    let compressed = app(&gate).layer(CompressionLayer::new());
    let each = orders(&gate).into_iter().chain([("no early close", compressed)]);
    for (order, app) in each {
        let server = Server::start(app).await;
        for version in VERSIONS {
            for path in ["/declared", "/declared-stream"] {
                let what = format!("{order}, HTTP/{version}, {path}");
                let got = fetch(&server, version, path, "gzip").await;
                assert_ne!(got.length, Some(5000), "{what}");
                assert_eq!(got.length.is_some(), order.starts_with(OUTSIDE), "{what}");
                got.check(&what).await;
            }
        }
    }
}

#[tokio::test]
async fn s3c_a_compressed_response_leaves_whole_before_its_continuation() {
    for index in 0..3 {
        for version in VERSIONS {
            for path in PATHS {
                let gate = Gate::closed();
                let (order, app) = orders(&gate).into_iter().nth(index).unwrap();
                let what = format!("{order}, HTTP/{version}, {path}");
                let server = Server::start(app).await;
                let got = fetch(&server, version, path, "gzip").await;
                assert!(!gate.is_open(), "complete, while the work after it waits");
                assert_eq!(got.encoding.is_some(), is_compressed(order, path), "{what}");
                got.check(&what).await;
                gate.open();
                server.journal.ended(1).await;
                assert_eq!(server.journal.lines().last().unwrap(), "ended/0", "{what}");
            }
        }
    }
}

#[tokio::test]
async fn s3c_an_early_close_outside_of_the_compression_closes_right_after_the_encoded_bytes() {
    let gate = Gate::closed();
    let server = Server::start(orders(&gate)[1].1.clone()).await;
    let mut client = server.connect().await;
    client.send("GET /streamed HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    assert_eq!(gunzip(reply.body).await, text().into_bytes());
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn req44164_what_is_encoded_already_keeps_its_own_length() {
    async fn handler() -> impl IntoResponse {
        ([(header::CONTENT_ENCODING, "identity"), (header::CONTENT_LENGTH, "5000")], text())
    }
    let routes = || Router::new().route("/", get(handler));
    let orders = [
        routes().layer(CompressionLayer::new()).layer(EarlyCloseLayer::new()),
        routes().layer(EarlyCloseLayer::new()).layer(CompressionLayer::new()),
    ];
    for app in orders {
        let server = Server::start(app).await;
        let got = fetch(&server, "1.1", "/", "gzip").await;
        assert_eq!((got.length, got.chunked, got.encoding.as_deref()), (Some(5000), false, Some("identity")));
        assert_eq!(got.body, text().into_bytes());
    }
}
