//! A server on a real socket, a client that shows its bytes, and a journal of what happened.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each suite uses its own part")]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    task::JoinHandle,
};
use tower_epilogue::{DrainReport, Epilogue, EpilogueBuilder, Event, EventKind, RequestId};


pub mod h2client;

/// How long anything may take before the test fails; nothing waits so long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Fails the test, instead of hanging it, when something that must happen does not.
pub async fn soon<F: IntoFuture>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it never happened: {what}"),
    }
}

/// Everything that happened to every request, in order.
#[derive(Clone, Default)]
pub struct Journal {
    events: Arc<Mutex<Vec<Event>>>,
    news: Arc<Notify>,
}

impl Journal {
    pub fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let journal = self.clone();
        move |event| {
            journal.events.lock().unwrap().push(event.clone());
            journal.news.notify_waiters();
        }
    }

    pub fn epilogue(&self) -> EpilogueBuilder {
        Epilogue::builder().on_event(self.listener())
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// The requests that were seen, in order of arrival.
    pub fn requests(&self) -> Vec<RequestId> {
        let mut requests: Vec<_> = self.events().iter().map(Event::request).collect();
        requests.sort_unstable();
        requests.dedup();
        requests
    }

    /// `name/status` of each event of the only request.
    pub fn lines(&self) -> Vec<String> {
        let requests = self.requests();
        assert!(requests.len() <= 1, "more than one request: {:#?}", self.events());
        requests.first().map_or_else(Vec::new, |request| self.lines_of(*request))
    }

    pub fn lines_of(&self, request: RequestId) -> Vec<String> {
        self.events().iter().filter(|event| event.request() == request).map(line).collect()
    }

    pub async fn until(&self, what: &str, found: impl Fn(&[Event]) -> bool) {
        soon(what, async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if found(&self.events.lock().unwrap()) {
                    return;
                }
                news.await;
            }
        })
        .await;
    }

    /// Waits until `count` requests have ended.
    pub async fn ended(&self, count: usize) {
        let ended = |event: &&Event| *event.kind() == EventKind::Ended;
        let enough = |events: &[Event]| events.iter().filter(ended).count() >= count;
        let waited = tokio::time::timeout(PATIENCE, self.until("requests end", enough)).await;
        if waited.is_err() {
            panic!("{count} requests should have ended: {:#?}", self.events().iter().map(line).collect::<Vec<_>>());
        }
    }

    /// Waits for the first event of that name.
    pub async fn seen(&self, name: &str) -> Event {
        let find = |events: &[Event]| events.iter().find(|event| event.kind().name() == name).cloned();
        self.until(name, |events| find(events).is_some()).await;
        find(&self.events()).unwrap()
    }
}

pub fn line(event: &Event) -> String {
    let name = event.kind().name();
    let status = event.status().bits();
    match event.kind() {
        EventKind::HookStart { hook } | EventKind::HookEnd { hook } => format!("{name}:{hook}/{status}"),
        EventKind::Flushed { bytes } => format!("{name}:{bytes}/{status}"),
        _ => format!("{name}/{status}"),
    }
}

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
        let journal = Journal::default();
        let epilogue = setup(journal.epilogue()).build();
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

/// A client of raw bytes.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn send_get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Reads to the end of the connection.
    pub async fn reply(&mut self) -> Reply {
        let mut bytes = Vec::new();
        let error = soon("the server closes the connection", self.stream.read_to_end(&mut bytes)).await.err();
        Reply::parse(bytes, error)
    }

    /// Reads one response with a declared length; the connection stays open.
    pub async fn reply_by_length(&mut self, no_body: bool) -> Reply {
        let mut bytes = Vec::new();
        soon("a response", async {
            loop {
                if let Some(end) = find(&bytes, b"\r\n\r\n") {
                    let reply = Reply::parse(bytes.clone(), None);
                    let length: usize = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
                    if no_body || bytes.len() >= end + 4 + length {
                        return reply;
                    }
                }
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "closed early: {bytes:?}");
            }
        })
        .await
    }

    /// Reads until `marker` has come.
    pub async fn read_until(&mut self, marker: &str) -> String {
        let mut bytes = Vec::new();
        soon(marker, async {
            while find(&bytes, marker.as_bytes()).is_none() {
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "closed before {marker:?}: {bytes:?}");
            }
        })
        .await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Leaves by closing; what it has not read is answered with a reset later.
    pub fn close(self) {}

    /// Shuts its sending side and stays to read.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

fn find(bytes: &[u8], marker: &[u8]) -> Option<usize> {
    bytes.windows(marker.len()).position(|window| window == marker)
}

/// A response as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub error: Option<io::Error>,
    pub at: Instant,
}

impl Reply {
    fn parse(bytes: Vec<u8>, error: Option<io::Error>) -> Self {
        let end = find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head, body: bytes[end..].to_vec(), error, at: Instant::now() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
