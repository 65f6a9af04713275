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
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError, sqlx},
};

use crate::{
    common::{Act, HOUR, Node, Place, Task, on_both, post as ask, waits_for_its_place},
    locked::Locked,
    support::{h2client::Http2, soon},
};

on_both!(
    an_error_with_a_nul_is_an_error,
    a_key_with_a_nul_is_refused,
    what_is_returned_after_finish_is_not_taken_for_what_was_finished,
    a_keyed_request_that_ran_on_without_its_client_is_answered_once,
    two_jobs_of_one_response_with_one_key_are_one,
    a_key_whose_job_was_given_up_is_free,
    a_promise_whose_client_leaves_as_it_is_told_starts_at_once,
    a_job_that_somebody_else_has_revived_is_left_alone,
    a_limit_below_a_millisecond_is_a_limit,
    each_of_two_drains_waits_until_all_is_noted,
    what_is_to_have_no_end_has_none,
);

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
    let node = Node::with(&place, DurableBuilder::register::<Nul>, |epilogue| epilogue, |_| Router::new()).await;
    for gives_up in [false, true] {
        node.store.enqueue(Durable::new(Nul { gives_up })).await.unwrap();
    }
    node.store.enqueue(Durable::new(Task::ok("beside"))).await.unwrap();
    node.until("they are discarded", |counts| counts.discarded == 2 && counts.completed == 1).await;
    for job in node.store.discarded(2).await.unwrap() {
        assert_eq!(job.error, "no \u{fffd} here");
    }
}

/// All that can be said is as large as it can be, and its name as short.
#[derive(Serialize, Deserialize)]
struct Most;

impl DurableJob for Most {
    const KIND: &'static str = "x";
    const MAX_ATTEMPTS: u16 = u16::MAX;
    const LIMIT: Duration = Duration::MAX;

    fn backoff(_: u16) -> Duration {
        Duration::MAX
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        assert!(!cx.is_last_attempt() && cx.time_left() > HOUR);
        Err(match cx.attempt() {
            1 => JobError::retry_after("at once", Duration::ZERO),
            2 => JobError::retry_after("at once", Duration::from_nanos(1)),
            _ => "never".into(),
        })
    }
}

async fn what_is_to_have_no_end_has_none(place: Place) {
    let node = Node::with(&place, DurableBuilder::register::<Most>, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Most)).await.unwrap();
    node.store.enqueue(Durable::new(Task::ok("beside"))).await.unwrap();
    node.until("it waits", |counts| counts.retryable == 1 && counts.completed == 1).await;
    assert_eq!(place.number("SELECT CAST(attempt AS BIGINT) FROM river_job WHERE queue = 'x'").await, 3);
}

/// Postgres would refuse it, and all that is written with it at first; it is never asked.
async fn a_key_with_a_nul_is_refused(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    let error = node.store.enqueue(Durable::new(Task::ok("nul")).with_key("no \0 here")).await.unwrap_err();
    assert!(error.to_string().contains("its key has a NUL"), "{error}");
    assert!(!error.is_unavailable());
}

async fn what_is_returned_after_finish_is_not_taken_for_what_was_finished(place: Place) {
    let handler = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish((Durable::new(Task::new("finished", Act::Wait)), "finished")).await;
        Durable::new(Task::ok("returned"))
    };
    let node = Node::start(&place, |store| Router::new().route("/", post(handler)).layer(store.layer())).await;
    assert_eq!(node.post("/", &KEY, "").await.text(), "finished");
    node.record.begun("finished", 1).await;
    node.record.begun("returned", 1).await;
    node.record.open();
    node.completed(2).await;
}

