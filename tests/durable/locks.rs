//! Two processes on one Postgres: whatever they write at once, none has what the other waits for.

use std::{convert::Infallible, pin::Pin, time::Duration};

use axum::{Router, body::Body, http::Request, routing::post};
use futures_util::{StreamExt as _, future::join_all, stream};
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;
use tower_epilogue::{
    Epilogue,
    durable::{
        Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError,
        sqlx::{Connection as _, Executor as _, PgConnection},
    },
};

use crate::{
    common::{Node, Place, Record, Task, post as ask, quick, request},
    locked::Locked,
    support::{Client, Gate, Logs, logs, soon},
};

/// Those that wait for another's lock.
const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// As far as it comes: it waits for the store.
async fn begin<F: Future>(asked: &mut Vec<Pin<Box<F>>>, ask: F) {
    let mut ask = Box::pin(ask);
    assert!(futures_util::poll!(ask.as_mut()).is_pending());
    asked.push(ask);
}

/// Many clients click twice, and their second clicks come to the other process, in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_that_are_asked_under_the_same_keys_do_not_lock_each_other_out() {
    const KEYS: usize = 211;
    let logs = logs();
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!() };
    let nodes = [Node::start(&place, |_| Router::new()).await, Node::start(&place, |_| Router::new()).await];
    let mut locks = PgConnection::connect(url).await.unwrap();
    locks.execute("BEGIN; LOCK TABLE tower_epilogue_answer").await.unwrap();
    let mut asked = Vec::new();
    for (node, number) in nodes.iter().zip(0..) {
        let handler = async || (Durable::new(Task::ok("order")), "ordered");
        let app = Router::new().route("/", post(handler)).layer(node.store.layer());
        let ask = |key: String| {
            let request = Request::post("/").header("idempotency-key", key).body(Body::empty()).unwrap();
            app.clone().oneshot(request)
        };
        // It waits for the lock, or behind what its store does of its own accord, and the others behind it for one transaction.
        begin(&mut asked, ask(format!("first-{number}"))).await;
        place.until_found(WAITING, |waiting| waiting > number).await;
        for key in 0..KEYS {
            begin(&mut asked, ask(format!("k{}", if number == 0 { key } else { KEYS - 1 - key }))).await;
        }
    }
    locks.execute("ROLLBACK").await.unwrap();
    let statuses = soon("all are answered", join_all(asked)).await.into_iter().map(|answer| answer.unwrap().status());
    let (ordered, others): (Vec<_>, _) = statuses.partition(|status| *status == 200);
    assert!(ordered.len() >= KEYS + 2 && others.iter().all(|status| *status == 409), "{others:?}");
    never_tried_again(&logs);
}

/// With so many at once, that is; other tests have it happen to few.
fn never_tried_again(logs: &Logs) {
    let again = logs.with("a transaction is retried");
    let many = |line: &String| line.rsplit_once("requests=").is_some_and(|(_, number)| number.trim().len() > 2);
    assert!(!again.iter().any(many), "{again:?}");
}

/// Somebody tells both of much that has happened, and each in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_two_that_are_to_store_the_same_jobs() {
    const JOBS: usize = 211;
    let logs = logs();
    let place = Place::postgres();
    // They know of no kind, and so run nothing: River notes what has run in an order of its own.
    let store = async || quick(place.store()).start(&Epilogue::new()).await.unwrap();
    let stores = [store().await, store().await];
    let locked = Locked::take(&place).await;
    let mut asked = Vec::new();
    for (store, number) in stores.iter().zip(0..) {
        let ask = |key: String| store.enqueue(Durable::new(Task::ok(key.clone())).with_key(key));
        begin(&mut asked, ask(format!("first-{number}"))).await;
        let waits = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO%river_job%'";
        place.until_found(waits, |waiting| waiting > number).await;
        for key in 0..JOBS {
            begin(&mut asked, ask(format!("k{}", if number == 0 { key } else { JOBS - 1 - key }))).await;
        }
    }
    locked.release().await;
    for stored in soon("all are stored", join_all(asked)).await {
        stored.unwrap();
    }
    never_tried_again(&logs);
    let node = Node::start(&place, |_| Router::new()).await;
    node.completed(JOBS as u64 + 2).await;
    assert_eq!(node.record.runs().len(), JOBS + 2);
}

