//! Middleware that calls the service inside of it and then does something else first, before it polls what it was given.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
};
use tower::{Layer, Service, service_fn};
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SHORT, told},
    support::{Client, Gate, Journal, Notes, Server, h2client::Http2},
};

/// Calls `inner` at once, and has `between` do with its future what it likes.
#[derive(Clone)]
struct Between<S, F> {
    inner: S,
    between: F,
}

impl<S, F, Fut> Service<Request> for Between<S, F>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    F: Fn(Lifecycle, S::Future) -> Fut,
    Fut: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let lifecycle = request.extensions().get::<Lifecycle>().unwrap().clone();
        let inner = self.inner.call(request);
        Box::pin((self.between)(lifecycle, inner))
    }
}

#[tokio::test]
async fn what_it_gives_to_finish_leaves_and_the_rest_goes_on() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let handled = notes.clone();
    let inner = service_fn(move |_: Request| {
        handled.add("handler");
        let notes = handled.clone();
        async move {
            notes.add("polled");
            Ok::<_, Infallible>("never seen".into_response())
        }
    });
    let (finishes, passes) = (notes.clone(), gate.clone());
    let between = move |lifecycle: Lifecycle, inner| {
        let (notes, gate) = (finishes.clone(), passes.clone());
        async move {
            let sent = lifecycle.finish("early").await;
            notes.add(format!("finished: {:?}", sent.unwrap()));
            gate.passed().await;
            inner.await
        }
    };
    let service = Between { inner: IgnoreAbortLayer::off().layer(inner), between };
    let app = Router::new().route_service("/", service).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "early");
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["handler", "finished: Flushed", "polled", "hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn it_runs_on_where_aborts_are_ignored() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let handled = notes.clone();
        let inner = service_fn(move |_: Request| {
            let notes = handled.clone();
            async move {
                notes.add("handler");
                Ok::<_, Infallible>("for nobody".into_response())
            }
        });
        let (begins, passes) = (notes.clone(), gate.clone());
        let between = move |lifecycle: Lifecycle, inner| {
            let (notes, gate) = (begins.clone(), passes.clone());
            async move {
                notes.add("before");
                lifecycle.aborted().await;
                notes.add("aborted");
                gate.passed().await;
                inner.await
            }
        };
        let service = Between { inner: IgnoreAbortLayer::new().layer(inner), between };
        let app = Router::new().route_service("/", service).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("before").await;
        let left = client.leave(leave).await;
        notes.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        // One that only closed its side may still be served.
        let all = notes.all();
        assert_eq!(all[..3], ["before", "aborted", "handler"], "{leave:?}");
        assert!(all.len() == 4 && all[3].starts_with("hook: ABORTED"), "{leave:?}: {all:?}");
        drop(left);
        assert!(server.stop().await.is_clean());
    }
}

/// Panics when it is dropped, unless something panics already.
struct Bomb(Notes);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.add("dropped");
        assert!(std::thread::panicking(), "the destructor panics, as this test wants it");
    }
}

async fn serve<S>(journal: &Journal, app: S) -> SocketAddr
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static> + Clone + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(journal.epilogue().build().serve(listener, app).into_future());
    address
}

/// It keeps the answer of the service inside to itself, so the outermost one answers at the limit, and drops it.
#[tokio::test]
async fn a_panic_of_its_destructor_at_the_limit_costs_nobody_the_answer() {
    for http2 in [false, true] {
        let (notes, journal) = (Notes::default(), Journal::default());
        let theirs = notes.clone();
        let between = move |_: Lifecycle, inner| {
            let bomb = Bomb(theirs.clone());
            async move {
                let _bomb = bomb;
                let _answer = inner.await;
                pending().await
            }
        };
        let inner = service_fn(|_: Request| pending::<Result<Response, Infallible>>());
        let service = Between { inner: TimeLimitLayer::new(SHORT).layer(inner), between };
        // With no router around it, whose future is the handler's.
        let address = serve(&journal, ShutdownHookLayer::new(told(&notes)).layer(service)).await;
        let status = if http2 {
            Http2::connect(address).await.get("/").await.unwrap().status
        } else {
            let mut client = Client::connect(address).await;
            client.send_get("/").await;
            client.response(false).await.status
        };
        assert_eq!(status, 503);
        journal.ended(1).await;
        assert_eq!(notes.all(), ["dropped", "hook: TIMEOUT, Flushed"]);
    }
}

/// A request that waits for the app to be ready for it has been sent: its client does not idle.
#[tokio::test]
async fn a_queue_in_front_of_the_app_is_no_idling() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (begins, opens) = (notes.clone(), gate.clone());
    let app = Router::new().route(
        "/",
        axum::routing::get(async move || {
            begins.add("begins");
            opens.passed().await;
            "served"
        }),
    );
    let app = tower::ServiceBuilder::new().concurrency_limit(1).service(app);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let idle = Duration::from_millis(50);
    let epilogue = tower_epilogue::Epilogue::builder().header_read_timeout(idle).build();
    tokio::spawn(epilogue.serve(listener, app).into_future());
    let (mut first, mut second, mut idles) =
        (Client::connect(address).await, Client::connect(address).await, Client::connect(address).await);
    first.send_get("/").await;
    notes.seen("begins").await;
    second.send_get("/").await;
    // By then the limit is over for the second as well: its timer is as old.
    assert!(idles.reply().await.head.is_empty());
    gate.open();
    assert_eq!(first.response(false).await.text(), "served");
    assert_eq!(second.response(false).await.text(), "served");
    // And from then on it does.
    assert!(second.reply().await.head.is_empty());
}