/// The server drops the response's future, since the client has cancelled its stream.
async fn a_keyed_request_that_ran_on_without_its_client_is_answered_once(place: Place) {
    let calls = Arc::new(AtomicU32::new(0));
    let (called, record) = (calls.clone(), crate::common::Record::default());
    let gate = record.gate.clone();
    let handler = move || async move {
        called.fetch_add(1, Ordering::SeqCst);
        let _ = gate.subscribe().wait_for(|open| *open).await;
        (Durable::new(Task::ok("order")), "ordered")
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let builder = crate::common::quick(place.store()).state(record.clone()).register::<Task>();
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    let client = Http2::connect(node.address).await;
    let request = Request::post("http://test/").header(KEY[0].0, KEY[0].1).body(()).unwrap();
    let (response, _) = client.send.clone().ready().await.unwrap().send_request(request, true).unwrap();
    soon("the handler runs", async {
        while calls.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(response);
    node.journal.seen("aborted").await;
    node.record.open();
    node.completed(1).await;
    let again = node.post("/", &KEY, "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("ordered", Some("true")));
    assert_eq!((calls.load(Ordering::SeqCst), node.record.runs().len()), (1, 1));
}

async fn two_jobs_of_one_response_with_one_key_are_one(place: Place) {
    let handler = async || {
        let one = |name| Durable::new(Task::ok(name)).with_key("k");
        (one("first"), one("second"), "promised")
    };
    let node = Node::start(&place, |store| Router::new().route("/", post(handler)).layer(store.layer())).await;
    let reply = node.post("/", &[], "").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "promised"));
    node.record.begun("first", 1).await;
    node.completed(1).await;
    let counts = node.store.counts().await.unwrap();
    assert_eq!((counts.unfinished(), node.record.runs().len()), (0, 1));
}

async fn a_key_whose_job_was_given_up_is_free(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    for (number, act) in [Act::GiveUp, Act::Succeed].into_iter().enumerate() {
        let job = Task::new(format!("{number}"), act);
        node.store.enqueue(Durable::new(job).with_key("k")).await.unwrap();
        node.until("it is over", |counts| counts.discarded == 1 && counts.unfinished() == 0).await;
    }
    assert_eq!(node.record.runs().len(), 2);
}

/// The store has told it so, and it has not heard of it yet.
async fn a_promise_whose_client_leaves_as_it_is_told_starts_at_once(place: Place) {
    let node = Node::with(&place, |store| store.lease(HOUR), |epilogue| epilogue, |_| Router::new()).await;
    let handler = async || (Durable::new(Task::ok("left")), "promised");
    let app = Router::new().route("/", post(handler)).layer(node.store.layer());
    let mut response = Box::pin(app.oneshot(Request::post("/").body(Body::empty()).unwrap()));
    assert!(futures_util::poll!(response.as_mut()).is_pending());
    node.store.settled().await;
    assert_eq!(node.store.counts().await.unwrap().scheduled, 1, "it is stored");
    drop(response);
    node.record.begun("left", 1).await;
    node.completed(1).await;
}

/// Two look at it at once; the other one's attempt is over when ours comes.
async fn a_job_that_somebody_else_has_revived_is_left_alone(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Task::new("poison", Act::GiveUp))).await.unwrap();
    node.until("it is discarded", |counts| counts.discarded == 1).await;
    let id = node.store.discarded(1).await.unwrap()[0].id;
    let mut locked = Locked::take(&place).await;
    let store = node.store.clone();
    let mut revives = Box::pin(async move { store.revive(id).await });
    // As far as it comes.
    let waits = tokio::time::timeout(Duration::from_millis(500), revives.as_mut()).await;
    assert!(waits.is_err(), "{waits:?}");
    let completed = "UPDATE river_job SET state = 'completed'";
    match &mut locked {
        Locked::Sqlite(connection) => drop(sqlx::query(completed).execute(&mut *connection).await.unwrap()),
        Locked::Postgres(connection) => drop(sqlx::query(completed).execute(&mut *connection).await.unwrap()),
    }
    locked.commit().await;
    revives.await.unwrap();
    // Whatever it had begun would be begun before this.
    node.store.enqueue(Durable::new(Task::ok("marker"))).await.unwrap();
    node.record.begun("marker", 1).await;
    node.completed(2).await;
    assert_eq!(node.record.runs_of("poison").len(), 1);
}

#[derive(Serialize, Deserialize)]
struct Brief;

impl DurableJob for Brief {
    const KIND: &'static str = "brief";
    const LIMIT: Duration = Duration::from_micros(500);
    const MAX_ATTEMPTS: u16 = 1;

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        std::future::pending().await
    }
}

