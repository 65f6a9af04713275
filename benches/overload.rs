//! Ten thousand requests a second where a thousand can be done.
//!
//! `cargo bench --bench overload`. Each request that is accepted has a continuation of 100 ms, and 100 run at once.
//! Printed are the requests a second that came and were answered, how long a refusal took, counted from the moment at
//! which its request was sent, and the memory of the process (client and server in one, Linux) after each second: it is
//! to stay flat. The counts of both sides, and those of the status page, are to agree. `SECONDS` and `RATE` in the
//! environment change the load.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
    routing::get,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tower::ServiceExt as _;
use tower_epilogue::{Continuation, Epilogue};

const CLIENTS: u32 = 100;
const WORK: Duration = Duration::from_millis(100);

/// The status page, as JSON; asked without a socket, which is not what is measured.
async fn page(epilogue: &Epilogue) -> serde_json::Value {
    let request = Request::builder().uri("/json").body(Body::empty()).unwrap();
    let response = epilogue.status_page::<()>().oneshot(request).await.unwrap();
    serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap()
}

/// How many refusals took so many steps, the last place being for all that took longer. Of one size, however many: it
/// is in the process whose memory is to stay flat.
struct Times {
    counts: Vec<u32>,
    slowest: Duration,
}

const STEP: Duration = Duration::from_micros(10);
const STEPS: usize = 5_000;

impl Default for Times {
    fn default() -> Self {
        Self { counts: vec![0; STEPS + 1], slowest: Duration::ZERO }
    }
}

impl Times {
    fn note(&mut self, time: Duration) {
        let step = usize::try_from(time.as_micros() / STEP.as_micros()).unwrap();
        self.counts[step.min(STEPS)] += 1;
        self.slowest = self.slowest.max(time);
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.slowest = self.slowest.max(other.slowest);
    }

    fn len(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Within which so many of a hundred were; `None` if that is more than all the steps.
    fn within(&self, share: u64) -> Option<Duration> {
        let (wanted, mut seen) = ((self.len() * share).div_ceil(100), 0);
        let reached = self.counts[..STEPS].iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        })?;
        Some(STEP * u32::try_from(reached + 1).unwrap())
    }
}

#[derive(Default)]
struct Seen {
    accepted: u64,
    refusals: Times,
}

async fn client(address: SocketAddr, offset: Duration, every: Duration, ends: Instant) -> Seen {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut seen, mut buffer) = (Seen::default(), Vec::with_capacity(1024));
    let mut ticks = interval_at(Instant::now() + offset, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while Instant::now() < ends {
        ticks.tick().await;
        let sent = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await.unwrap();
        buffer.clear();
        // Both answers end in these words.
        while !buffer.ends_with(b"accepted") && !buffer.ends_with(b"later.\n") {
            assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "closed");
        }
        match &buffer[9..12] {
            b"200" => seen.accepted += 1,
            b"503" => seen.refusals.note(sent.elapsed()),
            other => panic!("{other:?}"),
        }
    }
    seen
}

/// In KiB; 0 where it cannot be told.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (seconds, rate) = (setting("SECONDS", 5), setting("RATE", 10_000));
    let ran = Arc::new(AtomicU64::new(0));
    let runs = ran.clone();
    let handler = async move || {
        let runs = runs.clone();
        let work = Continuation::new(async move {
            sleep(WORK).await;
            runs.fetch_add(1, Ordering::Relaxed);
        });
        (work, "accepted")
    };
    let epilogue = Epilogue::builder().max_running(100).max_waiting(100).status_page().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = epilogue.serve(listener, Router::new().route("/", get(handler)));
    let serving = tokio::spawn(
        serving
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .into_future(),
    );
    let began = Instant::now();
    let ends = began + Duration::from_secs(seconds.into());
    let every = Duration::from_secs(CLIENTS.into()) / rate;
    let clients: JoinSet<_> = (0..CLIENTS).map(|index| client(address, every * index / CLIENTS, every, ends)).collect();
    println!("offered: {rate} requests a second for {seconds} s; a thousand a second can be done");
    for second in 1..=seconds {
        sleep(Duration::from_secs(1)).await;
        println!("  after {second} s: {} KiB, {:?}", memory(), epilogue.load().unwrap());
    }
    let all = clients.join_all().await;
    let took = began.elapsed();
    stop.send(()).unwrap();
    let report = serving.await.unwrap().unwrap();
    let accepted: u64 = all.iter().map(|seen| seen.accepted).sum();
    let mut refusals = Times::default();
    all.iter().for_each(|seen| refusals.add(&seen.refusals));
    let refused = refusals.len();
    println!(
        "answered: {:.0} a second; {accepted} accepted, {refused} refused",
        (accepted + refused) as f64 / took.as_secs_f64()
    );
    for share in [50, 90, 99] {
        println!("  {share} of 100 refusals within {:?}", refusals.within(share));
    }
    println!("  the slowest after {:?}", refusals.slowest);
    println!("{report}; memory {} KiB", memory());
    let (load, page) = (epilogue.load().unwrap(), page(&epilogue).await);
    let shown = |name: &str| page["requests"][name].as_u64().unwrap();
    println!("         accepted   refused   ended");
    println!("clients  {accepted:8}  {refused:8}  {:6}", ran.load(Ordering::Relaxed));
    println!("page     {:8}  {:8}  {:6}", shown("accepted"), shown("refused"), shown("ended"));
    assert_eq!(
        (accepted, refused),
        (ran.load(Ordering::Relaxed), load.refused),
        "the counts agree, and nothing is lost"
    );
    assert_eq!((accepted, refused, accepted), (shown("accepted"), shown("refused"), shown("ended")), "the page agrees");
}
