//! Contract rule 9: so many continuations run, so many wait, and beyond that the policy decides.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, missing_docs, missing_debug_implementations, reason = "the modules of one suite")]

#[path = "bounds/classes.rs"]
mod classes;
#[path = "bounds/edges.rs"]
mod edges;
#[path = "bounds/failures.rs"]
mod failures;
#[path = "bounds/hold.rs"]
mod hold;
#[path = "bounds/limits.rs"]
mod limits;
#[path = "bounds/overload.rs"]
mod overload;
#[path = "bounds/refuse.rs"]
mod refuse;
#[path = "bounds/restored.rs"]
mod restored;

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, routing::get};
use support::{Gate, Notes};
use tower_epilogue::Continuation;

/// Counts how many run at once.
#[derive(Clone, Default)]
pub struct Meter(Arc<(AtomicUsize, AtomicUsize)>);

impl Meter {
    pub fn enter(&self) -> InMeter {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
        InMeter(self.clone())
    }

    pub fn now(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// The most at once, so far.
    pub fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

pub struct InMeter(Meter);

impl Drop for InMeter {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `/task/{name}` answers with a continuation that notes its name, waits at the gate, and is metered; `/plain` with
/// none. Each handler notes that it ran.
pub fn app(notes: &Notes, gate: &Gate, meter: &Meter) -> Router {
    let (theirs, plain, gate, meter) = (notes.clone(), notes.clone(), gate.clone(), meter.clone());
    let work = async move |axum::extract::Path(name): axum::extract::Path<String>| {
        theirs.add(format!("handler {name}"));
        let work = async move {
            let _in = meter.enter();
            theirs.add(format!("starts {name}"));
            gate.passed().await;
            theirs.add(format!("ends {name}"));
        };
        (Continuation::new(work), "accepted")
    };
    Router::new().route("/task/{name}", get(work)).route(
        "/plain",
        get(async move || {
            plain.add("plain");
            "plain"
        }),
    )
}
