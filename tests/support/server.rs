//! A server under `Epilogue::serve`, on a real socket.

use std::{io, net::SocketAddr};

use axum::Router;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tower_epilogue::{DrainReport, Epilogue, EpilogueBuilder};

use super::{Client, Journal, Reply, soon};

/// A server under `Epilogue::serve`.
pub struct Server {
    pub address: SocketAddr,
    pub journal: Journal,
    pub epilogue: Epilogue,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<io::Result<DrainReport>>,
}

impl Server {
    pub async fn start(app: Router) -> Self {
        Self::with(app, |builder| builder).await
    }

    pub async fn with(app: Router, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Self {
        Self::made(setup, |_| app).await
    }

    /// Of an app that needs the epilogue it is served by.
    pub async fn made(
        setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
        app: impl FnOnce(&Epilogue) -> Router,
    ) -> Self {
        let journal = Journal::default();
        let epilogue = setup(journal.epilogue()).build();
        let app = app(&epilogue);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = epilogue.serve(listener, app).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        Self { address, journal, epilogue, stop: Some(stop), task: tokio::spawn(serve.into_future()) }
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own, read to the end of the connection.
    pub async fn get(&self, path: &str) -> Reply {
        let mut client = self.connect().await;
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
        client.reply().await
    }

    pub fn begin_drain(&mut self) {
        self.stop.take();
    }

    /// Drains, and gives the report.
    pub async fn stop(mut self) -> DrainReport {
        self.begin_drain();
        soon("the server drains", self.task).await.unwrap().unwrap()
    }

    pub async fn drained(self) -> DrainReport {
        soon("the server drains", self.task).await.unwrap().unwrap()
    }
}
