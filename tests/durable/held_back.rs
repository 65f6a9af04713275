//! An attempt whose taking Postgres confirms late: the network held the answer back, and another process has it by then.

use std::time::Duration;

use axum::Router;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tower_epilogue::durable::{
    Durable,
    sqlx::{self, Connection as _, Executor as _},
};

use crate::{
    common::{Node, Place, Task},
    support::soon,
};

/// A way to Postgres on which answers can be held back.
async fn way(port: u16) -> (u16, watch::Sender<bool>) {
    let (flows, gate) = watch::channel(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((asks, _)) = listener.accept().await {
            let answers = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((asks, hears), (answers, asked)) = (asks.into_split(), answers.into_split());
            tokio::spawn(carry(asks, asked, watch::channel(true).1));
            tokio::spawn(carry(answers, hears, gate.clone()));
        }
    });
    (here, flows)
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        // One whose other end is gone is open.
        let _ = gate.wait_for(|flows| *flows).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// Whoever takes a job waits.
const WAITS: &str = "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END';
    CREATE TRIGGER waits BEFORE UPDATE ON river_job FOR EACH ROW
    WHEN (OLD.state = 'available' AND NEW.state = 'running') EXECUTE FUNCTION waits()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_heard_of_late_is_not_begun() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    let port = crate::postgres::shared().port();
    let (here, flows) = way(port).await;
    let theirs = Place::Postgres(url.replace(&format!(":{port}/"), &format!(":{here}/")));
    let grace = Duration::from_secs(2);
    let store = |store: tower_epilogue::durable::DurableBuilder| store.rescue_after(grace);
    let node = Node::with(&theirs, store, |epilogue| epilogue, |_| Router::new()).await;
    place.execute(WAITS).await;
    let mut locked = sqlx::PgConnection::connect(url).await.unwrap();
    locked.execute("SELECT pg_advisory_lock(1)").await.unwrap();
    node.store.enqueue(Durable::new(Task::ok("late"))).await.unwrap();
    let taken = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    place.until(taken, 1).await;
    flows.send_replace(false);
    locked.execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    place.until("SELECT count(*) FROM river_job WHERE state = 'running'", 1).await;
    place.execute("UPDATE river_job SET attempt = 2").await;
    // The engine's clock, which no test can stop, is that of the database.
    let old = "SELECT count(*) FROM river_job WHERE attempted_at < now() - interval '1100 milliseconds'";
    place.until(old, 1).await;
    flows.send_replace(true);
    soon("it is put back", place.until("SELECT count(*) FROM river_job WHERE state = 'running'", 0)).await;
    assert!(node.record.runs().is_empty(), "{:?}", node.record.runs());
}
