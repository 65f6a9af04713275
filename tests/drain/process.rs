//! A process with 10,000 continuations in flight is sent real signals.

use std::{
    collections::HashSet,
    future::{Future, pending},
    io::{BufRead, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use tokio::{net::TcpStream, task::JoinSet};
use tower_epilogue::{Continuation, Epilogue, Straggler, shutdown_signal};

use crate::support::{Client, Gate, soon};

const IN_FLIGHT: usize = 10_000;
const CLIENTS: usize = 50;
const MODE: &str = "TOWER_EPILOGUE_TEST_SERVER";

/// The server that the other tests start, in a process of its own; by itself, nothing.
#[test]
fn server_process() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(&mode));
}

async fn serve(mode: &str) {
    let (ran, gate, endless) = (Arc::new(AtomicUsize::new(0)), Gate::closed(), mode != "in_time");
    let (counts, opens) = (ran.clone(), gate.clone());
    let handler = async move || {
        let work = async move {
            opens.passed().await;
            if endless {
                pending::<()>().await;
            }
            counts.fetch_add(1, Ordering::SeqCst);
        };
        (Continuation::new(work), "accepted")
    };
    let deadline = match mode {
        "past_the_deadline" => Some(Duration::from_millis(500)),
        "twice" => None,
        _ => Some(Duration::from_secs(60)),
    };
    let epilogue = Epilogue::builder().drain_deadline(deadline).build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n# {line}").unwrap();
        out.flush().unwrap();
    };
    let address = listener.local_addr().unwrap();
    say(format!("address {address}"));
    let app = Router::new().route("/orders/{id}", get(handler));
    let serving = epilogue.serve(listener, app);
    let report = if mode == "twice" {
        serving.with_signals().await.unwrap()
    } else {
        // The drain finds them all at work: it has begun when nobody is let in any more.
        tokio::spawn(async move {
            shutdown_signal().await;
            while TcpStream::connect(address).await.is_ok() {}
            gate.open();
        });
        serving.with_graceful_shutdown(shutdown_signal()).await.unwrap()
    };
    let named = report.stragglers().iter().filter(|straggler| straggler.phase() == "continuing");
    // Where no layer is inside of the router, a route is named by its path: each order has its own.
    let named: HashSet<_> = named.map(Straggler::route).filter(|route| route.starts_with("GET /orders/")).collect();
    say(format!("ran {} named {} of {}", ran.load(Ordering::SeqCst), named.len(), report.stragglers().len()));
}

struct Server {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: std::net::SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, if all is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(mode: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::server_process", "--nocapture"])
            .env(MODE, mode)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = said(&mut lines, "# address ").parse().unwrap();
        Self { child, lines, address }
    }

    fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// What it says at its end.
    fn result(&mut self) -> String {
        said(&mut self.lines, "# ran ")
    }
}

fn said(lines: &mut impl Iterator<Item = std::io::Result<String>>, start: &str) -> String {
    lines.map(Result::unwrap).find_map(|line| line.strip_prefix(start).map(ToOwned::to_owned)).expect(start)
}

/// A server with 10,000 continuations in flight.
async fn busy(mode: &str) -> Server {
    let server = Server::start(mode);
    let address = server.address;
    let clients: JoinSet<_> = (0..CLIENTS)
        .map(|client| async move {
            let mut connection = Client::connect(address).await;
            for request in 0..IN_FLIGHT / CLIENTS {
                connection.send_get(&format!("/orders/{client}-{request}")).await;
                assert_eq!(connection.reply_by_length(false).await.text(), "accepted");
            }
        })
        .collect();
    within(60, clients.join_all()).await;
    server
}

async fn within<F: Future>(seconds: u64, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("in time")
}

#[tokio::test]
async fn at_sigterm_none_of_10_000_continuations_is_lost_inside_the_deadline() {
    let mut server = busy("in_time").await;
    server.terminate();
    assert_eq!(server.result(), "10000 named 0 of 0");
    assert!(server.child.wait().unwrap().success());
}

#[tokio::test]
async fn past_the_deadline_each_of_10_000_stragglers_is_named() {
    let mut server = busy("past_the_deadline").await;
    server.terminate();
    assert_eq!(server.result(), "0 named 10000 of 10000");
    assert!(server.child.wait().unwrap().success());
}

#[tokio::test]
async fn a_second_signal_cuts_at_once() {
    let mut server = busy("twice").await;
    server.terminate();
    // It listens no more: it drains, and without a deadline.
    let address = server.address;
    soon("it drains", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let began = Instant::now();
    server.terminate();
    assert_eq!(server.result(), "0 named 10000 of 10000");
    assert!(server.child.wait().unwrap().success());
    // There is nothing that it would wait for but this signal; the time is for who reads this.
    println!("cut after {:?}", began.elapsed());
}
