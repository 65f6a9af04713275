//! Attempts: retries, limits, panics, jobs that are given up, and payloads of other versions.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError},
};

use crate::{
    common::{Act, Node, Place, Record, Run, Task, on_both, quick},
    support::soon,
};

on_both!(
    a_failed_job_is_tried_again_under_the_same_key,
    a_job_is_discarded_after_its_last_attempt_and_reported,
    a_job_that_gives_up_is_not_tried_again,
    a_panic_is_a_failed_attempt,
    an_error_says_when_it_is_tried_again_and_else_its_kind_does,
    the_limit_ends_an_attempt_and_its_hooks_run,
    a_job_whose_process_died_is_rescued,
    kinds_that_a_process_does_not_know_are_left_alone,
    a_payload_of_another_version_stays_stored_until_somebody_reads_it,
    settings_that_contradict_each_other_are_refused,
    state_that_is_missing_is_a_clear_error,
);

fn no_app(_: &DurableStore) -> Router {
    Router::new()
}

async fn enqueue(node: &Node, name: &str, act: Act) {
    node.store.enqueue(Durable::new(Task::new(name, act))).await.unwrap();
}

async fn a_failed_job_is_tried_again_under_the_same_key(place: Place) {
    let node = Node::start(&place, no_app).await;
    enqueue(&node, "twice", Act::FailUntil(2)).await;
    let runs = node.record.begun("twice", 2).await;
    assert_eq!((runs[0].attempt, runs[1].attempt), (1, 2));
    assert_eq!(runs[0].key, runs[1].key);
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 2);
}

async fn a_job_is_discarded_after_its_last_attempt_and_reported(place: Place) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    let node = Node::with(
        &place,
        |store| store.on_discard(move |job| teller.lock().unwrap().push(job.clone())),
        |epilogue| epilogue,
        no_app,
    )
    .await;
    enqueue(&node, "poison", Act::FailUntil(99)).await;
    discarded(&node, 1).await;
    assert_eq!(node.record.runs_of("poison").len(), 3);
    let report = node.store.discarded(10).await.unwrap();
    assert_eq!((report[0].kind.as_str(), report[0].attempts, report[0].error.as_str()), ("task", 3, "not yet"));
    assert!(report[0].payload.contains("poison"), "{report:?}");
    let told = told.lock().unwrap().clone();
    assert_eq!((told.len(), told[0].id, told[0].error.as_str()), (1, report[0].id, "not yet"));
    // Somebody has looked into it, and has it tried once more.
    node.store.revive(report[0].id).await.unwrap();
    assert_eq!(node.record.begun("poison", 4).await[3].attempt, 4);
    discarded(&node, 1).await;
}

