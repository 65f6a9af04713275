//! A server around an app, on a real socket or in memory.

use std::{
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    panic::Location,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::either::Either;

use super::{
    Journal, Line, TestClient, TestResponse,
    client::Wire,
    in_time,
    listener::{Knows, MemoryListener, Telling},
    presence::{Guest, Presence},
};
use crate::{
    connection::{MemoryStream, pair},
    epilogue::{DrainReport, Epilogue, EpilogueBuilder, OpenConnections},
    lifecycle::Phase,
    pool::Straggler,
};

/// What a connection in memory, or a client's receive buffer, takes before its reader has to read.
const BUFFER: usize = 64 * 1024;
/// How long something that must happen is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// An app under [`Epilogue::serve`], with a [`Journal`] of everything that happens, and clients.
///
/// See the [module docs](super). When it is dropped, the server begins to drain, as far as its runtime allows.
pub struct TestServer {
    epilogue: Epilogue,
    journal: Journal,
    door: Door,
    open: Arc<OpenConnections>,
    presence: Arc<Presence>,
    patience: Duration,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<io::Result<DrainReport>>,
}

impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer").field("address", &self.address()).finish_non_exhaustive()
    }
}

enum Door {
    Socket(SocketAddr),
    Memory(mpsc::UnboundedSender<MemoryStream>),
}

/// Configures a [`TestServer`].
#[must_use = "a builder does nothing until a server is started"]
pub struct TestServerBuilder {
    epilogue: EpilogueBuilder,
    journal: Journal,
    patience: Duration,
}

impl fmt::Debug for TestServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServerBuilder").field("epilogue", &self.epilogue).finish_non_exhaustive()
    }
}

impl TestServerBuilder {
    /// Changes settings of the epilogue, or replaces it by another builder, such as the app's own. The journal gets
    /// its events in addition to other event functions.
    pub fn epilogue(mut self, set: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Self {
        self.epilogue = set(self.epilogue);
        self
    }

    /// How long a client, the [journal](Journal::until), [`settled`](TestServer::settled) or
    /// [`stop`](TestServer::stop) waits before the test fails: 10 s by default, in wall-clock time, even if tokio's
    /// time is paused.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Serves `app` on a TCP socket of the loopback interface, on a port that the system chooses.
    ///
    /// # Panics
    ///
    /// If no port is available.
    pub async fn on_socket(self, app: Router) -> TestServer {
        self.on_socket_with(async |_| app).await
    }

    /// Serves the app that `app` makes from the server's [`Epilogue`], on a socket as [`on_socket`](Self::on_socket)
    /// does: an app with a store of durable jobs, or with the status page.
    ///
    /// ```
    /// # #[cfg(feature = "status-page")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use axum::Router;
    /// use tower_epilogue::test_util::TestServer;
    ///
    /// let builder = TestServer::builder().epilogue(|epilogue| epilogue.status_page());
    /// let server = builder.on_socket_with(async |epilogue| Router::new().nest("/status", epilogue.status_page())).await;
    /// assert_eq!(server.get("/status/json").await.status, 200);
    /// # }
    /// # #[cfg(not(feature = "status-page"))] fn main() {}
    /// ```
    ///
    /// # Panics
    ///
    /// If no port is available.
    pub async fn on_socket_with(self, app: impl AsyncFnOnce(&Epilogue) -> Router) -> TestServer {
        let epilogue = self.epilogue.on_event(self.journal.listener()).build();
        let app = app(&epilogue).await;
        let bound = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            Ok::<_, io::Error>((listener.local_addr()?, listener))
        };
        match bound.await {
            Ok((address, listener)) => {
                start(epilogue, self.journal, self.patience, Door::Socket(address), listener, app)
            }
            Err(error) => panic!("no socket to serve on: {error}"),
        }
    }

    /// Serves `app` in memory, on the current runtime: for tests with paused time.
    ///
    /// Its connections have no address: handlers that take a `ConnectInfo<SocketAddr>` need a
    /// [`MockConnectInfo`](axum::extract::connect_info::MockConnectInfo) layer.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
    #[must_use]
    pub fn in_memory(self, app: Router) -> TestServer {
        let epilogue = self.epilogue.on_event(self.journal.listener()).build();
        remember(epilogue, self.journal, self.patience, app)
    }

