//! What is promised is stored before the response leaves, and starts after it.

use std::time::Duration;

use axum::{Router, http::StatusCode, routing::post};
use tower_epilogue::{
    Continuation, Event, IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError},
};

use crate::{
    common::{Act, HOUR, Node, Place, Task, on_both, post as ask, request},
    locked::Locked,
    support::{Client, h2client::Http2, soon},
};

on_both!(
    a_job_starts_after_the_flush_of_its_response,
    a_job_with_the_key_of_a_stored_one_is_not_stored_again,
    a_duplicate_is_never_promoted,
    a_late_flush_does_not_run_a_completed_job_again,
    a_job_whose_response_was_never_flushed_starts_when_its_lease_ends,
    a_store_that_fails_answers_503_and_promises_nothing,
    one_job_that_cannot_be_stored_does_not_fail_the_others,
    many_at_once_are_each_run_once,
    a_finished_response_is_held_back_too,
    without_the_layer_the_client_gets_a_500,
    a_client_that_leaves_while_aborts_are_ignored_loses_nothing,
    a_transaction_of_the_users_decides,
    completing_in_a_transaction_happens_once,
    what_is_enqueued_starts_at_once,
    a_continuation_beside_it_runs_too,
);

async fn by_name(name: String) -> (StatusCode, Durable, &'static str) {
    (StatusCode::ACCEPTED, Durable::new(Task::ok(name)), "accepted")
}

async fn by_key(name: String) -> (StatusCode, Durable, &'static str) {
    let key = name.split('/').next().unwrap().to_owned();
    (StatusCode::ACCEPTED, Durable::new(Task::ok(name)).with_key(key), "accepted")
}

pub fn app(store: &DurableStore) -> Router {
    Router::new().route("/", post(by_name)).route("/key", post(by_key)).layer(store.layer())
}

async fn a_job_starts_after_the_flush_of_its_response(place: Place) {
    let node = Node::start(&place, app).await;
    let reply = node.post("/", &[], "one").await;
    assert_eq!((reply.status, reply.text().as_str()), (202, "accepted"));
    let runs = node.record.begun("one", 1).await;
    assert_eq!(runs[0].attempt, 1);
    assert_eq!(runs[0].key.len(), 32, "a key of its own: {runs:?}");
    node.completed(1).await;
    // The request's own life, and the job's, in the same journal.
    node.journal.ended(2).await;
    let requests = node.journal.requests();
    let of_request = node.journal.lines_of(requests[0]);
    let of_job = node.journal.lines_of(requests[1]);
    assert_eq!(
        of_request,
        ["handler_start/0", "handler_end/0", "flushed:8/0", "continuation_start/0", "continuation_end/0", "ended/0"]
    );
    assert_eq!(of_job, ["continuation_start/0", "continuation_end/0", "ended/0"]);
    let events = node.journal.events();
    let place = |id, name| events.iter().position(|event| event.request() == id && event.kind().name() == name);
    assert!(place(requests[0], "flushed") < place(requests[1], "continuation_start"));
    let report = node.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.stored_jobs(), Some(0));
}

async fn a_job_with_the_key_of_a_stored_one_is_not_stored_again(place: Place) {
    let node = Node::start(&place, app).await;
    assert_eq!(node.post("/key", &[], "k/first").await.status, 202);
    node.completed(1).await;
    assert_eq!(node.post("/key", &[], "k/second").await.status, 202);
    assert_eq!(node.post("/", &[], "marker").await.status, 202);
    node.record.begun("marker", 1).await;
    assert_eq!(node.record.runs_of("k/first").len(), 1);
    assert_eq!(node.record.runs_of("k/first")[0].key, "k");
    assert_eq!(node.record.runs_of("k/second").len(), 0);
    // The same in one batch, from many at once.
    let asked = (0..20).map(|number| {
        let address = node.address;
        tokio::spawn(async move { ask(address, "/key", &[], &format!("same/{number}")).await.status })
    });
    for reply in asked.collect::<Vec<_>>() {
        assert_eq!(reply.await.unwrap(), 202);
    }
    node.completed(3).await;
    let same = node.record.runs().into_iter().filter(|run| run.name.starts_with("same/")).count();
    assert_eq!(same, 1);
}

