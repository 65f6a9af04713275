//! The accept loop, and the drain that ends it.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    future::{Future, IntoFuture, pending},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::serve::Listener;
use axum_core::body::Body;
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Epilogue,
    make_service::{MakeService, Service},
    report::{DrainReport, Straggler},
};
use crate::{
    connection::{Connection, TrackedIo},
    lifecycle::SendBody,
    pool::{Pool, lock},
};

impl Epilogue {
    /// Serves `app` on every connection of `listener`, HTTP/1 and HTTP/2 (with prior knowledge), with upgrades.
    ///
    /// `listener` is a [`tokio::net::TcpListener`], a Unix one, or any other [`axum::serve::Listener`]; `app` is
    /// an `axum::Router`, or any service of requests with axum's body. Requests carry
    /// [`ConnectInfo`](axum::extract::ConnectInfo) with the listener's address type.
    ///
    /// # Differences from `axum::serve`
    ///
    /// Every connection is tracked. Awaited with a graceful shutdown, it returns when the connections *and* the
    /// continuations and hooks have ended, and says what it had to cut. hyper's timer is installed, so its
    /// limit for reading a request's head (30 s) is active.
    pub fn serve<L, S>(&self, listener: L, app: S) -> Serve<L, S>
    where
        L: Listener,
    {
        Serve { listener, app, epilogue: self.clone() }
    }
}

/// A server. Made by [`Epilogue::serve`]; await it.
#[must_use = "a server does nothing until it is awaited"]
pub struct Serve<L, S> {
    listener: L,
    app: S,
    epilogue: Epilogue,
}

impl<L, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

impl<L: Listener, S> Serve<L, S> {
    /// Drains when `signal` completes: no new connection is accepted, open ones finish what they are at, and
    /// the server returns when they, the continuations and the hooks have ended.
    ///
    /// At the [deadline](crate::EpilogueBuilder::drain_deadline) what is left is cut with status TIMEOUT, its
    /// hooks run, and the report names it.
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, S, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown { serve: self, signal }
    }

    /// The address that the listener is bound to.
    ///
    /// # Errors
    ///
    /// The listener's own.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A server that drains. Made by [`Serve::with_graceful_shutdown`]; await it.
#[must_use = "a server does nothing until it is awaited"]
pub struct WithGracefulShutdown<L, S, F> {
    serve: Serve<L, S>,
    signal: F,
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
        Box::pin(Server::new(self.epilogue.pool.clone()).run(self, pending()))
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
        Box::pin(Server::new(self.serve.epilogue.pool.clone()).run(self.serve, self.signal))
    }
}

/// The connections of one server.
struct Server {
    pool: Arc<Pool>,
    connections: TaskTracker,
    open: Arc<Mutex<HashMap<u64, Connection>>>,
    next: AtomicU64,
    /// Finish what is open.
    stop: CancellationToken,
    /// End now.
    kill: CancellationToken,
}

/// Stops the connections also when the server's future is dropped: they finish what they are at.
struct StopOnDrop(CancellationToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Server {
    fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            connections: TaskTracker::new(),
            open: Arc::default(),
            next: AtomicU64::new(0),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        }
    }

    async fn run<L, S, B>(
        self,
        Serve { mut listener, app, epilogue }: Serve<L, S>,
        signal: impl Future<Output = ()>,
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
        let _stop = StopOnDrop(self.stop.clone());
        let make_service = epilogue.make_service(app);
        let mut signal = pin!(signal);
        loop {
            tokio::select! {
                (io, address) = listener.accept() => self.accept(TrackedIo::new(io), address, &make_service),
                () = &mut signal => break,
            }
        }
        // Closed before the drain, so that nobody connects to a server that does not serve.
        drop(listener);
        Ok(self.drain().await)
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
        let service = make_service.for_connection(connection.clone(), Some(address));
        // Relaxed: only uniqueness matters.
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(key, connection);
        let open = Open { key, open: self.open.clone() };
        let (stop, kill) = (self.stop.clone(), self.kill.clone());
        self.connections.spawn(async move {
            let _open = open;
            tokio::select! {
                () = serve_connection(io, service, stop) => {}
                () = kill.cancelled() => {}
            }
        });
    }

    /// Waits for everything, to the deadline; then cuts, and gives the hooks their time.
    async fn drain(&self) -> DrainReport {
        self.stop.cancel();
        self.connections.close();
        let mut report = DrainReport::default();
        let Some(deadline) = self.pool.settings.drain_deadline else {
            self.ended().await;
            self.delivered().await;
            return report;
        };
        if tokio::time::timeout(deadline, self.ended()).await.is_err() {
            report = self.cut();
            tracing::warn!(%report, "the drain's deadline has passed");
            // Hooks have their own limit each; a request rarely has many.
            if tokio::time::timeout(self.pool.settings.hook_limit, self.ended()).await.is_err() {
                self.kill.cancel();
                let _ = tokio::time::timeout(self.pool.settings.hook_limit, self.ended()).await;
            }
        }
        self.delivered().await;
        report
    }

    async fn ended(&self) {
        self.connections.wait().await;
        // What runs after responses: nothing can be added once no connection is left but by what runs itself,
        // and the tracker waits for that as well.
        self.pool.idle().await;
    }

    async fn delivered(&self) {
        if let Some(feed) = &self.pool.feed {
            feed.delivered().await;
        }
    }

    /// Cuts what is left, and names it.
    fn cut(&self) -> DrainReport {
        let connections: Vec<_> = lock(&self.open).values().cloned().collect();
        let mut stragglers = self.pool.stragglers();
        for connection in &connections {
            for straggler in connection.in_flight() {
                if !stragglers.iter().any(|other| Arc::as_ptr(other).addr() == Arc::as_ptr(&straggler).addr()) {
                    stragglers.push(straggler);
                }
            }
        }
        let mut report = DrainReport {
            stragglers: stragglers.iter().map(|straggler| Straggler::from(straggler.describe())).collect(),
        };
        report.stragglers.sort_by_key(|straggler| std::cmp::Reverse(straggler.age()));
        for straggler in stragglers {
            straggler.cut();
        }
        report
    }
}

/// A connection's place among the open ones.
struct Open {
    key: u64,
    open: Arc<Mutex<HashMap<u64, Connection>>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.key);
    }
}

async fn serve_connection<IO, A, S, B>(io: TrackedIo<IO>, service: Service<S, A>, stop: CancellationToken)
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    A: Clone + Send + Sync + 'static,
    S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: SendBody,
{
    let mut builder = Builder::new(TokioExecutor::new());
    // Without a timer hyper's limit for reading a head is off.
    builder.http1().timer(TokioTimer::new());
    // For WebSockets over HTTP/2 (RFC 8441).
    builder.http2().timer(TokioTimer::new()).enable_connect_protocol();
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(service)));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::trace!(error, "a connection ended with an error");
    }
}
