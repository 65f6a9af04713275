//! Answers whose timing tells nothing: what is looked up after the answer cannot be seen in the answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test may panic and print, and what it spawns is its own"
)]

mod support;

use std::time::Duration;

use axum::{Router, extract::Path, http::StatusCode, response::IntoResponse, routing::get};
use support::{MemoryServer, Server, soon};
use tokio::time::{Instant, sleep};
use tower_epilogue::Continuation;

const ANSWER: &str = "If we know this address, a mail is on its way.";

/// Finds one of them, which takes longer.
async fn look_up(address: &str) {
    sleep(Duration::from_millis(2)).await;
    if address == "known" {
        sleep(Duration::from_millis(8)).await;
    }
}

async fn before(Path(address): Path<String>) -> impl IntoResponse {
    look_up(&address).await;
    (StatusCode::ACCEPTED, Continuation::new(async {}), ANSWER)
}

async fn after(Path(address): Path<String>) -> impl IntoResponse {
    (StatusCode::ACCEPTED, Continuation::new(async move { look_up(&address).await }), ANSWER)
}

fn app() -> Router {
    Router::new().route("/before/{address}", get(before)).route("/after/{address}", get(after))
}

/// On a clock that only the work moves, the times are equal.
#[tokio::test(start_paused = true)]
async fn what_is_looked_up_after_the_answer_takes_no_time_of_it() {
    let mut times = Vec::new();
    let mut answers = Vec::new();
    for path in ["/after/known", "/after/unknown", "/before/known", "/before/unknown"] {
        let server = MemoryServer::start(app());
        let began = Instant::now();
        let reply = server.get(path).await;
        times.push(began.elapsed());
        answers.push((reply.status, reply.head.len(), reply.text()));
        server.ended(1).await;
    }
    assert_eq!(times[..2], [Duration::ZERO; 2]);
    assert!(times[2] > times[3], "the test sees a difference where there is one: {times:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

/// How likely one of `first` takes longer than one of `second`: 0.5 if they cannot be told apart.
fn longer(first: &[Duration], second: &[Duration]) -> f64 {
    let pairs = first.iter().flat_map(|one| second.iter().map(move |other| one.cmp(other)));
    let wins: f64 = pairs
        .map(|order| match order {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        })
        .sum();
    wins / (first.len() * second.len()) as f64
}

/// On a real socket, by rank: what else the machine does falls on both alike, since they take turns.
#[tokio::test]
async fn on_a_real_socket_the_two_cannot_be_told_apart() {
    const ROUNDS: usize = 250;
    let server = Server::start(app()).await;
    let mut ended = 0;
    let mut client = server.connect().await;
    let mut chance = async |way: &str| {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // Who goes first takes turns too.
            for place in [round % 2, (round + 1) % 2] {
                let (address, times) =
                    [("known", &mut known), ("unknown", &mut unknown)].into_iter().nth(place).unwrap();
                let began = std::time::Instant::now();
                client.send_get(&format!("/{way}/{address}")).await;
                assert_eq!(soon("an answer", client.reply_by_length(false)).await.text(), ANSWER);
                times.push(began.elapsed());
                // So that the work of one is not in the time of the next.
                ended += 1;
                server.journal.ended(ended).await;
            }
        }
        longer(&known, &unknown)
    };
    let (after, before) = (chance("after").await, chance("before").await);
    println!("the known takes longer: looked up after the answer {after:.3}, before it {before:.3}");
    // Of 250 equal pairs of samples, one in millions is so far off (Mann and Whitney).
    assert!((after - 0.5).abs() < 0.14, "told apart: {after}");
    assert!(before > 0.9, "the test sees a difference where there is one: {before}");
    assert!(server.stop().await.is_clean());
}
