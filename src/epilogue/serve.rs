//! The accept loop, and the drain that ends it.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, IntoFuture, pending},
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::serve::Listener;
use axum_core::body::Body;
use http::Request;
use tokio_util::task::TaskTracker;

use super::{
    Epilogue,
    drain::{Serving, drain},
    make_service::MakeService,
    open::OpenConnections,
    report::DrainReport,
    serve_one::{Streams, looked, serve_one},
};
use crate::{
    connection::{Asked, TrackedIo, Tracking},
    lifecycle::SendBody,
    pool::{Pool, caught, panic_message},
};

impl Epilogue {
    /// Serves `app` on every connection of `listener`, over HTTP/1 and HTTP/2 (with prior knowledge), with upgrades.
    ///
    /// `listener` is a [`tokio::net::TcpListener`], a [`tokio::net::UnixListener`], or any other
    /// [`axum::serve::Listener`]. `app` is an `axum::Router` (not `into_make_service()`), or any service of requests
    /// with axum's body. Requests carry [`ConnectInfo`](axum::extract::ConnectInfo) with the listener's address type.
    ///
    /// Await it, with [`with_signals`](Serve::with_signals) or
    /// [`with_graceful_shutdown`](Serve::with_graceful_shutdown) to have it drain when the process is asked to stop;
    /// without either it serves for ever.
    ///
    /// A [`TrackedListener`](crate::TrackedListener) is for `axum::serve`: here it adds nothing, and the settings of
    /// the [builder](crate::EpilogueBuilder::tracking) override its own.
    ///
    /// ```no_run
    /// use axum::{Router, routing::get};
    /// use tower_epilogue::{EarlyCloseLayer, Epilogue};
    ///
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// let app = Router::new().route("/", get(|| async { "hello" })).layer(EarlyCloseLayer::new());
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// Epilogue::new()
    ///     .serve(listener, app)
    ///     .with_signals() // Ctrl-C or SIGTERM drains, a second one cuts
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Several servers
    ///
    /// Several servers may share one `Epilogue`: its bounds, its counts, and its drain. When one of them drains, it
    /// waits for the continuations and hooks of all of them, and cuts them at its deadline. A server that should stop
    /// while another goes on needs an `Epilogue` of its own.
    ///
    /// # Over TLS
    ///
    /// The listener may return TLS streams. Its `accept` must not wait for their handshakes one after the other: a
    /// client that never completes its handshake would keep all others out. For a stream that is not a socket, only
    /// what its reads and writes report is seen, and no socket timeouts are set; a
    /// [`TrackedSocket`](crate::TrackedSocket) below it sets them. To have the socket watched as well, write your own
    /// accept loop, as the example `tls` does.
    ///
    /// # Differences from `axum::serve`
    ///
    /// `app` is the router itself: neither `into_make_service()` nor `into_make_service_with_connect_info()`.
    ///
    /// Every connection is tracked. With a graceful shutdown, it returns when the connections *and* the continuations
    /// and hooks have ended, or at a [deadline](crate::EpilogueBuilder::drain_deadline), with a
    /// [report](crate::DrainReport) of what it had to cut. A client that is slow to send a request's
    /// head, or does not answer HTTP/2 pings, is disconnected; see the settings of
    /// [`EpilogueBuilder`](crate::EpilogueBuilder).
    pub fn serve<L, S, B>(&self, listener: L, app: S) -> Serve<L, S>
    where
        // Those that awaiting it needs, so that an app which cannot be served is an error here.
        L: Listener,
        L::Addr: Clone + Sync + 'static,
        S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: SendBody,
    {
        Serve { listener, app, epilogue: self.clone(), open: Arc::default() }
    }
}

/// What `axum::serve` leaves off or to hyper's defaults.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) tracking: Tracking,
    pub(super) header_read: Option<Duration>,
    pub(super) http2_ping: Option<Duration>,
    pub(super) http2_pong: Duration,
    pub(super) http2_streams: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tracking: Tracking::default(),
            header_read: Some(Duration::from_secs(30)),
            http2_ping: Some(Duration::from_secs(30)),
            http2_pong: Duration::from_secs(20),
            http2_streams: 200,
        }
    }
}

/// A server that runs for ever. Made by [`Epilogue::serve`]; await it, or give it a graceful shutdown first.
///
/// # Errors
///
/// None at present: the listener retries after errors of `accept`, as with `axum::serve`.
///
/// # Cancel safety
///
/// If its future is dropped, no new connection is accepted, open connections finish their requests, and continuations
/// run on; but nothing waits for them. [`Epilogue::drain`] does.
#[must_use = "a server does nothing until it is awaited"]
pub struct Serve<L, S> {
    listener: L,
    app: S,
    epilogue: Epilogue,
    open: Arc<OpenConnections>,
}

impl<L, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

impl<L: Listener, S> Serve<L, S> {
    /// Shuts down gracefully (drains) when `signal` completes: no new connection is accepted, open connections finish
    /// their requests, and the server returns when they, the continuations and the hooks have ended.
    ///
    /// At the [deadline](crate::EpilogueBuilder::drain_deadline), 30 s by default, what is left is cut with status
    /// TIMEOUT, its hooks run, and the [report](crate::DrainReport) names it.
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, S, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown { serve: self, signal, cut: Box::pin(pending()) }
    }

    /// The server's connections, for a harness that waits until all is over.
    #[cfg(feature = "test-util")]
    pub(crate) fn open(&self) -> Arc<OpenConnections> {
        self.open.clone()
    }

    /// The address that the listener is bound to.
    ///
    /// # Errors
    ///
    /// Those of the listener.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A server with a graceful shutdown. Made by [`Serve::with_graceful_shutdown`]; await it for its
