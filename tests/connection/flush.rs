//! No continuation starts before the kernel has every byte of its response: ten thousand responses of every shape.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::task::JoinSet;

use crate::{
    frames::{RawHttp2, request},
    shapes::{Counting, OwnServer, Pace, SHAPES, Shape, Starts, app, is_bodiless},
    support::soon,
};

/// Where in its connection each response ended, by the request's number.
type Ends = Vec<(u64, Shape, u64)>;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The next requests, their shapes in turn.
fn next(count: usize) -> Vec<(u64, Shape)> {
    (0..count)
        .map(|_| {
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            (id, SHAPES[usize::try_from(id).unwrap() % SHAPES.len()])
        })
        .collect()
}

fn head(id: u64, (name, method): Shape, version: &str, more: &str) -> String {
    format!("{method} /{name}/{id} HTTP/{version}\r\nhost: test\r\nte: trailers\r\n{more}\r\n")
}

/// One connection, `at_once` requests in one write, until there were `batches` of them.
async fn http1(address: SocketAddr, pace: Pace, batches: usize, at_once: usize) -> Ends {
    let mut client = Counting::connect(address, pace).await;
    let mut ends = Ends::new();
    for _ in 0..batches {
        let requests = next(at_once);
        let mut heads = String::new();
        for (id, shape) in &requests {
            write!(heads, "{}", head(*id, *shape, "1.1", "")).unwrap();
        }
        client.send(&heads).await;
        for (id, shape) in requests {
            ends.push((id, shape, client.response(is_bodiless(shape)).await));
        }
    }
    ends
}

/// A connection for each request: HTTP/1.0, HTTP/1.0 with keep-alive, and HTTP/1.1 that closes.
async fn closing(address: SocketAddr, pace: Pace, count: usize) -> Ends {
    let mut ends = Ends::new();
    for (id, shape) in next(count) {
        let mut client = Counting::connect(address, pace).await;
        let (version, more, closes) = match id % 3 {
            0 => ("1.0", "", true),
            1 => ("1.0", "connection: keep-alive\r\n", false),
            _ => ("1.1", "connection: close\r\n", true),
        };
        client.send(&head(id, shape, version, more)).await;
        let end = if closes { client.rest().await } else { client.response(is_bodiless(shape)).await };
        ends.push((id, shape, end));
    }
    ends
}

/// One connection, `at_once` streams at a time.
async fn http2(address: SocketAddr, pace: Pace, batches: usize, at_once: usize) -> Ends {
    let mut client = RawHttp2::over(pace.connect(address).await).await;
    let (mut ends, mut stream) = (Ends::new(), 1);
    for _ in 0..batches {
        let (mut open, mut bytes) = (HashMap::new(), Vec::new());
        for (id, shape) in next(at_once) {
            bytes.extend(request(shape.1, &format!("/{}/{id}", shape.0), stream, true));
            open.insert(stream, (id, shape));
            stream += 2;
        }
        client.send(&bytes).await;
        while !open.is_empty() {
            pace.pause().await;
            let frame = soon("a frame", client.next(pace.at_most())).await.unwrap().expect("the connection is open");
            if frame.ends_its_stream() {
                let (id, shape) = open.remove(&frame.stream).unwrap();
                ends.push((id, shape, client.count));
            }
        }
    }
    ends
}

/// Compares what continuations saw with where their responses ended; gives how many started too early, and by how
/// many bytes at most.
async fn early(ends: Ends, starts: &mut Starts) -> HashMap<Shape, (usize, u64)> {
    let mut ends: HashMap<_, _> = ends.into_iter().map(|(id, shape, end)| (id, (shape, end))).collect();
    let mut early: HashMap<Shape, (usize, u64)> = HashMap::new();
    while !ends.is_empty() {
        let start = soon("all continuations start", starts.recv()).await.unwrap();
        let (shape, end) = ends.remove(&start.id).expect("each continuation starts once");
        if start.written < end {
            let (count, most) = early.entry(shape).or_default();
            *count += 1;
            *most = (end - start.written).max(*most);
        }
    }
    early
}

/// The number of responses, and what went wrong.
async fn all_shapes(workers: Option<usize>, pace: Pace) -> (usize, String) {
    let (app, mut starts) = app(Arc::default());
    let server = OwnServer::start(workers, pace.send_buffer(), app);
    let address = server.address;
    let many = if pace == Pace::Fast { 4 } else { 1 };
    let (mut count, mut wrong) = (0, String::new());
    for kind in ["HTTP/1.1", "HTTP/1.1 pipelined", "closing", "HTTP/2"] {
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            match kind {
                "HTTP/1.1" => clients.spawn(http1(address, pace, 75 * many, 1)),
                "HTTP/1.1 pipelined" => clients.spawn(http1(address, pace, 5 * many, 15)),
                "closing" => clients.spawn(closing(address, pace, 18 * many)),
                _ => clients.spawn(http2(address, pace, 3 * many, 30)),
            };
        }
        let ends = clients.join_all().await.concat();
        count += ends.len();
        for (shape, (count, bytes)) in early(ends, &mut starts).await {
            writeln!(
                wrong,
                "{kind}, {pace:?}, {workers:?} workers, {shape:?}: {count} started up to {bytes} bytes early"
            )
            .unwrap();
        }
    }
    (count, wrong)
}

#[tokio::test]
async fn no_continuation_starts_before_the_kernel_has_every_byte() {
    let (mut count, mut all_wrong) = (0, String::new());
    for workers in [None, Some(2)] {
        for pace in [Pace::Fast, Pace::Slow] {
            let began = std::time::Instant::now();
            let (some, wrong) = all_shapes(workers, pace).await;
            println!("{some} responses, {workers:?} workers, {pace:?} readers: {:?}", began.elapsed());
            count += some;
            all_wrong += &wrong;
        }
    }
    assert!(all_wrong.is_empty(), "\n{all_wrong}");
    assert!(count >= 10_000, "{count}");
}
