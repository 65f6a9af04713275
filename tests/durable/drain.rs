//! The drain: what runs is waited for, what is cut stays stored, and the report says so.

use std::time::Duration;

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tower_epilogue::{
    Continuation, Epilogue, EpilogueBuilder,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError},
};

use crate::{
    common::{Act, Node, Place, Task, on_both, quick},
    locked::Locked,
    support::{logs, soon},
};

on_both!(
    a_drain_waits_for_the_jobs_that_run,
    what_the_deadline_cuts_stays_stored_and_counts_no_attempt,
    what_is_promised_while_it_drains_is_stored,
    a_store_that_is_started_while_it_drains_runs_nothing,
    a_store_that_does_not_answer_is_not_taken_for_work_that_runs,
);

fn app(store: &DurableStore) -> Router {
    let handler = |name: String| async move { Durable::new(Task::new(name, Act::Wait)) };
    Router::new().route("/", post(handler)).layer(store.layer())
}

async fn a_drain_waits_for_the_jobs_that_run(place: Place) {
    let mut node = Node::start(&place, app).await;
    assert_eq!(node.post("/", &[], "runs").await.status, 200);
    node.record.begun("runs", 1).await;
    node.begin_drain();
    // It has begun when nobody is let in any more.
    soon("the drain begins", async { while TcpStream::connect(node.address).await.is_ok() {} }).await;
    node.record.open();
    let report = node.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.stored_jobs(), Some(0));
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE state = 'completed'").await, 1);
}

async fn what_the_deadline_cuts_stays_stored_and_counts_no_attempt(place: Place) {
    let short = Duration::from_millis(300);
    let node = Node::with(&place, |store| store, |epilogue| epilogue.drain_deadline(short), app).await;
    assert_eq!(node.post("/", &[], "is cut").await.status, 200);
    node.record.begun("is cut", 1).await;
    let report = node.stop().await;
    assert_eq!(report.stored_jobs(), Some(1), "{report}");
    let [straggler] = report.stragglers() else { panic!("{report}") };
    assert_eq!((straggler.route(), straggler.is_stored()), ("JOB /task", true));
    assert!(report.to_string().contains("stays stored"), "{report}");
    // The next start runs it, as its first attempt.
    let node = Node::start(&place, app).await;
    node.record.open();
    assert_eq!(node.record.begun("is cut", 1).await[0].attempt, 1);
    node.completed(1).await;
}

async fn what_is_promised_while_it_drains_is_stored(place: Place) {
    let gate = std::sync::Arc::new(tokio::sync::watch::Sender::new(false));
    let theirs = gate.clone();
    let mut node = Node::start(&place, move |store| {
        let handler = move |name: String| async move {
            let _ = theirs.subscribe().wait_for(|open| *open).await;
            Durable::new(Task::ok(name))
        };
        Router::new().route("/", post(handler)).layer(store.layer())
    })
    .await;
    let address = node.address;
    let asked = tokio::spawn(async move { crate::common::post(address, "/", &[], "last").await.status });
    node.journal.seen("handler_start").await;
    node.begin_drain();
    gate.send_replace(true);
    assert_eq!(asked.await.unwrap(), 200);
    let record = node.record.clone();
    let report = node.stop().await;
    assert_eq!((report.stored_jobs(), record.runs().len()), (Some(1), 0), "{report}");
    let node = Node::start(&place, app).await;
    node.record.begun("last", 1).await;
    node.completed(1).await;
}

/// Its database was slow to come up.
async fn a_store_that_is_started_while_it_drains_runs_nothing(place: Place) {
    let gate = std::sync::Arc::new(tokio::sync::watch::Sender::new(false));
    let theirs = gate.clone();
    let mut node = Node::start(&Place::sqlite(), move |_| {
        let handler = move || async move {
            Continuation::new(async move {
                let _ = theirs.subscribe().wait_for(|open| *open).await;
            })
        };
        Router::new().route("/", post(handler))
    })
    .await;
    assert_eq!(node.post("/", &[], "").await.status, 200);
    node.journal.seen("continuation_start").await;
    node.begin_drain();
    soon("the drain begins", node.epilogue.draining()).await;
    let builder = quick(place.store()).state(node.record.clone()).register::<Task>();
    let late = builder.start(&node.epilogue).await.unwrap();
    late.enqueue(Durable::new(Task::ok("late"))).await.unwrap();
    late.settled().await;
    gate.send_replace(true);
    let record = node.record.clone();
    // All that runs has ended behind it.
    let report = node.stop().await;
    assert_eq!((report.stored_jobs(), record.runs().len()), (Some(1), 0), "{report}");
}

/// All has ended, but the store cannot be told.
async fn a_store_that_does_not_answer_is_not_taken_for_work_that_runs(place: Place) {
    const NOTED: &str = "had noted what became of its jobs";
    let logs = logs();
    let before = logs.with(NOTED).len();
    let short = Duration::from_millis(300);
    let limits = |epilogue: EpilogueBuilder| epilogue.drain_deadline(short).hook_limit(short);
    let node = Node::with(&place, |store| store, limits, app).await;
    assert_eq!(node.post("/", &[], "ends").await.status, 200);
    node.record.begun("ends", 1).await;
    let locked = Locked::take(&place).await;
    node.record.open();
    // Its hooks have ended, too.
    node.journal.ended(2).await;
    assert!(node.stop().await.is_clean());
    assert!(logs.with(NOTED).len() > before);
    locked.release().await;
}

/// Runs until it is cut.
#[derive(Serialize, Deserialize)]
struct Cut;

impl DurableJob for Cut {
    const KIND: &'static str = "cut-and-kept";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_drain_that_cut_nothing_but_what_is_stored_is_no_error() {
    let (logs, place) = (logs(), Place::sqlite());
    let short = |epilogue: EpilogueBuilder| epilogue.drain_deadline(Duration::from_millis(300));
    let node = Node::with(&place, DurableBuilder::register::<Cut>, short, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Cut)).await.unwrap();
    node.journal.seen("continuation_start").await;
    assert!(!node.stop().await.is_clean());
    let lines = logs.with("JOB /cut-and-kept");
    let levels = |level| lines.iter().filter(|line| line.contains(level)).count();
    assert!(levels("WARN") >= 1, "{lines:#?}");
    assert_eq!(levels("ERROR"), 0, "{lines:#?}");
}

/// What its process has promised it starts, or leaves ready for others, and not to wait for the end of its lease.
#[test]
fn a_job_that_nobody_waits_for_is_ready_when_a_drain_ends() {
    for place in [Place::sqlite(), Place::postgres()] {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime().block_on(async {
            let epilogue = Epilogue::new();
            let store = place.store().start(&epilogue).await.unwrap();
            let mut asked = Box::pin(store.enqueue(Durable::new(Task::ok("left"))));
            assert!(futures_util::poll!(asked.as_mut()).is_pending());
            drop(asked);
            epilogue.drain().await;
        });
        let ready = "SELECT count(*) FROM river_job WHERE state = 'available'";
        assert_eq!(runtime().block_on(place.number(ready)), 1, "{place:?}");
    }
}
