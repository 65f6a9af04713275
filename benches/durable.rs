//! What a promise costs that is stored: acknowledged requests a second, and the time from the flush of a response to
//! the start of its work; on SQLite and on Postgres, beside the same route with a continuation in memory.
//!
//! `cargo bench --bench durable --features full`. It starts a Postgres of its own, with `fsync` on. The figures hang on
//! the disk; what can be compared are those of one run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::mem_forget,
    reason = "a benchmark may panic, and it prints"
)]
#![allow(unreachable_pub, missing_debug_implementations, dead_code, reason = "shared with the tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tower_epilogue::{
    Continuation, Epilogue, Event, EventKind, IgnoreAbortLayer,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError},
};

#[path = "../tests/durable/postgres.rs"]
mod postgres;

const CLIENTS: usize = 64;
const LOAD: Duration = Duration::from_secs(5);
const SAMPLES: usize = 200;

/// Says when it starts.
#[derive(Serialize, Deserialize)]
struct Tick;

type Started = mpsc::UnboundedSender<Instant>;

impl DurableJob for Tick {
    const KIND: &'static str = "tick";
    const CONCURRENCY: usize = 64;

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let _ = cx.state::<Started>()?.send(Instant::now());
        Ok(())
    }
}

/// The moment at which a response was flushed, as the server's events tell it.
#[derive(Clone)]
struct Flushes(mpsc::UnboundedSender<(&'static str, Duration)>);

impl Flushes {
    fn listen(&self, event: &Event) {
        match event.kind() {
            EventKind::HandlerStart => drop(self.0.send(("start", event.at()))),
            EventKind::Flushed { .. } => drop(self.0.send(("flushed", event.at()))),
            _ => {}
        }
    }
}

struct Route {
    name: &'static str,
    address: SocketAddr,
    started: mpsc::UnboundedReceiver<Instant>,
    handled: mpsc::UnboundedReceiver<Instant>,
    events: mpsc::UnboundedReceiver<(&'static str, Duration)>,
    store: Option<DurableStore>,
}

async fn route(name: &'static str, place: Option<DurableBuilder>, ignores_aborts: bool) -> Route {
    let (event, events) = mpsc::unbounded_channel();
    let (start, started) = mpsc::unbounded_channel::<Instant>();
    let (handle, handled) = mpsc::unbounded_channel();
    let flushes = Flushes(event);
    let epilogue = Epilogue::builder().on_event(move |event| flushes.listen(event)).build();
    let (app, store) = match place {
        Some(place) => {
            let store = place.register::<Tick>().state(start).start(&epilogue).await.unwrap();
            let handler = move || async move {
                let _ = handle.send(Instant::now());
                (Durable::new(Tick), "accepted")
            };
            let app = Router::new().route("/", post(handler)).layer(store.layer());
            // What a client that left cannot be told of has a receipt.
            (if ignores_aborts { app.layer(IgnoreAbortLayer::new()) } else { app }, Some(store))
        }
        None => {
            let handler = move || async move {
                let _ = handle.send(Instant::now());
                let work = Continuation::new(async move {
                    let _ = start.send(Instant::now());
                });
                (work, "accepted")
            };
            (Router::new().route("/", post(handler)), None)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(epilogue.serve(listener, app).into_future());
    Route { name, address, started, handled, events, store }
}

async fn ask(stream: &mut TcpStream) {
    stream.write_all(b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"accepted") {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&bytes));
}

impl Route {
    /// One request at a time, each with its work.
    async fn latency(&mut self) -> Vec<Duration> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut latencies = Vec::new();
        for _ in 0..SAMPLES {
            ask(&mut stream).await;
            let handled = self.handled.recv().await.unwrap();
            let (_, start) = self.events.recv().await.unwrap();
            let (_, flushed) = self.events.recv().await.unwrap();
            let started = self.started.recv().await.unwrap();
            latencies.push(started.saturating_duration_since(handled + (flushed - start)));
        }
        latencies.sort();
        latencies
    }

    /// As many as there can be.
    async fn load(&mut self) -> f64 {
        let running = Arc::new(AtomicBool::new(true));
        let count = Arc::new(AtomicU64::new(0));
        let clients = (0..CLIENTS).map(|_| {
            let (running, count, address) = (running.clone(), count.clone(), self.address);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                while running.load(Ordering::Relaxed) {
                    ask(&mut stream).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        let began = Instant::now();
        tokio::time::sleep(LOAD).await;
        running.store(false, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        let rate = count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        // Nothing is left for the next one.
        let mut done = 0;
        while done < count.load(Ordering::Relaxed) {
            self.started.recv().await.unwrap();
            done += 1;
        }
        rate
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` only wants to know whether it runs.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let directory = std::env::temp_dir().join(format!("epilogue-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let cluster = postgres::Cluster::with("-c fsync=on");
    let sqlite = |name: &str| Some(DurableStore::sqlite(directory.join(name)));
    let postgres = || Some(DurableStore::postgres(cluster.database()).migrate(true));
    let routes = [
        route("in memory", None, false).await,
        route("SQLite", sqlite("bench.db"), false).await,
        route("SQLite, aborts ignored", sqlite("ignored.db"), true).await,
        route("Postgres", postgres(), false).await,
        route("Postgres, aborts ignored", postgres(), true).await,
    ];
    println!("{CLIENTS} clients for the first figure, one for the others");
    for mut route in routes {
        let latencies = route.latency().await;
        let rate = route.load().await;
        let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize].as_secs_f64() * 1e3;
        println!(
            "{:>24}: {rate:>8.0} acknowledged/s; from flush to start: median {:.3} ms, 99 % {:.3} ms",
            route.name,
            at(0.5),
            at(0.99)
        );
        drop(route.store);
    }
    drop(cluster);
    std::fs::remove_dir_all(&directory).unwrap();
}
