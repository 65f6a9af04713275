//! Bodies that panic where polled or asked about themselves, and bodies around ours: each costs its own request only.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_epilogue::{Continuation, EarlyCloseLayer, End, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{Leave, told},
    panics::{beside_another, on_http1, waits},
    support::{Gate, Journal, Notes, Server, TellingHook, h2client::Http2, soon, streamed},
};

/// A body whose first frame panics; with a known length it is another one that watches it.
struct Panics {
    known: bool,
}

impl http_body::Body for Panics {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        panic!("the body panics, as this test wants it");
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if self.known { http_body::SizeHint::with_exact(10) } else { http_body::SizeHint::new() }
    }
}

#[tokio::test]
async fn in_a_body_it_is_broken_off() {
    for known in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let app = Router::new()
            .route("/panics", get(async move || Body::new(Panics { known })))
            .layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app.merge(waits(&gate))).await;
        assert_eq!(beside_another(&server, &gate).await, None);
        let reply = server.get("/panics").await;
        assert!(reply.body.is_empty() && reply.header("content-length") != Some("0"), "{reply:?}");
        server.journal.ended(4).await;
        assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"].repeat(2), "known: {known}");
        assert!(server.stop().await.is_clean());
    }
}

/// A body that some middleware outside of our layers has made of ours.
#[tokio::test]
async fn in_a_body_of_another_layer_it_is_broken_off_and_not_the_clients_abort() {
    for known in [false, true] {
        for streams in [false, true] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let body = move || if streams { streamed(&["hel", "lo"]) } else { Body::from("hello") };
            let app = Router::new()
                .route("/panics", get(async move || body()))
                .layer(ShutdownHookLayer::new(told(&notes)))
                .layer(map_response(
                    move |response: Response| async move { response.map(|_| Body::new(Panics { known })) },
                ));
            let server = Server::start(app.merge(waits(&gate))).await;
            assert_eq!(beside_another(&server, &gate).await, None);
            let reply = server.get("/panics").await;
            assert!(reply.body.is_empty() && reply.header("content-length") != Some("0"), "{reply:?}");
            server.journal.ended(4).await;
            assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"].repeat(2), "known: {known}, streams: {streams}");
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn in_a_body_that_is_being_measured_it_is_a_500() {
    for known in [false, true] {
        let gate = Gate::closed();
        let app = Router::new()
            .route("/panics", get(async move || Body::new(Panics { known })))
            .layer(EarlyCloseLayer::new())
            .merge(waits(&gate));
        let server = Server::start(app).await;
        // A known length is declared without asking the body for anything.
        assert_eq!(beside_another(&server, &gate).await, if known { None } else { Some(500) });
        server.journal.ended(3).await;
        assert!(server.stop().await.is_clean());
    }
}

/// A body that panics when it is asked for its length, or whether it has ended.
struct Unmeasurable {
    asked_for_its_end: bool,
}

impl http_body::Body for Unmeasurable {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        assert!(!self.asked_for_its_end, "the body panics, as this test wants it");
        false
    }

    fn size_hint(&self) -> http_body::SizeHint {
        panic!("the body panics, as this test wants it");
    }
}

#[tokio::test]
async fn where_a_body_tells_its_length_it_is_a_500_and_the_continuation_runs() {
    for asked_for_its_end in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        // Not one of axum's handlers, whose router asks by itself.
        let service = tower::service_fn(move |_: Request| {
            let notes = theirs.clone();
            let body = Body::new(Unmeasurable { asked_for_its_end });
            let work = Continuation::new(async move { notes.add("continuation") });
            ready(Ok::<_, Infallible>((work, body).into_response()))
        });
        let service = ShutdownHookLayer::new(told(&notes)).layer(service);
        let server = Server::start(Router::new().route_service("/panics", service).merge(waits(&gate))).await;
        assert_eq!(beside_another(&server, &gate).await, Some(500));
        server.journal.ended(3).await;
        assert_eq!(on_http1(&server).await, 500);
        server.journal.ended(4).await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"].repeat(2));
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn of_a_handler_that_goes_on_without_its_client_continuation_and_hooks_run() {
    for asked_for_its_end in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        // Not one of axum's handlers, whose router asks by itself.
        let service = tower::service_fn(move |request: Request| {
            let (notes, gate) = (theirs.clone(), opens.clone());
            async move {
                let lifecycle = request.extensions().get::<Lifecycle>().unwrap().clone();
                notes.add("begins");
                lifecycle.aborted().await;
                notes.add("aborted");
                gate.passed().await;
                let work = Continuation::new(async move { notes.add("continuation") });
                Ok::<_, Infallible>((work, Body::new(Unmeasurable { asked_for_its_end })).into_response())
            }
        });
        let service = (ShutdownHookLayer::new(told(&notes)), IgnoreAbortLayer::new()).layer(service);
        let server = Server::start(Router::new().route_service("/", service)).await;
        let client = crate::common::Asked::get(&server, Leave::ResetStream).await;
        notes.seen("begins").await;
        let left = client.leave(Leave::ResetStream).await;
        notes.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["begins", "aborted", "continuation", "hook: ABORTED, Aborted"]);
        drop(left);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn of_an_outer_service_it_is_a_500_and_continuation_and_hooks_run() {
    for asked_for_its_end in [false, true] {
        let (notes, journal) = (Notes::default(), Journal::default());
        let theirs = notes.clone();
        let service = tower::service_fn(move |_: Request| {
            let notes = theirs.clone();
            let work = Continuation::new(async move { notes.add("continuation") });
            ready(Ok::<_, Infallible>((work, "whole").into_response()))
        });
        // Outside of our layers, and no router around it.
        let service = ServiceBuilder::new()
            .map_response(move |response: Response| response.map(|_| Body::new(Unmeasurable { asked_for_its_end })))
            .layer(ShutdownHookLayer::new(told(&notes)))
            .service(service);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(journal.epilogue().build().serve(listener, service).into_future());
        // Its connection lives on, and so it is not that which ends the request.
        let mut client = Http2::connect(address).await;
        assert_eq!(client.get("/").await.unwrap().status, 500);
        journal.ended(1).await;
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"]);
        server.abort();
    }
}

/// A body around another one, which is not asked any more once this has panicked.
struct Around {
    inner: Body,
    frames: usize,
}

impl http_body::Body for Around {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        assert!(self.frames > 0, "the body panics, as this test wants it");
        self.frames -= 1;
        Pin::new(&mut self.inner).poll_frame(cx)
    }
}

fn told_of_panics(notes: &Notes) -> ShutdownHookLayer<impl TellingHook> {
    let notes = notes.clone();
    ShutdownHookLayer::new(move |end: End| {
        notes.add(format!("{}, {:?}, {:?}", end.status(), end.sent(), end.panic()));
        ready(())
    })
}

fn around_a_stream(notes: &Notes) -> Router {
    Router::new()
        .route("/", get(async || streamed(&["hel", "lo"])))
        .layer(told_of_panics(notes))
        .layer(map_response(async |response: Response| response.map(|inner| Body::new(Around { inner, frames: 1 }))))
}

const PANICKED: &str = "NORMAL, BrokenOff, Some(\"the body panics, as this test wants it\")";

#[tokio::test]
async fn around_one_of_ours_it_is_broken_off_and_not_the_clients_abort() {
    let notes = Notes::default();
    let server = Server::start(around_a_stream(&notes)).await;
    let reply = server.get("/").await;
    assert!(reply.dechunked().is_none(), "{reply:?}");
    let mut client = Http2::connect(server.address).await;
    assert!(client.get("/").await.unwrap_err().is_reset());
    server.journal.ended(2).await;
    assert_eq!(notes.all(), [PANICKED, PANICKED]);
    assert_eq!(server.epilogue.panicked(), 2);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn around_one_of_ours_it_is_an_error_without_a_server_of_ours() {
    let notes = Notes::default();
    let app = around_a_stream(&notes).layer(IgnoreAbortLayer::off());
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let error = soon("the body fails", response.into_body().collect()).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    notes.count(1).await;
    assert_eq!(notes.all(), [PANICKED]);
}

/// A body that answers so many questions about itself, and panics at the next.
struct Tired {
    frames: u64,
    known: bool,
    answers: AtomicU32,
}

impl Tired {
    fn is_asked(&self) {
        let left = self.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_ok(), "the body panics, as this test wants it");
    }
}

impl http_body::Body for Tired {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let Some(frames) = self.frames.checked_sub(1) else { return Poll::Ready(None) };
        self.frames = frames;
        Poll::Ready(Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(b"hello")))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_asked();
        self.frames == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.is_asked();
        if self.known { http_body::SizeHint::with_exact(5 * self.frames) } else { http_body::SizeHint::new() }
    }
}

/// The server asks, too.
#[tokio::test]
async fn whoever_asks_it_is_told_and_not_the_clients_abort() {
    for (known, answers) in (0..20).flat_map(|answers| [(false, answers), (true, answers)]) {
        let notes = Notes::default();
        let service = tower::service_fn(move |_: Request| {
            ready(Ok::<_, Infallible>(
                Body::new(Tired { frames: 3, known, answers: AtomicU32::new(answers) }).into_response(),
            ))
        });
        let service = told_of_panics(&notes).layer(service);
        let app = Router::new().route_service("/", service).route("/ping", get(async || "pong"));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.count(1).await;
        drop(client);
        let mut client = Http2::connect(server.address).await;
        let _ = client.get("/").await;
        notes.count(2).await;
        assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
        for ended in notes.all() {
            let panicked = "Some(\"the body panics, as this test wants it\")";
            // Where nobody asks so often, or only about what is over, it is whole.
            let whole = ended == "NORMAL, Flushed, None" && answers > 0;
            let told = ended == PANICKED || ended == format!("NORMAL, Flushed, {panicked}");
            assert!(whole || told, "known: {known}, {answers} answers: {ended}");
        }
        assert!(server.stop().await.is_clean());
    }
}
