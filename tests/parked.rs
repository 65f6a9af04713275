//! What a continuation keeps in memory that goes on for long.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]
// A counting allocator is there to count.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    convert::Infallible,
    sync::atomic::{AtomicIsize, AtomicUsize, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    routing::get,
};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

struct Counting;

/// Bytes that are allocated now.
static LIVE: AtomicIsize = AtomicIsize::new(0);

fn count(change: usize, sign: isize) {
    LIVE.fetch_add(sign * isize::try_from(change).unwrap_or(0), Ordering::Relaxed);
}

// SAFETY: everything is done by the system's allocator; beside it, only a number is changed.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static STARTED: AtomicUsize = AtomicUsize::new(0);

async fn park() -> (Continuation, &'static str) {
    let parked = Continuation::new(async {
        STARTED.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
    });
    (parked, "hello")
}

/// As many requests, each on a connection of its own, and all of it but the continuations over.
async fn park_all(address: std::net::SocketAddr, path: &str, count: usize) {
    let before = STARTED.load(Ordering::SeqCst);
    for number in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = Vec::with_capacity(1024);
        // One client waits for the connection to end, the other closes it.
        while !response.ends_with(b"hello") || number % 2 == 0 {
            if stream.read_buf(&mut response).await.unwrap() == 0 {
                break;
            }
        }
        assert!(response.ends_with(b"hello"));
    }
    while STARTED.load(Ordering::SeqCst) < before + count {
        tokio::task::yield_now().await;
    }
    // What runs on one thread has run after so many turns: tasks of connections that have closed.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The buffer that the request was read into, 8 KiB or more, does not wait for it: neither with a route that names the
/// request, nor with the request's own path.
#[tokio::test]
async fn a_parked_continuation_keeps_little_more_than_its_future() {
    // One after the other: what is allocated is counted for the whole process.
    lets_its_requests_buffer_go().await;
    holds_at_most_512_bytes_over_its_future().await;
}

/// As `benches/park.rs` measures it for a million of them.
async fn holds_at_most_512_bytes_over_its_future() {
    const COUNT: usize = 20_000;
    async fn work() {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    async fn answer(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        let mut response = Response::new(Body::from("accepted"));
        Continuation::new(work()).attach(&mut response);
        Ok(response)
    }
    let layered = IgnoreAbortLayer::new().layer(service_fn(answer));
    let park = async |count: usize| {
        for _ in 0..count {
            let request = Request::get("/orders").body(Body::empty()).unwrap();
            let response = layered.oneshot(request).await.unwrap();
            response.into_body().collect().await.unwrap();
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    park(100).await;
    let before = LIVE.load(Ordering::Relaxed);
    park(COUNT).await;
    let each = usize::try_from(LIVE.load(Ordering::Relaxed) - before).unwrap() / COUNT;
    let over = each - size_of_val(&work());
    assert!(over <= 512, "{over} bytes over each future");
}

async fn lets_its_requests_buffer_go() {
    const COUNT: usize = 300;
    let layers = (
        EarlyCloseLayer::new(),
        IgnoreAbortLayer::new(),
        TimeLimitLayer::default(),
        ShutdownHookLayer::new(|_| async {}),
    );
    let app = Router::new().route("/park", get(park)).fallback(park).layer(layers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let epilogue = Epilogue::new();
    let server = epilogue.serve(listener, app);
    tokio::spawn(async move { server.await });

    park_all(address, "/park", 20).await;
    for path in ["/park", "/no/route/of/its/own?query"] {
        let before = LIVE.load(Ordering::Relaxed);
        park_all(address, path, COUNT).await;
        let each = usize::try_from(LIVE.load(Ordering::Relaxed) - before).unwrap() / COUNT;
        assert!(each < 1024, "{path}: {each} bytes for each parked continuation");
        assert!(each > 256, "{path}: {each} bytes cannot be all of it");
    }
}
