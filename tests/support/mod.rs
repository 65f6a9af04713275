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

/// Waits until `found` says so, and looks again whenever there is news.
async fn noticed(news: &Notify, found: impl Fn() -> bool) {
    loop {
        let next = news.notified();
        tokio::pin!(next);
        // Enlisted before the look, so that what happens after it is heard of.
        next.as_mut().enable();
        if found() {
            return;
        }
        next.await;
    }
}

/// What journals leave out, so that the suites list what they are about; `tests/observing` has it.
pub fn goes_without_saying(kind: &EventKind) -> bool {
    use EventKind::{Arrived, BodyFailed, HandedOver, HookDropped, Panicked};

    matches!(kind, Arrived | BodyFailed | HandedOver | Panicked { .. } | HookDropped { .. })
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
            if goes_without_saying(event.kind()) {
                return;
            }
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
        soon(what, noticed(&self.news, || found(&self.events.lock().unwrap()))).await;
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

    /// Waits for so many events of that name.
    pub async fn seen_times(&self, name: &str, times: usize) {
        let count = |events: &[Event]| events.iter().filter(|event| event.kind().name() == name).count();
        self.until(name, |events| count(events) >= times).await;
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
    pub fn close(self) {
        drop(self);
    }

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
    fn parse(mut bytes: Vec<u8>, error: Option<io::Error>) -> Self {
        let end = find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        let body = bytes.split_off(end);
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head, body, error, at: Instant::now() }
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

impl Reply {
    /// The body without its chunks' framing; `None` if it is not framed in chunks that came to their end.
    pub fn dechunked(&self) -> Option<Vec<u8>> {
        let (mut rest, mut body) = (&self.body[..], Vec::new());
        loop {
            let line = find(rest, b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            rest = &rest[line + 2..];
            let end = size.checked_add(2).filter(|end| *end <= rest.len())?;
            if &rest[size..end] != b"\r\n" {
                return None;
            }
            body.extend_from_slice(&rest[..size]);
            rest = &rest[end..];
            if size == 0 {
                return rest.is_empty().then_some(body);
            }
        }
    }
}

/// Holds work back until the test opens it; open from then on.
#[derive(Clone)]
pub struct Gate(Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

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
        let journal = &self.journal;
        let ended = async {
            loop {
                let news = journal.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if journal.events().iter().filter(|event| *event.kind() == EventKind::Ended).count() >= count {
                    return;
                }
                news.await;
            }
        };
        let waited = tokio::time::timeout(HOUR, ended).await;
        assert!(waited.is_ok(), "{count} requests should have ended: {:#?}", journal.events());
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

/// A route that answers, with a continuation that is held back by `gate`.
pub fn held<R: axum::response::IntoResponse>(
    gate: &Gate,
    response: impl Fn() -> R + Clone + Send + Sync + 'static,
) -> axum::routing::MethodRouter {
    let gate = gate.clone();
    let answer = async move || {
        let work = tower_epilogue::Continuation::new(async move { gate.passed().await });
        (work, response())
    };
    axum::routing::get(answer)
}

/// A body whose length nobody knows beforehand.
pub fn streamed(parts: &'static [&'static str]) -> axum::body::Body {
    axum::body::Body::from_stream(tokio_stream::iter(parts.iter().map(|part| Ok::<_, io::Error>(*part))))
}

impl Reply {
    /// The head's lines without the date, the headers sorted.
    pub fn sorted_head(&self) -> Vec<&str> {
        let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
        let mut lines: Vec<_> = self.head.trim_end().split("\r\n").filter(|line| !is_date(line)).collect();
        lines[1..].sort_unstable();
        lines
    }
}

/// A hook that only tells.
pub trait TellingHook: FnOnce(tower_epilogue::End) -> std::future::Ready<()> + Clone + Send + Sync + 'static {}

impl<H> TellingHook for H where H: FnOnce(tower_epilogue::End) -> std::future::Ready<()> + Clone + Send + Sync + 'static {}

/// How requests ended, in order: the status, and what became of the response.
pub type Ends = tokio::sync::mpsc::UnboundedReceiver<(tower_epilogue::ConnectionStatus, tower_epilogue::Sent)>;

/// A layer whose hook tells how each request ended.
pub fn ends() -> (tower_epilogue::ShutdownHookLayer<impl TellingHook>, Ends) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let hook = move |end: tower_epilogue::End| {
        // The test may have seen enough.
        let _ = sender.send((end.status(), end.sent()));
        std::future::ready(())
    };
    (tower_epilogue::ShutdownHookLayer::new(hook), receiver)
}

/// A middleware that puts the body into a task of its own, so that it is produced ahead of its reader.
pub async fn pumps(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let (parts, body) = next.run(request).await.into_parts();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        while let Some(piece) = futures_util::StreamExt::next(&mut body).await {
            // Nobody may be there to take it.
            let _ = sender.send(piece).await;
        }
    });
    axum::response::Response::from_parts(
        parts,
        axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)),
    )
}

