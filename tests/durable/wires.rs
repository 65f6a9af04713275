//! What lies between a store and its Postgres: addresses, time limits of the server's own, pools.

use std::time::Duration;

use axum::{Router, routing::post};
use futures_util::future::join_all;
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableStore, sqlx::postgres::PgPoolOptions},
};

use crate::{
    common::{Node, Place, Record, Task, post as ask, quick},
    postgres::Cluster,
    support::soon,
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
