//! The machine that Postgres runs on loses its power, and comes back: nobody tells those who wait for its answer.
//!
//! All of it runs in a network namespace of its own, whose loopback goes down meanwhile. That takes Linux, `ip`, `unshare`
//! and the right to use them; elsewhere the test says that it was skipped.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use axum::{Router, routing::post as posts};
use tower_epilogue::durable::{
    Durable,
    sqlx::{self, Connection as _, Executor as _},
};

use crate::{
    common::{Node, Place, Task, post},
    postgres::Cluster,
    support::soon,
};

const ROLE: &str = "EPILOGUE_VANISHED";

#[test]
fn a_postgres_whose_machine_vanishes_is_not_waited_for() {
    if let Err(reason) = loopback_of_its_own() {
        println!("skipped: this machine gives no network of one's own: {reason}");
        return;
    }
    let alone = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "vanished::played_in_a_namespace", "--nocapture"])
        .env(ROLE, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("played to the end"), "{said}");
}

fn loopback_of_its_own() -> Result<(), String> {
    let line = "ip link set lo up && ip link set lo down";
    let tried =
        Command::new("unshare").args(["--net", "sh", "-c", line]).output().map_err(|error| error.to_string())?;
    let said = || String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    tried.status.success().then_some(()).ok_or_else(said)
}

/// The test above, in its namespace; alone, it does nothing.
#[test]
fn played_in_a_namespace() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    loopback("up");
    std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "1").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(vanishes());
    println!("played to the end");
}

fn loopback(what: &str) {
    assert!(Command::new("ip").args(["link", "set", "lo", what]).status().unwrap().success());
}

/// How many sockets the kernel has whose own port is that, and which may say something.
fn server_sockets(port: u16) -> usize {
    const TIME_WAIT: &str = "06";
    let (sockets, port) = (std::fs::read_to_string("/proc/net/tcp").unwrap(), format!(":{port:04X}"));
    let of = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&port) && fields[3] != TIME_WAIT
    };
    sockets.lines().skip(1).filter(of).count()
}

async fn vanishes() {
    let mut cluster = Cluster::start();
    let place = Place::Postgres(cluster.database());
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    let handler = |name: String| async move { Durable::new(Task::ok(name)) };
    let short = |store: tower_epilogue::durable::DurableBuilder| {
        store.lease(Duration::from_secs(1)).rescue_after(Duration::from_secs(1))
    };
    let node = Node::with(
        &place,
        short,
        |epilogue| epilogue,
        |store| Router::new().route("/", posts(handler)).layer(store.layer()),
    )
    .await;
    assert_eq!(node.post("/", &[], "before").await.status, 200);
    node.completed(1).await;

    // Who waits for a lock has sent all it has to say: nothing of it is on its way, and nothing is sent anew.
    let mut holds = sqlx::PgConnection::connect(url).await.unwrap();
    holds.execute("BEGIN; LOCK TABLE river_job IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let address = node.address;
    let during = tokio::spawn(async move { post(address, "/", &[], "during").await.status });
    // The one that stores it, and the one that looks for jobs.
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'river_job'::regclass AND NOT granted";
    place.until_found(waiting, |those| those >= 2).await;

    tokio::task::block_in_place(|| {
        loopback("down");
        cluster.down();
        // What the kernel would still say for a process that has ended, it gives up, and tells nobody.
        while server_sockets(cluster.port()) > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        loopback("up");
        cluster.up();
    });
    let status = soon("the one that is stored is refused", during).await.unwrap();
    assert_eq!(status, 503);
    assert_eq!(node.post("/", &[], "after").await.status, 200);
    node.record.begun("after", 1).await;
    drop(holds);
}
