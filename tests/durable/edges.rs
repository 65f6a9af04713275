//! Where two things meet that each are rare: a promise and its second, a log and a panic, two who lock each other out.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::Request, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tower::ServiceExt as _;
use tower_epilogue::{
    IgnoreAbortLayer, Lifecycle,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError, sqlx},
};

use crate::{
    commits::Locked,
    common::{Act, Node, Place, Task, on_both, post as ask},
    support::{h2client::Http2, soon},
};

on_both!(
    an_error_with_a_nul_is_an_error,
);

const HOUR: Duration = Duration::from_secs(3600);
const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

/// Its error holds what JSON in Postgres cannot.
#[derive(Serialize, Deserialize)]
struct Nul {
    gives_up: bool,
}

impl DurableJob for Nul {
    const KIND: &'static str = "nul";
    const MAX_ATTEMPTS: u16 = 2;

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(10)
    }

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Err(if self.gives_up { JobError::give_up("no \0 here") } else { "no \0 here".into() })
    }
}

/// Nor do those suffer whose outcome is noted together with it.
async fn an_error_with_a_nul_is_an_error(place: Place) {
    let node = Node::with(&place, |store| store.register::<Nul>(), |epilogue| epilogue, |_| Router::new()).await;
    for gives_up in [false, true] {
        node.store.enqueue(Durable::new(Nul { gives_up })).await.unwrap();
    }
    node.store.enqueue(Durable::new(Task::ok("beside"))).await.unwrap();
    node.until("they are discarded", |counts| counts.discarded == 2 && counts.completed == 1).await;
    for job in node.store.discarded(2).await.unwrap() {
        assert_eq!(job.error, "no \u{fffd} here");
    }
}
