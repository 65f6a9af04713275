//! What continuations cost those who wait for a response.
//!
//! `cargo bench --bench fairness`. A steady foreground, 500 requests a second that are answered at once, is timed while
//! a backlog of work of a hundred slices of 100 µs of a processor each, with a wait of 1 ms between them, is:
//!
//! - not there (`nothing`);
//! - in continuations, of which four run at once (`max_running`);
//! - in tasks of `tokio::spawn`, all at once, as handlers do it without this crate.
//!
//! The three take turns, each in a server of its own with two workers; the client has a thread of its own. Printed are
//! the medians of the rounds, and what the work adds to the foreground's 99th percentile. `ROUNDS` in the environment sets
//! how many (9).
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    time::{MissedTickBehavior, interval, sleep},
};
use tower_epilogue::{Continuation, Epilogue};

const KINDS: [&str; 3] = ["nothing", "continuations", "tokio::spawn"];
const SLICES: usize = 100;
const SLICE: Duration = Duration::from_micros(100);
const PAUSE: Duration = Duration::from_millis(1);
/// The work that is waiting when the foreground begins.
const BACKLOG: usize = 400;
const RUNNING: usize = 4;
const CLIENTS: u32 = 10;
const RATE: u32 = 500;
const WINDOW: Duration = Duration::from_secs(2);

async fn work(left: Arc<AtomicUsize>) {
    for _ in 0..SLICES {
        let began = Instant::now();
        while began.elapsed() < SLICE {
            std::hint::spin_loop();
        }
        sleep(PAUSE).await;
    }
    left.fetch_sub(1, Ordering::Relaxed);
}

async fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").as_bytes()).await.unwrap();
    let mut buffer = Vec::with_capacity(512);
    while !buffer.ends_with(b"done") {
        assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "closed");
    }
}

async fn foreground(address: SocketAddr, offset: Duration) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    sleep(offset).await;
    let mut ticks = interval(Duration::from_secs(CLIENTS.into()) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < WINDOW {
        ticks.tick().await;
        let sent = Instant::now();
        ask(&mut stream, "/").await;
        times.push(sent.elapsed());
    }
    times
}

/// The median and the 99th percentile of one window, and how much work was left at its end.
fn round(kind: &str) -> (Duration, Duration, usize) {
    let server = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let left = Arc::new(AtomicUsize::new(0));
    let epilogue = Epilogue::builder().max_running(RUNNING).max_waiting(BACKLOG).drain_deadline(Duration::ZERO).build();
    let (theirs, others) = (left.clone(), left.clone());
    let app = Router::new()
        .route("/", get(async || "done"))
        .route(
            "/continuations",
            get(async move || {
                theirs.fetch_add(1, Ordering::Relaxed);
                (Continuation::new(work(theirs.clone())), "done")
            }),
        )
        .route(
            "/spawn",
            get(async move || {
                others.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(work(others.clone()));
                "done"
            }),
        );
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    server.spawn(epilogue.serve(listener, app).into_future());
    let path = match kind {
        "continuations" => Some("/continuations"),
        "tokio::spawn" => Some("/spawn"),
        _ => None,
    };
    let client = thread::spawn(move || {
        runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            if let Some(path) = path {
                let mut stream = TcpStream::connect(address).await.unwrap();
                for _ in 0..BACKLOG {
                    ask(&mut stream, path).await;
                }
            }
            let every = Duration::from_secs(1) / RATE;
            let clients: Vec<_> =
                (0..CLIENTS).map(|number| tokio::spawn(foreground(address, every * number))).collect();
            let mut times = Vec::new();
            for client in clients {
                times.extend(client.await.unwrap());
            }
            times
        })
    });
    let mut times = client.join().unwrap();
    let left = left.load(Ordering::Relaxed);
    server.shutdown_background();
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100], left)
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all[all.len() / 2]
}

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let mut seen: [Vec<(Duration, Duration, usize)>; 3] = Default::default();
    for _ in 0..rounds {
        for (kind, seen) in KINDS.iter().zip(&mut seen) {
            seen.push(round(kind));
        }
    }
    println!("{RATE} requests a second beside {BACKLOG} pieces of work; the medians of {rounds} windows of {WINDOW:?}");
    println!("{:14}  {:>10}  {:>10}  {:>22}  {:>9}", "beside", "50 of 100", "99 of 100", "added to 99", "work left");
    let plain = median(seen[0].iter().map(|(_, p99, _)| *p99).collect());
    for (kind, seen) in KINDS.iter().zip(&seen) {
        let half = median(seen.iter().map(|(half, _, _)| *half).collect());
        let p99 = median(seen.iter().map(|(_, p99, _)| *p99).collect());
        let left = median(seen.iter().map(|(_, _, left)| *left).collect());
        let added = p99.saturating_sub(plain);
        let share = added.as_secs_f64() / plain.as_secs_f64() * 100.0;
        println!("{kind:14}  {half:>10.1?}  {p99:>10.1?}  {added:>12.1?}, {share:>7.0}%  {left:>9}");
    }
}
