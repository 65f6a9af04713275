//! A middleware around our service, where HTTP/2's short last piece takes the end of its stream along.

use std::{convert::Infallible, io, time::Duration};

use axum::{BoxError, Router, body::Body, http::Request, response::Response, routing::get};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tower::{Layer as _, ServiceExt};
use tower_epilogue::{Continuation, Epilogue, TrackedIo};
use tower_http::timeout::ResponseBodyTimeoutLayer;

use crate::{
    last_piece::app,
    support::{
        Gate, Journal, Notes,
        h2client::{self, Http2},
        soon,
    },
};

type Wrapped = tower_epilogue::Service<Router>;

const SECOND: Duration = Duration::from_secs(1);

/// Serves one connection with what `make` makes of our service.
fn serve_one<S, B>(
    listener: TcpListener,
    epilogue: &Epilogue,
    app: Router,
    make: impl FnOnce(Wrapped) -> S + Send + 'static,
) -> JoinHandle<()>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let epilogue = epilogue.clone();
    tokio::spawn(async move {
        let io = TrackedIo::new(listener.accept().await.unwrap().0);
        let service = TowerToHyperService::new(make(epilogue.wrap(&io, app)));
        let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
    })
}

/// As one of tower-http does. h2 allows its server so many empty frames in the life of a connection that end nothing.
#[tokio::test]
async fn a_middleware_that_does_not_tell_of_the_end_costs_no_connection() {
    let journal = Journal::default();
    let epilogue = journal.epilogue().build();
    let stream = async || Body::from_stream(stream::iter([Ok::<_, io::Error>("so much")]));
    let app = Router::new()
        .route("/small", get(async || "small"))
        .route("/large", get(async || vec![b'x'; 20_000]))
        .route("/stream", get(stream));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = serve_one(listener, &epilogue, app, |service| ResponseBodyTimeoutLayer::new(SECOND).layer(service));
    let mut client = Http2::connect(address).await;
    for number in 0..50 {
        for (path, length) in [("/small", 5), ("/large", 20_000), ("/stream", 7)] {
            let whole = client.get(path).await.unwrap_or_else(|error| panic!("{number}, {path}: {error:?}"));
            assert_eq!(whole.body.len(), length);
        }
    }
    journal.ended(150).await;
    let lines = journal.requests().into_iter().map(|request| journal.lines_of(request));
    for lines in lines {
        assert!(lines.iter().any(|line| line.starts_with("flushed")), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/0");
    }
    client.abort();
    soon("the connection ends", server).await.unwrap();
}

/// It wants all of a body before it hands anything on, and hands that on as it is: what it holds has not left.
#[tokio::test]
async fn a_middleware_that_collects_gets_all_of_it() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let journal = Journal::default();
    let epilogue = journal.epilogue().build();
    let app = app(&notes).route("/more", get(async || (Continuation::new(async {}), vec![b'x'; 20_000])));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (passed, collected) = (gate.clone(), Gate::closed());
    let held = collected.clone();
    let server = serve_one(listener, &epilogue, app, move |service| {
        ServiceExt::<Request<Incoming>>::and_then(service, async move |response: Response| {
            let (parts, body) = response.into_parts();
            let frames = collect(body).await;
            held.open();
            passed.passed().await;
            let frames = frames.into_iter().map(Ok::<_, io::Error>);
            Ok::<_, Infallible>(Response::from_parts(parts, Body::from_stream(stream::iter(frames))))
        })
    });
    let mut client = Http2::connect(address).await;
    for (number, (path, length)) in [("/", 5), ("/more", 20_000)].into_iter().enumerate() {
        let response = client.start("GET", path).await;
        if number == 0 {
            soon("it has all of it", collected.passed()).await;
            assert!(notes.all().is_empty() && journal.requests().len() == 1);
            gate.open();
        }
        let read = async { h2client::read(response.await.unwrap()).await.unwrap() };
        assert_eq!(soon(path, read).await.body.len(), length);
        journal.ended(number + 1).await;
    }
    for lines in journal.requests().into_iter().map(|request| journal.lines_of(request)) {
        assert!(lines.iter().any(|line| line.starts_with("flushed")), "{lines:?}");
    }
    client.abort();
    soon("the connection ends", server).await.unwrap();
}

async fn collect(mut body: Body) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(frame) = soon("a frame", body.frame()).await {
        frames.extend(frame.unwrap().into_data());
    }
    frames
}

/// As one that puts something at the end of a page: what comes before it may be on its way.
#[tokio::test]
async fn a_middleware_that_changes_the_last_piece_alone_takes_nothing_back() {
    for size in [100, 16_384 + 100, 5 * 16_384 + 100] {
        let journal = Journal::default();
        let epilogue = journal.epilogue().build();
        let app = Router::new().route("/", get(async move || vec![b'x'; size]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve_one(listener, &epilogue, app, |service| {
            let changed = |data: Bytes| if data.len() < 256 { Bytes::copy_from_slice(&data) } else { data };
            ServiceExt::<Request<Incoming>>::map_response(service, move |response: Response| {
                response.map(|body| Body::new(body.map_frame(move |frame| frame.map_data(changed))))
            })
        });
        let mut client = Http2::connect(address).await;
        assert_eq!(client.get("/").await.unwrap().body.len(), size);
        journal.ended(1).await;
        assert_eq!(journal.lines().last().unwrap(), "ended/0", "{size}: {:?}", journal.lines());
        client.abort();
        soon("the connection ends", server).await.unwrap();
    }
}
