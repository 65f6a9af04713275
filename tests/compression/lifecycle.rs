//! Errors, limits and clients that leave while a body is encoded.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    middleware::map_response,
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode, header};
use http_body::{Frame, SizeHint};
use tower::ServiceExt as _;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, Sent, TimeLimitLayer};

use crate::{
    ENCODINGS, early_close,
    fetch::{Version, fetch, request},
    noise,
    support::{Client, Gate, Notes, Server, ends, h2client::Http2, soon},
    text,
};

fn failing() -> Body {
    let noise = noise(1_000_000);
    let good: Vec<_> = noise.chunks(7000).map(|piece| Ok(piece.to_vec())).collect();
    let error = std::io::Error::other("the body fails, as this test wants it");
    Body::from_stream(stream::iter(good.into_iter().chain([Err(error)])))
}

/// Behind the limit, what is whole leaves as it is, encoded or not: the page that a middleware makes of the 503, and what a
/// handler gives in the poll that has used its time up. A function, which was to see it first, is not called any more.
#[tokio::test]
async fn what_is_whole_at_the_limit_leaves() {
    let same = async |parts, body: Bytes| Ok::<_, std::io::Error>((parts, body));
    let cases = [
        ("plain", early_close(), [504, 200]),
        ("compress", early_close().compress(), [504, 200]),
        ("map_buffer", early_close().map_buffer(same), [503, 503]),
    ];
    for (name, layer, expected) in cases {
        let page = map_response(async |response: Response| match response.status() {
            StatusCode::SERVICE_UNAVAILABLE => (StatusCode::GATEWAY_TIMEOUT, "a page of ours").into_response(),
            _ => response,
        });
        let limit = Duration::from_millis(30);
        let computes = async |lifecycle: Lifecycle| {
            while lifecycle.time_left() != Some(Duration::ZERO) {}
            "done"
        };
        let app =
            Router::new().route("/", get(std::future::pending::<()>)).layer(TimeLimitLayer::new(limit)).layer(page);
        let app = app.route("/computes", get(computes).layer(TimeLimitLayer::busy(limit))).layer(layer);
        let server = Server::start(app).await;
        for encoding in ["identity", "gzip"] {
            for (path, status) in ["/", "/computes"].into_iter().zip(expected) {
                let accept = [(header::ACCEPT_ENCODING, encoding)];
                let got = fetch(server.address, Version::Http11, request(Method::GET, path, &accept)).await;
                assert_eq!((got.status, got.whole), (status, true), "{name} {path} {encoding}");
            }
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_body_that_fails_before_the_head_is_a_500_and_after_it_breaks_the_connection() {
    for encoding in ENCODINGS {
        for version in Version::ALL {
            // Brotli gives nothing out before so much has come.
            let rows = [(1 << 21, 500), (1000, if encoding == "br" { 500 } else { 200 })];
            for (limit, status) in rows {
                let (hook, mut ends) = ends();
                let handler = async || (Continuation::new(async {}), failing());
                let layer = early_close().buffer_limit(limit).compress();
                let server = Server::start(Router::new().route("/", get(handler)).layer((layer, hook))).await;
                let accept = [(header::ACCEPT_ENCODING, encoding)];
                let got = fetch(server.address, version, request(Method::GET, "/", &accept)).await;
                let what = format!("{encoding} {version:?} {limit}");
                assert_eq!((got.status, got.whole), (status, status == 500), "{what}");
                if status == 500 {
                    assert_eq!(got.headers.get(header::CONTENT_ENCODING), None, "{what}");
                    assert_eq!(got.body, b"Internal Server Error\n", "{what}");
                }
                let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
                let expected = if got.whole { Sent::Flushed } else { Sent::BrokenOff };
                assert_eq!((status.bits(), sent), (0, expected), "{what}");
            }
        }
    }
}

/// A hundred bytes of known length, of which the second half waits.
struct Halves {
    given: usize,
    gate: Pin<Box<dyn Future<Output = ()> + Send>>,
    notes: Notes,
}

impl http_body::Body for Halves {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.given == 0 {
            this.given = 1;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(text(50))))));
        }
        if this.given == 2 {
            this.notes.add("ended");
            return Poll::Ready(None);
        }
        if this.gate.as_mut().poll(cx).is_pending() {
            this.notes.add("waits");
            return Poll::Pending;
        }
        this.given = 2;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(text(50))))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(100)
    }
}

