//! What is out of date starts nothing: a promise that another keeps, a flush that comes late, an attempt that another
//! process has taken over.

use std::time::{Duration, Instant};

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tower_epilogue::durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError};

use crate::{
    common::{HOUR, Node, Place, Record, Task, on_both, request, waits_for_its_place},
    locked::Locked,
    promise::{app, stored_by_hand},
    support::{Client, soon},
};

on_both!(
    a_duplicate_is_never_promoted_however_it_comes,
    a_late_flush_does_not_bring_the_next_attempt_forward,
    a_late_flush_does_not_start_what_was_put_back,
    an_attempt_that_is_anothers_by_now_is_never_begun,
    a_failure_that_comes_late_is_taken_for_that_of_the_other_attempt,
);

/// In a response it is in `promise`.
async fn a_duplicate_is_never_promoted_however_it_comes(place: Place) {
    let node = Node::with(&place, |store| store.lease(HOUR), |epilogue| epilogue, app).await;
    drop(stored_by_hand(&node.store, "k", "waits").await);
    node.store.enqueue(Durable::new(Task::ok("enqueued")).with_key("k")).await.unwrap();
    let by_hand = stored_by_hand(&node.store, "k", "by hand").await;
    node.store.enqueue(by_hand).await.unwrap();
    // Nobody waits for the commit of this one.
    let locked = Locked::take(&place).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/key", &[], "k/left")).await;
    node.journal.seen("handler_end").await;
    client.reset();
    node.journal.seen("aborted").await;
    locked.release().await;
    // Whatever they had begun would begin before this.
    assert_eq!(node.post("/", &[], "marker").await.status, 202);
    node.record.begun("marker", 1).await;
    node.completed(1).await;
    let counts = node.store.counts().await.unwrap();
    assert_eq!((counts.scheduled, counts.unfinished()), (1, 1), "{counts:?}");
    assert_eq!(node.record.runs().len(), 1, "{:?}", node.record.runs());
}

/// Fails once, and says when it was begun.
#[derive(Serialize, Deserialize)]
struct Fails;

impl DurableJob for Fails {
    const KIND: &'static str = "fails";

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(700)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<mpsc::UnboundedSender<Instant>>()?.send(Instant::now())?;
        if cx.attempt() == 1 { Err("not yet".into()) } else { Ok(()) }
    }
}

async fn fails_by_hand(store: &DurableStore) -> Durable {
    if let Ok(mut transaction) = store.begin_sqlite().await {
        let durable = Durable::in_transaction(Fails, store, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        return durable;
    }
    let mut transaction = store.begin_postgres().await.unwrap();
    let durable = Durable::in_transaction(Fails, store, &mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    durable
}

async fn a_late_flush_does_not_bring_the_next_attempt_forward(place: Place) {
    let (sender, mut begun) = mpsc::unbounded_channel::<Instant>();
    let store = place.clone();
    let node = Node::with(
        &place,
        |store| store.lease(Duration::from_millis(200)).register::<Fails>().state(sender),
        |epilogue| epilogue,
        |durable| {
            let (durable, layer) = (durable.clone(), durable.layer());
            let handler = move || async move {
                let promised = fails_by_hand(&durable).await;
                // So slow a response that the job's first attempt has failed before it.
                let failed = "SELECT count(*) FROM river_job WHERE attempt = 1 AND state <> 'running'";
                store.until(failed, 1).await;
                (promised, "late")
            };
            Router::new().route("/", post(handler)).layer(layer)
        },
    )
    .await;
    assert_eq!(node.post("/", &[], "").await.status, 200);
    let first = soon("it begins", begun.recv()).await.unwrap();
    let second = soon("it is tried again", begun.recv()).await.unwrap();
    assert!(second - first >= Duration::from_millis(600), "{:?}", second - first);
    node.completed(1).await;
}

/// Another process may still run it: it was put back for as long as that may take, and counts no attempt.
async fn a_late_flush_does_not_start_what_was_put_back(place: Place) {
    let node = Node::with(&place, |store| store.lease(HOUR), |epilogue| epilogue, app).await;
    let late = stored_by_hand(&node.store, "k", "put back").await;
    // As the engine leaves such a one.
    place.execute("UPDATE river_job SET attempted_at = created_at").await;
    node.store.enqueue(late).await.unwrap();
    node.store.settled().await;
    let counts = node.store.counts().await.unwrap();
    assert_eq!((counts.scheduled, counts.unfinished()), (1, 1), "{counts:?}");
    assert!(node.record.runs().is_empty());
}

/// The store says meanwhile that another process runs it: it does not wait for its place any longer, and never runs.
async fn an_attempt_that_is_anothers_by_now_is_never_begun(place: Place) {
    // After four times this, which is past all patience, it would be put back anyway.
    let (node, gate) = waits_for_its_place(&place, Duration::from_secs(4)).await;
    place.execute("UPDATE river_job SET attempt = 2 WHERE state = 'running'").await;
    node.journal.ended(1).await;
    let job = *node.journal.requests().last().unwrap();
    assert_eq!(node.journal.lines_of(job), ["continuation_waits/0", "ended/0"]);
    // The engine puts it back all the same; so it is not run for as long as the other may run it.
    place.until("SELECT count(*) FROM river_job WHERE state = 'running'", 0).await;
    let later = match &place {
        Place::Sqlite(_) => "SELECT count(*) FROM river_job WHERE scheduled_at > datetime('now', '+3 seconds')",
        Place::Postgres(_) => "SELECT count(*) FROM river_job WHERE scheduled_at > now() + interval '3 seconds'",
    };
    assert_eq!(place.number(later).await, 1);
    assert!(node.record.runs().is_empty());
    gate.send_replace(true);
}

/// Fails when the gate opens.
#[derive(Serialize, Deserialize)]
struct FailsLate;

impl DurableJob for FailsLate {
    const KIND: &'static str = "fails-late";

    fn backoff(_: u16) -> Duration {
        HOUR
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let gate = cx.state::<Record>()?.gate.clone();
        gate.subscribe().wait_for(|open| *open).await?;
        Err("late".into())
    }
}

/// The engine does not tell them apart; the manual says what that means.
async fn a_failure_that_comes_late_is_taken_for_that_of_the_other_attempt(place: Place) {
    let node = Node::with(&place, DurableBuilder::register::<FailsLate>, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(FailsLate)).await.unwrap();
    node.journal.seen("continuation_start").await;
    // Another process has taken it over, and runs it.
    place.execute("UPDATE river_job SET attempt = 2 WHERE state = 'running'").await;
    node.record.open();
    node.until("it is to be retried", |counts| counts.retryable == 1).await;
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE state = 'retryable' AND attempt = 2").await, 1);
}
