//! What tracked connections cost, beside plain `axum::serve`: the memory of idle ones, and requests a second.
//!
//! `cargo bench --bench connections`. Each server is a process of its own, started anew for each run; the two take
//! turns, and each figure is the ratio of a pair of runs, tracked over plain. Takes about a minute. Linux only: the
//! memory is read from `/proc`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Instant,
};

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_epilogue::{Epilogue, TrackedListener};

const IDLE: usize = 9_000;
const PAIRS: usize = 7;
const CLIENTS: usize = 32;
const REQUESTS: usize = 3_000;
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
            "tracked" => {
                let make_service = Epilogue::new().make_service(app);
                axum::serve(TrackedListener::new(listener), make_service).await.unwrap();
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

/// Requests a second.
fn busy(kind: &str) -> f64 {
    let server = Server::start(kind);
    runtime().block_on(async {
        let run = |requests| async move {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    tokio::spawn(async move {
                        let mut stream = TcpStream::connect(server.address).await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        for _ in 0..requests {
                            exchange(&mut stream, &mut [0; 512]).await;
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
        };
        run(REQUESTS / 10).await;
        let began = Instant::now();
        run(REQUESTS).await;
        (CLIENTS * REQUESTS) as f64 / began.elapsed().as_secs_f64()
    })
}

fn pairs(what: &str, unit: &str, run: impl Fn(&str) -> f64) {
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        // Who goes first takes turns too.
        let (plain, tracked) = if pair % 2 == 0 {
            let plain = run("plain");
            (plain, run("tracked"))
        } else {
            let tracked = run("tracked");
            (run("plain"), tracked)
        };
        println!("{what}: plain {plain:.0} {unit}, tracked {tracked:.0} {unit}, ratio {:.3}", tracked / plain);
        ratios.push(tracked / plain);
    }
    ratios.sort_by(f64::total_cmp);
    println!("{what}: median ratio {:.3} of {PAIRS} pairs\n", ratios[PAIRS / 2]);
}

fn measure() {
    pairs(&format!("{IDLE} idle connections"), "kB", idle);
    pairs(&format!("{CLIENTS} busy connections"), "requests/s", busy);
}
