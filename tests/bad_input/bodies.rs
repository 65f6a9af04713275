//! Bodies that fail: their client never takes what it got of them for the whole.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::header;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer};

use crate::{
    common::{settled, told},
    support::{Notes, Reply, Server, h2client::Http2},
};

const KINDS: [&str; 5] = ["at-once", "later", "midway", "declared", "panics"];

fn failing(kind: &str) -> Response {
    let error = || Err(std::io::Error::other("the body fails, as this test wants it"));
    match kind {
        "at-once" => Body::from_stream(stream::iter([error() as std::io::Result<&str>])).into_response(),
        "later" => {
            let later = tokio::task::yield_now().map(move |()| error() as std::io::Result<&str>);
            Body::from_stream(stream::once(later)).into_response()
        }
        "midway" => Body::from_stream(stream::iter([Ok("part"), error()])).into_response(),
        "declared" => {
            ([(header::CONTENT_LENGTH, "8")], Body::from_stream(stream::iter([Ok("part"), error()]))).into_response()
        }
        "panics" => {
            let parts = stream::iter([false, true]).map(|panics| {
                assert!(!panics, "the body panics, as this test wants it");
                Ok::<_, std::io::Error>("part")
            });
            Body::from_stream(parts).into_response()
        }
        _ => panic!("no such kind: {kind}"),
    }
}

fn app(notes: &Notes, layer: Option<EarlyCloseLayer>) -> Router {
    let routes = KINDS.iter().fold(Router::new(), |router, kind| {
        let notes = notes.clone();
        let handler = async move || {
            let notes = notes.clone();
            (Continuation::new(async move { notes.add("continuation") }), failing(kind))
        };
        router.route(&format!("/{kind}"), get(handler))
    });
    let app = routes.layer(ShutdownHookLayer::new(told(notes)));
    let app = match layer {
        Some(layer) => app.layer(layer),
        None => app,
    };
    app.route("/ping", get(async || "pong"))
}

/// It is short of what was declared, without its last chunk, or not there at all.
fn is_visibly_broken(reply: &Reply) -> bool {
    if reply.status == 0 {
        return reply.body.is_empty();
    }
    let short = |length: &str| reply.body.len() < length.parse().unwrap();
    reply.status == 200
        && match reply.header("content-length") {
            Some(length) => short(length),
            None => reply.header("transfer-encoding") == Some("chunked") && reply.dechunked().is_none(),
        }
}

