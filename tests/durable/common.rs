//! A process with a store, jobs that do as they are told, and a record of what they did.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
};
use tower_epilogue::{
    Continuation, DrainReport, Epilogue, EpilogueBuilder,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobCounts, JobError},
};

use crate::{
    postgres,
    support::{Client, Journal, Reply, soon},
};

pub const HOUR: Duration = Duration::from_secs(3600);

/// Where a test's store is.
#[derive(Clone, Debug)]
pub enum Place {
    Sqlite(Arc<SqliteFile>),
    Postgres(String),
}

/// A file in a directory of its own, gone with the test.
#[derive(Debug)]
pub struct SqliteFile {
    pub path: PathBuf,
}

impl Drop for SqliteFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
    }
}

impl Place {
    pub fn sqlite() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("epilogue-sqlite-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        Self::Sqlite(Arc::new(SqliteFile { path: directory.join("jobs.db") }))
    }

    pub fn postgres() -> Self {
        Self::Postgres(postgres::shared().database())
    }

    /// A new one on the same kind of database.
    pub fn another(&self) -> Self {
        match self {
            Self::Sqlite(_) => Self::sqlite(),
            Self::Postgres(_) => Self::postgres(),
        }
    }

    pub fn store(&self) -> DurableBuilder {
        match self {
            Self::Sqlite(file) => DurableStore::sqlite(&file.path),
            Self::Postgres(url) => DurableStore::postgres(url),
        }
        .migrate(true)
    }

    /// One statement, past everything.
    pub async fn execute(&self, sql: &'static str) {
        use tower_epilogue::durable::sqlx::{self, Connection as _, Executor as _};
        match self {
            Self::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file.path).create_if_missing(true);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// One number, past everything.
    pub async fn number(&self, sql: &'static str) -> i64 {
        use tower_epilogue::durable::sqlx::{self, Connection as _};
        match self {
            Self::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file.path);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
            Self::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
        }
    }
}

impl Place {
    /// Looks again and again until the number is that: a database tells nobody.
    pub async fn until(&self, sql: &'static str, number: i64) {
        self.until_found(sql, |found| found == number).await;
    }

