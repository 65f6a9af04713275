//! What the connection's tests share: ways to leave, work that tells of its end, and plain axum beside us.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::{Extension, Router};
use bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::Layer as _;
use tower_epilogue::{Epilogue, EventKind, TrackedIo, Tracking, test_util};

use crate::support::{Client, Journal, Notes, soon};

/// How an HTTP/1 client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It shuts its sending side, and stays to read.
    Fin,
    Close,
    Reset,
}

impl Leave {
    pub const ALL: [Self; 3] = [Self::Fin, Self::Close, Self::Reset];

    /// Leaves; what is left of the client is given back.
    pub async fn leave(self, mut stream: TcpStream) -> Option<TcpStream> {
        match self {
            Self::Fin => {
                stream.shutdown().await.unwrap();
                return Some(stream);
            }
            Self::Close => {}
            Self::Reset => reset_when_dropped(&stream),
        }
        None
    }
}

/// What the `work` gives, which is done while the server goes on with a connection of one request.
pub async fn while_it_serves<IO, T>(server: &mut h2::server::Connection<IO, Bytes>, work: impl Future<Output = T>) -> T
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        done = work => done,
        next = server.accept() => panic!("its client keeps the connection, and asks for nothing more: {next:?}"),
    }
}

/// A connection of one request, whose client leaves that and not the connection.
pub async fn ends_aborted<IO>(mut server: h2::server::Connection<IO, Bytes>, journal: &test_util::Journal)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    while_it_serves(&mut server, soon("the request ends", journal.ended(1))).await;
    journal.only().assert_aborted();
    journal.only().assert_contract();
}

pub fn reset_when_dropped(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Plain `axum::serve`, without anything of ours.
pub struct Plain {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Plain {
    pub async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, task: tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Two whole exchanges on connections of their own: a server of one thread has meanwhile seen whatever had reached
/// its sockets before. The app answers `/ping`.
pub async fn the_server_has_looked(address: SocketAddr) {
    for _ in 0..2 {
        let mut client = Client::connect(address).await;
        client.send_get("/ping").await;
        assert_eq!(client.response(false).await.text(), "pong");
    }
}

/// Notes `dropped` when it is dropped before its `end`.
pub struct Work {
    notes: Notes,
    over: bool,
}

impl Work {
    pub fn begin(notes: &Notes) -> Self {
        notes.add("started");
        Self { notes: notes.clone(), over: false }
    }

    pub fn end(mut self) {
        self.over = true;
        self.notes.add("ended");
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.over {
            self.notes.add("dropped");
        }
    }
}

/// When the first handler began, to place the journal's times on the client's clock.
#[derive(Clone, Default)]
pub struct Began(Arc<OnceLock<Instant>>);

impl Began {
    pub fn now(&self) {
        let _ = self.0.set(Instant::now());
    }

    /// How long after `left` the first request's abort was noticed.
    pub fn noticed_after(&self, left: Instant, journal: &Journal) -> Duration {
        let first = journal.requests()[0];
        let events = journal.events();
        let at = |kind: EventKind| {
            events.iter().find(|event| event.request() == first && *event.kind() == kind).expect("it happened").at()
        };
        let began = *self.0.get().expect("the handler began");
        (began + (at(EventKind::Aborted) - at(EventKind::HandlerStart))).saturating_duration_since(left)
    }
}

/// An abort is noticed in a millisecond or so. This is for a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(1);

/// Serves one connection in an accept loop of the test's own; done when the connection has ended.
pub fn serve_one<IO>(epilogue: &Epilogue, io: IO, tracking: &Tracking, app: Router) -> JoinHandle<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TrackedIo::with(io, tracking);
    let app = Extension(io.connection().clone()).layer(app);
    let service = TowerToHyperService::new(epilogue.wrap(&io, app));
    tokio::spawn(async move {
        let server = auto::Builder::new(TokioExecutor::new());
        // How it ends is its client's choice.
        let _ = server.serve_connection_with_upgrades(TokioIo::new(io), service).await;
    })
}
