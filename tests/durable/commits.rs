//! What can happen while a response waits for its commit, and between the commit and the flush.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower_epilogue::{
    EpilogueBuilder, IgnoreAbortLayer, TimeLimitLayer, WhenFull,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
};

use crate::{
    common::{Act, HOUR, Node, Place, Task, on_both, post as ask, request},
    locked::Locked,
    support::{Client, soon},
};

on_both!(
    a_client_that_leaves_during_the_commit_has_its_job_run_at_once,
    so_has_one_whose_leaving_is_ignored,
    a_client_that_leaves_under_a_key_and_asks_again_gets_the_first_answer,
    a_limit_that_passes_during_the_commit_leaves_the_job_whole,
    a_drain_that_ends_during_the_commit_leaves_the_job_whole,
    a_store_that_fails_between_commit_and_flush_starts_the_job_at_its_leases_end,
    a_client_that_leaves_between_commit_and_flush_has_its_job_run_at_once,
    a_response_is_not_held_for_a_job_that_waits,
    a_store_that_does_not_answer_has_no_endless_queue,
);

/// One that this process does not run.
#[derive(Serialize, Deserialize)]
struct Foreign;

impl DurableJob for Foreign {
    const KIND: &'static str = "foreign";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

async fn a_store_that_does_not_answer_has_no_endless_queue(place: Place) {
    const ROOM: usize = 10_000;
    let (go, _) = watch::channel(false);
    let mut gone = go.subscribe();
    let ignored = move || async move {
        gone.wait_for(|gone| *gone).await.unwrap();
        Durable::new(Foreign)
    };
    let node = Node::with(
        &place,
        |store| store.lease(HOUR).busy_timeout(HOUR),
        |epilogue| epilogue,
        |store| {
            let ignored = post(ignored).layer(IgnoreAbortLayer::new());
            promises().route("/ignored", ignored).layer(store.layer())
        },
    )
    .await;
    let locked = Locked::take(&place).await;
    // A handler goes on in its connection's task when its client closes, and in one of its own when it resets.
    for (number, leave) in [Client::close, Client::reset].into_iter().enumerate() {
        let mut client = Client::connect(node.address).await;
        client.send(&request("/ignored", &[], "")).await;
        node.journal.seen_times("handler_start", number + 1).await;
        leave(client);
        node.journal.seen_times("aborted", number + 1).await;
    }
    // Asked for, and given up.
    for _ in 0..ROOM {
        let mut asked = Box::pin(node.store.enqueue(Durable::new(Foreign).with_key("the same")));
        assert!(futures_util::poll!(asked.as_mut()).is_pending());
    }
    let error = node.store.enqueue(Durable::new(Foreign)).await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("10000 requests wait"), "{error}");
    assert_eq!(ask(node.address, "/", &[], "one more").await.status, 503);
    assert_eq!(ask(node.address, "/", &[("idempotency-key", "\"k\"")], "one more").await.status, 503);
    // Nobody could be told that it was refused.
    go.send_replace(true);
    // They answer, and their promises are taken or refused.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    locked.release().await;
    node.until("all are stored", |counts| counts.unfinished() == 3).await;
    assert_eq!(ask(node.address, "/", &[], "after").await.status, 200);
}

fn promises() -> Router {
    Router::new().route("/", post(|name: String| async { (Durable::new(Task::ok(name)), "promised") }))
}

/// An hour's lease: what starts is started by somebody.
pub async fn node(place: &Place, app: impl FnOnce(&DurableStore) -> Router) -> Node {
    Node::with(place, |store| store.lease(HOUR), |epilogue| epilogue, app).await
}

pub async fn ran_once(node: &Node, name: &str) {
    assert_eq!(node.record.begun(name, 1).await[0].attempt, 1);
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 1);
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

async fn a_client_that_leaves_during_the_commit_has_its_job_run_at_once(place: Place) {
    let node = node(&place, |store| promises().layer(store.layer())).await;
    leaves_during_the_commit(&node, &place).await;
}

async fn so_has_one_whose_leaving_is_ignored(place: Place) {
    let node = node(&place, |store| promises().layer(store.layer()).layer(IgnoreAbortLayer::new())).await;
    leaves_during_the_commit(&node, &place).await;
}

async fn leaves_during_the_commit(node: &Node, place: &Place) {
    let locked = Locked::take(place).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "left")).await;
    node.journal.seen("handler_end").await;
    client.reset();
    node.journal.seen("aborted").await;
    locked.release().await;
    ran_once(node, "left").await;
}

