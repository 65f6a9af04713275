//! Runs a handler repeatedly, each time with a client that leaves at another of its await points.

use std::{
    convert::Infallible,
    future::Future,
    panic::Location,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use axum::Router;
use axum_core::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tower_layer::Layer;
use tower_service::Service;

use super::{Leave, Line, Story, TestServer, TestServerBuilder};
use crate::{Epilogue, lifecycle::Lifecycle};

/// No handler has so many await points: it polls itself in a circle.
const MOST: usize = 10_000;

/// Tests a handler's cancel safety: runs `turn` once undisturbed, and then once for each await point of the handler,
/// with a client that leaves there. Returns the number of await points.
///
/// An await point is a moment at which the handler, or the producer of its response body, waits: only there is it
/// dropped when its client leaves (contract rule 4). What the handler has left half done then shows in what `turn`
/// asserts after its request: build the app and its state anew in each turn, send one request through the
/// [`Interrupted`] server, and check the state. If aborts are ignored (by a layer, the handle, or a
/// [`Shield`](crate::Shield)), the handler goes on from there, as it would in production.
///
/// An `.await` that is ready at once is not an await point: the handler cannot be dropped there. If it may wait in
/// production, make it wait in the test. After [`finish`](Lifecycle::finish) there are no more points.
///
/// So assert the number: if it is zero, nobody left, and the assertions of `turn` saw only an undisturbed request. A
/// request that never reaches the handler, because of a wrong path or content type for example, has none.
///
/// The server is in memory, so time may be paused.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::sync::{Arc, Mutex};
///
/// use axum::{Router, routing::post};
/// use tower_epilogue::{Lifecycle, test_util::every_await_point};
///
/// #[derive(Default)]
/// struct Accounts { from: Mutex<i64>, to: Mutex<i64> }
///
/// async fn transfer(accounts: Arc<Accounts>, lifecycle: Lifecycle) {
///     let _shield = lifecycle.shield(); // Without this, money is lost between the two.
///     *accounts.from.lock().unwrap() -= 10;
///     tokio::task::yield_now().await; // … the database.
///     *accounts.to.lock().unwrap() += 10;
/// }
///
/// let points = every_await_point(async |server| {
///     let accounts = Arc::new(Accounts::default());
///     let theirs = accounts.clone();
///     let app = Router::new().route("/", post(move |lifecycle| transfer(theirs, lifecycle)));
///     server.post(app, "/", "").await;
///     assert_eq!(*accounts.from.lock().unwrap() + *accounts.to.lock().unwrap(), 0);
/// })
/// .await;
/// assert_eq!(points, 1);
/// # }
/// ```
///
/// # Panics
///
/// If `turn` panics; the number of the await point is printed first. If a handler has more than 10,000 await points.
pub async fn every_await_point<F>(turn: F) -> usize
where
    F: AsyncFn(Interrupted),
{
    let points = take_turn(&turn, None).await;
    for point in 0..points {
        take_turn(&turn, Some(point)).await;
    }
    points
}

/// How many points there were.
async fn take_turn<F>(turn: &F, point: Option<usize>) -> usize
where
    F: AsyncFn(Interrupted),
{
    let points = Arc::new(Points { point, seen: AtomicUsize::new(0), reached: Notify::new() });
    let told = TellsWhere(point);
    turn(Interrupted { points: points.clone() }).await;
    drop(told);
    let seen = points.seen.load(Ordering::Acquire);
    assert!(seen <= MOST, "the handler has more than {MOST} await points");
    seen
}

/// Says at which point a turn failed.
struct TellsWhere(Option<usize>);

impl Drop for TellsWhere {
    #[expect(clippy::print_stderr, reason = "it belongs to the message of a test that fails, which goes there")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            match self.0 {
                Some(point) => eprintln!("the client left at await point {point} (from 0) of the handler"),
                None => eprintln!("no client left: the handler was not disturbed"),
            }
        }
    }
}

/// One turn of [`every_await_point`]: a server whose client leaves at one await point.
#[derive(Debug)]
pub struct Interrupted {
    points: Arc<Points>,
}

impl Interrupted {
    /// The await point at which the client leaves, from 0; `None` in the turn in which it stays. It also stays if a
    /// turn reaches fewer points than that.
    #[must_use]
    pub fn point(&self) -> Option<usize> {
        self.points.point
    }

