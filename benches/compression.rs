//! An early close that compresses, beside tower-http's `CompressionLayer`: requests a second, gzip, JSON.
//!
//! `cargo bench --bench compression --features compression`. The two are asked in turns, and each figure is the median of
//! the ratios of such pairs, early close over tower-http: 1 or more means at least as many requests a second.
//!
//! - *In process*: the service is called and its body read, with no server.
//! - *Kept alive*, *closed*: over sockets, with a connection for each client or for each request. One process serves
//!   them all, on one thread, and clients in another ask. tower-http's layer stands once under `axum::serve` and once
//!   under the server of this crate, beside which the early close is: the second ratio is that of the layers alone, the
//!   first one has the cost of tracked connections in it. When it is to close, its response is given the header.
//!
//! Beside each ratio stands that of the processor's time for a request, of the thread that serves: on a machine that does
//! other things meanwhile it says more. Linux only: it is read from `/proc`. Takes about two minutes.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;
use tower_epilogue::{EarlyCloseLayer, Epilogue};
use tower_http::{compression::CompressionLayer, set_header::SetResponseHeaderLayer};

const SIZES: [usize; 3] = [1024, 64 * 1024, 1024 * 1024];
const PAIRS: usize = 15;
/// How long one server is asked at a time.
const TURN: Duration = Duration::from_millis(200);
const CLIENTS: usize = 4;

fn main() {
    // `cargo bench` adds `--bench`; a child is told its part by a variable.
    if env::var("BENCH_SERVER").is_ok() {
        serve();
    } else if !env::args().any(|argument| argument == "--test") {
        measure();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A list of records, cut to `size` bytes of a valid document.
fn json(size: usize) -> Bytes {
    let mut text = String::from("[");
    let mut state = 1_u32;
    while text.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (id, score, city) =
            (state >> 16, state % 10_007, ["Bern", "Oslo", "Lima", "Kyoto"][(state >> 8) as usize % 4]);
        text += &format!(
            r#"{{"id":{id},"name":"visitor {score}","city":"{city}","score":{score},"active":{}}},"#,
            id % 2 == 0
        );
    }
    text.truncate(size - 6);
    text += r#"end"}]"#;
    Bytes::from(text)
}

fn app() -> Router {
    SIZES.into_iter().fold(Router::new(), |router, size| {
        let body = json(size);
        let handler = async move || ([(header::CONTENT_TYPE, "application/json")], body.clone()).into_response();
        router.route(&format!("/{size}"), get(handler))
    })
}

fn theirs(kept: bool) -> Router {
    let close = SetResponseHeaderLayer::overriding(header::CONNECTION, HeaderValue::from_static("close"));
    let app = app().layer(CompressionLayer::new());
    if kept { app } else { app.layer(close) }
}

fn ours(kept: bool) -> Router {
    let layer = EarlyCloseLayer::new().compress();
    app().layer(if kept { layer.keep_alive() } else { layer })
}

/// Tells the addresses of three servers for each way, and serves.
fn serve() {
    runtime().block_on(async {
        let bind = || async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            println!("{}", listener.local_addr().unwrap());
            listener
        };
        for kept in [true, false] {
            tokio::spawn(axum::serve(bind().await, theirs(kept)).into_future());
            tokio::spawn(Epilogue::new().serve(bind().await, theirs(kept)).into_future());
            tokio::spawn(Epilogue::new().serve(bind().await, ours(kept)).into_future());
        }
        std::future::pending::<()>().await;
    });
}

