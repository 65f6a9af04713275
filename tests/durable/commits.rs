//! What can happen while a response waits for its commit, and between the commit and the flush.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower_epilogue::{
    EpilogueBuilder, IgnoreAbortLayer, TimeLimitLayer, WhenFull,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError, sqlx},
};

use crate::{
    common::{Act, Node, Place, Task, on_both, post as ask, request},
    support::{Client, logs, soon},
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
    a_promise_that_no_layer_saw_is_in_the_log,
    a_back_off_that_panics_is_the_default,
    a_claim_that_another_clock_takes_for_expired_is_one_order,
    each_of_two_stores_keeps_its_own,
    a_store_that_does_not_answer_has_no_endless_queue,
);

pub const HOUR: Duration = Duration::from_secs(3600);

/// Somebody else's transaction, which everything that writes has to wait for.
pub enum Locked {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Locked {
    pub async fn take(place: &Place) -> Self {
        use sqlx::Connection as _;
        match place {
            Place::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file.path);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                Self::Sqlite(connection)
            }
            Place::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
                let lock = "LOCK TABLE river_job IN SHARE ROW EXCLUSIVE MODE";
                sqlx::query(lock).execute(&mut connection).await.unwrap();
                Self::Postgres(connection)
            }
        }
    }

    /// As every process does, once they have expired.
    pub async fn forget_claims(&mut self) {
        let forget = "DELETE FROM tower_epilogue_answer WHERE key NOT LIKE 'stored:%'";
        match self {
            Self::Sqlite(connection) => sqlx::query(forget).execute(connection).await.unwrap().rows_affected(),
            Self::Postgres(connection) => sqlx::query(forget).execute(connection).await.unwrap().rows_affected(),
        };
    }

    pub async fn commit(self) {
        self.end("COMMIT").await;
    }

    pub async fn release(self) {
        self.end("ROLLBACK").await;
    }

    async fn end(self, how: &'static str) {
        match self {
            Self::Sqlite(mut connection) => drop(sqlx::query(how).execute(&mut connection).await.unwrap()),
            Self::Postgres(mut connection) => drop(sqlx::query(how).execute(&mut connection).await.unwrap()),
        }
    }
}

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
async fn node(place: &Place, app: impl FnOnce(&DurableStore) -> Router) -> Node {
    Node::with(place, |store| store.lease(HOUR), |epilogue| epilogue, app).await
}