    pub async fn until_found(&self, sql: &'static str, found: impl Fn(i64) -> bool) {
        soon(sql, async {
            while !found(self.number(sql).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// One attempt that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub name: String,
    pub attempt: u16,
    pub key: String,
}

/// What the jobs of a test did.
#[derive(Clone, Default)]
pub struct Record {
    runs: Arc<Mutex<Vec<Run>>>,
    news: Arc<Notify>,
    pub gate: Arc<watch::Sender<bool>>,
}

impl Record {
    pub fn runs(&self) -> Vec<Run> {
        self.runs.lock().unwrap().clone()
    }

    pub fn runs_of(&self, name: &str) -> Vec<Run> {
        self.runs().into_iter().filter(|run| run.name == name).collect()
    }

    /// Waits until an attempt at `name` was begun so often.
    pub async fn begun(&self, name: &str, times: usize) -> Vec<Run> {
        soon(name, async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                let runs = self.runs_of(name);
                if runs.len() >= times {
                    return runs;
                }
                news.await;
            }
        })
        .await
    }

    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    fn note(&self, name: &str, cx: &JobContext) {
        let run = Run { name: name.to_owned(), attempt: cx.attempt(), key: cx.idempotency_key().to_owned() };
        self.runs.lock().unwrap().push(run);
        self.news.notify_waiters();
    }
}

/// A job that does as it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub name: String,
    pub act: Act,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Act {
    Succeed,
    /// Fails until the attempt with that number.
    FailUntil(u16),
    Panic,
    GiveUp,
    /// The first attempt does, and the others fail.
    GiveUpThenFail,
    /// Waits for the record's gate.
    Wait,
    Hang,
}

impl Task {
    pub fn new(name: impl Into<String>, act: Act) -> Self {
        Self { name: name.into(), act }
    }

    pub fn ok(name: impl Into<String>) -> Self {
        Self::new(name, Act::Succeed)
    }
}

impl DurableJob for Task {
    const KIND: &'static str = "task";
    const MAX_ATTEMPTS: u16 = 3;
    const LIMIT: Duration = Duration::from_secs(2);

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(20)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let record = cx.state::<Record>()?.clone();
        record.note(&self.name, &cx);
        match self.act {
            Act::FailUntil(attempt) if cx.attempt() < attempt => Err("not yet".into()),
            Act::Succeed | Act::FailUntil(_) => Ok(()),
            Act::Panic => panic!("this job panics"),
            Act::GiveUpThenFail if cx.attempt() > 1 => Err("not yet".into()),
            Act::GiveUp | Act::GiveUpThenFail => Err(JobError::give_up("hopeless")),
            Act::Wait => {
                record.gate.subscribe().wait_for(|open| *open).await?;
                Ok(())
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

/// A process: server, pool and store.
pub struct Node {
    pub address: std::net::SocketAddr,
    pub store: DurableStore,
    pub journal: Journal,
    pub epilogue: Epilogue,
    pub record: Record,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<DrainReport>>,
}

impl Node {
    pub async fn start(place: &Place, app: impl FnOnce(&DurableStore) -> Router) -> Self {
        Self::with(place, |store| store, |epilogue| epilogue, app).await
    }

    pub async fn with(
        place: &Place,
        store: impl FnOnce(DurableBuilder) -> DurableBuilder,
        epilogue: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
        app: impl FnOnce(&DurableStore) -> Router,
    ) -> Self {
        let record = Record::default();
        let builder = store(quick(place.store()).state(record.clone()).register::<Task>());
        Self::of(record, builder, epilogue, app).await
    }

    pub async fn of(
        record: Record,
        builder: DurableBuilder,
        epilogue: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
        app: impl FnOnce(&DurableStore) -> Router,
    ) -> Self {
        let journal = Journal::default();
        let epilogue = epilogue(journal.epilogue()).build();
        let store = builder.start(&epilogue).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = epilogue.serve(listener, app(&store)).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(serve.into_future());
        Self { address, store, journal, epilogue, record, stop: Some(stop), task }
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        post(self.address, path, headers, body).await
    }

    /// Asks again and again while another still has the key: nobody tells when it is given back.
    pub async fn post_again(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        soon("the key is given back", async {
            loop {
                let reply = self.post(path, headers, body).await;
                if reply.status != 409 {
                    return reply;
                }
            }
        })
        .await
    }

    pub async fn completed(&self, jobs: u64) {
        self.until("jobs are completed", |counts| counts.completed >= jobs).await;
    }

    /// Looks again and again: a store tells nobody.
    pub async fn until(&self, what: &str, found: impl Fn(&JobCounts) -> bool) {
        soon(what, async {
            while !found(&self.store.counts().await.unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub fn begin_drain(&mut self) {
        self.stop.take();
    }

    pub async fn stop(mut self) -> DrainReport {
        self.begin_drain();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap().unwrap()
    }
}

/// Short times, where they are what a test waits for.
pub fn quick(builder: DurableBuilder) -> DurableBuilder {
    builder.poll_interval(Duration::from_millis(100)).leader_lease(Duration::from_millis(500))
}

pub async fn post(address: std::net::SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(&request(path, headers, body)).await;
    client.reply().await
}

pub fn request(path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

/// One test for each store.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::common::Place::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::common::Place::postgres()).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// Its one place is taken until the gate opens, and a job waits for that.
pub async fn waits_for_its_place(place: &Place, rescue_after: Duration) -> (Node, watch::Sender<bool>) {
    let gate = watch::Sender::new(false);
    let waits = gate.clone();
    let node = Node::with(
        place,
        |store| store.rescue_after(rescue_after),
        |epilogue| epilogue.max_running(1),
        |store| {
            let hold = move || async move {
                Continuation::new(async move {
                    let _ = waits.subscribe().wait_for(|open| *open).await;
                })
            };
            Router::new().route("/hold", routing::post(hold)).layer(store.layer())
        },
    )
    .await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    node.journal.seen("continuation_start").await;
    node.store.enqueue(Durable::new(Task::ok("waits"))).await.unwrap();
    node.journal.seen("continuation_waits").await;
    (node, gate)
}