async fn a_duplicate_is_never_promoted(place: Place) {
    let node = Node::with(&place, |store| store.lease(Duration::from_secs(3600)), |epilogue| epilogue, app).await;
    // Stored, and promised by nobody yet.
    drop(stored_by_hand(&node.store, "k", "waits").await);
    assert_eq!(node.post("/key", &[], "k/again").await.status, 202);
    assert_eq!(node.post("/", &[], "marker").await.status, 202);
    node.record.begun("marker", 1).await;
    node.store.settled().await;
    let counts = node.store.counts().await.unwrap();
    assert_eq!((counts.scheduled, node.record.runs().len()), (1, 1), "{counts:?}");
    let report = node.stop().await;
    assert_eq!(report.stored_jobs(), Some(1), "{report}");
    assert!(report.to_string().contains("1 durable job stays stored"), "{report}");
}

/// Stores a job in a transaction of its own; the part that comes of it.
pub async fn stored_by_hand(store: &DurableStore, key: &str, name: &str) -> Durable {
    let durable = Durable::new(Task::ok(name)).with_key(key);
    if let Ok(mut transaction) = store.begin_sqlite().await {
        let durable = durable.store_in(store, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        return durable;
    }
    let mut transaction = store.begin_postgres().await.unwrap();
    let durable = durable.store_in(store, &mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    durable
}

async fn a_late_flush_does_not_run_a_completed_job_again(place: Place) {
    let node = Node::with(
        &place,
        |store| store.lease(Duration::from_millis(300)),
        |epilogue| epilogue,
        |store| {
            let (store, late) = (store.clone(), store.clone());
            let handler = move |name: String| async move {
                let durable = stored_by_hand(&store, "late", &name).await;
                // So slow a response that the job's lease ends before it.
                while store.counts().await.unwrap().completed == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                (durable, "late")
            };
            Router::new().route("/", post(by_name)).route("/late", post(handler)).layer(late.layer())
        },
    )
    .await;
    assert_eq!(node.post("/late", &[], "late").await.status, 200);
    assert_eq!(node.post("/", &[], "marker").await.status, 202);
    node.record.begun("marker", 1).await;
    node.completed(2).await;
    assert_eq!(node.record.runs_of("late").len(), 1);
}

async fn a_job_whose_response_was_never_flushed_starts_when_its_lease_ends(place: Place) {
    let node = Node::with(&place, |store| store.lease(Duration::from_millis(300)), |epilogue| epilogue, app).await;
    let stored = std::time::Instant::now();
    drop(stored_by_hand(&node.store, "k", "unflushed").await);
    assert_eq!(node.record.begun("unflushed", 1).await[0].attempt, 1);
    assert!(stored.elapsed() >= Duration::from_millis(290), "{:?}", stored.elapsed());
}

async fn a_store_that_fails_answers_503_and_promises_nothing(place: Place) {
    let node = Node::start(&place, app).await;
    place.execute("ALTER TABLE river_job RENAME TO river_job_away").await;
    let reply = node.post("/", &[], "lost").await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(reply.text().contains("nothing was promised"), "{}", reply.text());
    let error = node.store.enqueue(Durable::new(Task::ok("lost"))).await.unwrap_err();
    assert!(error.is_schema(), "{error:?}");
    place.execute("ALTER TABLE river_job_away RENAME TO river_job").await;
    assert_eq!(node.post("/", &[], "kept").await.status, 202);
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 1, "{:?}", node.record.runs());
}

/// One that the database does not take.
#[derive(serde::Serialize, serde::Deserialize)]
struct Unwanted;

impl DurableJob for Unwanted {
    const KIND: &'static str = "unwanted";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

async fn one_job_that_cannot_be_stored_does_not_fail_the_others(place: Place) {
    let app = |store: &DurableStore| {
        let unwanted = post(|| async { Durable::new(Unwanted) });
        Router::new().route("/", post(by_name)).route("/unwanted", unwanted).layer(store.layer())
    };
    let node = Node::with(&place, |store| store.busy_timeout(HOUR), |epilogue| epilogue, app).await;
    let refuses = match &place {
        Place::Sqlite(_) => {
            "CREATE TRIGGER unwanted BEFORE INSERT ON river_job WHEN NEW.queue = 'unwanted' \
             BEGIN SELECT RAISE(ABORT, 'unwanted'); END"
        }
        Place::Postgres(_) => "ALTER TABLE river_job ADD CONSTRAINT unwanted CHECK (queue <> 'unwanted')",
    };
    place.execute(refuses).await;
    // While the store does not answer, all but the first come together.
    let locked = Locked::take(&place).await;
    let address = node.address;
    let ask_all = (0..40).map(|number| {
        tokio::spawn(async move {
            let path = if number % 4 == 0 { "/unwanted" } else { "/" };
            (number % 4 == 0, ask(address, path, &[], &format!("job {number}")).await.status)
        })
    });
    let asked: Vec<_> = ask_all.collect();
    node.journal.seen_times("handler_end", 40).await;
    locked.release().await;
    for reply in asked {
        let (unwanted, status) = reply.await.unwrap();
        assert_eq!(status, if unwanted { 503 } else { 202 });
    }
    node.completed(30).await;
}

async fn many_at_once_are_each_run_once(place: Place) {
    let node = Node::start(&place, app).await;
    let address = node.address;
    let asked = (0..200)
        .map(|number| tokio::spawn(async move { ask(address, "/", &[], &format!("job {number}")).await.status }));
    for reply in asked.collect::<Vec<_>>() {
        assert_eq!(reply.await.unwrap(), 202);
    }
    node.completed(200).await;
    let mut names: Vec<_> = node.record.runs().into_iter().map(|run| run.name).collect();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), node.record.runs().len()), (200, 200));
}

