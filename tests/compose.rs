//! The layers compose (contract rule 12): one table of expectations for every subset of them in every order,
//! however they are applied, on HTTP/1.1, on HTTP/2 and as layers alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "compose/app.rs"]
mod app;
#[path = "compose/beside.rs"]
mod beside;
#[path = "compose/expected.rs"]
mod expected;
#[path = "compose/nested.rs"]
mod nested;
#[path = "compose/run.rs"]
mod run;
#[path = "compose/stack.rs"]
mod stack;
#[path = "compose/typed.rs"]
mod typed;

mod support;

use app::ROWS;
use run::{Way, check};
use stack::{Applied, OURS, Stack, ordered_subsets, orders};

/// Every subset in every order, as one `Router::layer` each.
fn one_by_one() -> impl Iterator<Item = Stack> {
    ordered_subsets(&OURS).into_iter().map(|kinds| Stack { kinds, applied: Applied::OneByOne })
}

/// Every order of all four, applied in every other way.
fn otherwise() -> impl Iterator<Item = Stack> {
    let ways = [Applied::PerRoute, Applied::OneTuple, Applied::ServiceBuilder];
    ways.into_iter().flat_map(|applied| orders(&OURS).into_iter().map(move |kinds| Stack { kinds, applied }))
}

#[test]
fn there_are_24_orders_and_16_subsets() {
    let mut subsets: Vec<_> = one_by_one()
        .map(|mut stack| {
            stack.kinds.sort_unstable();
            stack.kinds
        })
        .collect();
    assert_eq!((orders(&OURS).len(), subsets.len()), (24, 65));
    subsets.sort_unstable();
    subsets.dedup();
    assert_eq!(subsets.len(), 16);
}

#[tokio::test]
async fn every_subset_in_every_order_keeps_the_contract_on_http1() {
    check(one_by_one(), &ROWS, Way::Http1).await;
}

#[tokio::test]
async fn every_subset_in_every_order_keeps_the_contract_on_http2() {
    check(one_by_one(), &ROWS, Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn every_subset_in_every_order_keeps_the_contract_without_a_server_of_ours() {
    check(one_by_one().filter(|stack| !stack.kinds.is_empty()), &ROWS, Way::Alone).await;
}

#[tokio::test]
async fn a_tuple_a_service_builder_and_a_route_keep_the_contract_on_http1() {
    check(otherwise(), &ROWS, Way::Http1).await;
}

#[tokio::test]
async fn a_tuple_a_service_builder_and_a_route_keep_the_contract_on_http2() {
    check(otherwise(), &ROWS, Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn a_tuple_a_service_builder_and_a_route_keep_the_contract_without_a_server_of_ours() {
    check(otherwise(), &ROWS, Way::Alone).await;
}
