//! What tracked connections cost, beside plain `axum::serve`: the memory of idle ones, and requests a second.
//!
//! `cargo bench --bench connections`. Each server is a process of its own. For the memory each is started in turn;
//! for the speed all live at once and take turns in short bursts, and the figure is the median of the ratios, round by
//! round. Linux only: the memory is read from `/proc`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer, TrackedListener,
};

/// Plain `axum::serve`; the same over the tracked listener; that, and a lifecycle for each request; our own server, with
/// the timeouts that `axum::serve` leaves off. Then two whose requests leave work of 100 ms behind: `axum::serve` with
/// a `tokio::spawn` in the handler, and our server with all four layers.
const KINDS: [&str; 6] = ["plain", "tracked_listener", "make_service", "epilogue_serve", "axum_spawn", "four_layers"];
/// Which one each is compared with.
const PEERS: [usize; 6] = [0, 0, 0, 0, 0, 4];
const WORK: Duration = Duration::from_millis(100);
const IDLE: usize = 10_000;
const ROUNDS: usize = 61;
const CLIENTS: usize = 32;
/// A client's, in one burst.
const REQUESTS: usize = 250;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";

fn main() {
    // `cargo bench` adds `--bench`; a child is told its part by a variable.
    match env::var("BENCH_SERVER") {
        Ok(kind) => serve(&kind),
        Err(_) if env::args().any(|argument| argument == "--test") => {}
        Err(_) => measure(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn serve(kind: &str) {
    runtime().block_on(async {
        let app = Router::new().route("/", get(|| async { "hello" }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        match kind {
            "plain" => axum::serve(listener, app).await.unwrap(),
            "tracked_listener" => axum::serve(TrackedListener::new(listener), app).await.unwrap(),
            "make_service" => {
                let make_service = Epilogue::new().make_service(app);
                axum::serve(TrackedListener::new(listener), make_service).await.unwrap();
            }
            "epilogue_serve" => {
                Epilogue::new().serve(listener, app).await.unwrap();
            }
            "axum_spawn" => {
                async fn spawn() -> &'static str {
                    tokio::spawn(tokio::time::sleep(WORK));
                    "hello"
                }
                axum::serve(listener, Router::new().route("/", get(spawn))).await.unwrap();
            }
            "four_layers" => {
                async fn defer() -> (Continuation, &'static str) {
                    (Continuation::new(tokio::time::sleep(WORK)), "hello")
                }
                let hook = ShutdownHookLayer::new(|_| async {});
                let early = EarlyCloseLayer::new().keep_alive();
                let layers = (early, IgnoreAbortLayer::new(), TimeLimitLayer::default(), hook);
                let app = Router::new().route("/", get(defer)).layer(layers);
                Epilogue::new().serve(listener, app).await.unwrap();
            }
            _ => panic!("no such server: {kind}"),
        }
    });
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(kind: &str) -> Self {
        let mut child =
            Command::new(env::current_exe().unwrap()).env("BENCH_SERVER", kind).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn exchange(stream: &mut TcpStream, buffer: &mut [u8]) {
    stream.write_all(REQUEST).await.unwrap();
    let mut filled = 0;
    while !buffer[..filled].ends_with(b"hello") {
        let read = stream.read(&mut buffer[filled..]).await.unwrap();
        assert!(read > 0, "the server closed the connection");
        filled += read;
    }
}

/// Kilobytes of a server with idle connections that have each served one request.
fn idle(kind: &str) -> f64 {
    let server = Server::start(kind);
    runtime().block_on(async {
        let mut streams = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            exchange(&mut stream, &mut [0; 512]).await;
            streams.push(stream);
        }
        server.memory() as f64
    })
}

fn idle_all() {
    let plain = idle(KINDS[0]);
    println!("{IDLE} idle connections: {} {plain:.0} kB", KINDS[0]);
    for kind in &KINDS[1..4] {
        let memory = idle(kind);
        println!("{IDLE} idle connections: {kind} {memory:.0} kB, ratio {:.3}", memory / plain);
    }
}

/// A server with its busy clients.
struct Busy {
    kind: &'static str,
    streams: Vec<TcpStream>,
    _server: Server,
    /// Requests a second, burst by burst.
    rates: Vec<f64>,
}

impl Busy {
    async fn start(kind: &'static str) -> Self {
        let server = Server::start(kind);
        let mut streams = Vec::new();
        for _ in 0..CLIENTS {
            let stream = TcpStream::connect(server.address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            streams.push(stream);
        }
        Self { kind, streams, _server: server, rates: Vec::new() }
    }

    async fn burst(&mut self) {
        let began = Instant::now();
        let clients: Vec<_> = self
            .streams
            .drain(..)
            .map(|mut stream| {
                tokio::spawn(async move {
                    for _ in 0..REQUESTS {
                        exchange(&mut stream, &mut [0; 512]).await;
                    }
                    stream
                })
            })
            .collect();
        for client in clients {
            self.streams.push(client.await.unwrap());
        }
        self.rates.push((CLIENTS * REQUESTS) as f64 / began.elapsed().as_secs_f64());
        // What it leaves behind is not to fall on the others.
        tokio::time::sleep(WORK + WORK / 5).await;
    }
}

/// All servers live at once and are busy in turn, in short bursts, so that what else the machine does meanwhile falls on
/// all of them.
fn busy_all() {
    let mut servers = runtime().block_on(async {
        let mut servers = Vec::new();
        for kind in KINDS {
            servers.push(Busy::start(kind).await);
        }
        for round in 0..=ROUNDS {
            for place in 0..servers.len() {
                // Who goes first takes turns too.
                let place = (place + round) % servers.len();
                servers[place].burst().await;
            }
        }
        servers
    });
    for server in &mut servers {
        // The first burst warms up.
        server.rates.remove(0);
    }
    for (place, server) in servers.iter().enumerate() {
        let peer = &servers[PEERS[place]];
        let mut ratios: Vec<_> = server.rates.iter().zip(&peer.rates).map(|(rate, peer)| rate / peer).collect();
        ratios.sort_by(f64::total_cmp);
        let mut rates = server.rates.clone();
        rates.sort_by(f64::total_cmp);
        println!(
            "{CLIENTS} busy connections: {} median {:.0} requests/s, median ratio to {} {:.3} of {ROUNDS} rounds",
            server.kind,
            rates[ROUNDS / 2],
            peer.kind,
            ratios[ROUNDS / 2]
        );
    }
}

fn measure() {
    idle_all();
    busy_all();
}