async fn a_finished_response_is_held_back_too(place: Place) {
    let node = Node::start(&place, |store| {
        let late = store.clone();
        let handler = move |lifecycle: Lifecycle| async move {
            let sent = lifecycle.finish((Durable::new(Task::ok("finished")), "finished")).await;
            let counts = late.counts().await.unwrap();
            assert_eq!(counts.unfinished() + counts.completed, 1, "{sent:?} {counts:?}");
        };
        Router::new().route("/", post(handler)).layer(TimeLimitLayer::default()).layer(store.layer())
    })
    .await;
    let reply = node.post("/", &[], "").await;
    assert_eq!(reply.text(), "finished");
    node.completed(1).await;
    node.journal.ended(2).await;
    assert!(node.stop().await.is_clean());
}

async fn without_the_layer_the_client_gets_a_500(place: Place) {
    let node = Node::start(&place, |_| Router::new().route("/", post(by_name))).await;
    let reply = node.post("/", &[], "unkept").await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

async fn a_client_that_leaves_while_aborts_are_ignored_loses_nothing(place: Place) {
    let record = crate::common::Record::default();
    let gate = record.gate.clone();
    let node = Node::with(
        &place,
        |store| store,
        |epilogue| epilogue,
        |store| {
            let handler = move |name: String| async move {
                let _ = gate.subscribe().wait_for(|open| *open).await;
                Durable::new(Task::ok(if name.is_empty() { "left behind on HTTP/2".to_owned() } else { name }))
            };
            Router::new().route("/", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new())
        },
    )
    .await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "left behind")).await;
    node.journal.seen("handler_start").await;
    client.reset();
    node.journal.seen("aborted").await;
    // There it cancels its stream (RFC 9113, section 6.4): the server drops the response's future, and the handler goes on in a task of its own.
    let mut client = Http2::connect(node.address).await;
    let response = client.start("POST", "/").await;
    let seen = |name: &'static str| {
        move |events: &[Event]| events.iter().filter(|event| event.kind().name() == name).count() == 2
    };
    node.journal.until("the second handler starts", seen("handler_start")).await;
    drop(response);
    node.journal.until("the second client leaves", seen("aborted")).await;
    record.open();
    node.record.begun("left behind", 1).await;
    node.record.begun("left behind on HTTP/2", 1).await;
    node.completed(2).await;
}

