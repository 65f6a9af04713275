//! Services that fail, that call the inner one twice or not at all, and futures that nobody polls.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer, TrackedIo,
};

use crate::{
    common::{SECOND, settled, told},
    support::{Journal, Notes, Server, h2client::Http2, soon},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service refuses, as this test wants it")
    }
}

impl std::error::Error for Refused {}

fn ask() -> Request {
    Request::new(Body::empty())
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_comes_through_and_the_hooks_run() {
    for waits in [false, true] {
        let notes = Notes::default();
        let service = service_fn(move |_: Request| async move {
            if waits {
                tokio::task::yield_now().await;
            }
            Err::<Response, _>(Refused)
        });
        let layers = (
            EarlyCloseLayer::new(),
            TimeLimitLayer::default(),
            ShutdownHookLayer::new(told(&notes)),
            IgnoreAbortLayer::new(),
        );
        assert_eq!(layers.layer(service).oneshot(ask()).await.unwrap_err(), Refused);
        settled().await;
        assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"], "waits: {waits}");
    }
}

/// The server closes the connection upon it.
#[tokio::test]
async fn an_error_of_the_service_on_a_tracked_connection_is_not_the_clients_abort() {
    let (notes, journal) = (Notes::default(), Journal::default());
    let service = service_fn(async |_: Request<Body>| Err::<Response, _>(Refused));
    let service = ShutdownHookLayer::new(told(&notes)).layer(service);
    let (mut client, io) = tokio::io::duplex(1024);
    let io = TrackedIo::new(io);
    let service = journal.epilogue().build().wrap(&io, service);
    let service = hyper_util::service::TowerToHyperService::new(service);
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(io), service);
    let serving = tokio::spawn(serving);
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    assert!(serving.await.unwrap().is_err());
    journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_future_is_never_polled_ends_when_that_is_dropped() {
    let notes = Notes::default();
    let handled = notes.clone();
    let mut service = ShutdownHookLayer::new(told(&notes)).layer(service_fn(move |_: Request| {
        handled.add("called");
        pending::<Result<Response, Refused>>()
    }));
    let response = service.ready().await.unwrap().call(ask());
    settled().await;
    assert_eq!(notes.all(), ["called"], "as long as it lives it may still be polled");
    drop(response);
    settled().await;
    // Without a tracked connection a dropped future reads as an abort.
    assert_eq!(notes.all(), ["called", "hook: ABORTED, Aborted"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_future_is_never_polled_is_bounded_by_nothing_but_its_drop() {
    let notes = Notes::default();
    let layers = (TimeLimitLayer::new(SECOND), IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes)));
    let mut service = layers.layer(service_fn(|_: Request| pending::<Result<Response, Refused>>()));
    let response = service.ready().await.unwrap().call(ask());
    tokio::time::sleep(10 * SECOND).await;
    assert!(notes.all().is_empty());
    // It had not begun: there is nothing that could go on.
    drop(response);
    settled().await;
    assert_eq!(notes.all().len(), 1);
}

/// How a middleware treats the service inside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treats {
    /// It calls it, and drops the future unpolled.
    CallsAndForgets,
    /// It polls the future once, and answers itself.
    PollsOnce,
    /// It calls it twice, one after the other, and gives the second response.
    CallsTwice,
    /// It calls it twice at once, and gives the response that comes first.
    Races,
    /// It never calls it.
    Answers,
}

#[derive(Clone)]
pub struct Treating<S> {
    inner: S,
    treats: Treats,
}

impl<S> Layer<S> for Treats {
    type Service = Treating<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Treating { inner, treats: *self }
    }
}

fn again(request: &Request) -> Request {
    let mut again = ask();
    *again.extensions_mut() = request.extensions().clone();
    *again.uri_mut() = request.uri().clone();
    again
}

impl<S> Service<Request> for Treating<S>
where
    S: Service<Request, Response = Response, Error: Send, Future: Send + 'static> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (mut inner, treats) = (self.inner.clone(), self.treats);
        Box::pin(async move {
            match treats {
                Treats::CallsAndForgets => {
                    drop(inner.call(request));
                    Ok("own".into_response())
                }
                Treats::PollsOnce => {
                    let mut response = Box::pin(inner.call(request));
                    let polled = futures_util::poll!(&mut response);
                    assert!(polled.is_pending());
                    drop(response);
                    Ok("own".into_response())
                }
                Treats::CallsTwice => {
                    let second = again(&request);
                    inner.call(request).await?;
                    inner.call(second).await
                }
                Treats::Races => {
                    let second = inner.call(again(&request));
                    tokio::select! {
                        first = inner.call(request) => first,
                        second = second => second,
                    }
                }
                Treats::Answers => Ok("own".into_response()),
            }
        })
    }
}