async fn a_client_that_leaves_under_a_key_and_asks_again_gets_the_first_answer(place: Place) {
    let node = node(&place, |store| {
        let gate = Arc::new(watch::Sender::new(false));
        let opens = gate.clone();
        let handler = move |name: String| async move {
            let _ = gate.subscribe().wait_for(|open| *open).await;
            (Durable::new(Task::ok(name)), "promised")
        };
        let open = move || async move { opens.send_replace(true).to_string() };
        Router::new().route("/", post(handler)).route("/open", post(open)).layer(store.layer())
    })
    .await;
    let key = [("Idempotency-Key", "k")];
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &key, "once")).await;
    // Its key is claimed, which a lock would have it wait for.
    node.journal.seen("handler_start").await;
    soon("its key is claimed", async {
        while place.number("SELECT count(*) FROM tower_epilogue_answer").await == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let locked = Locked::take(&place).await;
    assert_eq!(node.post("/open", &[], "").await.status, 200);
    node.journal.until("both handlers end", |events| count(events, "handler_end") == 2).await;
    client.reset();
    node.journal.seen("aborted").await;
    locked.release().await;
    let again = node.post_again("/", &key, "once").await;
    assert_eq!((again.status, again.text().as_str()), (200, "promised"));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    ran_once(&node, "once").await;
}

pub fn count(events: &[tower_epilogue::Event], name: &str) -> usize {
    events.iter().filter(|event| event.kind().name() == name).count()
}

async fn a_limit_that_passes_during_the_commit_leaves_the_job_whole(place: Place) {
    let limit = TimeLimitLayer::new(Duration::from_millis(300));
    let node = node(&place, |store| promises().layer(store.layer()).layer(limit)).await;
    let locked = Locked::take(&place).await;
    assert_eq!(node.post("/", &[], "late").await.status, 503);
    locked.release().await;
    ran_once(&node, "late").await;
}

async fn a_drain_that_ends_during_the_commit_leaves_the_job_whole(place: Place) {
    let short = |epilogue: EpilogueBuilder| epilogue.drain_deadline(Duration::from_millis(200));
    let mut node = Node::with(&place, |store| store.lease(HOUR), short, |store| promises().layer(store.layer())).await;
    let locked = Locked::take(&place).await;
    let address = node.address;
    let asked = tokio::spawn(async move { ask(address, "/", &[], "cut").await.status });
    node.journal.seen("handler_end").await;
    node.begin_drain();
    assert_eq!(asked.await.unwrap(), 503);
    let store = node.store.clone();
    locked.release().await;
    let report = node.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    store.settled().await;
    let next = Node::start(&place, |_| Router::new()).await;
    ran_once(&next, "cut").await;
}

/// A response whose head leaves, and whose body waits for the gate.
fn slow_body(store: &DurableStore, gate: &Arc<watch::Sender<bool>>) -> Router {
    let gate = gate.clone();
    let handler = move |name: String| async move {
        let body = Body::from_stream(futures_util::stream::once(async move {
            let _ = gate.subscribe().wait_for(|open| *open).await;
            Ok::<_, std::io::Error>("flushed")
        }));
        (Durable::new(Task::ok(name)), body)
    };
    Router::new().route("/", post(handler)).layer(store.layer())
}

async fn a_store_that_fails_between_commit_and_flush_starts_the_job_at_its_leases_end(place: Place) {
    let gate = Arc::new(watch::Sender::new(false));
    let lease = Duration::from_secs(2);
    let node =
        Node::with(&place, |store| store.lease(lease), |epilogue| epilogue, |store| slow_body(store, &gate)).await;
    let stored = std::time::Instant::now();
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "leased")).await;
    client.read_until("200 OK").await;
    place.execute("ALTER TABLE river_job RENAME TO river_job_away").await;
    gate.send_replace(true);
    client.read_until("flushed").await;
    node.journal.ended(1).await;
    node.store.settled().await;
    place.execute("ALTER TABLE river_job_away RENAME TO river_job").await;
    ran_once(&node, "leased").await;
    assert!(stored.elapsed() >= lease - Duration::from_millis(10), "{:?}", stored.elapsed());
}

async fn a_client_that_leaves_between_commit_and_flush_has_its_job_run_at_once(place: Place) {
    let gate = Arc::new(watch::Sender::new(false));
    let node = node(&place, |store| slow_body(store, &gate)).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "left")).await;
    client.read_until("200 OK").await;
    // Whatever the commit had begun would be ready by then.
    node.store.settled().await;
    assert_eq!(node.store.counts().await.unwrap().scheduled, 1, "stored, and not begun");
    client.reset();
    ran_once(&node, "left").await;
}

async fn a_response_is_not_held_for_a_job_that_waits(place: Place) {
    let node = Node::with(
        &place,
        |store| store.lease(HOUR),
        |epilogue| epilogue.max_running(1).max_waiting(0).when_full(WhenFull::Hold(HOUR)),
        |store| promises().layer(store.layer()),
    )
    .await;
    node.store.enqueue(Durable::new(Task::new("runs", Act::Wait))).await.unwrap();
    node.record.begun("runs", 1).await;
    assert_eq!(node.post("/", &[], "waits").await.text(), "promised");
    node.record.open();
    node.completed(2).await;
}
