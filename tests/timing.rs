//! An answer whose timing tells nothing: the password reset of the example.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

#[allow(dead_code, unreachable_pub, reason = "its `main` is not ours")]
#[path = "../examples/password_reset.rs"]
mod password_reset;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use password_reset::{Accounts, app};
use support::{MemoryServer, Server};
use tokio::time::Instant;

const KNOWN: &str = "ada@example.com";
const UNKNOWN: &str = "eve@example.com";

fn accounts(look_up: Duration, mail: Duration) -> Accounts {
    Accounts { emails: Arc::new([KNOWN]), look_up, mail }
}

fn asked(path: &str, email: &str) -> String {
    let form = format!("email={email}");
    let length = form.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/x-www-form-urlencoded\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{form}"
    )
}

/// Under a clock that counts nothing but waiting, to the nanosecond.
#[tokio::test(start_paused = true)]
async fn an_answer_waits_for_nothing_that_depends_on_what_is_found() {
    let server = MemoryServer::start(app(accounts(Duration::from_millis(20), Duration::from_secs(2))));
    let (mut answers, mut times) = (Vec::new(), Vec::new());
    for (path, email) in [("/reset", KNOWN), ("/reset", UNKNOWN), ("/leaky", KNOWN), ("/leaky", UNKNOWN)] {
        let mut client = server.connect();
        let began = Instant::now();
        client.send(&asked(path, email)).await;
        let reply = client.reply().await;
        times.push(began.elapsed());
        let head: Vec<_> = reply.sorted_head().into_iter().map(ToOwned::to_owned).collect();
        answers.push((head, reply.body));
    }
    server.ended(4).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "not one byte differs: {answers:#?}");
    assert_eq!(times[..2], [Duration::ZERO; 2]);
    // What the same clock says of the tempting way.
    assert_eq!(times[2..], [Duration::from_millis(2020), Duration::from_millis(20)]);
}

const SAMPLES: usize = 150;
/// Beyond what chance does once in ten million runs.
const TELLING: f64 = 5.4;

/// By the clock of a client on another thread, over real sockets: ranks, since times of a busy machine are not normally
/// distributed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_test_cannot_tell_the_answers_apart() {
    let server = Server::start(app(accounts(Duration::ZERO, Duration::from_millis(3)))).await;
    let address = server.address;
    for (path, tells) in [("/leaky", true), ("/reset", false)] {
        let (journal, runtime) = (server.journal.clone(), tokio::runtime::Handle::current());
        let before = if tells { 0 } else { 2 * SAMPLES };
        // What a request left to do does not run into the next one's time.
        let ended = move |count| runtime.block_on(journal.ended(before + count));
        let (known, unknown) = tokio::task::spawn_blocking(move || sampled(address, path, ended)).await.unwrap();
        let z = rank_sum(&known, &unknown);
        assert_eq!(z.abs() > TELLING, tells, "{path}: z = {z}");
    }
    server.journal.ended(SAMPLES * 4).await;
    assert!(server.stop().await.is_clean());
}

/// Nanoseconds from the request to the end of its answer, for each of the two.
fn sampled(address: SocketAddr, path: &str, ended: impl Fn(usize)) -> (Vec<u128>, Vec<u128>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let mut coin = 1_u32;
    while known.len() < SAMPLES || unknown.len() < SAMPLES {
        // In no order that the machine could keep time with.
        coin = coin.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let heads = coin >> 31 == 0;
        let ada = if known.len() == SAMPLES { false } else { unknown.len() == SAMPLES || heads };
        let (email, times) = if ada { (KNOWN, &mut known) } else { (UNKNOWN, &mut unknown) };
        let mut stream = TcpStream::connect(address).unwrap();
        let request = asked(path, email);
        let began = std::time::Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        times.push(began.elapsed().as_nanos());
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        ended(known.len() + unknown.len());
    }
    (known, unknown)
}

/// The standard score of the Wilcoxon rank sum (Mann and Whitney's U).
fn rank_sum(one: &[u128], other: &[u128]) -> f64 {
    let mut all: Vec<_> = one.iter().map(|time| (*time, 1)).chain(other.iter().map(|time| (*time, 0))).collect();
    all.sort_unstable();
    let (n, m) = (one.len() as f64, other.len() as f64);
    let ranks: usize = all.iter().enumerate().map(|(rank, (_, of_one))| (rank + 1) * of_one).sum();
    let expected = n * (n + m + 1.0) / 2.0;
    (ranks as f64 - expected) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}