/// However a middleware treats what is inside of it, the request comes to its end.
#[tokio::test]
async fn whatever_a_middleware_does_with_the_inner_service_the_request_ends() {
    for treats in [Treats::CallsAndForgets, Treats::PollsOnce, Treats::CallsTwice, Treats::Races, Treats::Answers] {
        for place in 0..3 {
            let notes = Notes::default();
            let handler = async move |lifecycle: Option<Lifecycle>| {
                assert!(lifecycle.is_some());
                if treats == Treats::PollsOnce {
                    pending::<()>().await;
                }
                tokio::task::yield_now().await;
                "handler"
            };
            let app = Router::new().route("/", get(handler));
            let outer = ShutdownHookLayer::new(told(&notes));
            let (limit, ignore) = (TimeLimitLayer::default(), IgnoreAbortLayer::new());
            let app = match place {
                0 => app.layer((outer, limit, ignore, treats)),
                1 => app.layer((outer, limit, treats, ignore)),
                // One layer of ours alone, inside.
                _ => app.layer((limit, ignore)).layer(treats).layer(outer),
            };
            let server = Server::start(app).await;
            let text = if matches!(treats, Treats::CallsTwice | Treats::Races) { "handler" } else { "own" };
            let what = format!("{treats:?} at {place}");
            assert_eq!(server.get("/").await.text(), text, "{what}");
            let whole = Http2::connect(server.address).await.get("/").await.unwrap();
            assert_eq!(whole.body, text.as_bytes(), "{what}");
            let ended = std::panic::AssertUnwindSafe(server.journal.ended(2));
            let ended = futures_util::FutureExt::catch_unwind(ended).await;
            assert!(ended.is_ok(), "{what}: {:?}", server.journal.events());
            assert_eq!(notes.all(), ["hook: NORMAL, Flushed"].repeat(2), "{what}");
            let report = server.stop().await;
            assert!(report.is_clean(), "{what}: {report}");
        }
    }
}

/// A request is kept, and sent into the service once more after its end.
#[tokio::test(start_paused = true)]
async fn a_request_that_has_ended_can_be_sent_again_and_has_no_hooks_any_more() {
    let notes = Notes::default();
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keeps = kept.clone();
    let handler = service_fn(move |request: Request| {
        *keeps.lock().unwrap() = Some(again(&request));
        std::future::ready(Ok::<_, Refused>("hello".into_response()))
    });
    let mut service = (ShutdownHookLayer::new(told(&notes)), IgnoreAbortLayer::new()).layer(handler);
    for _ in 0..2 {
        let request = kept.lock().unwrap().take().unwrap_or_else(ask);
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        settled().await;
    }
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
}

#[tokio::test(start_paused = true)]
async fn a_continuation_of_a_request_that_was_sent_again_after_its_end_runs_on_its_own() {
    let notes = Notes::default();
    let kept = Arc::new(std::sync::Mutex::new(None));
    let (keeps, theirs) = (kept.clone(), notes.clone());
    let handler = service_fn(move |request: Request| {
        *keeps.lock().unwrap() = Some(again(&request));
        let notes = theirs.clone();
        let response = (Continuation::new(async move { notes.add("continuation") }), "hello").into_response();
        std::future::ready(Ok::<_, Refused>(response))
    });
    let mut service = IgnoreAbortLayer::new().layer(handler);
    for _ in 0..2 {
        let request = kept.lock().unwrap().take().unwrap_or_else(ask);
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        settled().await;
    }
    assert_eq!(notes.all(), ["continuation", "continuation"]);
}

/// An `Epilogue` that serves nothing, and one that is dropped while it serves.
#[tokio::test]
async fn an_epilogue_may_be_dropped_before_its_requests() {
    let notes = Notes::default();
    let app = Router::new().route("/", get(async || "hello")).layer(ShutdownHookLayer::new(told(&notes)));
    drop(Epilogue::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let epilogue = Epilogue::new();
    let server = tokio::spawn(epilogue.serve(listener, app).into_future());
    drop(epilogue);
    assert_eq!(Http2::connect(address).await.get("/").await.unwrap().body, b"hello");
    notes.count(1).await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    server.abort();
}

/// Of a successful CONNECT it is never sent (RFC 9110, section 9.3.6). axum takes it off by itself.
#[tokio::test]
async fn a_body_of_a_tunnel_is_not_sent_and_is_no_abort() {
    for body in ["established", ""] {
        let (notes, journal) = (Notes::default(), Journal::default());
        let app = service_fn(async move |_: Request| Ok::<_, Infallible>(body.into_response()));
        let app = ShutdownHookLayer::new(told(&notes)).layer(app);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(journal.epilogue().build().serve(listener, app).into_future());

        let (send, connection) =
            h2::client::handshake(tokio::net::TcpStream::connect(address).await.unwrap()).await.unwrap();
        tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        // An ordinary request, so that the server's settings have come (RFC 8441, section 3).
        let first = send.send_request(http::Request::get("http://test/").body(()).unwrap(), true).unwrap().0;
        assert_eq!(soon("the first response", first).await.unwrap().status(), 200);
        assert!(send.is_extended_connect_protocol_enabled());
        let mut request = http::Request::connect("http://test/").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (tunnel, _upload) = send.ready().await.unwrap().send_request(request, false).unwrap();
        assert_eq!(soon("the tunnel", tunnel).await.unwrap().status(), 200);
        journal.ended(2).await;
        assert_eq!(notes.all(), ["hook: NORMAL, Flushed", "hook: NORMAL, Flushed"], "{body:?}");
    }
}
