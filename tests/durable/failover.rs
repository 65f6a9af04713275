//! A Postgres that writes no more, as one that was the first of several until another took over, and connections to it that
//! stay open: who connects anew finds the one that writes.

use axum::{Router, routing::post};
use tower_epilogue::durable::{Durable, DurableStore};

use crate::{
    common::{Node, Place, Task, post as ask},
    support::soon,
};

/// Which of its user's connections write is said when each of them is made.
const READ_ONLY: &str = "ALTER ROLE reader SET default_transaction_read_only = on";
const READ_WRITE: &str = "ALTER ROLE reader RESET default_transaction_read_only";
const BREAK: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_no_longer_write_are_made_anew() {
    let cluster = tokio::task::block_in_place(crate::postgres::Cluster::start);
    let url = cluster.database();
    let place = Place::Postgres(url.clone());
    place.execute("CREATE ROLE reader LOGIN SUPERUSER").await;
    let theirs = Place::Postgres(url.replace("postgres@", "reader@"));
    let app = |store: &DurableStore| {
        let handler = |name: String| async move { Durable::new(Task::ok(name)) };
        Router::new().route("/", post(handler)).layer(store.layer())
    };
    let node = Node::start(&theirs, app).await;
    assert_eq!(ask(node.address, "/", &[], "before").await.status, 200);
    node.completed(1).await;
    place.execute(READ_ONLY).await;
    place.execute(BREAK).await;
    soon("it is refused", async { while ask(node.address, "/", &[], "refused").await.status != 503 {} }).await;
    assert_eq!(ask(node.address, "/", &[], "refused").await.status, 503);
    place.execute(READ_WRITE).await;
    soon("it is stored", async { while ask(node.address, "/", &[], "after").await.status != 200 {} }).await;
    node.record.begun("after", 1).await;
}