#[tokio::test]
async fn after_the_head_the_connection_breaks_on_http1() {
    // Past what an early close holds back, its client reads a stream.
    for layer in [None, Some(EarlyCloseLayer::new().buffer_limit(3))] {
        for kind in KINDS {
            if layer.is_some() && matches!(kind, "at-once" | "later") {
                continue;
            }
            let notes = Notes::default();
            let server = Server::start(app(&notes, layer.clone())).await;
            let mut client = server.connect().await;
            client.send_get(&format!("/{kind}")).await;
            let reply = client.reply().await;
            assert!(is_visibly_broken(&reply), "{kind}: {reply:?}");
            server.journal.ended(1).await;
            assert_eq!(notes.all(), ["continuation", "hook: NORMAL, BrokenOff"], "{kind}");
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn after_the_head_the_stream_breaks_and_the_connection_lives_on_http2() {
    for layer in [None, Some(EarlyCloseLayer::new().buffer_limit(3))] {
        for kind in KINDS {
            if layer.is_some() && matches!(kind, "at-once" | "later") {
                continue;
            }
            let notes = Notes::default();
            let server = Server::start(app(&notes, layer.clone())).await;
            let mut client = Http2::connect(server.address).await;
            let error = client.get(&format!("/{kind}")).await.unwrap_err();
            assert!(error.is_reset() && error.is_remote(), "{kind}: {error}");
            notes.count(2).await;
            assert_eq!(notes.all(), ["continuation", "hook: NORMAL, BrokenOff"], "{kind}");
            assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn before_the_head_an_early_close_answers_with_500() {
    for kind in KINDS {
        let notes = Notes::default();
        let server = Server::start(app(&notes, Some(EarlyCloseLayer::new()))).await;
        let mut client = server.connect().await;
        client.send_get(&format!("/{kind}")).await;
        let reply = client.response(false).await;
        assert_eq!((reply.status, reply.text().as_str()), (500, "Internal Server Error\n"), "{kind}");
        assert_eq!(reply.header("connection"), Some("close"), "{kind}");
        assert!(client.reply().await.head.is_empty());
        let mut http2 = Http2::connect(server.address).await;
        let whole = http2.get(&format!("/{kind}")).await.unwrap();
        assert_eq!((whole.status, &whole.body[..]), (500, &b"Internal Server Error\n"[..]), "{kind}");
        assert_eq!(http2.get("/ping").await.unwrap().body, b"pong");
        notes.count(4).await;
        let mut all = notes.all();
        all.sort_unstable();
        assert_eq!(all, ["continuation", "continuation", "hook: NORMAL, Flushed", "hook: NORMAL, Flushed"], "{kind}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_server_of_ours_the_error_comes_through() {
    for kind in KINDS {
        let notes = Notes::default();
        let request = Request::get(format!("/{kind}")).body(Body::empty()).unwrap();
        let body = app(&notes, None).oneshot(request).await.unwrap().into_body();
        let error = body.collect().await.unwrap_err();
        let expected = if kind == "panics" { "the response's body panicked" } else { "as this test wants it" };
        assert!(error.to_string().contains(expected), "{kind}: {error}");
        settled().await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, BrokenOff"], "{kind}");
    }
}

/// Even if a reader asks on after the error, as some compressors do.
#[tokio::test(start_paused = true)]
async fn a_body_that_has_failed_stays_ended() {
    let notes = Notes::default();
    let request = Request::get("/midway").body(Body::empty()).unwrap();
    let mut body = app(&notes, None).oneshot(request).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
    assert!(body.frame().await.unwrap().is_err());
    for _ in 0..3 {
        assert!(body.frame().await.is_none());
    }
}

/// A body that must not be asked on after its end.
struct Once {
    known: bool,
    ended: bool,
}

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        assert!(!self.ended, "it was asked on after its end");
        self.ended = true;
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        if self.known { SizeHint::with_exact(5) } else { SizeHint::new() }
    }
}

#[tokio::test]
async fn a_body_that_has_ended_stays_ended() {
    for known in [false, true] {
        let app = Router::new().route("/", get(async move || Body::new(Once { known, ended: false })));
        let request = Request::get("/").body(Body::empty()).unwrap();
        let mut body = app.layer(IgnoreAbortLayer::off()).oneshot(request).await.unwrap().into_body();
        for _ in 0..3 {
            assert!(body.frame().await.is_none(), "known: {known}");
        }
    }
}

/// Whatever would come then: no server asks such a body for more. With an empty frame at its end, which is a mark, it has
/// ended as well.
#[tokio::test]
async fn a_body_that_says_that_it_has_ended_is_asked_for_nothing_more() {
    struct Last(&'static [&'static str], bool);

    impl http_body::Body for Last {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let (first, rest) = self.0.split_first().expect("a body is asked for more although it has ended");
            self.0 = rest;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(first.as_bytes())))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            if self.1 { SizeHint::with_exact(self.0.concat().len() as u64) } else { SizeHint::default() }
        }
    }

    for frames in [&["he", "llo"][..], &["hello", ""]] {
        for (sized, early_close) in [(true, false), (true, true), (false, false), (false, true)] {
            let cell = format!("{frames:?}, sized: {sized}, early close: {early_close}");
            let notes = Notes::default();
            let app = Router::new()
                .route("/", get(async move || Body::new(Last(frames, sized))))
                .layer(ShutdownHookLayer::new(told(&notes)));
            let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
            let server = Server::start(app).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            assert_eq!(client.response(false).await.text(), "hello", "{cell}");
            let whole = Http2::connect(server.address).await.get("/").await.unwrap();
            assert_eq!(whole.body, b"hello", "{cell}");
            server.journal.ended(2).await;
            assert_eq!(notes.all(), ["hook: NORMAL, Flushed"; 2], "{cell}");
            assert!(server.stop().await.is_clean());
        }
    }
}
