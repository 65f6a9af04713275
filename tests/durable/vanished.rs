//! The machine that Postgres runs on loses its power, and comes back, or one of those that use it does, and does not: nobody
//! tells those who wait.
//!
//! All of it runs in network namespaces of their own, whose loopback goes down meanwhile. That takes Linux, `ip`, `unshare`
//! and the right to use them; elsewhere the tests say that they were skipped.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use axum::{Router, routing::post as posts};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_epilogue::{
    Epilogue,
    durable::{
        Durable, DurableStore,
        sqlx::{self, Connection as _, Executor as _},
    },
};

use crate::{
    common::{Node, Place, Task, request},
    postgres::Cluster,
    support::soon,
};

const ROLE: &str = "EPILOGUE_VANISHED";

#[test]
fn a_postgres_whose_machine_vanishes_is_not_waited_for() {
    play("database");
}

/// What it has locked, in a transaction that it has not ended, is free again.
#[test]
fn a_process_whose_machine_vanishes_is_not_waited_for() {
    play("process");
}

#[expect(clippy::print_stdout, reason = "a test says that it was skipped")]
fn play(who: &str) {
    if let Err(reason) = loopback_of_its_own() {
        println!("skipped: this machine gives no network of one's own: {reason}");
        return;
    }
    let alone = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "vanished::played_in_a_namespace", "--nocapture"])
        .env(ROLE, who)
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

/// Either of the tests above, in its namespace; alone, it does nothing.
#[test]
fn played_in_a_namespace() {
    let Ok(who) = std::env::var(ROLE) else { return };
    loopback("up");
    std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "1").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match who.as_str() {
        "database" => runtime.block_on(database_vanishes()),
        _ => runtime.block_on(process_vanishes()),
    }
    println!("played to the end");
}

fn ip(what: &[&str]) {
    assert!(Command::new("ip").args(what).status().unwrap().success(), "{what:?}");
}

fn loopback(what: &str) {
    ip(&["link", "set", "lo", what]);
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

/// How many of the server's own bytes are on their way.
fn on_their_way(port: u16) -> u64 {
    let (sockets, port) = (std::fs::read_to_string("/proc/net/tcp").unwrap(), format!(":{port:04X}"));
    let of = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (unacknowledged, _) = fields[4].split_once(':').unwrap();
        fields[1].ends_with(&port).then(|| u64::from_str_radix(unacknowledged, 16).unwrap())
    };
    // A listener has its backlog there (0A).
    sockets.lines().skip(1).filter(|line| !line.contains(" 0A ")).filter_map(of).sum()
}

async fn database_vanishes() {
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
    let mut during = TcpStream::connect(node.address).await.unwrap();
    during.write_all(request("/", &[], "during").as_bytes()).await.unwrap();
    // The one that stores it, and the one that looks for jobs.
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'river_job'::regclass AND NOT granted";
    place.until_found(waiting, |those| those >= 2).await;

    tokio::task::block_in_place(|| {
        loopback("down");
        cluster.down();
        // What the kernel would still say for a process that has ended, it gives up after 20 s, and tells nobody.
        while server_sockets(cluster.port()) > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        loopback("up");
        cluster.up();
    });
    let mut answer = String::new();
    soon("the one that is stored is refused", during.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(node.post("/", &[], "after").await.status, 200);
    node.record.begun("after", 1).await;
    drop(holds);
}

/// One process reaches the server at an address that is no more, then; the other, all the time.
async fn process_vanishes() {
    ip(&["address", "add", "10.9.8.7/32", "dev", "lo"]);
    let mut cluster = Cluster::with("-c fsync=off -c listen_addresses=127.0.0.1,10.9.8.7");
    let mut who_may = std::fs::OpenOptions::new().append(true).open(cluster.directory().join("pg_hba.conf")).unwrap();
    writeln!(who_may, "host all all 10.9.8.7/32 trust").unwrap();
    cluster.down();
    cluster.up();
    let place = Place::Postgres(cluster.database());
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    let node = Node::start(&place, |_| Router::new()).await;

    let theirs = DurableStore::postgres(url.replace("127.0.0.1", "10.9.8.7")).start(&Epilogue::new()).await.unwrap();
    let mut half_done = theirs.begin_postgres().await.unwrap();
    let first = Durable::new(Task::ok("k")).with_key("k").store_in(&theirs, &mut half_done).await.unwrap();
    // It has heard all that it was told, which its kernel confirms a little later.
    soon("nothing is on its way", async {
        while on_their_way(cluster.port()) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    ip(&["address", "del", "10.9.8.7/32", "dev", "lo"]);

    // Its client has heard nothing, and asks here.
    let (here, also_here) = (node.store.clone(), node.store.clone());
    let again = tokio::spawn(async move { here.enqueue(Durable::new(Task::ok("k")).with_key("k")).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    place.until(waiting, 1).await;
    // All that this process stores stands behind it.
    let other = tokio::spawn(async move { also_here.enqueue(Durable::new(Task::ok("other"))).await });
    let stored = tokio::time::timeout(Duration::from_secs(40), async { (again.await.unwrap(), other.await.unwrap()) });
    let (again, other) = stored.await.expect("the machine is given up");
    assert!(again.is_ok() && other.is_ok(), "{again:?}, {other:?}");
    node.completed(2).await;
    drop((first, half_done));
}