async fn discarded(node: &Node, jobs: u64) {
    soon("jobs are discarded", async {
        loop {
            let counts = node.store.counts().await.unwrap();
            if counts.discarded >= jobs && counts.unfinished() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn a_job_that_gives_up_is_not_tried_again(place: Place) {
    let node = Node::start(&place, no_app).await;
    enqueue(&node, "hopeless", Act::GiveUp).await;
    discarded(&node, 1).await;
    assert_eq!(node.record.runs().len(), 1);
    assert_eq!(node.store.discarded(1).await.unwrap()[0].error, "hopeless");
}

async fn a_panic_is_a_failed_attempt(place: Place) {
    let node = Node::start(&place, no_app).await;
    enqueue(&node, "panics", Act::Panic).await;
    discarded(&node, 1).await;
    assert_eq!(node.record.runs().len(), 3);
    assert_eq!(node.store.discarded(1).await.unwrap()[0].error, "panicked: this job panics");
}

/// Knows once when it is to be tried again.
#[derive(Serialize, Deserialize)]
struct Delayed;

impl DurableJob for Delayed {
    const KIND: &'static str = "delayed";

    fn backoff(_: u16) -> Duration {
        Duration::from_secs(3600)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<tokio::sync::mpsc::UnboundedSender<std::time::Instant>>()?.send(std::time::Instant::now())?;
        match cx.attempt() {
            1 => Err(JobError::retry_after("busy", Duration::from_millis(300))),
            _ => Err("it fails".into()),
        }
    }
}

async fn an_error_says_when_it_is_tried_again_and_else_its_kind_does(place: Place) {
    let (sender, mut begun) = tokio::sync::mpsc::unbounded_channel::<std::time::Instant>();
    let node = Node::with(&place, |store| store.register::<Delayed>().state(sender), |epilogue| epilogue, no_app).await;
    node.store.enqueue(Durable::new(Delayed)).await.unwrap();
    let first = soon("it begins", begun.recv()).await.unwrap();
    let second = soon("it is tried again", begun.recv()).await.unwrap();
    assert!(second - first >= Duration::from_millis(290), "{:?}", second - first);
    node.until("it waits for its next attempt", |counts| counts.retryable > 0).await;
    // An hour, and a tenth more or less.
    let in_an_hour = match &place {
        Place::Sqlite(_) => {
            "SELECT count(*) FROM river_job WHERE scheduled_at > datetime('now', '+53 minutes') \
             AND scheduled_at < datetime('now', '+67 minutes')"
        }
        Place::Postgres(_) => {
            "SELECT count(*) FROM river_job WHERE scheduled_at > now() + interval '53 minutes' \
             AND scheduled_at < now() + interval '67 minutes'"
        }
    };
    assert_eq!(place.number(in_an_hour).await, 1);
}

#[derive(Serialize, Deserialize)]
struct Slow;

impl DurableJob for Slow {
    const KIND: &'static str = "slow";
    const LIMIT: Duration = Duration::from_millis(200);
    const MAX_ATTEMPTS: u16 = 2;

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(10)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let ends = cx.state::<tokio::sync::mpsc::UnboundedSender<(String, bool, bool)>>()?.clone();
        assert!(cx.time_left() <= Self::LIMIT);
        let last = cx.is_last_attempt();
        cx.on_shutdown(move |end| async move {
            ends.send((end.route(), end.status().is_timeout(), last)).unwrap();
        })?;
        std::future::pending().await
    }
}

async fn the_limit_ends_an_attempt_and_its_hooks_run(place: Place) {
    let (sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let node = Node::with(&place, |store| store.register::<Slow>().state(sender), |epilogue| epilogue, no_app).await;
    node.store.enqueue(Durable::new(Slow)).await.unwrap();
    for last in [false, true] {
        assert_eq!(soon("its hook runs", ends.recv()).await, Some(("JOB /slow".to_owned(), true, last)));
    }
    discarded(&node, 1).await;
    assert_eq!(node.store.discarded(1).await.unwrap()[0].error, "the limit of 200ms passed");
}

/// As if its process had been killed: the row says that it runs, and nobody runs it.
async fn a_job_whose_process_died_is_rescued(place: Place) {
    let node = Node::with(
        &place,
        |store| store.lease(Duration::from_secs(3600)).rescue_after(Duration::from_millis(200)),
        |epilogue| epilogue,
        |store| Router::new().route("/", post(|| async { Durable::new(Task::ok("orphan")) })).layer(store.layer()),
    )
    .await;
    place.execute("DELETE FROM river_job").await;
    let insert_only = insert_only(&place).await;
    insert_only.enqueue(Durable::new(Orphan)).await.unwrap();
    let running = match &place {
        Place::Sqlite(_) => {
            "UPDATE river_job SET state = 'running', attempt = 1, queue = 'task', \
             attempted_at = strftime('%Y-%m-%d %H:%M:%f', 'now')"
        }
        Place::Postgres(_) => {
            "UPDATE river_job SET state = 'running', attempt = 1, queue = 'task', attempted_at = now()"
        }
    };
    place.execute(running).await;
    let began = std::time::Instant::now();
    let runs = tokio::time::timeout(Duration::from_secs(30), node.record.begun("orphan", 1)).await.unwrap();
    assert_eq!(runs[0].attempt, 2, "the attempt that died counts");
    assert!(began.elapsed() >= Duration::from_millis(500), "not before its limit and the grace: {:?}", began.elapsed());
}

/// Stored under a kind that nobody works, with the payload of a `Task`.
struct Orphan;

impl Serialize for Orphan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Task::ok("orphan").serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Orphan {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Task::deserialize(deserializer).map(|_| Self)
    }
}

impl DurableJob for Orphan {
    const KIND: &'static str = "orphan";
    const LIMIT: Duration = Duration::from_millis(300);

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<tokio::sync::mpsc::UnboundedSender<()>>()?.send(())?;
        Ok(())
    }
}

/// A process that only promises.
async fn insert_only(place: &Place) -> DurableStore {
    // Leaked with its pool: it lasts as long as the test.
    let epilogue: &'static Epilogue = Box::leak(Box::new(Epilogue::new()));
    quick(place.store()).start(epilogue).await.unwrap()
}

async fn kinds_that_a_process_does_not_know_are_left_alone(place: Place) {
    let node =
        Node::with(&place, |store| store.rescue_after(Duration::from_millis(100)), |epilogue| epilogue, no_app).await;
    node.store.enqueue(Durable::new(Orphan)).await.unwrap();
    // By its third attempt, the process has looked for jobs of its own accord twice.
    enqueue(&node, "marker", Act::FailUntil(3)).await;
    node.completed(1).await;
    let counts = node.store.counts().await.unwrap();
    assert_eq!((counts.available, counts.completed, counts.discarded), (1, 1, 0), "{counts:?}");
    // One that knows it runs it.
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<()>();
    let other = Node::of(
        Record::default(),
        quick(place.store()).register::<Orphan>().state(sender),
        |epilogue| epilogue,
        no_app,
    )
    .await;
    soon("it runs", ran.recv()).await.unwrap();
    other.completed(2).await;
}

/// What `Task` was before somebody made `act` of `todo`.
#[derive(Serialize, Deserialize)]
struct OldTask {
    name: String,
}

impl DurableJob for OldTask {
    const KIND: &'static str = "task";

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<tokio::sync::mpsc::UnboundedSender<String>>()?.send(self.name)?;
        Ok(())
    }
}

async fn a_payload_of_another_version_stays_stored_until_somebody_reads_it(place: Place) {
    let old = insert_only(&place).await;
    old.enqueue(Durable::new(OldTask { name: "old".to_owned() })).await.unwrap();
    let node = Node::start(&place, no_app).await;
    enqueue(&node, "new", Act::Succeed).await;
    node.completed(1).await;
    soon("it is put back", async {
        while node.store.counts().await.unwrap().scheduled != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(place.number("SELECT CAST(max(attempt) AS BIGINT) FROM river_job WHERE state = 'scheduled'").await, 0);
    assert_eq!(
        node.record.runs(),
        [Run { name: "new".to_owned(), attempt: 1, key: node.record.runs()[0].key.clone() }]
    );
    assert!(node.stop().await.is_clean());
    // A process of the old version takes it up when the half minute is over; here it is over at once.
    place
        .execute("UPDATE river_job SET state = 'available', scheduled_at = created_at WHERE state = 'scheduled'")
        .await;
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<String>();
    let _old = Node::of(
        Record::default(),
        quick(place.store()).register::<OldTask>().state(sender),
        |epilogue| epilogue,
        no_app,
    )
    .await;
    assert_eq!(soon("it runs", ran.recv()).await.as_deref(), Some("old"));
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Shouting;

impl DurableJob for Shouting {
    const KIND: &'static str = "SHOUTING";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

async fn settings_that_contradict_each_other_are_refused(place: Place) {
    let epilogue = Epilogue::new();
    let error = place.store().register::<Task>().register::<OldTask>().start(&epilogue).await.unwrap_err();
    assert!(error.to_string().contains("two types of job have the kind `task`"), "{error}");
    let error = place.store().register::<Shouting>().start(&epilogue).await.unwrap_err();
    assert!(error.to_string().contains("\"SHOUTING\" cannot be a `KIND`: it is 1 to 64 lower-case"), "{error}");
    let store = insert_only(&place).await;
    let error = store.enqueue(Durable::new(Shouting)).await.unwrap_err();
    assert!(error.to_string().contains("lower-case"), "{error}");
    let zeros: [fn(DurableBuilder) -> DurableBuilder; 4] = [
        |store| store.rescue_after(Duration::ZERO),
        |store| store.claim(Duration::ZERO),
        |store| store.busy_timeout(Duration::ZERO),
        |store| store.connections(0),
    ];
    for zero in zeros {
        let error = zero(place.store()).start(&epilogue).await.unwrap_err();
        assert!(error.to_string().contains("must not be zero"), "{error}");
    }
}

async fn state_that_is_missing_is_a_clear_error(place: Place) {
    let node =
        Node::of(Record::default(), quick(place.store()).register::<Orphan>(), |epilogue| epilogue, no_app).await;
    node.store.enqueue(Durable::new(Orphan)).await.unwrap();
    soon("it fails", async {
        while place
            .number("SELECT count(*) FROM river_job WHERE state IN ('retryable', 'available') AND attempt = 1")
            .await
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let errors = match &place {
        Place::Sqlite(_) => "SELECT count(*) FROM river_job WHERE json(errors) LIKE '%DurableBuilder::state%'",
        Place::Postgres(_) => {
            "SELECT count(*) FROM river_job WHERE array_to_string(errors, ' ') LIKE '%DurableBuilder::state%'"
        }
    };
    assert_eq!(place.number(errors).await, 1);
}