async fn ran_once(node: &Node, name: &str) {
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
    let again = soon("it is stored", async {
        loop {
            let reply = node.post("/", &key, "once").await;
            if reply.status != 409 {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!((again.status, again.text().as_str()), (200, "promised"));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    ran_once(&node, "once").await;
}

fn count(events: &[tower_epilogue::Event], name: &str) -> usize {
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

/// One of a kind for each line that is looked for.
#[derive(Serialize, Deserialize)]
struct Unkept<const LINE: u8>;

impl<const LINE: u8> DurableJob for Unkept<LINE> {
    const KIND: &'static str = ["unkept-0", "unkept-1", "unkept-2", "unkept-3"][LINE as usize];

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

fn unkept<const LINE: u8>() -> Router {
    Router::new().route("/", post(|| async { (Durable::new(Unkept::<LINE>), "promised") }))
}

async fn a_promise_that_no_layer_saw_is_in_the_log(place: Place) {
    let logs = logs();
    let (replaced, plain, lines) = match &place {
        Place::Sqlite(_) => (unkept::<0>(), unkept::<1>(), ["unkept-0", "unkept-1"]),
        Place::Postgres(_) => (unkept::<2>(), unkept::<3>(), ["unkept-2", "unkept-3"]),
    };
    let said = |line: usize| logs.with(lines[line]).iter().any(|line| line.contains("before a `DurableLayer` saw it"));
    let replace = axum::middleware::map_response(|_: axum::response::Response| async { "replaced" });
    let node = Node::start(&place, |store| replaced.layer(replace).layer(store.layer())).await;
    assert_eq!(node.post("/", &[], "").await.text(), "replaced");
    assert!(said(0));
    // A server of no kind of ours cannot refuse it, and says it too.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, plain).into_future());
    assert_eq!(ask(address, "/", &[], "").await.text(), "promised");
    logs.until("it is said", |_| said(1)).await;
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

/// Its back-off is the user's, and wrong.
#[derive(Serialize, Deserialize)]
struct Wrong;

impl DurableJob for Wrong {
    const KIND: &'static str = "wrong";
    const LIMIT: Duration = Duration::from_millis(100);

    fn backoff(attempt: u16) -> Duration {
        panic!("no back-off after attempt {attempt}")
    }

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Err("it fails".into())
    }
}

async fn a_back_off_that_panics_is_the_default(place: Place) {
    // Without that failure being stored it would be rescued; not before it can be, on a busy machine either.
    let store = |store: DurableBuilder| store.register::<Wrong>().rescue_after(Duration::from_secs(3));
    let node = Node::with(&place, store, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Wrong)).await.unwrap();
    soon("it waits for its next attempt", async {
        while node.store.counts().await.unwrap().retryable == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let errors = match &place {
        Place::Sqlite(_) => "SELECT count(*) FROM river_job WHERE json(errors) LIKE '%it fails%'",
        Place::Postgres(_) => "SELECT count(*) FROM river_job WHERE array_to_string(errors, ' ') LIKE '%it fails%'",
    };
    assert_eq!(place.number(errors).await, 1);
}

async fn a_claim_that_another_clock_takes_for_expired_is_one_order(place: Place) {
    let gate = Arc::new(watch::Sender::new(false));
    let waits = gate.clone();
    let node = node(&place, |store| {
        let handler = move |name: String| async move {
            // The first one waits; the second finds the gate open.
            let _ = waits.subscribe().wait_for(|open| *open).await;
            (Durable::new(Task::ok(name)), "promised")
        };
        Router::new().route("/", post(handler)).layer(store.layer())
    })
    .await;
    let (address, key) = (node.address, [("Idempotency-Key", "k")]);
    let first = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "one").await });
    node.journal.seen("handler_start").await;
    let claimed = "SELECT count(*) FROM tower_epilogue_answer";
    soon("its key is claimed", async { while place.number(claimed).await == 0 {} }).await;
    // What a process does whose clock is ahead.
    place.execute("UPDATE tower_epilogue_answer SET owner = 'another', expires_ms = 0").await;
    let second = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "one").await });
    let taken = "SELECT count(*) FROM tower_epilogue_answer WHERE owner <> 'another'";
    soon("it is claimed again", async { while place.number(taken).await == 0 {} }).await;
    gate.send_replace(true);
    let mut statuses = [first.await.unwrap().status, second.await.unwrap().status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "one of them has lost its claim, and has promised nothing");
    assert_eq!(node.post("/", &key, "one").await.header("idempotency-replayed"), Some("true"));
    ran_once(&node, "one").await;
}

/// Known to the second store alone.
#[derive(Serialize, Deserialize)]
struct Second(String);

impl DurableJob for Second {
    const KIND: &'static str = "second";

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<tokio::sync::mpsc::UnboundedSender<String>>()?.send(self.0)?;
        Ok(())
    }
}

/// Two stores in one `Epilogue`: what is stored by hand in one is begun there, under the layer of the other; and what a
/// client has left behind goes to the one that runs it.
async fn each_of_two_stores_keeps_its_own(place: Place) {
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<String>();
    let gate = Arc::new(watch::Sender::new(false));
    let waits = gate.clone();
    let node = node(&place, |_| Router::new()).await;
    let other = Place::sqlite();
    let builder = crate::common::quick(other.store()).lease(HOUR).register::<Second>().state(sender);
    let second = builder.start(&node.epilogue).await.unwrap();
    let (by_hand, layer, own) = (second.clone(), node.store.layer(), second.layer());
    let stored = move |name: String| async move {
        let mut transaction = by_hand.begin_sqlite().await.unwrap();
        let durable = Durable::in_transaction(Second(name), &by_hand, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        durable
    };
    let left = move |name: String| async move {
        let _ = waits.subscribe().wait_for(|open| *open).await;
        Durable::new(Second(name))
    };
    let app = Router::new()
        .route("/stored", post(stored).layer(layer))
        .route("/left", post(left).layer((IgnoreAbortLayer::new(), own)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(node.epilogue.serve(listener, app).into_future());
    assert_eq!(ask(address, "/stored", &[], "stored by hand").await.status, 200);
    assert_eq!(soon("it runs", ran.recv()).await.as_deref(), Some("stored by hand"));
    let mut client = crate::support::h2client::Http2::connect(address).await;
    let before = count(&node.journal.events(), "handler_start");
    let response = client.start("POST", "/left").await;
    node.journal.until("its handler starts", |events| count(events, "handler_start") > before).await;
    drop(response);
    node.journal.seen("aborted").await;
    gate.send_replace(true);
    assert_eq!(soon("it runs", ran.recv()).await.as_deref(), Some(""));
}
