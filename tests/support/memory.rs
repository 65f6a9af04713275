//! A server under `Epilogue::serve` and its clients in memory, for a paused clock.

use std::{io, time::Duration};

use axum::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};
use tower_epilogue::{DrainReport, Epilogue, EpilogueBuilder};

use super::{
    Journal,
    reply::{Reply, find},
};

/// An hour of a paused clock, which passes at once when nothing else is to happen.
const HOUR: Duration = Duration::from_secs(3600);

/// A server under `Epilogue::serve` whose connections are in memory: under a paused clock, which jumps to the
/// next timer while sockets are waited for, but not while these are.
pub struct MemoryServer {
    pub journal: Journal,
    pub epilogue: Epilogue,
    connections: tokio::sync::mpsc::UnboundedSender<tokio::io::DuplexStream>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<DrainReport>>,
}

struct MemoryListener(tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>);

impl axum::serve::Listener for MemoryListener {
    type Io = tokio::io::DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(io) => (io, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(())
    }
}

impl MemoryServer {
    pub fn start(app: Router) -> Self {
        Self::with(app, |builder| builder)
    }

    pub fn with(app: Router, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Self {
        let journal = Journal::default();
        let epilogue = setup(journal.epilogue()).build();
        let (connections, incoming) = tokio::sync::mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let serve = epilogue.serve(MemoryListener(incoming), app).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        Self { journal, epilogue, connections, stop, task: tokio::spawn(serve.into_future()) }
    }

    /// A connection that takes 64 KiB before its reader has to read.
    pub fn connect(&self) -> MemoryClient {
        self.connect_narrow(64 * 1024)
    }

    /// A connection that takes that many bytes before its reader has to read.
    pub fn connect_narrow(&self, bytes: usize) -> MemoryClient {
        let (stream, io) = tokio::io::duplex(bytes);
        self.connections.send(io).unwrap();
        MemoryClient { stream }
    }

    /// One request on a connection of its own, read to the end of the connection.
    pub async fn get(&self, path: &str) -> Reply {
        let mut client = self.connect();
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
        client.reply().await
    }

    /// Waits until `count` requests have ended.
    pub async fn ended(&self, count: usize) {
        self.journal.ended_within(HOUR, count).await;
    }

    /// Drains, and gives the report.
    pub async fn stop(self) -> DrainReport {
        drop(self.stop);
        tokio::time::timeout(HOUR, self.task).await.expect("the server drains").unwrap().unwrap()
    }
}

/// A client of raw bytes on a connection in memory.
pub struct MemoryClient {
    pub stream: tokio::io::DuplexStream,
}

impl MemoryClient {
    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads to the end of the connection.
    pub async fn reply(&mut self) -> Reply {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(HOUR, self.stream.read_to_end(&mut bytes)).await;
        let error = read.expect("the server closes the connection").err();
        Reply::parse(bytes, error)
    }

    /// Reads until `marker` has come.
    pub async fn read_until(&mut self, marker: &str) -> String {
        let mut bytes = Vec::new();
        let read = async {
            while find(&bytes, marker.as_bytes()).is_none() {
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "closed before {marker:?}: {bytes:?}");
            }
        };
        tokio::time::timeout(HOUR, read).await.expect(marker);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