async fn a_limit_below_a_millisecond_is_a_limit(place: Place) {
    let node = Node::with(&place, DurableBuilder::register::<Brief>, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Brief)).await.unwrap();
    node.until("it is discarded", |counts| counts.discarded == 1).await;
}

/// What it came to cannot be written at first.
async fn each_of_two_drains_waits_until_all_is_noted(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Task::new("runs", Act::Wait))).await.unwrap();
    node.record.begun("runs", 1).await;
    let locked = Locked::take(&place).await;
    let drains = [node.epilogue.clone(), node.epilogue.clone()].map(|epilogue| async move { epilogue.drain().await });
    let [first, second] = drains.map(tokio::spawn);
    node.record.open();
    node.journal.ended(1).await;
    let either = tokio::time::timeout(Duration::from_secs(1), async {
        tokio::select! {
            report = first => report,
            report = second => report,
        }
    });
    let either = either.await;
    assert!(either.is_err(), "{either:?}");
    locked.release().await;
}

/// Hands what a panic was to a task, as exporters do, and is slow then: all else is done meanwhile.
#[derive(Clone)]
struct SlowLog(mpsc::UnboundedSender<()>);

impl io::Write for SlowLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if String::from_utf8_lossy(line).contains("a continuation panicked") {
            let _ = self.0.send(());
            // The slowness itself: nothing waits for it to be over.
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_a_failed_attempt_however_slow_the_log_is() {
    let (lines, mut exported) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .on_thread_start(move || {
            let log = SlowLog(lines.clone());
            let log = tracing_subscriber::fmt().with_writer(move || log.clone()).finish();
            std::mem::forget(tracing::subscriber::set_default(log));
        })
        .build()
        .unwrap();
    runtime.spawn(async move { while exported.recv().await.is_some() {} });
    runtime.block_on(async {
        let node = Node::start(&Place::sqlite(), |_| Router::new()).await;
        node.store.enqueue(Durable::new(Task::new("panics", Act::Panic))).await.unwrap();
        node.until("it is discarded", |counts| counts.discarded == 1).await;
        let attempts: Vec<_> = node.record.runs().into_iter().map(|run| run.attempt).collect();
        assert_eq!(attempts, [1, 2, 3]);
    });
}

/// Each has locked a key, and wants the other's: the database fails one of them, which has done nothing then. (The store takes
/// them by the alphabet, and the user does not.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_tried_again() {
    let place = Place::postgres();
    let handler = async || {
        let one = |name| Durable::new(Task::ok(name)).with_key(name);
        (one("b"), one("a"), "promised")
    };
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    // Each looks once, after so long: the store does when both wait, and the user's never.
    let patient = Place::Postgres(format!("{url}?options[deadlock_timeout]=3s"));
    let node = Node::start(&patient, |store| Router::new().route("/", post(handler)).layer(store.layer())).await;
    let mut transaction = node.store.begin_postgres().await.unwrap();
    sqlx::query("SET LOCAL deadlock_timeout = '1h'").execute(&mut *transaction).await.unwrap();
    let by_hand = |name| Durable::new(Task::ok(name)).with_key(name);
    drop(by_hand("b").store_in(&node.store, &mut transaction).await.unwrap());
    let address = node.address;
    let asked = tokio::spawn(async move { ask(address, "/", &[], "").await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    place.until(waits, 1).await;
    drop(by_hand("a").store_in(&node.store, &mut transaction).await.unwrap());
    transaction.commit().await.unwrap();
    let reply = asked.await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "promised"));
}

/// Suspended with all its threads, as the one here, while its attempt waits for a place; when it goes on, there is one.
#[tokio::test]
async fn an_attempt_that_another_took_meanwhile_is_not_begun() {
    let place = Place::sqlite();
    let grace = Duration::from_secs(2);
    let (node, gate) = waits_for_its_place(&place, grace).await;
    place.execute("UPDATE river_job SET attempt = 2 WHERE state = 'running'").await;
    // So long it is suspended: of all that it has to look at then, nothing has come before another.
    tokio::time::pause();
    gate.send_replace(true);
    tokio::time::advance(grace).await;
    tokio::time::resume();
    place.until("SELECT count(*) FROM river_job WHERE state = 'running'", 0).await;
    assert!(node.record.runs().is_empty(), "{:?}", node.record.runs());
}
