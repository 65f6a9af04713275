//! What operators do and meet: jobs that are revived, settings at their ends, a database that cannot be reached for long.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::post};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError, sqlx},
};

use crate::{
    common::{Act, HOUR, Node, Place, Record, Task, on_both, quick},
    support::{logs, soon},
};

on_both!(
    a_revived_job_that_fails_otherwise_says_so,
    a_job_is_not_revived_beside_another_of_its_key,
    a_job_that_is_not_there_is_not_revived_and_the_error_says_so,
    a_job_whose_transaction_is_never_committed_is_told_of,
    another_that_has_its_number_by_now_is_left_alone,
    times_may_be_without_end,
    what_has_expired_is_forgotten_bit_by_bit,
    a_job_that_is_cancelled_with_rivers_tools_ends,
    so_does_one_that_waits_for_its_place,
    what_would_never_decode_is_not_promised,
    a_store_runs_its_jobs_where_its_epilogue_is_out_of_sight,
);

async fn discarded(node: &Node, jobs: u64) {
    node.until("it is given up", |counts| counts.discarded == jobs && counts.unfinished() == 0).await;
}

/// It gives up first, and is given up after its last attempt then.
async fn a_revived_job_that_fails_otherwise_says_so(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Task::new("given up", Act::GiveUpThenFail))).await.unwrap();
    discarded(&node, 1).await;
    let job = node.store.discarded(1).await.unwrap().remove(0);
    assert_eq!(job.error, "hopeless");
    node.store.revive(job.id).await.unwrap();
    node.record.begun("given up", 3).await;
    discarded(&node, 1).await;
    assert_eq!(node.store.discarded(1).await.unwrap()[0].error, "not yet");
}

/// It has been promised anew meanwhile.
async fn a_job_is_not_revived_beside_another_of_its_key(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Task::new("old", Act::GiveUp)).with_key("k")).await.unwrap();
    discarded(&node, 1).await;
    node.store.enqueue(Durable::new(Task::new("new", Act::Wait)).with_key("k")).await.unwrap();
    node.record.begun("new", 1).await;
    let error = node.store.revive(node.store.discarded(1).await.unwrap()[0].id).await.unwrap_err();
    assert!(error.to_string().contains("another job of its kind and key"), "{error}");
    node.record.open();
    node.completed(1).await;
    assert_eq!((node.record.runs_of("old").len(), node.store.counts().await.unwrap().discarded), (1, 1));
}

/// A number that somebody has mistyped, or that is another store's.
async fn a_job_that_is_not_there_is_not_revived_and_the_error_says_so(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    let error = node.store.revive(4711).await.unwrap_err();
    assert!(error.to_string().contains("no job 4711"), "{error}");
    assert!(!error.is_unavailable());
}

/// The `commit` is forgotten: its client has been told of a job that is not there.
async fn a_job_whose_transaction_is_never_committed_is_told_of(place: Place) {
    let (logs, marker) = (logs(), format!("POST /forgotten/{}", matches!(place, Place::Postgres(_))));
    let node = Node::start(&place, |store| {
        let layer = store.layer();
        let store = store.clone();
        let forgets = move || async move {
            if let Ok(mut transaction) = store.begin_sqlite().await {
                return Durable::in_transaction(Task::ok("forgotten"), &store, &mut transaction).await.unwrap();
            }
            let mut transaction = store.begin_postgres().await.unwrap();
            Durable::in_transaction(Task::ok("forgotten"), &store, &mut transaction).await.unwrap()
        };
        let routes = ["/forgotten/false", "/forgotten/true"];
        let app = routes.iter().fold(Router::new(), |app, route| app.route(route, post(forgets.clone())));
        app.layer(layer)
    })
    .await;
    let said = || logs.with(&marker).iter().filter(|line| line.contains("is not in its store")).count();
    assert_eq!(node.post(&marker["POST ".len()..], &[], "").await.status, 200);
    logs.until("it is said", |_| said() == 1).await;
    // What is there is not spoken of.
    node.store.enqueue(Durable::new(Task::ok("there"))).await.unwrap();
    node.completed(1).await;
    assert_eq!((said(), node.record.runs().len()), (1, 1));
}

async fn by_hand(store: &DurableStore, name: &str, commits: bool) -> Durable {
    let job = Task::ok(name);
    if let Ok(mut transaction) = store.begin_sqlite().await {
        let part = Durable::in_transaction(job, store, &mut transaction).await.unwrap();
        if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();
        return part;
    }
    let mut transaction = store.begin_postgres().await.unwrap();
    let part = Durable::in_transaction(job, store, &mut transaction).await.unwrap();
    if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();
    part
}