/// Jobs are locked before keys: of two that are to start one and are given it again, and are asked under one key, none has what
/// the other waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_job_is_waited_for_no_key_is_held() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!() };
    let gate = Gate::closed();
    let opens = gate.clone();
    let streams = async move || {
        let rest = stream::once(async move { opens.passed().await }).map(|()| Ok::<_, Infallible>("the rest"));
        (Durable::new(Task::ok("promised")), Body::from_stream(stream::iter([Ok("first")]).chain(rest)))
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(streams)).route("/keyed", post(async || "done")).layer(store.layer())
    };
    let [node, other] = [Node::start(&place, app.clone()).await, Node::start(&place, app).await];
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "")).await;
    client.read_until("first").await;
    // What is asked of the store now waits behind this, and is written together.
    let [mut answers, mut jobs] =
        [PgConnection::connect(url).await.unwrap(), PgConnection::connect(url).await.unwrap()];
    answers.execute("BEGIN; LOCK TABLE tower_epilogue_answer").await.unwrap();
    let ask = |node: &Node, key: &'static str| {
        let address = node.address;
        tokio::spawn(async move { ask(address, "/keyed", &[("idempotency-key", key)], "").await.status })
    };
    let before = ask(&node, "before");
    place.until_found(WAITING, |waiting| waiting > 0).await;
    let first = ask(&node, "key");
    node.journal.seen_times("handler_start", 3).await;
    gate.open();
    client.read_until("the rest").await;
    node.journal.ended(1).await;
    jobs.execute("BEGIN; SELECT id FROM river_job FOR UPDATE").await.unwrap();
    answers.execute("ROLLBACK").await.unwrap();
    place
        .until_found(
            concat!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
                " AND query LIKE '%promoted%'"
            ),
            |waiting| waiting > 0,
        )
        .await;
    assert_eq!(soon("the other process has the key", ask(&other, "key")).await.unwrap(), 200);
    jobs.execute("ROLLBACK").await.unwrap();
    // The other's answer, or what is said while that is on its way.
    assert!([200, 409].contains(&soon("so is this one", first).await.unwrap()));
    assert_eq!(before.await.unwrap(), 200);
}

/// They are forgotten in the order of their expiry, and claimed in that of their keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_forgets_the_expired_does_not_wait_for_who_claims_one_anew() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!() };
    Node::start(&place, |_| Router::new()).await.stop().await;
    let expired = "INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms)
        VALUES ('claimed', '', '', 0), ('forgotten', '', '', 1)";
    place.execute(expired).await;
    let mut claims = PgConnection::connect(url).await.unwrap();
    claims.execute("BEGIN; SELECT 1 FROM tower_epilogue_answer WHERE key = 'claimed' FOR UPDATE").await.unwrap();
    let _node = Node::start(&place, |_| Router::new()).await;
    place.until("SELECT count(*) FROM tower_epilogue_answer", 1).await;
    claims.execute("ROLLBACK").await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM tower_epilogue_answer WHERE key = 'claimed'").await, 1);
}

/// Completes itself in a transaction that ends when the gate opens.
#[derive(Serialize, Deserialize)]
struct Completes;

impl DurableJob for Completes {
    const KIND: &'static str = "completes-slowly";

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let gate = cx.state::<Record>()?.gate.clone();
        let mut transaction = cx.store().begin_postgres().await?;
        cx.complete_in_transaction(&mut transaction).await?;
        gate.subscribe().wait_for(|open| *open).await?;
        Ok(transaction.commit().await?)
    }
}

/// As behind a transaction that has stored it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_being_completed_is_waited_for_by_one_with_its_key() {
    let place = Place::postgres();
    let node = Node::with(&place, DurableBuilder::register::<Completes>, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Completes).with_key("k")).await.unwrap();
    let completing = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%completed%'";
    place.until(completing, 1).await;
    let mut asked = Vec::new();
    begin(&mut asked, node.store.enqueue(Durable::new(Completes).with_key("k"))).await;
    place.until(WAITING, 1).await;
    begin(&mut asked, node.store.enqueue(Durable::new(Task::ok("other")))).await;
    let waits = tokio::time::timeout(Duration::from_millis(300), join_all(&mut asked)).await;
    assert!(waits.is_err(), "{waits:?}");
    node.record.open();
    for stored in soon("both are stored", join_all(asked)).await {
        stored.unwrap();
    }
    node.completed(2).await;
}

/// Each would take its way to the database and back, and whoever has something stored waits for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_renewed_together() {
    const CLAIMS: i64 = 50;
    let place = Place::postgres();
    let gate = Gate::closed();
    let opens = gate.clone();
    let handler = async move || {
        opens.passed().await;
        "done"
    };
    let node = Node::with(
        &place,
        |store| store.claim(Duration::from_secs(2)),
        |epilogue| epilogue,
        |store| Router::new().route("/", post(handler)).layer(store.layer()),
    )
    .await;
    let address = node.address;
    let asked: Vec<_> = (0..CLAIMS)
        .map(|key| tokio::spawn(async move { ask(address, "/", &[("idempotency-key", &format!("k{key}"))], "").await }))
        .collect();
    place.until("SELECT count(*) FROM tower_epilogue_answer", CLAIMS).await;
    place
        .execute(
            "CREATE SEQUENCE statements;
            CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM nextval(''statements''); RETURN NULL; END';
            CREATE TRIGGER counts AFTER UPDATE ON tower_epilogue_answer FOR EACH STATEMENT EXECUTE FUNCTION counts();
            CREATE TABLE held AS SELECT max(expires_ms) AS until FROM tower_epilogue_answer",
        )
        .await;
    let renewed = "SELECT count(*) FROM tower_epilogue_answer WHERE expires_ms > (SELECT until FROM held)";
    place.until(renewed, CLAIMS).await;
    let statements = place.number("SELECT last_value FROM statements").await;
    assert!(statements < CLAIMS / 2, "{statements}");
    gate.open();
    for asked in asked {
        assert_eq!(soon("it is answered", asked).await.unwrap().text(), "done");
    }
}
