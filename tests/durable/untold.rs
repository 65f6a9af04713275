//! What nobody can be told of while the database is out: its client has left, or has another answer.

use std::{
    future::{Future as _, poll_fn},
    task::Poll,
    time::Duration,
};

use axum::{Router, routing::post};
use futures_util::future::join_all;
use tower_epilogue::{
    Continuation, EpilogueBuilder, IgnoreAbortLayer, Lifecycle,
    durable::{Durable, DurableBuilder, DurableStore, sqlx},
};

use crate::{
    common::{HOUR, Node, Place, Record, Task, on_both, quick},
    locked::Locked,
    strays::{Calls, asks_and_leaves, waits},
    support::{logs, soon},
};

on_both!(
    it_outlasts_an_outage,
    it_is_lost_when_its_time_is_over,
    without_any_time_it_is_lost_at_once,
    its_requests_limit_does_not_end_it,
    before_it_was_tried_once_it_is_given_up_at_the_limit_and_not_in_silence,
    nobody_is_refused_for_it,
    a_drain_waits_for_it,
    a_drain_names_what_it_cuts,
    a_drain_names_what_was_not_tried_once,
);

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

/// What waits, of every kind. Its routes are its own, to be found in the log.
struct Waiting {
    node: Node,
    place: Place,
    routes: [String; 3],
}

/// Whoever waits for nobody has enough of it on a busy machine, too.
const SHORT: Duration = Duration::from_secs(1);

pub fn short(place: &Place) -> DurableBuilder {
    within(place, SHORT)
}

fn within(place: &Place, patience: Duration) -> DurableBuilder {
    let place = match place {
        Place::Sqlite(_) => place.clone(),
        // Who waits for another's lock has reached the database.
        Place::Postgres(url) => Place::Postgres(format!("{url}?options[statement_timeout]={}", patience.as_millis())),
    };
    quick(place.store()).busy_timeout(patience).lease(HOUR)
}

impl Waiting {
    /// Its locks are held by somebody else, and three promises wait for them.
    async fn begin(
        place: Place,
        store: impl FnOnce(DurableBuilder) -> DurableBuilder,
        epilogue: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
        name: &str,
    ) -> (Self, Locked) {
        let kind = if matches!(place, Place::Sqlite(_)) { "sqlite" } else { "postgres" };
        let routes = ["left", "late", "beside"].map(|route| format!("/{route}-{name}-{kind}"));
        let (calls, record) = (Calls::default(), Record::default());
        let (called, gate, too) = (calls.clone(), record.gate.clone(), record.gate.clone());
        let left = move || async move {
            waits(called, gate).await;
            (Durable::new(Task::ok("left")), "ordered")
        };
        let late = move |lifecycle: Lifecycle| async move {
            let _ = lifecycle.finish("early").await;
            let _ = too.subscribe().wait_for(|open| *open).await;
            Durable::new(Task::ok("late"))
        };
        let beside = async |lifecycle: Lifecycle| {
            let mut finish = Box::pin(lifecycle.finish("early"));
            poll_fn(|cx| Poll::Ready(finish.as_mut().poll(cx).is_pending())).await;
            Durable::new(Task::ok("beside"))
        };
        let builder = store(short(&place)).state(record.clone()).register::<Task>();
        let node = Node::of(record, builder, epilogue, |store| {
            let inside = Router::new().route(&routes[0], post(left)).route(&routes[1], post(late));
            inside.route(&routes[2], post(beside)).layer(store.layer()).layer(IgnoreAbortLayer::new())
        })
        .await;
        logs();
        assert_eq!(node.post(&routes[1], &[], "").await.text(), "early");
        asks_and_leaves(node.address, &routes[0], &calls).await;
        node.journal.seen("aborted").await;
        let locked = Locked::take(&place).await;
        assert_eq!(node.post(&routes[2], &[], "").await.text(), "early");
        node.record.open();
        (Self { node, place, routes }, locked)
    }

    /// The log has it of each of them.
    async fn all_said(&self, what: &str) {
        join_all(self.routes.iter().map(|route| said(route, what))).await;
    }
}

pub async fn said(route: &str, what: &str) {
    logs().until(what, |_| says(route, what)).await;
}

pub fn says(route: &str, what: &str) -> bool {
    let times = logs().with(route).iter().filter(|line| line.contains(what)).count();
    assert!(times < 2, "{what}: {times} times");
    times == 1
}

pub const AGAIN: &str = "storing it is retried";
pub const STORED: &str = "is stored";
const LOST: &str = "it is lost";
const DROPPED: &str = "dropped before it was known to be stored";