/// SQLite gives the number of a job that was rolled back to the next one.
async fn another_that_has_its_number_by_now_is_left_alone(place: Place) {
    let (logs, marker) = (logs(), format!("POST /reused/{}", matches!(place, Place::Postgres(_))));
    let parts = Arc::new(Mutex::new(Vec::new()));
    let node = Node::with(
        &place,
        |store| store.lease(HOUR),
        |epilogue| epilogue,
        |store| {
            let (parts, routes) = (parts.clone(), ["/reused/false", "/reused/true"]);
            let gives = async move || parts.lock().unwrap().pop().unwrap();
            let app = routes.iter().fold(Router::new(), |app, route| app.route(route, post(gives.clone())));
            app.layer(store.layer())
        },
    )
    .await;
    let never = by_hand(&node.store, "rolled back", false).await;
    let waits = by_hand(&node.store, "waits for its own response", true).await;
    parts.lock().unwrap().push(never);
    assert_eq!(node.post(&marker["POST ".len()..], &[], "").await.status, 200);
    let said = |line: &String| line.contains("is not in its store");
    logs.until("it is said", |logs| logs.with(&marker).iter().any(said)).await;
    node.store.enqueue(Durable::new(Task::ok("there"))).await.unwrap();
    node.completed(1).await;
    assert_eq!(node.record.runs_of("waits for its own response"), []);
    node.store.enqueue(waits).await.unwrap();
    node.record.begun("waits for its own response", 1).await;
    node.completed(2).await;
    assert_eq!((node.record.runs().len(), logs.with(&marker).into_iter().filter(said).count()), (2, 1));
}

/// With the engine's services behind it, which look after leases and retries.
async fn times_may_be_without_end(place: Place) {
    for setting in [DurableBuilder::lease, DurableBuilder::rescue_after, DurableBuilder::busy_timeout] {
        let node = Node::with(&place, |store| setting(store, Duration::MAX), |epilogue| epilogue, |_| Router::new());
        let node = node.await;
        node.store.enqueue(Durable::new(Task::ok("ends"))).await.unwrap();
        node.record.begun("ends", 1).await;
        node.stop().await;
    }
    let record = Record::default();
    let builder = place.store().leader_lease(Duration::MAX).state(record.clone()).register::<Task>();
    // It has to be scheduled, for nobody tells that it is to start.
    let node = Node::of(record, builder.lease(Duration::from_secs(2)), |epilogue| epilogue, |_| Router::new()).await;
    let transaction = async || -> Result<(), Box<dyn std::error::Error>> {
        match &place {
            Place::Sqlite(_) => {
                let mut transaction = node.store.begin_sqlite().await?;
                drop(Durable::in_transaction(Task::ok("scheduled"), &node.store, &mut transaction).await?);
                transaction.commit().await?;
            }
            Place::Postgres(_) => {
                let mut transaction = node.store.begin_postgres().await?;
                drop(Durable::in_transaction(Task::ok("scheduled"), &node.store, &mut transaction).await?);
                transaction.commit().await?;
            }
        }
        Ok(())
    };
    transaction().await.unwrap();
    node.record.begun("scheduled", 1).await;
}

/// After an outage there may be millions, and others wait for their turn.
async fn what_has_expired_is_forgotten_bit_by_bit(place: Place) {
    let logs = logs();
    let node = Node::start(&place, |_| Router::new()).await;
    node.stop().await;
    let expired =
        "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 4321)
        INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms)
        SELECT 'k' || number, '', '', number FROM numbers";
    place.execute(expired).await;
    let _node = Node::start(&place, |_| Router::new()).await;
    place.until("SELECT count(*) FROM tower_epilogue_answer", 0).await;
    let forgotten = logs.with("expired responses were deleted");
    assert!(!forgotten.is_empty() && !forgotten.iter().any(|line| line.contains("4321")), "{forgotten:?}");
}

/// Says when it begins, and that it is dropped.
#[derive(Serialize, Deserialize)]
struct Endless;

type Told = mpsc::UnboundedSender<&'static str>;

struct Tells(Told);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

impl DurableJob for Endless {
    const KIND: &'static str = "endless";
    const LIMIT: Duration = Duration::from_secs(3600);

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let told = cx.state::<Told>()?;
        told.send("begun")?;
        let _tells = Tells(told.clone());
        std::future::pending().await
    }
}

/// The only job there is, as River's own tools do it.
pub async fn cancel(place: &Place) {
    let tools = match place {
        Place::Sqlite(file) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file.path);
            riverqueue::Client::builder(sqlx::SqlitePool::connect_with(options).await.unwrap()).build()
        }
        Place::Postgres(url) => riverqueue::Client::builder(sqlx::PgPool::connect(url).await.unwrap()).build(),
    };
    let (tools, mut again) = (tools.unwrap(), tokio::time::interval(Duration::from_millis(200)));
    // What a server is told before it listens to its database it finds only when it looks by itself, once a minute.
    let tells = async {
        loop {
            again.tick().await;
            tools.jobs().cancel(1).await.unwrap();
        }
    };
    let cancelled = "SELECT count(*) FROM river_job WHERE state = 'cancelled' AND finalized_at IS NOT NULL";
    tokio::select! {
        () = tells => {}
        () = place.until(cancelled, 1) => {}
    }
}