async fn a_transaction_of_the_users_decides(place: Place) {
    let node = Node::with(
        &place,
        |store| store.lease(Duration::from_secs(3600)),
        |epilogue| epilogue,
        |store| {
            let store = store.clone();
            let layer = store.layer();
            let handler = move |name: String| async move {
                let commit = name.starts_with("commit");
                let job = Task::ok(name);
                if let Ok(mut transaction) = store.begin_sqlite().await {
                    let durable = Durable::in_transaction(job, &store, &mut transaction).await.unwrap();
                    if commit { transaction.commit().await } else { transaction.rollback().await }.unwrap();
                    return durable;
                }
                let mut transaction = store.begin_postgres().await.unwrap();
                let durable = Durable::in_transaction(job, &store, &mut transaction).await.unwrap();
                if commit { transaction.commit().await } else { transaction.rollback().await }.unwrap();
                durable
            };
            Router::new().route("/", post(handler)).layer(layer)
        },
    )
    .await;
    assert_eq!(node.post("/", &[], "rolled back").await.status, 200);
    assert_eq!(node.post("/", &[], "commit").await.status, 200);
    // Promoted at its flush, an hour before its lease ends.
    node.record.begun("commit", 1).await;
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 1);
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

/// Adds a row and completes in one transaction; then its process "dies" once, before it can say so.
#[derive(serde::Serialize, serde::Deserialize)]
struct Credit;

impl DurableJob for Credit {
    const KIND: &'static str = "credit";

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(10)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        use tower_epilogue::durable::sqlx;
        let statement = "INSERT INTO credits VALUES (1)";
        if let Ok(mut transaction) = cx.store().begin_sqlite().await {
            sqlx::query(statement).execute(&mut *transaction).await?;
            cx.complete_in_transaction(&mut transaction).await?;
            transaction.commit().await?;
        } else {
            let mut transaction = cx.store().begin_postgres().await?;
            sqlx::query(statement).execute(&mut *transaction).await?;
            cx.complete_in_transaction(&mut transaction).await?;
            transaction.commit().await?;
        }
        Err("it is done, and still it fails".into())
    }
}

async fn completing_in_a_transaction_happens_once(place: Place) {
    place.execute("CREATE TABLE credits (amount BIGINT)").await;
    let node = Node::with(
        &place,
        DurableBuilder::register::<Credit>,
        |epilogue| epilogue,
        |store| Router::new().route("/", post(|| async { Durable::new(Credit) })).layer(store.layer()),
    )
    .await;
    assert_eq!(node.post("/", &[], "").await.status, 200);
    node.completed(1).await;
    node.journal.ended(2).await;
    let report = node.stop().await;
    assert_eq!(report.stored_jobs(), Some(0), "{report}");
    assert_eq!(place.number("SELECT count(*) FROM credits").await, 1);
}

async fn what_is_enqueued_starts_at_once(place: Place) {
    let node = Node::start(&place, app).await;
    soon("it is stored", node.store.enqueue(Durable::new(Task::new("enqueued", Act::Succeed)))).await.unwrap();
    node.record.begun("enqueued", 1).await;
    node.completed(1).await;
}

async fn a_continuation_beside_it_runs_too(place: Place) {
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let node = Node::start(&place, |store| {
        let handler = move || async move {
            let beside = Continuation::new(async move { sender.send("beside").unwrap() });
            (beside, Durable::new(Task::ok("durable")))
        };
        Router::new().route("/", post(handler)).layer(store.layer())
    })
    .await;
    assert_eq!(node.post("/", &[], "").await.status, 200);
    assert_eq!(soon("it runs", ran.recv()).await, Some("beside"));
    node.record.begun("durable", 1).await;
}