    /// Serves `app`, sends a GET for `path`, and waits until everything has [settled](TestServer::settled). Returns
    /// what happened.
    #[track_caller]
    pub fn get(&self, app: Router, path: &str) -> impl Future<Output = Story> {
        self.send(app, format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"))
    }

    /// The same with a POST of `body`, without a `Content-Type`.
    #[track_caller]
    pub fn post(&self, app: Router, path: &str, body: &str) -> impl Future<Output = Story> {
        let length = body.len();
        self.send(app, format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    /// The same with any request, head and body, as the bytes of HTTP/1.1: see
    /// [`request_bytes`](super::request_bytes).
    ///
    /// # Panics
    ///
    /// If there is no response, or the server does not settle, within the
    /// [patience](super::TestServerBuilder::patience); if `request` is not a valid request.
    #[track_caller]
    pub fn send(&self, app: Router, request: impl AsRef<[u8]>) -> impl Future<Output = Story> {
        self.send_from(Location::caller(), TestServer::builder(), async |_: &_| app, request)
    }

    /// The same on a server with settings of your own, for an app that is made from its [`Epilogue`]: with bounds, or
    /// with a store of durable jobs, whose attempts have stories of their own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use axum::{Router, routing::get};
    /// use tower_epilogue::test_util::{TestServer, every_await_point};
    ///
    /// let points = every_await_point(async |server| {
    ///     let builder = TestServer::builder().epilogue(|epilogue| epilogue.max_running(1));
    ///     let app = async |_: &_| Router::new().route("/", get(tokio::task::yield_now));
    ///     server.send_to(builder, app, "GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    /// })
    /// .await;
    /// assert_eq!(points, 1);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// As [`send`](Self::send) does.
    #[track_caller]
    pub fn send_to(
        &self,
        builder: TestServerBuilder,
        app: impl AsyncFnOnce(&Epilogue) -> Router,
        request: impl AsRef<[u8]>,
    ) -> impl Future<Output = Story> {
        self.send_from(Location::caller(), builder, app, request)
    }

    async fn send_from(
        &self,
        line: Line,
        builder: TestServerBuilder,
        app: impl AsyncFnOnce(&Epilogue) -> Router,
        request: impl AsRef<[u8]>,
    ) -> Story {
        let points = PointsLayer(self.points.clone());
        let server = builder.in_memory_with(async |epilogue| app(epilogue).await.layer(points)).await;
        let mut client = server.connect().await;
        let bodiless = [&b"HEAD "[..], b"CONNECT "].iter().any(|method| request.as_ref().starts_with(method));
        let exchange = async {
            client.send_from(line, request).await;
            loop {
                let response = client.read_response(line, bodiless).await;
                // That to `Expect: 100-continue` comes before the one that the request ends with.
                if !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS {
                    return response;
                }
            }
        };
        let answered = tokio::select! {
            biased;
            // Maybe before a long request was sent: it is the handler that has the server take the rest of it.
            () = self.points.reached.notified() => None,
            response = exchange => Some(response),
        };
        client.leave(Leave::Close).await;
        server.settled_from(line).await;
        // What jobs there are beside it, of this turn or of one before, is not what was asked for.
        match server.journal().stories().into_iter().rfind(|story| !story.is_job()) {
            Some(story) => story,
            None => panic!(
                "no request has begun: what was sent is none to the server\n  in the test at {line}; \
                 it was answered with {answered:#?}"
            ),
        }
    }
}

/// Counts the await points of one turn.
#[derive(Debug)]
struct Points {
    point: Option<usize>,
    seen: AtomicUsize,
    reached: Notify,
}

impl Points {
    /// The handler waits; whether this is the point to leave at.
    fn passes(&self) -> bool {
        let reached = Some(self.seen.fetch_add(1, Ordering::AcqRel)) == self.point;
        if reached {
            self.reached.notify_one();
        }
        reached
    }
}

/// Tells polls that the handler asked for from those that came about otherwise (its server looked at the connection,
/// for example): they find it where it was.
struct Woken {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Stops a handler at one point, until its request knows that the client has left.
struct Stop {
    points: Arc<Points>,
    lifecycle: Lifecycle,
    woken: Arc<Woken>,
    standing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Stop {
    fn new(points: Arc<Points>, lifecycle: Lifecycle) -> Self {
        let woken = Arc::new(Woken { woken: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { points, lifecycle, woken, standing: None }
    }

    /// Polls what is inside, unless that stands at the point.
    fn poll<T>(&mut self, cx: &mut Context<'_>, inner: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if let Some(standing) = &mut self.standing {
            if standing.as_mut().poll(cx).is_pending() || self.lifecycle.0.verdict().is_some() {
                // Dropped right here, without one more poll.
                return Poll::Pending;
            }
            self.standing = None;
        }
        self.woken.task.register(cx.waker());
        let was_woken = self.woken.woken.swap(false, Ordering::AcqRel);
        let polled = inner(&mut Context::from_waker(&Waker::from(self.woken.clone())));
        if polled.is_ready() {
            // What is polled next, the body or its next frame, was not polled before.
            self.woken.woken.store(true, Ordering::Release);
        }
        // After `finish` no abort drops it.
        if polled.is_pending() && was_woken && !self.lifecycle.0.is_finished() && self.points.passes() {
            let lifecycle = self.lifecycle.clone();
            let mut standing: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(async move { lifecycle.aborted().await });
            if standing.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            self.standing = Some(standing);
        }
        polled
    }
}

#[derive(Clone)]
struct PointsLayer(Arc<Points>);

impl<S> Layer<S> for PointsLayer {
    type Service = PointsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PointsService { inner, points: self.0.clone() }
    }
}

#[derive(Clone)]
struct PointsService<S> {
    inner: S,
    points: Arc<Points>,
}

impl<S> Service<Request> for PointsService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = PointsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let lifecycle = request.extensions().get::<Lifecycle>().cloned();
        let points = self.points.clone();
        let stop = lifecycle.map(|lifecycle| Stop::new(points, lifecycle));
        PointsFuture { inner: self.inner.call(request), stop }
    }
}

pin_project! {
    struct PointsFuture<F> {
        #[pin]
        inner: F,
        // There until the response is.
        stop: Option<Stop>,
    }
}

impl<F> Future for PointsFuture<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(stop) = this.stop else { return this.inner.poll(cx) };
        let inner = this.inner;
        let polled = stop.poll(cx, |cx| inner.poll(cx));
        polled.map_ok(|response| match this.stop.take() {
            Some(stop) => response.map(|inner| Body::new(PointsBody { inner, stop })),
            None => response,
        })
    }
}

struct PointsBody {
    inner: Body,
    stop: Stop,
}

impl http_body::Body for PointsBody {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Self { inner, stop } = &mut *self;
        stop.poll(cx, |cx| Pin::new(inner).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