async fn it_outlasts_an_outage(place: Place) {
    let (waiting, mut locked) = Waiting::begin(place, |store| store, |epilogue| epilogue, "outage").await;
    waiting.all_said(AGAIN).await;
    let Waiting { node, place, routes } = &waiting;
    // Their requests wait no longer.
    node.journal.ended(3).await;
    // Whoever is there is told, meanwhile.
    for _ in 0..3 {
        assert!(node.store.enqueue(Durable::new(Task::ok("told"))).await.unwrap_err().is_unavailable());
    }
    assert!(!routes.iter().any(|route| says(route, STORED) || says(route, LOST)));
    // Nobody has renewed its claim; and nobody has taken it over.
    locked.forget_claims().await;
    locked.commit().await;
    for name in ["left", "late", "beside"] {
        node.record.begun(name, 1).await;
    }
    node.completed(3).await;
    waiting.all_said(STORED).await;
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 3);
    node.store.settled().await;
    assert_eq!(place.number("SELECT count(*) FROM tower_epilogue_answer WHERE key LIKE 'stored:%'").await, 0);
    // Its client has asked under a key.
    let again = node.post(&routes[0], &KEY, "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("ordered", Some("true")));
    assert!(routes.iter().all(|route| says(route, AGAIN) && says(route, STORED) && !says(route, LOST)));
}

async fn it_is_lost_when_its_time_is_over(place: Place) {
    let (waiting, locked) = Waiting::begin(place, |store| store.outlast(SHORT), |epilogue| epilogue, "over").await;
    waiting.all_said(LOST).await;
    waiting.node.journal.ended(3).await;
    assert!(waiting.routes.iter().all(|route| says(route, AGAIN) && !says(route, STORED)));
    locked.release().await;
}

async fn without_any_time_it_is_lost_at_once(place: Place) {
    let never = |store: DurableBuilder| store.outlast(Duration::ZERO);
    let (waiting, locked) = Waiting::begin(place, never, |epilogue| epilogue, "never").await;
    waiting.all_said(LOST).await;
    assert!(!waiting.routes.iter().any(|route| says(route, AGAIN)));
    locked.release().await;
    assert_eq!(waiting.place.number("SELECT count(*) FROM tower_epilogue_answer WHERE key LIKE 'stored:%'").await, 0);
}

/// A request whose limit is short, which begins to count when its handler is let go.
async fn limited(place: &Place, store: DurableBuilder, route: &str, limit: Duration) -> (Node, Locked) {
    let record = Record::default();
    let gate = record.gate.clone();
    let handler = move |lifecycle: Lifecycle| async move {
        let _ = lifecycle.finish("early").await;
        let _ = gate.subscribe().wait_for(|open| *open).await;
        lifecycle.set_time_limit(limit);
        Durable::new(Task::ok("limited"))
    };
    let builder = store.state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| Router::new().route(route, post(handler)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    logs();
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    let locked = Locked::take(place).await;
    node.record.open();
    (node, locked)
}

/// It is the request's no more.
async fn its_requests_limit_does_not_end_it(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/limited-sqlite" } else { "/limited-postgres" };
    // Longer than the first attempt takes.
    let limit = 6 * SHORT;
    let (node, locked) = limited(&place, short(&place), route, limit).await;
    let passed = tokio::time::Instant::now() + limit;
    said(route, AGAIN).await;
    node.journal.ended(1).await;
    tokio::time::sleep_until(passed).await;
    assert!(!says(route, DROPPED) && !says(route, LOST) && !says(route, STORED));
    locked.release().await;
    node.record.begun("limited", 1).await;
    assert!(says(route, STORED));
}

/// The database is reached, and does not answer.
async fn before_it_was_tried_once_it_is_given_up_at_the_limit_and_not_in_silence(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/unanswered-sqlite" } else { "/unanswered-postgres" };
    let patient = quick(place.store()).busy_timeout(HOUR);
    let (node, locked) = limited(&place, patient, route, SHORT).await;
    node.journal.ended(1).await;
    assert!(says(route, DROPPED) && !says(route, AGAIN));
    // The writer has it all the same, and nobody asks for its receipt any more.
    locked.release().await;
    node.record.begun("limited", 1).await;
    assert_eq!(place.number("SELECT count(*) FROM tower_epilogue_answer WHERE key LIKE 'stored:%'").await, 0);
}

async fn a_drain_waits_for_it(place: Place) {
    let (mut waiting, locked) = Waiting::begin(place, |store| store, |epilogue| epilogue, "waited").await;
    waiting.all_said(AGAIN).await;
    waiting.node.begin_drain();
    soon("it has begun", async { while tokio::net::TcpStream::connect(waiting.node.address).await.is_ok() {} }).await;
    locked.release().await;
    let report = waiting.node.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.stored_jobs(), Some(3));
    assert!(waiting.routes.iter().all(|route| says(route, STORED)));
}

async fn a_drain_names_what_it_cuts(place: Place) {
    let deadline = |epilogue: EpilogueBuilder| epilogue.drain_deadline(Duration::from_millis(300));
    let (waiting, locked) = Waiting::begin(place, |store| store, deadline, "cut").await;
    waiting.all_said(AGAIN).await;
    let report = waiting.node.stop().await;
    let mut named: Vec<_> = report.stragglers().iter().map(|straggler| straggler.route().to_owned()).collect();
    named.sort();
    let mut routes = waiting.routes.clone().map(|route| format!("POST {route}"));
    routes.sort();
    assert_eq!(named, routes, "{report}");
    assert!(!report.stragglers().iter().any(tower_epilogue::Straggler::is_stored), "{report}");
    assert!(waiting.routes.iter().all(|route| says(route, DROPPED) && !says(route, STORED)));
    locked.release().await;
}