/// What an early close reads is produced to its end as what the server reads is (contract rule 5), of known length or
/// not.
#[tokio::test]
async fn where_aborts_are_ignored_a_body_of_known_length_is_produced_to_its_end() {
    for version in [Version::Http11, Version::Http2] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, waits) = (notes.clone(), gate.clone());
        let handler = async move || {
            let gate = Box::pin(async move { waits.passed().await });
            Response::new(Body::new(Halves { given: 0, gate, notes: theirs }))
        };
        let (hook, mut ends) = ends();
        let early_close = early_close().compress();
        let app = Router::new().route("/", get(handler)).layer((early_close, IgnoreAbortLayer::new(), hook));
        let server = Server::start(app).await;
        if version == Version::Http2 {
            // Cancelled by RST_STREAM, upon which the server drops what it is polling.
            let mut client = Http2::connect(server.address).await;
            let mut request = request(Method::GET, "http://test/", &[(header::ACCEPT_ENCODING, "gzip")]);
            *request.version_mut() = http::Version::HTTP_2;
            let response = client.send.send_request(request, true).unwrap().0;
            notes.seen("waits").await;
            drop(response);
            server.journal.seen("aborted").await;
            gate.open();
            notes.seen("ended").await;
        } else {
            let mut client = Client::connect(server.address).await;
            client.send("GET / HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
            notes.seen("waits").await;
            client.reset();
            server.journal.seen("aborted").await;
            gate.open();
            notes.seen("ended").await;
        }
        let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
        assert!(status.is_aborted() && sent == Sent::Aborted);
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_a_body_that_is_being_encoded() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, waits) = (notes.clone(), gate.clone());
    let handler = async move || {
        let (note, notes) = (theirs.on_drop("dropped"), theirs);
        let gate = Box::pin(async move {
            let _note = note;
            waits.passed().await;
        });
        Response::new(Body::new(Halves { given: 0, gate, notes }))
    };
    let (hook, mut ends) = ends();
    let layers = (early_close().compress(), hook);
    let server = Server::start(Router::new().route("/", get(handler)).layer(layers)).await;
    let mut client = Client::connect(server.address).await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
    notes.seen("waits").await;
    client.reset();
    notes.seen("dropped").await;
    let (status, sent) = soon("a hook", ends.recv()).await.unwrap();
    assert!(status.is_aborted() && sent == Sent::Aborted);
    assert!(!notes.has("ended"));
}

/// It compresses to nearly nothing and is never pending: the others on its thread, and its own limit, have their turn.
#[tokio::test]
async fn a_body_that_only_repeats_itself_is_encoded_in_turns() {
    for encoding in ENCODINGS {
        let taken = Arc::new(AtomicUsize::new(0));
        let theirs = taken.clone();
        let handler = async move || {
            let piece = move |_| {
                theirs.fetch_add(1, Ordering::Relaxed);
                Ok::<_, std::io::Error>(vec![0; 16 * 1024])
            };
            Body::from_stream(stream::iter((0..1000).map(piece)))
        };
        let app = Router::new().route("/", get(handler)).layer(early_close().compress());
        let request = http::Request::get("/").header(header::ACCEPT_ENCODING, encoding).body(Body::empty()).unwrap();
        let mut response = std::pin::pin!(app.oneshot(request));
        assert!(futures_util::poll!(response.as_mut()).is_pending());
        let at_once = taken.load(Ordering::Relaxed);
        assert!(at_once < 100, "{encoding}: {at_once} pieces in one poll");
        let response = soon("a response", response).await.unwrap();
        assert!(response.headers().contains_key(header::CONTENT_LENGTH), "{encoding}");
    }
}
