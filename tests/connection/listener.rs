//! One behaviour, whichever way in: `Epilogue::serve`, or `axum::serve` with a tracked listener; TCP, or a Unix socket.

use std::{net::SocketAddr, path::PathBuf, pin::Pin};

use axum::{
    Router,
    extract::ConnectInfo,
    routing::{any, get},
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream, unix},
    sync::oneshot,
    task::JoinHandle,
};
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, ShutdownHookLayer, TrackedListener};

use crate::support::{Journal, Notes, soon};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ours,
    /// With a listener that tracks as well.
    Both,
    Axums,
}

impl Way {
    const ALL: [Self; 3] = [Self::Ours, Self::Both, Self::Axums];
}

#[derive(Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Address {
    async fn connect(&self) -> Pin<Box<dyn Io>> {
        match self {
            Self::Tcp(address) => Box::pin(TcpStream::connect(address).await.unwrap()),
            Self::Unix(path) => Box::pin(UnixStream::connect(path).await.unwrap()),
        }
    }
}

struct Running {
    address: Address,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn run<L>(way: Way, epilogue: Epilogue, listener: L, app: Router, address: Address) -> Running
where
    L: Listener<Addr: Clone + Sync + std::fmt::Debug + 'static>,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let signal = async {
        let _ = stopped.await;
    };
    let task = tokio::spawn(async move {
        match way {
            Way::Ours => {
                let report = epilogue.serve(listener, app).with_graceful_shutdown(signal).await.unwrap();
                assert!(report.is_clean(), "{report}");
            }
            Way::Both => {
                let serve = epilogue.serve(TrackedListener::new(listener), app);
                let report = serve.with_graceful_shutdown(signal).await.unwrap();
                assert!(report.is_clean(), "{report}");
            }
            Way::Axums => {
                let service = epilogue.make_service(app);
                axum::serve(TrackedListener::new(listener), service).with_graceful_shutdown(signal).await.unwrap();
                assert!(epilogue.drain().await.is_clean());
            }
        }
    });
    Running { address, stop, task }
}

impl Running {
    async fn on_tcp(way: Way, epilogue: Epilogue, app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        run(way, epilogue, listener, app, address)
    }

    /// The socket's file is gone when the server is stopped.
    fn on_unix(way: Way, epilogue: Epilogue, app: Router) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("epilogue-{}-{number}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        run(way, epilogue, listener, app, Address::Unix(path))
    }

    async fn exchange(&self, request: &str) -> String {
        let mut client = self.address.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        soon("a reply", client.read_to_string(&mut reply)).await.unwrap();
        reply
    }

    async fn stop(self) {
        drop(self.stop);
        soon("the server drains", self.task).await.unwrap();
        if let Address::Unix(path) = self.address {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn app(notes: &Notes) -> Router {
    let (theirs, waits) = (notes.clone(), notes.clone());
    let work = async move || {
        let continuation = Continuation::new(async move { theirs.add("continuation") });
        (continuation, "answered")
    };
    let forever = async move || {
        waits.add("waits");
        std::future::pending::<()>().await;
    };
    Router::new()
        .route("/work", any(work))
        .route("/forever", any(forever))
        .layer((EarlyCloseLayer::new(), ShutdownHookLayer::new(|_| async {})))
}

/// What one server makes of an exchange, of an unread upload, and of clients that leave.
async fn story(running: Running, journal: Journal, notes: Notes) -> Vec<Vec<String>> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 50000\r\n\r\n");
    let body = "x".repeat(20_000);
    let mut count = 0;
    for request in [get("/work"), post("/work") + &body] {
        assert!(running.exchange(&request).await.ends_with("answered"));
        count += 1;
        journal.ended(count).await;
    }
    for request in [get("/forever"), get("/forever") + "x", post("/forever") + &body] {
        let mut client = running.address.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        count += 1;
        // A note for each request: two were continuations.
        notes.count(count).await;
        drop(client);
        journal.ended(count).await;
    }
    running.stop().await;
    journal.requests().into_iter().map(|request| journal.lines_of(request)).collect()
}

#[tokio::test]
async fn the_journal_is_the_same_whichever_way_in() {
    let answered = [
        "handler_start/0",
        "handler_end/0",
        "flushed:8/0",
        "continuation_start/0",
        "continuation_end/0",
        "hook_start:0/0",
        "hook_end:0/0",
        "ended/0",
    ];
    let aborted = ["handler_start/0", "aborted/1", "handler_dropped/1", "hook_start:0/1", "hook_end:0/1", "ended/1"];
    let expected: Vec<Vec<&str>> =
        vec![answered.into(), answered.into(), aborted.into(), aborted.into(), aborted.into()];
    for way in Way::ALL {
        for is_unix in [false, true] {
            let (journal, notes) = (Journal::default(), Notes::default());
            let epilogue = journal.epilogue().build();
            let running = if is_unix {
                Running::on_unix(way, epilogue, app(&notes))
            } else {
                Running::on_tcp(way, epilogue, app(&notes)).await
            };
            let name = format!("{way:?}, {:?}", running.address);
            assert_eq!(story(running, journal, notes).await, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn requests_carry_the_address_of_their_client() {
    let request = "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    for way in Way::ALL {
        let app = Router::new().route("/", get(async |ConnectInfo(from): ConnectInfo<SocketAddr>| from.to_string()));
        let running = Running::on_tcp(way, Epilogue::new(), app).await;
        let Address::Tcp(address) = running.address else { panic!("it listens on TCP") };
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (from, mut reply) = (client.local_addr().unwrap(), String::new());
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.ends_with(&format!("\r\n\r\n{from}")), "{way:?}: {reply}");
        drop(client);
        running.stop().await;

        let unnamed = async |ConnectInfo(from): ConnectInfo<unix::SocketAddr>| from.is_unnamed().to_string();
        let running = Running::on_unix(way, Epilogue::new(), Router::new().route("/", get(unnamed)));
        assert!(running.exchange(request).await.ends_with("\r\n\r\ntrue"), "{way:?}");
        running.stop().await;
    }
}