/// Its request has ended: it was beside a `finish` that nobody awaited.
async fn a_drain_names_what_was_not_tried_once(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/untried-sqlite" } else { "/untried-postgres" };
    let handler = async |lifecycle: Lifecycle| {
        let mut finish = Box::pin(lifecycle.finish("early"));
        poll_fn(|cx| Poll::Ready(finish.as_mut().poll(cx).is_pending())).await;
        Durable::new(Task::ok("untried"))
    };
    let deadline = |epilogue: EpilogueBuilder| epilogue.drain_deadline(Duration::from_millis(300));
    let app = |store: &DurableStore| Router::new().route(route, post(handler)).layer(store.layer());
    let node = Node::with(&place, |store| store.busy_timeout(HOUR), deadline, app).await;
    logs();
    let locked = Locked::take(&place).await;
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    node.journal.ended(1).await;
    let (store, epilogue) = (node.store.clone(), node.epilogue.clone());
    let stopped = tokio::spawn(node.stop());
    said(route, DROPPED).await;
    // The store is waited for, too.
    locked.release().await;
    let report = stopped.await.unwrap();
    let [straggler] = report.stragglers() else { panic!("{report}") };
    assert_eq!(straggler.route(), format!("POST {route}"));
    store.settled().await;
    assert_eq!((store.counts().await.unwrap().unfinished(), epilogue.lost()), (1, 0), "the writer had it all the same");
}

/// Neither its request nor its handler waits with it: their places are free.
async fn nobody_is_refused_for_it(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/placed-sqlite" } else { "/placed-postgres" };
    let (ran, mut has_run) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |lifecycle: Lifecycle| async move {
        let _ = lifecycle.finish("early").await;
        let beside = Continuation::new(async move { ran.send(()).unwrap() });
        (Durable::new(Task::ok("placed")), beside)
    };
    let builder = short(&place).register::<Task>();
    let bounds = |epilogue: EpilogueBuilder| epilogue.max_running(1).max_waiting(0).max_detached(1);
    let app = |store: &DurableStore| {
        Router::new().route(route, post(handler)).layer(store.layer()).route("/", post(async || "admitted"))
    };
    let node = Node::of(Record::default(), builder, bounds, app).await;
    logs();
    let locked = Locked::take(&place).await;
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    said(route, AGAIN).await;
    soon("what is beside it runs", has_run.recv()).await.unwrap();
    node.journal.ended(1).await;
    for _ in 0..3 {
        assert_eq!(node.post("/", &[], "").await.text(), "admitted");
    }
    assert!(!says(route, STORED));
    locked.release().await;
    said(route, STORED).await;
}

/// Each of its attempts waits for a transaction of the user's, to the time limit that the server has for statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_again_is_in_nobodys_way() {
    let place = Place::postgres();
    let route = "/in-the-way";
    let handler = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("early").await;
        Durable::new(Task::ok("second")).with_key("k")
    };
    let told = |name: String| async move { Durable::new(Task::ok(name)) };
    let record = Record::default();
    let patience = 2 * SHORT;
    let builder = within(&place, patience).state(record.clone()).register::<Task>();
    let app =
        |store: &DurableStore| Router::new().route(route, post(handler)).route("/", post(told)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    logs();
    let mut transaction = node.store.begin_postgres().await.unwrap();
    let first = Durable::new(Task::ok("first")).with_key("k").store_in(&node.store, &mut transaction).await.unwrap();
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    said(route, AGAIN).await;
    let until = tokio::time::Instant::now() + 2 * patience;
    let mut orders = 0;
    while tokio::time::Instant::now() < until {
        orders += 1;
        assert_eq!(node.post("/", &[], "told").await.status, 200);
    }
    assert!(!says(route, STORED));
    transaction.rollback().await.unwrap();
    drop(first);
    node.record.begun("second", 1).await;
    node.completed(orders + 1).await;
    assert!(node.record.runs_of("first").is_empty());
}

/// It comes back no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_lost_with_a_pool_that_is_closed() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    place.store().start(&tower_epilogue::Epilogue::new()).await.unwrap();
    let pool = sqlx::PgPool::connect(&format!("{url}?options[statement_timeout]=1000")).await.unwrap();
    let route = "/closed";
    let handler = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("early").await;
        Durable::new(Task::ok("closed"))
    };
    let builder = quick(DurableStore::postgres_pool(pool.clone())).busy_timeout(SHORT);
    let app = |store: &DurableStore| Router::new().route(route, post(handler)).layer(store.layer());
    let node = Node::of(Record::default(), builder, |epilogue| epilogue, app).await;
    logs();
    let locked = Locked::take(&place).await;
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    said(route, AGAIN).await;
    pool.close().await;
    said(route, LOST).await;
    locked.release().await;
}