async fn a_job_that_is_cancelled_with_rivers_tools_ends(place: Place) {
    let (told, mut tells) = mpsc::unbounded_channel::<&'static str>();
    let node =
        Node::with(&place, |store| store.register::<Endless>().state(told), |epilogue| epilogue, |_| Router::new());
    let node = node.await;
    node.store.enqueue(Durable::new(Endless)).await.unwrap();
    assert_eq!(soon("it begins", tells.recv()).await, Some("begun"));
    cancel(&place).await;
    assert_eq!(soon("it is dropped", tells.recv()).await, Some("dropped"));
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
    let report = node.stop().await;
    assert!(report.is_clean(), "{report}");
}

async fn so_does_one_that_waits_for_its_place(place: Place) {
    let (node, gate) = crate::common::waits_for_its_place(&place, Duration::from_secs(30)).await;
    cancel(&place).await;
    gate.send_replace(true);
    node.journal.ended(2).await;
    assert!(node.record.runs().is_empty());
}

/// JSON has nothing for what is no number.
#[derive(Serialize, Deserialize)]
struct Sum(f64);

impl DurableJob for Sum {
    const KIND: &'static str = "sum";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

async fn what_would_never_decode_is_not_promised(place: Place) {
    let sum = |sum: String| async move { Durable::new(Sum(sum.parse().unwrap())) };
    let app = |store: &DurableStore| Router::new().route("/", post(sum)).layer(store.layer());
    let node = Node::with(&place, DurableBuilder::register::<Sum>, |epilogue| epilogue, app).await;
    assert_eq!(node.post("/", &[], "NaN").await.status, 503);
    assert_eq!(node.post("/", &[], "0.1").await.status, 200);
    let error = node.store.enqueue(Durable::new(Sum(f64::INFINITY))).await.unwrap_err();
    assert!(error.to_string().contains("does not come back"), "{error}");
    node.completed(1).await;
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

/// Whoever set it up has kept the store alone.
async fn a_store_runs_its_jobs_where_its_epilogue_is_out_of_sight(place: Place) {
    let record = Record::default();
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let store: DurableStore = builder.start(&Epilogue::new()).await.unwrap();
    store.enqueue(Durable::new(Task::ok("promised"))).await.unwrap();
    record.begun("promised", 1).await;
}

/// All wait as long as the first: the next ones are not tried after it, each as long again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_refused_as_soon_as_one() {
    let logs = logs();
    let place = Place::sqlite();
    let node =
        Node::with(&place, |store| store.busy_timeout(Duration::from_secs(1)), |epilogue| epilogue, |_| Router::new())
            .await;
    let locked = crate::locked::Locked::take(&place).await;
    let asked = (0..2000).map(|_| node.store.enqueue(Durable::new(Task::ok("refused"))));
    for answer in soon("all are refused", join_all(asked)).await {
        assert!(answer.unwrap_err().is_locked());
    }
    // Of so many at once no other test has.
    let refused = logs.with("the store of durable jobs failed");
    let requests = |line: &String| line.rsplit_once("requests=").and_then(|(_, requests)| requests.trim().parse().ok());
    let tried: Vec<u32> = refused.iter().filter_map(requests).filter(|requests| *requests > 100).collect();
    assert!((1..4).contains(&tried.len()), "{tried:?}");
    locked.release().await;
    // What the runner asked meanwhile may still have all of the connections, for longer than a second on a busy machine.
    let after = async {
        while let Err(error) = node.store.enqueue(Durable::new(Task::ok("after"))).await {
            assert!(error.is_locked(), "{error}");
        }
    };
    soon("the store takes in jobs again", after).await;
    node.completed(1).await;
    assert!(node.record.runs_of("refused").is_empty());
}

/// Its registration was forgotten.
#[derive(Serialize, Deserialize)]
struct Forgotten;

impl DurableJob for Forgotten {
    const KIND: &'static str = "forgotten-here";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct ForgottenToo;

impl DurableJob for ForgottenToo {
    const KIND: &'static str = "forgotten-in-transaction";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_promised_kind_that_was_not_registered_is_told_of_once() {
    let logs = logs();
    let node = Node::start(&Place::sqlite(), |_| Router::new()).await;
    for _ in 0..2 {
        node.store.enqueue(Durable::new(Forgotten)).await.unwrap();
        let mut transaction = node.store.begin_sqlite().await.unwrap();
        let part = Durable::in_transaction(ForgottenToo, &node.store, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        node.store.enqueue(part).await.unwrap();
    }
    for kind in [Forgotten::KIND, ForgottenToo::KIND] {
        let lines = logs.with(&format!("kind=\"{kind}\""));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains("WARN") && lines[0].contains("register"), "{lines:?}");
    }
}

#[tokio::test]
async fn a_process_that_runs_no_jobs_promises_without_a_word() {
    #[derive(Serialize, Deserialize)]
    struct Promised;

    impl DurableJob for Promised {
        const KIND: &'static str = "for-others-alone";

        async fn run(self, _: JobContext) -> Result<(), JobError> {
            Ok(())
        }
    }

    let (logs, place, epilogue) = (logs(), Place::sqlite(), Epilogue::new());
    let store = place.store().start(&epilogue).await.unwrap();
    store.enqueue(Durable::new(Promised)).await.unwrap();
    assert_eq!(logs.with(&format!("kind=\"{}\"", Promised::KIND)).len(), 0);
    epilogue.drain().await;
}