    /// Serves the app that `app` makes from the server's [`Epilogue`], in memory as [`in_memory`](Self::in_memory)
    /// does. See [`on_socket_with`](Self::on_socket_with).
    pub async fn in_memory_with(self, app: impl AsyncFnOnce(&Epilogue) -> Router) -> TestServer {
        let epilogue = self.epilogue.on_event(self.journal.listener()).build();
        let app = app(&epilogue).await;
        remember(epilogue, self.journal, self.patience, app)
    }
}

/// Starts it in memory.
fn remember(epilogue: Epilogue, journal: Journal, patience: Duration, app: Router) -> TestServer {
    let (connections, incoming) = mpsc::unbounded_channel();
    start(epilogue, journal, patience, Door::Memory(connections), MemoryListener(incoming), app)
}

fn start<L>(
    epilogue: Epilogue,
    journal: Journal,
    patience: Duration,
    door: Door,
    listener: L,
    app: Router,
) -> TestServer
where
    L: Knows,
    L::Addr: Clone + Sync + 'static,
{
    let presence = Arc::<Presence>::default();
    let serve = epilogue.serve(Telling { listener, presence: presence.clone() }, app);
    let open = serve.open();
    let (stop, stopped) = oneshot::channel();
    let serve = serve.with_graceful_shutdown(async {
        // An error is the server's drop.
        let _ = stopped.await;
    });
    TestServer {
        epilogue,
        journal: journal.within(patience),
        door,
        open,
        presence,
        patience,
        stop: Some(stop),
        task: Handle::current().spawn(serve.into_future()),
    }
}

impl TestServer {
    /// Serves `app` on a socket, with the default settings. See [`TestServerBuilder::on_socket`].
    pub async fn on_socket(app: Router) -> Self {
        Self::builder().on_socket(app).await
    }

    /// Serves `app` in memory, with the default settings. See [`TestServerBuilder::in_memory`].
    #[must_use]
    pub fn in_memory(app: Router) -> Self {
        Self::builder().in_memory(app)
    }

    /// A builder, with the default settings.
    pub fn builder() -> TestServerBuilder {
        TestServerBuilder { epilogue: Epilogue::builder(), journal: Journal::new(), patience: PATIENCE }
    }

