//! The kill test: a server is killed ten times at random moments under a load of orders; every order that was answered
//! with a 2xx is completed, and none of them twice.
//!
//! It lasts 35 s for each store; `DURABLE_KILL_SECONDS=600 cargo test --test durable_kill --features full` is ten minutes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::mem_forget,
    clippy::print_stdout,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, missing_debug_implementations, dead_code, reason = "the modules of one suite")]

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

#[path = "durable_kill/clients.rs"]
mod clients;
#[path = "durable/postgres.rs"]
mod postgres;
#[path = "durable_kill/process.rs"]
mod process;
#[path = "durable_kill/provider.rs"]
mod provider;

use self::{process::Process, provider::Provider};

/// How long orders come in.
fn load_time() -> Duration {
    let seconds = std::env::var("DURABLE_KILL_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(35))
}

const KILLS: u32 = 10;
/// How long a running process may take to show that it runs.
const SOON: Duration = Duration::from_secs(30);
/// How long nothing may be completed while something is left, once no orders come any more: a leader that was killed is
/// replaced after 11 s, and what it ran is taken for lost after 4 s.
const REST: Duration = Duration::from_secs(60);

/// Waits until all that was accepted is completed, or nothing happens any more; how many are missing then.
async fn missing(accepted: &HashSet<String>, provider: &Provider) -> usize {
    let (mut watch, mut since) = (provider.watch(), Instant::now());
    let mut left: HashSet<_> = accepted.iter().collect();
    loop {
        let before = left.len();
        let ledger = watch.borrow_and_update();
        left.retain(|order| !ledger.completed.contains(*order));
        drop(ledger);
        if left.is_empty() {
            return 0;
        }
        if left.len() < before {
            since = Instant::now();
        }
        if timeout(REST.saturating_sub(since.elapsed()), watch.changed()).await.is_err() {
            return left.len();
        }
    }
}

/// What clients were answered.
#[derive(Default)]
pub struct Book {
    /// Orders that were answered with a 2xx.
    accepted: watch::Sender<HashSet<String>>,
    refused: Mutex<HashMap<String, u64>>,
}

/// Where the server is now.
pub type Address = watch::Receiver<SocketAddr>;

async fn kill_test(place: String) {
    let provider = Provider::start().await;
    let book = Arc::new(Book::default());
    let mut server = Process::start(&place, provider.address).await;
    let (moved, address) = watch::channel(server.address);
    let (ended, running) = watch::channel(true);
    let clients = clients::start(&book, &address, &running);
    let began = Instant::now();
    // Ten moments at random, one in each tenth of the time, so that none of them is idle.
    for kill in 0..KILLS {
        let slot = load_time() / KILLS;
        let at = slot * kill + slot.mul_f64(clients::random());
        tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
        server.kill().await;
        server = Process::start(&place, provider.address).await;
        moved.send_replace(server.address);
    }
    tokio::time::sleep(load_time().saturating_sub(began.elapsed())).await;
    ended.send_replace(false);
    for client in clients {
        client.await.unwrap();
    }
    let accepted = book.accepted.borrow().clone();
    let lost = missing(&accepted, &provider).await;
    let twice: Vec<_> = provider.effects().into_iter().filter(|(_, keys)| keys.len() > 1).collect();
    println!(
        "{}: {} accepted, {lost} lost, {} completed twice, {} calls for {} effects, refused {:?}",
        place.split(':').next().unwrap_or_default(),
        accepted.len(),
        twice.len(),
        provider.calls(),
        provider.effects().values().map(HashSet::len).sum::<usize>(),
        book.refused.lock().unwrap(),
    );
    server.kill().await;
    assert!(accepted.len() > 100, "too few orders to say anything: {}", accepted.len());
    assert_eq!(lost, 0, "orders were accepted and lost");
    assert!(twice.is_empty(), "orders had their effect under more than one key: {twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_on_sqlite() {
    let directory = std::env::temp_dir().join(format!("epilogue-kill-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    kill_test(format!("sqlite:{}", directory.join("orders.db").display())).await;
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_on_postgres() {
    let cluster = postgres::Cluster::start();
    kill_test(cluster.database()).await;
}

/// Two processes share the work of one Postgres; one is killed for good, and the other goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_of_two_processes_goes_on_alone() {
    let cluster = postgres::Cluster::start();
    let place = cluster.database();
    let provider = Provider::start().await;
    let mut first = Process::start(&place, provider.address).await;
    let mut second = Process::start(&place, provider.address).await;
    let book = Arc::new(Book::default());
    let (moved, address) = watch::channel(first.address);
    let (ended, running) = watch::channel(true);
    let clients = clients::start(&book, &address, &running);
    let mut watch = provider.watch();
    let both_work = timeout(SOON, watch.wait_for(|ledger| ledger.processes.len() == 2)).await.is_ok();
    assert!(both_work, "what one promises, both do: {:?}", provider.processes());
    first.kill().await;
    moved.send_replace(second.address);
    let before = book.accepted.borrow().len();
    let more =
        timeout(SOON, book.accepted.subscribe().wait_for(|accepted| accepted.len() >= before + 100)).await.is_ok();
    assert!(more, "the other goes on");
    ended.send_replace(false);
    for client in clients {
        client.await.unwrap();
    }
    let accepted = book.accepted.borrow().clone();
    let lost = missing(&accepted, &provider).await;
    second.kill().await;
    println!("two processes: {} accepted, {} calls", accepted.len(), provider.calls());
    assert_eq!(lost, 0, "orders were accepted and lost");
    assert!(provider.effects().values().all(|keys| keys.len() == 1));
}

/// A disk that is full refuses orders and loses none; with room on it, the server goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_orders_and_loses_none() {
    let directory = std::env::temp_dir().join(format!("epilogue-full-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let provider = Provider::start().await;
    let mut server = Process::on_a_small_disk(&directory, 16 * 1024, 12 * 1024, provider.address).await;
    // Of the rest, each order takes some hundred KiB.
    let mut accepted = Vec::new();
    let order = |number: u32| format!("{number} {}", "x".repeat(100 * 1024));
    let mut refused = 0;
    for number in 0..400 {
        match clients::ask(server.address, "/order", None, &order(number)).await.unwrap() {
            202 => accepted.push(order(number)),
            503 => refused += 1,
            status => panic!("{status}"),
        }
        if refused >= 3 {
            break;
        }
    }
    assert!(refused >= 3 && !accepted.is_empty(), "{refused} refused, {} accepted", accepted.len());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !server.has_logged("its disk is full") {
        assert!(Instant::now() < deadline, "the log says why: {}", server.whole_log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(clients::ask(server.address, "/free", None, "").await.unwrap(), 200);
    let deadline = Instant::now() + REST;
    loop {
        let last = order(1000);
        if clients::ask(server.address, "/order", None, &last).await.unwrap() == 202 {
            accepted.push(last);
            break;
        }
        assert!(Instant::now() < deadline, "it does not go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut watch = provider.watch();
    let all = watch.wait_for(|ledger| accepted.iter().all(|order| ledger.completed.contains(order)));
    let all = timeout(deadline.saturating_duration_since(Instant::now()), all).await.is_ok();
    assert!(all, "orders were accepted and lost");
    assert!(provider.effects().values().all(|keys| keys.len() == 1));
    server.kill().await;
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Not a test: what the tests above start, and kill. Without their environment it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_process() {
    process::serve_if_asked().await;
}