struct Server {
    child: Child,
    addresses: [SocketAddr; 6],
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let mut child = command.env("BENCH_SERVER", "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addresses = [(); 6].map(|()| lines.next().unwrap().unwrap().parse().unwrap());
        Self { child, addresses }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn whole(bytes: &[u8], closed: bool) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    if head.contains("connection: close") {
        return closed;
    }
    match head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        Some(length) => bytes.len() == end + 4 + length.parse::<usize>().unwrap(),
        None => bytes.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// Requests a second, and the processor's time for one, in nanoseconds.
type Pace = (f64, f64);

/// The nanoseconds that a thread has run.
fn ran(schedstat: &str) -> f64 {
    let text = std::fs::read_to_string(schedstat).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Asks until the time is over, with `CLIENTS` at once.
async fn turn(address: SocketAddr, schedstat: &str, size: usize, kept: bool) -> Pace {
    let before = ran(schedstat);
    let request = format!("GET /{size} HTTP/1.1\r\nhost: bench\r\naccept-encoding: gzip\r\n\r\n");
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let request = request.clone();
            tokio::spawn(async move {
                let (mut count, mut stream, mut bytes) = (0, None, Vec::with_capacity(1 << 20));
                while began.elapsed() < TURN {
                    if stream.is_none() {
                        let new = TcpStream::connect(address).await.unwrap();
                        new.set_nodelay(true).unwrap();
                        stream = Some(new);
                    }
                    let open = stream.as_mut().unwrap();
                    bytes.clear();
                    open.write_all(request.as_bytes()).await.unwrap();
                    let mut closed = false;
                    while !whole(&bytes, closed) {
                        closed = open.read_buf(&mut bytes).await.unwrap() == 0;
                    }
                    if !kept {
                        stream = None;
                    }
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut requests = 0;
    for client in clients {
        requests += client.await.unwrap();
    }
    let requests = f64::from(requests);
    (requests / began.elapsed().as_secs_f64(), (ran(schedstat) - before) / requests)
}

/// Without a server: calls, and reads the body to its end.
async fn call(app: &Router, size: usize) -> Pace {
    let (began, before, mut count) = (Instant::now(), ran(SELF), 0);
    while began.elapsed() < TURN {
        let request = Request::get(format!("/{size}")).header(header::ACCEPT_ENCODING, "gzip").body(Body::empty());
        let mut body = app.clone().oneshot(request.unwrap()).await.unwrap().into_body();
        while let Some(frame) = body.frame().await {
            std::hint::black_box(frame.unwrap());
        }
        count += 1;
    }
    let count = f64::from(count);
    (count / began.elapsed().as_secs_f64(), (ran(SELF) - before) / count)
}

const SELF: &str = "/proc/thread-self/schedstat";

fn pairs(what: &str, theirs: impl Fn() -> Pace, ours: impl Fn() -> Pace) {
    theirs();
    ours();
    let pairs: Vec<_> = (0..PAIRS)
        .map(|pair| {
            // Who goes first takes turns too.
            if pair % 2 == 0 {
                let theirs = theirs();
                (theirs, ours())
            } else {
                let ours = ours();
                (theirs(), ours)
            }
        })
        .collect();
    let quartiles = |ratio: fn(&(Pace, Pace)) -> f64| {
        let mut ratios: Vec<_> = pairs.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| ratios[PAIRS * quarter / 4])
    };
    let requests = quartiles(|(theirs, ours)| ours.0 / theirs.0);
    let cpu = quartiles(|(theirs, ours)| theirs.1 / ours.1);
    println!(
        "{what}: {:.3} ({:.3} to {:.3}); processor {:.3} ({:.3} to {:.3})",
        requests[1], requests[0], requests[2], cpu[1], cpu[0], cpu[2]
    );
}

fn measure() {
    let runtime = runtime();
    let (in_theirs, in_ours) = (theirs(true), ours(true));
    for size in SIZES {
        let what = format!("{size:>7} bytes, in process: beside tower-http                    ");
        pairs(&what, || runtime.block_on(call(&in_theirs, size)), || runtime.block_on(call(&in_ours, size)));
    }
    let server = Server::start();
    let schedstat = format!("/proc/{}/schedstat", server.child.id());
    for (what, kept, addresses) in
        [("kept alive", true, &server.addresses[..3]), ("    closed", false, &server.addresses[3..])]
    {
        for size in SIZES {
            let run = |address| runtime.block_on(turn(address, &schedstat, size, kept));
            for (place, under) in ["axum::serve    ", "Epilogue::serve"].into_iter().enumerate() {
                let what = format!("{size:>7} bytes, {what}: beside tower-http, {under}");
                pairs(&what, || run(addresses[place]), || run(addresses[2]));
            }
        }
    }
}