    /// The address it listens on; `None` in memory.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.door {
            Door::Socket(address) => Some(address),
            Door::Memory(_) => None,
        }
    }

    /// The journal: every phase of every request.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The server's `Epilogue`.
    #[must_use]
    pub fn epilogue(&self) -> &Epilogue {
        &self.epilogue
    }

    // === clients ===

    /// Opens a connection.
    ///
    /// # Panics
    ///
    /// If the server has stopped.
    pub async fn connect(&self) -> TestClient {
        self.connect_narrow(BUFFER).await
    }

    /// Opens a connection whose client accepts only about `bytes` bytes before it has to read (on a socket somewhat
    /// more, because of the system's buffers): together with [`TestClient::read_slowly`], a slow reader.
    ///
    /// # Panics
    ///
    /// If the server has stopped.
    pub async fn connect_narrow(&self, bytes: usize) -> TestClient {
        let (wire, guest): (Wire, _) = match &self.door {
            Door::Socket(address) => match connect(*address, bytes).await {
                Ok((stream, own)) => (Either::Left(stream), Guest::Socket(own)),
                Err(error) => panic!("the server cannot be reached: {error}"),
            },
            Door::Memory(connections) => {
                // Of none it would take nothing at all.
                let (client, server) = pair(bytes.max(1));
                assert!(connections.send(server).is_ok(), "the server is gone");
                let guest = Guest::Memory(client.number());
                (Either::Right(client), guest)
            }
        };
        TestClient::new(wire, self.patience, self.presence.enter(guest), self.journal.clone())
    }

    /// Sends a GET for `path` on a connection of its own, and reads the response.
    ///
    /// # Panics
    ///
    /// If no response comes within the patience.
    #[track_caller]
    pub fn get(&self, path: &str) -> impl Future<Output = TestResponse> {
        let line = Location::caller();
        async move {
            let mut client = self.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
            client.send_from(line, request).await;
            client.read_response(line, false).await
        }
    }

    // === the end ===

    /// Waits until the server has noticed every client that left, every request that has begun has ended, and no
    /// continuation or hook is running.
    ///
    /// The server may not have seen a request that was sent and not answered yet: read its response first, or wait
    /// for [`Journal::begun`]. If a client leaves right after sending its request, the server may never see the
    /// request.
    ///
    /// # Panics
    ///
    /// If that takes longer than the [patience](TestServerBuilder::patience).
    #[track_caller]
    pub fn settled(&self) -> impl Future<Output = ()> {
        self.settled_from(Location::caller())
    }

    pub(super) async fn settled_from(&self, line: Line) {
        if in_time(self.patience, self.settle()).await.is_none() {
            let (patience, unsettled) = (self.patience, Unsettled(self));
            panic!("it did not happen within {patience:?}: the server settles\n  in the test at {line}\n{unsettled}");
        }
    }

    async fn settle(&self) {
        loop {
            // Before the look, so that what changes after it is heard of.
            let (news, changed) = (self.journal.news().notified(), self.open.changed().notified());
            let closing = self.presence.closing().notified();
            self.epilogue.events_delivered().await;
            if !self.presence.is_seen(&self.open) || !self.journal.all_ended() {
                tokio::select! {
                    () = news => {}
                    () = changed => {}
                    () = closing => {}
                }
            } else if self.has_work() {
                // No event tells of its end, which comes at once.
                tokio::task::yield_now().await;
            } else {
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        let runs = |request: &Arc<dyn Straggler>| match request.describe().phase {
            phase if phase == Phase::Ended.name() => false,
            // One that was given up on may outlast its request, for as long as its reader likes.
            phase if phase == Phase::Sending.name() => !request.is_over(),
            _ => true,
        };
        self.epilogue.running() > 0 || self.open.in_flight().iter().any(runs)
    }

    /// Begins to drain: no new connection is accepted, and open ones finish their requests.
    pub fn begin_drain(&mut self) {
        self.stop = None;
    }

    /// Drains, and returns the report.
    ///
    /// # Panics
    ///
    /// If the drain takes longer than the patience, or the server failed.
    #[track_caller]
    pub fn stop(mut self) -> impl Future<Output = DrainReport> {
        let line = Location::caller();
        async move {
            self.begin_drain();
            match in_time(self.patience, &mut self.task).await {
                Some(Ok(Ok(report))) => report,
                Some(Ok(Err(error))) => panic!("the server failed: {error}"),
                Some(Err(error)) => panic!("the server ended without a report: {error}"),
                None => {
                    let (patience, unsettled) = (self.patience, Unsettled(&self));
                    panic!(
                        "it did not happen within {patience:?}: the server drains\n  in the test at {line}\n{unsettled}"
                    )
                }
            }
        }
    }
}

/// What a server that does not settle is at.
struct Unsettled<'a>(&'a TestServer);

impl fmt::Display for Unsettled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TestServer { epilogue, journal, open, .. } = self.0;
        let in_flight = open.in_flight();
        let (connections, running) = (open.len(), epilogue.running());
        writeln!(f, "{connections} connections are open, {running} pieces of work run beside them; in flight:")?;
        in_flight.iter().try_for_each(|request| writeln!(f, "  {:?}", request.describe()))?;
        journal.stories().iter().filter(|story| !story.has_ended()).try_for_each(|story| write!(f, "{story}"))
    }
}

async fn connect(address: SocketAddr, bytes: usize) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    if bytes != BUFFER {
        // Before connecting: the window is announced with it.
        socket.set_recv_buffer_size(u32::try_from(bytes).unwrap_or(u32::MAX))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let own = stream.local_addr()?;
    Ok((stream, own))
}
