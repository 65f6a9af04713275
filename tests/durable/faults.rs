//! What can happen to a database: it restarts, it is locked, it was never set up, it is not there. A clear error each
//! time, and nothing that was acknowledged is lost. (A full disk is in the suite `durable_kill`.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::post};
use tokio::sync::watch;
use tower_epilogue::{
    Epilogue,
    durable::{
        Durable, DurableError, DurableStore,
        sqlx::{
            self, ConnectOptions as _,
            postgres::{PgConnectOptions, PgPoolOptions},
            sqlite::SqliteConnectOptions,
        },
    },
};

use crate::{
    common::{Node, Place, Record, Task, post as ask, quick},
    postgres::Cluster,
    support::soon,
};

fn app(store: &DurableStore) -> Router {
    let handler = |name: String| async move { Durable::new(Task::ok(name)) };
    Router::new().route("/", post(handler)).layer(store.layer())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_restarts_under_load_loses_nothing() {
    let mut cluster = Cluster::start();
    let place = Place::Postgres(cluster.database());
    let node = Node::with(
        &place,
        |store| {
            store
                .busy_timeout(Duration::from_secs(1))
                .lease(Duration::from_secs(1))
                .rescue_after(Duration::from_secs(1))
        },
        |epilogue| epilogue,
        app,
    )
    .await;
    let running = Arc::new(AtomicBool::new(true));
    // How many were accepted, and refused.
    let (told, mut answers) = watch::channel((0, 0));
    let clients = (0..8).map(|client| {
        let (address, running, told) = (node.address, running.clone(), told.clone());
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            for number in 0.. {
                if !running.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("{client}-{number}");
                match ask(address, "/", &[], &name).await.status {
                    200 => {
                        accepted.push(name);
                        told.send_modify(|(accepted, _)| *accepted += 1);
                    }
                    503 => told.send_modify(|(_, refused)| *refused += 1),
                    status => panic!("{status}"),
                }
                // A pace: some hundreds a second are load enough.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            accepted
        })
    });
    let clients: Vec<_> = clients.collect();
    for round in 1..=3 {
        // Under load, each time.
        let before = answers.borrow_and_update().0;
        soon("orders are accepted", answers.wait_for(|(accepted, _)| *accepted >= before + 30)).await.unwrap();
        if round == 3 {
            break;
        }
        let before = answers.borrow_and_update().1;
        tokio::task::block_in_place(|| cluster.down());
        // Only when somebody was told so is it up again.
        soon("orders are refused", answers.wait_for(|(_, refused)| *refused > before)).await.unwrap();
        tokio::task::block_in_place(|| cluster.up());
    }
    running.store(false, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for client in clients {
        accepted.extend(client.await.unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let runs: std::collections::HashSet<_> = node.record.runs().into_iter().map(|run| run.name).collect();
        let counts = node.store.counts().await.unwrap();
        if accepted.iter().all(|name| runs.contains(name)) && counts.unfinished() == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "accepted and lost: {counts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(node.store.counts().await.unwrap().discarded, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_sqlite_refuses_and_loses_nothing() {
    use tower_epilogue::durable::sqlx::{self, Connection as _};

    let place = Place::sqlite();
    let node = Node::with(
        &place,
        |store| store.busy_timeout(Duration::from_millis(300)).rescue_after(Duration::from_secs(1)),
        |epilogue| epilogue,
        app,
    )
    .await;
    for number in 0..20 {
        assert_eq!(node.post("/", &[], &format!("before {number}")).await.status, 200);
    }
    let Place::Sqlite(file) = &place else { unreachable!() };
    let options = SqliteConnectOptions::new().filename(&file.path).busy_timeout(Duration::from_secs(5));
    let mut other = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let reply = node.post("/", &[], "refused").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{}", reply.text());
    let error = node.store.enqueue(Durable::new(Task::ok("refused"))).await.unwrap_err();
    assert!(error.is_locked() && error.is_unavailable(), "{error:?}");
    assert!(error.to_string().contains("write lock"), "{error}");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(node.post("/", &[], "after").await.status, 200);
    // The engine backs off while it cannot write what was done.
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.store.counts().await.unwrap().completed < 21 {
        assert!(Instant::now() < deadline, "accepted and lost: {:?}", node.store.counts().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(node.record.runs_of("refused").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_to_sqlite_waits_for_the_disk() {
    use tower_epilogue::durable::sqlx;

    let store = Place::sqlite().store().start(&Epilogue::new()).await.unwrap();
    // Begun on the one connection that writes.
    let mut transaction = store.begin_sqlite().await.unwrap();
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *transaction).await.unwrap();
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!((synchronous, journal.as_str()), (2, "wal"), "2 is FULL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_missing_is_said_at_the_start() {
    let epilogue = Epilogue::new();
    for place in [Place::sqlite(), Place::postgres()] {
        let error = place.store().migrate(false).start(&epilogue).await.unwrap_err();
        assert!(error.is_schema(), "{error:?}");
        assert!(error.to_string().contains("DurableBuilder::migrate"), "{error}");
        place.store().migrate(true).start(&epilogue).await.unwrap();
        place.store().migrate(false).start(&epilogue).await.unwrap();
        place.execute("DROP TABLE tower_epilogue_answer").await;
        let error = place.store().migrate(false).start(&epilogue).await.unwrap_err();
        assert!(error.is_schema(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_is_said_at_the_start() {
    let epilogue = Epilogue::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = DurableStore::postgres(format!("postgres://postgres@{nobody}/nothing"));
    let error = store.busy_timeout(Duration::from_millis(500)).start(&epilogue).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    // Of a name that belongs to nobody (RFC 2606, section 2).
    let error =
        DurableStore::postgres("postgres://postgres@nobody.invalid/nothing").start(&epilogue).await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("lookup"), "{error:?}");
    let error = DurableStore::sqlite("/nonexistent/directory/jobs.db").start(&epilogue).await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("/nonexistent/directory/jobs.db"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_migrate_at_once() {
    for place in [Place::sqlite(), Place::postgres()] {
        let starts = (0..4).map(|_| {
            let place = place.clone();
            tokio::spawn(async move {
                let epilogue = Epilogue::new();
                place.store().start(&epilogue).await.map(drop)
            })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap().unwrap();
        }
    }
}

/// What stores the promises of requests does not wait for transactions of others, as jobs may hold for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_in_use_refuses_no_order() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    place.store().start(&Epilogue::new()).await.unwrap();
    let few = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_millis(500));
    let theirs = DurableStore::postgres_pool(few.connect(url).await.unwrap());
    let ours = DurableStore::postgres(url).connections(2).busy_timeout(Duration::from_millis(500));
    for builder in [theirs, ours] {
        let record = Record::default();
        let builder = quick(builder).state(record.clone()).register::<Task>();
        let node = Node::of(record, builder, |epilogue| epilogue, app).await;
        let held = [node.store.begin_postgres().await.unwrap(), node.store.begin_postgres().await.unwrap()];
        assert_eq!(ask(node.address, "/", &[], "meanwhile").await.status, 200);
        drop(held);
        node.record.begun("meanwhile", 1).await;
    }
}

/// As it is done where passwords change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_told_to_connect_otherwise_is_followed_and_so_is_its_end() {
    let place = Place::postgres();
    let Place::Postgres(url) = &place else { unreachable!("it is one") };
    place.store().start(&Epilogue::new()).await.unwrap();
    for role in ["DROP ROLE IF EXISTS former", "DROP ROLE IF EXISTS latter"] {
        place.execute(role).await;
    }
    place.execute("CREATE ROLE former SUPERUSER LOGIN; CREATE ROLE latter SUPERUSER LOGIN").await;
    let options: PgConnectOptions = url.parse().unwrap();
    let pool = PgPoolOptions::new().connect_with(options.clone().username("former")).await.unwrap();
    let record = Record::default();
    let builder = quick(DurableStore::postgres_pool(pool.clone())).state(record.clone()).register::<Task>();
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    assert_eq!(ask(node.address, "/", &[], "before").await.status, 200);
    pool.set_connect_options(options.username("latter"));
    place.execute("ALTER ROLE former NOLOGIN").await;
    place.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'former'").await;
    place.until("SELECT count(*) FROM pg_stat_activity WHERE usename = 'former'", 0).await;
    assert_eq!(ask(node.address, "/", &[], "after").await.status, 200);
    node.record.begun("after", 1).await;

    pool.close().await;
    assert_eq!(ask(node.address, "/", &[], "closed").await.status, 503);
    // River's listener may come back once more before it sees the end.
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'latter' AND query NOT LIKE 'LISTEN%'";
    place.until(left, 0).await;
    node.stop().await;
}

/// The sockets that connections to Postgres are led through can be seen, and connected to, by everybody on the machine.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_is_not_led_to_postgres() {
    let cluster = tokio::task::block_in_place(Cluster::start);
    let store = DurableStore::postgres(cluster.database()).migrate(true).start(&Epilogue::new()).await.unwrap();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let end = format!("/.s.PGSQL.{}", cluster.port());
    let of = |line: &str| line.split_once('@').map(|(_, name)| name.to_owned()).filter(|name| name.ends_with(&end));
    let name = sockets.lines().find_map(of).expect("there is one");
    assert!(name.starts_with("tower-epilogue-"), "{name}");
    // "May I have TLS?" is answered with one byte (Postgres's manual, section 55.2.11).
    let asks = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(chr(0) + sys.argv[1])
try:
    s.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47]))
    print(s.recv(1))
except OSError:
    print(b'')";
    let asked = tokio::process::Command::new("python3").args(["-c", asks, &name]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "b''\n", "{asked:?}");
    assert_eq!(store.counts().await.unwrap().unfinished(), 0, "this one is");
}

/// As a file system is that was mounted anew after an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_read_only_may_be_written_to_later() {
    let place = Place::sqlite();
    let Place::Sqlite(file) = &place else { unreachable!("it is one") };
    place.store().migrate(true).start(&Epilogue::new()).await.unwrap();
    let options = SqliteConnectOptions::new().filename(&file.path).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let refused = sqlx::query("DELETE FROM river_job").execute(&mut connection).await.unwrap_err();
    let error = DurableError::from(refused);
    assert!(error.is_unavailable() && !error.is_locked(), "{error:?}");
}
