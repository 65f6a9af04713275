//! A commit whose answer never comes: what nobody can be told of is tried again, and is stored once.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower_epilogue::{
    IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{
        Durable, DurableStore,
        sqlx::{self, Connection as _, Executor as _},
    },
};

use crate::{
    common::{Act, Node, Place, Record, Task, quick, request},
    locked::Locked,
    strays::{Calls, asks_and_leaves, waits},
    support::{Client, logs},
    untold::{AGAIN, STORED, said, says},
};

/// What lies between a store and its Postgres. It cuts a connection behind the `COMMIT` of the transaction that stores a certain
/// job, and on request lets nobody through from then on.
#[derive(Clone)]
struct Between {
    address: SocketAddr,
    /// What the job has in it; none once its connection was cut.
    marker: Arc<Mutex<Option<&'static str>>>,
    shuts: Arc<AtomicBool>,
    is_open: watch::Sender<bool>,
}

impl Between {
    async fn start(server: SocketAddr, marker: &'static str, shuts: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = Self {
            address: listener.local_addr().unwrap(),
            marker: Arc::new(Mutex::new(Some(marker))),
            shuts: Arc::new(AtomicBool::new(shuts)),
            is_open: watch::Sender::new(true),
        };
        let this = between.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let this = this.clone();
                tokio::spawn(async move {
                    let mut is_open = this.is_open.subscribe();
                    if *is_open.borrow() {
                        tokio::select! {
                            () = this.lead(client, server) => {}
                            _ = is_open.wait_for(|open| !open) => {}
                        }
                    }
                });
            }
        });
        between
    }

    async fn lead(&self, mut client: TcpStream, server: SocketAddr) {
        let mut server = TcpStream::connect(server).await.unwrap();
        let (mut asks, mut answers) = ([0; 64 * 1024], [0; 64 * 1024]);
        let mut is_marked = false;
        loop {
            tokio::select! {
                count = client.read(&mut asks) => {
                    let Ok(count @ 1..) = count else { return };
                    let asked = String::from_utf8_lossy(&asks[..count]);
                    is_marked |= self.marker.lock().unwrap().is_some_and(|marker| asked.contains(marker));
                    let is_last = is_marked && asked.contains("COMMIT");
                    server.write_all(&asks[..count]).await.unwrap();
                    if is_last && self.marker.lock().unwrap().take().is_some() {
                        if self.shuts.load(Ordering::Relaxed) {
                            // It is done, and nobody hears of it.
                            server.read_u8().await.unwrap();
                            self.is_open.send_replace(false);
                        }
                        return;
                    }
                }
                count = server.read(&mut answers) => {
                    let Ok(count @ 1..) = count else { return };
                    if client.write_all(&answers[..count]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The place, as it is to be reached through what lies between.
async fn between(place: &Place, marker: &'static str, shuts: bool) -> (Between, Place) {
    let Place::Postgres(url) = place else { unreachable!("it is one") };
    let (user, server) = url.split_once('@').unwrap();
    let (server, database) = server.split_once('/').unwrap();
    let between = Between::start(server.parse().unwrap(), marker, shuts).await;
    let through = Place::Postgres(format!("{user}@{}/{database}", between.address));
    (between, through)
}

async fn node(place: &Place, record: Record, app: impl FnOnce(&DurableStore) -> Router) -> Node {
    let builder = quick(place.store()).lease(Duration::from_secs(1)).busy_timeout(Duration::from_millis(500));
    Node::of(record.clone(), builder.state(record).register::<Task>(), |epilogue| epilogue, app).await
}

async fn promises_late(place: &Place, route: &str, job: Task) -> Node {
    let handler = move |lifecycle: Lifecycle| async move {
        let _ = lifecycle.finish("early").await;
        Durable::new(job)
    };
    let app = |store: &DurableStore| Router::new().route(route, post(handler)).layer(store.layer());
    let node = node(place, Record::default(), app).await;
    logs();
    assert_eq!(node.post(route, &[], "").await.text(), "early");
    node
}

const JOBS: &str = "SELECT count(*) FROM river_job";

/// The server is at it, and does not look whether anybody still waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_under_way_is_waited_for() {
    let place = Place::postgres();
    place.store().start(&tower_epilogue::Epilogue::new()).await.unwrap();
    // A commit waits until the test lets it.
    place
        .execute(
            "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON river_job DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION waits()",
        )
        .await;
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    let mut lets = sqlx::PgConnection::connect(url).await.unwrap();
    lets.execute("SELECT pg_advisory_lock(1)").await.unwrap();
    let (_between, through) = between(&place, "under way", false).await;
    let node = promises_late(&through, "/under-way", Task::ok("under way")).await;
    said("/under-way", AGAIN).await;
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'";
    place.until(waits, 1).await;
    assert_eq!((place.number(JOBS).await, says("/under-way", STORED)), (0, false));
    lets.execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    said("/under-way", STORED).await;
    assert_eq!(place.number(JOBS).await, 1);
    node.completed(1).await;
    assert_eq!((place.number(JOBS).await, node.record.runs().len()), (1, 1));
}

/// Others have begun it, and given it up, before it is tried again: what is done with, no key of a job keeps from being stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_and_given_up_meanwhile_is_not_stored_again() {
    let place = Place::postgres();
    // The first one leads, and looks after leases.
    let other = Node::start(&place, |_| Router::new()).await;
    let (between, through) = between(&place, "given up", true).await;
    let job = Task::new("given up", Act::GiveUp);
    let node = promises_late(&through, "/given-up", job).await;
    said("/given-up", AGAIN).await;
    other.until("it is given up", |counts| counts.discarded == 1).await;
    assert!(!says("/given-up", STORED));
    between.is_open.send_replace(true);
    said("/given-up", STORED).await;
    node.store.settled().await;
    assert_eq!((place.number(JOBS).await, other.record.runs().len() + node.record.runs().len()), (1, 1));
}

/// Its answer was stored with it: the claim is no longer there to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_stored_is_given_again() {
    let place = Place::postgres();
    let (_between, through) = between(&place, "ordered once", false).await;
    let (calls, record) = (Calls::default(), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move || async move {
        waits(called, gate).await;
        (Durable::new(Task::ok("ordered once")), "ordered")
    };
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/ordered-once", post(handler)).layer(TimeLimitLayer::off());
        inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = node(&through, record, app).await;
    logs();
    asks_and_leaves(node.address, "/ordered-once", &calls).await;
    node.journal.seen("aborted").await;
    node.record.open();
    said("/ordered-once", AGAIN).await;
    said("/ordered-once", STORED).await;
    let again = node.post("/ordered-once", &[("Idempotency-Key", "k")], "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("ordered", Some("true")));
    node.completed(1).await;
    assert_eq!((place.number(JOBS).await, *calls.borrow()), (1, 1));
}

/// Its client leaves before that, and during the first attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_meanwhile_has_it_stored_once() {
    let place = Place::postgres();
    place.store().start(&tower_epilogue::Epilogue::new()).await.unwrap();
    let (_between, through) = between(&place, "meanwhile", false).await;
    let handler = async || Durable::new(Task::ok("meanwhile"));
    let app = |store: &DurableStore| {
        Router::new().route("/cut-meanwhile", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = node(&through, Record::default(), app).await;
    logs();
    let locked = Locked::take(&place).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/cut-meanwhile", &[], "")).await;
    node.journal.seen("handler_end").await;
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'river_job'::regclass AND NOT granted";
    place.until_found(waits, |those| those > 0).await;
    client.reset();
    node.journal.seen("aborted").await;
    locked.release().await;
    said("/cut-meanwhile", AGAIN).await;
    said("/cut-meanwhile", STORED).await;
    node.completed(1).await;
    assert_eq!((place.number(JOBS).await, node.record.runs().len()), (1, 1));
}
