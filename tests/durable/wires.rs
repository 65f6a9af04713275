//! What lies between a store and its Postgres: addresses, time limits of the server's own, pools.

use std::time::Duration;

use axum::{Router, routing::post};
use futures_util::future::join_all;
use tower_epilogue::{
    Epilogue, IgnoreAbortLayer,
    durable::{
        Durable, DurableError, DurableStore,
        sqlx::{self, Connection as _, postgres::PgPoolOptions},
    },
};

use crate::{
    common::{Node, Place, Record, Task, post as ask, quick},
    postgres::Cluster,
    strays::{Calls, asks_and_leaves, waits},
    support::{logs, soon},
    untold::{AGAIN, STORED, said, short},
};

fn url() -> String {
    let Place::Postgres(url) = Place::postgres() else { unreachable!("it is one") };
    url
}

/// As URLs have an address of IPv6 (RFC 3986, section 3.2.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_brackets_is_an_address() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let url = url().replace("127.0.0.1", "[::1]");
    let store = DurableStore::postgres(url).migrate(true).start(&Epilogue::new()).await.unwrap();
    assert_eq!(store.counts().await.unwrap().unfinished(), 0);
}

/// All wait as long as the first: the next ones are not tried after it, each as long again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_whose_statements_the_server_ends_is_refused_as_soon_as_one() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    let limited = Place::Postgres(format!("{url}?options[statement_timeout]=1000"));
    let node = Node::start(&limited, |_| Router::new()).await;
    let locked = crate::locked::Locked::take(&place).await;
    let asked = (0..100).map(|_| node.store.enqueue(Durable::new(Task::ok("refused"))));
    for answer in soon("all are refused", join_all(asked)).await {
        let error = answer.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
    }
    locked.release().await;
    node.store.enqueue(Durable::new(Task::ok("after"))).await.unwrap();
    node.completed(1).await;
    assert!(node.record.runs_of("refused").is_empty());
}

/// The pool's own patience, half a minute by default, is that of those who use it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_the_busy_timeout_with_a_pool_of_the_users_too() {
    let mut cluster = tokio::task::block_in_place(Cluster::start);
    let url = cluster.database();
    DurableStore::postgres(&url).migrate(true).start(&Epilogue::new()).await.unwrap();
    let pool = PgPoolOptions::new().connect(&url).await.unwrap();
    let record = Record::default();
    let builder = quick(DurableStore::postgres_pool(pool)).state(record.clone()).register::<Task>();
    let builder = builder.busy_timeout(Duration::from_millis(500));
    let handler = |name: String| async move { Durable::new(Task::ok(name)) };
    let app = |store: &DurableStore| Router::new().route("/", post(handler)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    tokio::task::block_in_place(|| cluster.down());
    assert_eq!(soon("it is refused", ask(node.address, "/", &[], "down")).await.status, 503);
    tokio::task::block_in_place(|| cluster.up());
    soon("it is stored", async {
        while ask(node.address, "/", &[], "up").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The pool is its user's, and lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_no_more_has_no_connections() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    place.store().start(&Epilogue::new()).await.unwrap();
    let pool =
        PgPoolOptions::new().max_connections(1).connect(&format!("{url}?application_name=theirs")).await.unwrap();
    let epilogue = Epilogue::new();
    let store = quick(DurableStore::postgres_pool(pool.clone())).start(&epilogue).await.unwrap();
    store.enqueue(Durable::new(Task::ok("stored"))).await.unwrap();
    let theirs = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'theirs'
        AND datname = current_database()";
    assert!(place.number(theirs).await > 1);
    epilogue.drain().await;
    drop((store, epilogue));
    place.until(theirs, 1).await;
    assert!(!pool.is_closed());
}

/// By what it says of itself (appendix A of its manual).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_of_itself_may_pass() {
    let mut connection = sqlx::PgConnection::connect(&url()).await.unwrap();
    let mut says = async |code: &str| {
        let raised = format!("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$");
        DurableError::from(sqlx::raw_sql(sqlx::AssertSqlSafe(raised)).execute(&mut connection).await.unwrap_err())
    };
    let passes =
        ["08006", "25006", "28000", "28P01", "40000", "40001", "40003", "40P01", "53200", "53300", "55P03", "57014"];
    for code in passes.into_iter().chain(["57P01", "57P03", "58000", "58030"]) {
        let error = says(code).await;
        assert!(error.is_unavailable() && !error.is_disk_full() && !error.is_schema(), "{code}: {error:?}");
    }
    for code in ["22001", "23505", "40002", "42501", "XX000"] {
        let error = says(code).await;
        assert!(!error.is_unavailable() && !error.is_schema(), "{code}: {error:?}");
    }
    assert!(says("42P01").await.is_schema());
    let full = says("53100").await;
    assert!(full.is_disk_full() && full.is_unavailable(), "{full:?}");
}

/// As while its password is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_is_refused_for_a_while_loses_nothing() {
    let cluster = tokio::task::block_in_place(Cluster::start);
    let url = cluster.database();
    let place = Place::Postgres(url.clone());
    place.execute("CREATE ROLE shop LOGIN SUPERUSER").await;
    let theirs = Place::Postgres(url.replace("postgres@", "shop@"));
    let (calls, record) = (Calls::default(), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = || async move {
        waits(called, gate).await;
        (Durable::new(Task::ok("left")), "ordered")
    };
    let builder = short(&theirs).state(record.clone()).register::<Task>();
    let node = Node::of(
        record,
        builder,
        |epilogue| epilogue,
        |store| Router::new().route("/refused-user", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new()),
    )
    .await;
    logs();
    asks_and_leaves(node.address, "/refused-user", &calls).await;
    node.journal.seen("aborted").await;
    place.execute("ALTER ROLE shop NOLOGIN").await;
    place.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'").await;
    node.record.open();
    said("/refused-user", AGAIN).await;
    let error = theirs.store().start(&Epilogue::new()).await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("refuses its user"), "{error}");
    place.execute("ALTER ROLE shop LOGIN").await;
    said("/refused-user", STORED).await;
    node.record.begun("left", 1).await;
}
