//! Responses that are written step by step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

#[path = "output/elsewhere.rs"]
mod elsewhere;
#[path = "output/end.rs"]
mod end;
#[path = "output/leave.rs"]
mod leave;
#[path = "output/wakers.rs"]
mod wakers;
#[path = "output/write.rs"]
mod write;

use axum::{Router, routing::get};
use tower_epilogue::{Lifecycle, Output, OutputError};

/// What a producer of these tests returns.
type Written = Result<(), OutputError>;

/// An app whose only route is written by `produce`.
fn written<F>(produce: impl Fn(Output) -> F + Clone + Send + Sync + 'static) -> Router
where
    F: Future<Output = Written> + Send + 'static,
{
    Router::new().route("/", get(async move |lifecycle: Lifecycle| lifecycle.output(produce)))
}
