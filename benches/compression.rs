//! An early close that compresses, beside tower-http's `CompressionLayer`: requests a second, gzip, JSON.
//!
//! `cargo bench --bench compression --features compression`. One process serves both, on one thread; clients in another
//! ask them in turns, and each figure is the median of the ratios of such pairs, early close over tower-http: 1 or more
//! means at least as many requests a second. First on connections that are kept alive, then with one for each request,
//! where tower-http's response is given a `Connection: close` as well. Takes about a minute.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, response::IntoResponse, routing::get};
use bytes::Bytes;
use http::{HeaderValue, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_epilogue::{EarlyCloseLayer, Epilogue};
use tower_http::{compression::CompressionLayer, set_header::SetResponseHeaderLayer};

const SIZES: [usize; 3] = [1024, 64 * 1024, 1024 * 1024];
const PAIRS: usize = 21;
/// How long one server is asked at a time.
const TURN: Duration = Duration::from_millis(250);
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

fn serve() {
    runtime().block_on(async {
        let bind = || async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            println!("{}", listener.local_addr().unwrap());
            listener
        };
        let (theirs, ours) = (app().layer(CompressionLayer::new()), EarlyCloseLayer::new().compress());
        let close = SetResponseHeaderLayer::overriding(header::CONNECTION, HeaderValue::from_static("close"));
        tokio::spawn(axum::serve(bind().await, theirs.clone()).into_future());
        tokio::spawn(Epilogue::new().serve(bind().await, app().layer(ours.clone().keep_alive())).into_future());
        tokio::spawn(axum::serve(bind().await, theirs.layer(close)).into_future());
        Epilogue::new().serve(bind().await, app().layer(ours)).await.unwrap();
    });
}

struct Server {
    child: Child,
    /// tower-http and ours kept alive, tower-http and ours closing.
    addresses: [SocketAddr; 4],
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let mut child = command.env("BENCH_SERVER", "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addresses = [(); 4].map(|()| lines.next().unwrap().unwrap().parse().unwrap());
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

/// Asks until the time is over, with `CLIENTS` at once. Requests a second.
async fn turn(address: SocketAddr, size: usize, kept: bool) -> f64 {
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
    f64::from(requests) / began.elapsed().as_secs_f64()
}

fn measure() {
    let runtime = runtime();
    let theirs = app().layer(CompressionLayer::new());
    let ours = app().layer(EarlyCloseLayer::new().keep_alive().compress());
    for size in SIZES {
        let pair = || (runtime.block_on(call(&theirs, size)), runtime.block_on(call(&ours, size)));
        pair();
        let mut pairs: Vec<_> = (0..PAIRS).map(|_| pair()).collect();
        pairs.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
        let p = pairs[PAIRS / 2];
        println!("{size} in process {:.0} {:.0} {:.3}", p.0, p.1, p.1 / p.0);
    }
    let server = Server::start();
    for (what, kept) in [("kept alive", true), ("closed", false)] {
        let [theirs, ours] =
            if kept { [server.addresses[0], server.addresses[1]] } else { [server.addresses[2], server.addresses[3]] };
        for size in SIZES {
            let run = |address| runtime.block_on(turn(address, size, kept));
            run(theirs);
            run(ours);
            let mut pairs: Vec<_> = (0..PAIRS)
                .map(|pair| {
                    // Who goes first takes turns too.
                    if pair % 2 == 0 {
                        let theirs = run(theirs);
                        (theirs, run(ours))
                    } else {
                        let ours = run(ours);
                        (run(theirs), ours)
                    }
                })
                .collect();
            pairs.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
            let (theirs, ours) = pairs[PAIRS / 2];
            let ratio = |place: usize| pairs[place].1 / pairs[place].0;
            println!(
                "{size:>8} bytes, {what:>10}: tower-http {theirs:.0}/s, early close {ours:.0}/s, ratio {:.3} (quartiles {:.3} to {:.3})",
                ratio(PAIRS / 2),
                ratio(PAIRS / 4),
                ratio(PAIRS * 3 / 4),
            );
        }
    }
}

/// Without a server: the service's call, and its body read to the end.
async fn call<S, B>(service: &S, size: usize) -> f64
where
    S: tower::Service<http::Request<axum::body::Body>, Response = http::Response<B>, Error = std::convert::Infallible>
        + Clone,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < TURN {
        let request =
            http::Request::get(format!("/{size}")).header("accept-encoding", "gzip").body(axum::body::Body::empty());
        let response = service.clone().oneshot(request.unwrap()).await.unwrap();
        let mut body = std::pin::pin!(response.into_body());
        while let Some(frame) = body.frame().await {
            std::hint::black_box(frame.unwrap());
        }
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}
