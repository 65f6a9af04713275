//! Generated responses under generated stacks of layers, beside what plain axum sends: the same bytes to a client, and
//! the contract around them.
//!
//! `PROPTEST_CASES` says how many in each test; 10,000 in all in the gate.
#![cfg(feature = "compression")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "generated/answer.rs"]
mod answer;
#[path = "generated/case.rs"]
mod case;
#[path = "generated/check.rs"]
mod check;
#[path = "support/fetch.rs"]
mod fetch;
#[path = "generated/stack.rs"]
mod stack;

mod support;

use fetch::Version;
use proptest::test_runner::{Config, TestRunner};

/// So many without the gate's wish.
const CASES: u32 = 500;

fn run(version: Version) {
    let cases = std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers = runtime.block_on(check::Servers::start());
    let outcome = TestRunner::new(config).run(&case::case(version), |case| {
        runtime.block_on(check::check(&servers, &case));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn on_http_1_0_a_client_reads_what_plain_axum_sends() {
    run(Version::Http10);
}

#[test]
fn on_http_1_1_a_client_reads_what_plain_axum_sends() {
    run(Version::Http11);
}

#[test]
fn on_http_2_a_client_reads_what_plain_axum_sends() {
    run(Version::Http2);
}