/// Everything that is logged in this process from the first call on, one line a record, its spans in front:
/// look for what only your test can have logged.
pub fn logs() -> Logs {
    static LOGS: std::sync::OnceLock<Logs> = std::sync::OnceLock::new();
    LOGS.get_or_init(|| {
        let logs = Logs::default();
        let writer = logs.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        logs
    })
    .clone()
}

/// What [`logs`] gives.
#[derive(Clone, Default)]
pub struct Logs {
    bytes: Arc<Mutex<Vec<u8>>>,
    news: Arc<Notify>,
}

impl Logs {
    /// The lines that contain `marker`.
    pub fn with(&self, marker: &str) -> Vec<String> {
        let bytes = self.bytes.lock().unwrap();
        String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(marker)).map(ToOwned::to_owned).collect()
    }

    /// Waits until `found` says so of them.
    pub async fn until(&self, what: &str, found: impl Fn(&Self) -> bool) {
        soon(what, noticed(&self.news, || found(self))).await;
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.news.notify_waiters();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the code of the test's own app did, in order.
#[derive(Clone, Default)]
pub struct Notes {
    list: Arc<Mutex<Vec<String>>>,
    news: Arc<Notify>,
}

impl Notes {
    pub fn add(&self, note: impl Into<String>) {
        self.list.lock().unwrap().push(note.into());
        self.news.notify_waiters();
    }

    pub fn all(&self) -> Vec<String> {
        self.list.lock().unwrap().clone()
    }

    pub fn has(&self, note: &str) -> bool {
        self.list.lock().unwrap().iter().any(|other| other == note)
    }

    /// Waits until `note` has been made.
    pub async fn seen(&self, note: &str) {
        self.until(note, |notes| notes.iter().any(|other| other == note)).await;
    }

    /// Waits until `count` notes have been made.
    pub async fn count(&self, count: usize) {
        self.until(&format!("{count} notes"), |notes| notes.len() >= count).await;
    }

    async fn until(&self, what: &str, found: impl Fn(&[String]) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, noticed(&self.news, || found(&self.list.lock().unwrap())));
        assert!(waited.await.is_ok(), "it never happened: {what}, of {:?}", self.all());
    }

    /// Makes a note when it is dropped.
    pub fn on_drop(&self, note: &'static str) -> NoteOnDrop {
        NoteOnDrop { notes: self.clone(), note }
    }
}

/// Made by [`Notes::on_drop`].
pub struct NoteOnDrop {
    notes: Notes,
    note: &'static str,
}

impl Drop for NoteOnDrop {
    fn drop(&mut self) {
        self.notes.add(self.note);
    }
}

impl Client {
    /// Reads one response to its end, however that is marked: by a length, by a last chunk (which is taken out
    /// of the framing), or, where neither is declared, by the end of the connection. Without a body if
    /// `bodiless`.
    pub async fn response(&mut self, bodiless: bool) -> Reply {
        let mut bytes = Vec::new();
        soon("a whole response", async {
            loop {
                if let Some(reply) = whole_response(&bytes, bodiless) {
                    return reply;
                }
                if self.stream.read_buf(&mut bytes).await.unwrap() == 0 {
                    let reply = Reply::parse(bytes, None);
                    let framed = reply.header("content-length").or(reply.header("transfer-encoding")).is_some();
                    assert!(!framed && reply.status != 0, "broken off: {reply:?}");
                    return reply;
                }
            }
        })
        .await
    }
}

fn whole_response(bytes: &[u8], bodiless: bool) -> Option<Reply> {
    find(bytes, b"\r\n\r\n")?;
    let mut reply = Reply::parse(bytes.to_vec(), None);
    if bodiless || matches!(reply.status, 204 | 304) {
        return Some(reply);
    }
    if reply.header("transfer-encoding").is_some() {
        reply.body = reply.dechunked()?;
        return Some(reply);
    }
    let length: usize = reply.header("content-length")?.parse().unwrap();
    (reply.body.len() >= length).then_some(reply)
}