/// [`DrainReport`](crate::DrainReport). Errors and cancel safety are those of [`Serve`].
#[must_use = "a server does nothing until it is awaited"]
pub struct WithGracefulShutdown<L, S, F> {
    serve: Serve<L, S>,
    signal: F,
    cut: Signal,
}

/// Something that is waited for, and need not come.
type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<L, S, F> WithGracefulShutdown<L, S, F> {
    /// Cuts the drain short when `signal` completes: what is left is cut at once, as if the deadline had passed.
    ///
    /// `signal` is first polled when the drain begins, so a [`shutdown_signal`](crate::shutdown_signal) here is the
    /// second signal.
    pub fn cut_on<C>(mut self, signal: C) -> Self
    where
        C: Future<Output = ()> + Send + 'static,
    {
        self.cut = Box::pin(signal);
        self
    }
}

impl<L, S, F> fmt::Debug for WithGracefulShutdown<L, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithGracefulShutdown").finish_non_exhaustive()
    }
}

/// A boxed server.
type Running = Pin<Box<dyn Future<Output = io::Result<DrainReport>> + Send>>;

impl<L, S, B> IntoFuture for Serve<L, S>
where
    L: Listener,
    L::Addr: Clone + Sync + 'static,
    S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: SendBody,
{
    type Output = io::Result<DrainReport>;
    type IntoFuture = Running;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Server::new(&self).run(self, pending(), Box::pin(pending())))
    }
}

impl<L, S, B, F> IntoFuture for WithGracefulShutdown<L, S, F>
where
    L: Listener,
    L::Addr: Clone + Sync + 'static,
    S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: SendBody,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = io::Result<DrainReport>;
    type IntoFuture = Running;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Server::new(&self.serve).run(self.serve, self.signal, self.cut))
    }
}

/// The most connections that wait for a server in its system: Linux's default of `net.core.somaxconn`.
const BACKLOG: usize = 4096;

/// The connections of one server.
struct Server {
    pool: Arc<Pool>,
    settings: Settings,
    connections: TaskTracker,
    open: Arc<OpenConnections>,
}

/// Stops the connections also when the server's future is dropped: they finish what they are at.
struct StopOnDrop(Arc<OpenConnections>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.ask(Asked::Finish);
    }
}

impl Server {
    fn new<L, S>(serve: &Serve<L, S>) -> Self {
        Self {
            pool: serve.epilogue.pool.clone(),
            settings: serve.epilogue.server.clone(),
            connections: TaskTracker::new(),
            open: serve.open.clone(),
        }
    }

    async fn run<L, S, B>(
        self,
        Serve { mut listener, app, epilogue, .. }: Serve<L, S>,
        signal: impl Future<Output = ()>,
        cut: Signal,
    ) -> io::Result<DrainReport>
    where
        L: Listener,
        L::Addr: Clone + Sync + 'static,
        S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: SendBody,
    {
        let _stop = StopOnDrop(self.open.clone());
        let make_service = epilogue.make_service(app);
        let mut signal = pin!(signal);
        loop {
            tokio::select! {
                (io, address) = listener.accept() => {
                    self.accept(TrackedIo::with(io, &self.settings.tracking), address, &make_service);
                }
                () = &mut signal => break,
            }
        }
        // To those that the system has accepted by now it would send a reset.
        let mut looked = pin!(looked());
        for _ in 0..BACKLOG {
            tokio::select! {
                biased;
                (io, address) = listener.accept() => {
                    self.accept(TrackedIo::with(io, &self.settings.tracking), address, &make_service);
                }
                () = &mut looked => break,
            }
        }
        // Closed before the drain, so that nobody connects to a server that does not serve.
        drop(listener);
        Ok(self.drain(cut).await)
    }

    fn accept<IO, A, S, B>(&self, io: TrackedIo<IO>, address: A, make_service: &MakeService<S>)
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        A: Clone + Send + Sync + 'static,
        S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: SendBody,
    {
        let connection = io.connection().clone();
        // Of all that are accepted, whatever becomes of them: a harness counts on it.
        let open = self.open.insert(connection.clone());
        // The app is cloned, which is the user's code, and here it is the server's task that it runs in.
        let service = match caught::call(|| make_service.for_connection(connection, Some(address))) {
            Ok(service) => service,
            Err(payload) => {
                self.pool.count_panic();
                let panic = panic_message(&*payload);
                caught::tell(|| {
                    tracing::error!(
                        panic,
                        "the app panicked when it was cloned for a connection: the connection is closed"
                    );
                });
                return caught::dispose(payload);
            }
        };
        let (settings, streams) = (self.settings.clone(), Streams(self.connections.clone()));
        // In a box: a task's own memory is aligned to more than glibc finds again where the last such was, so that the
        // holes that connections leave between their continuations would stay.
        self.connections.spawn(Box::pin(async move {
            let _open = open;
            serve_one(io, service, settings, streams).await;
        }));
    }

    async fn drain(&self, cut: Signal) -> DrainReport {
        self.open.ask(Asked::Finish);
        self.connections.close();
        let serving = Serving {
            tasks: &self.connections,
            open: &|| self.open.len(),
            in_flight: &|| self.open.in_flight(),
            close: &|| self.open.ask(Asked::Close),
        };
        let cut = async {
            cut.await;
            self.pool.cut.notify_waiters();
            pending::<Infallible>().await
        };
        let report = tokio::select! {
            // The drain first: it has to listen when it is cut.
            biased;
            report = drain(&self.pool, Some(serving)) => report,
            never = cut => match never {},
        };
        self.open.ask(Asked::End);
        report
    }
}
