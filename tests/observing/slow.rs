//! The report on what takes long names the frames that it waits in.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::sync::Notify;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use super::events::Fragile;
use crate::support::{Client, Logs, MemoryServer, Server, logs};

const MINUTE: Duration = Duration::from_secs(60);

/// Frames are the process's: where one test reads them without end, they look as if they were polled to the other.
static FRAMES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[async_backtrace::framed]
async fn waits_for_the_mail_server() {
    tokio::time::sleep(MINUTE).await;
}

#[async_backtrace::framed]
async fn mails() {
    waits_for_the_mail_server().await;
}

#[async_backtrace::framed]
async fn asks_the_database() {
    tokio::time::sleep(MINUTE).await;
}

/// The lines of one report: that of the route, and those that are indented behind it.
fn report(logs: &Logs, route: &str) -> String {
    let all = logs.with("");
    let first = all.iter().position(|line| line.contains("takes long") && line.contains(route)).unwrap();
    let frames = all[first + 1..].iter().take_while(|line| line.starts_with("  "));
    all[first..=first].iter().chain(frames).cloned().collect::<Vec<_>>().join("\n")
}

fn start(app: Router) -> MemoryServer {
    MemoryServer::with(app, |builder| builder.slow_after(Duration::from_secs(5)))
}

#[tokio::test(start_paused = true)]
async fn each_report_names_where_its_own_request_waits() {
    let _alone = FRAMES.lock().await;
    let logs = logs();
    let app = Router::new()
        .route("/frames/mail", get(async || (Continuation::new(mails()), "accepted")))
        .route(
            "/frames/database",
            get(async || {
                asks_the_database().await;
                "found"
            }),
        )
        .route(
            "/frames/none",
            get(async || {
                tokio::time::sleep(MINUTE).await;
                "late"
            }),
        )
        // So that one of our services is inside of the router and one outside of it.
        .layer(TimeLimitLayer::off());
    let server = start(app);
    let paths = ["/frames/mail", "/frames/database", "/frames/none", "/frames/mail"];
    let replies = tokio::join!(server.get(paths[0]), server.get(paths[1]), server.get(paths[2]), server.get(paths[3]));
    assert_eq!([replies.0.status, replies.1.status, replies.2.status, replies.3.status], [200; 4]);
    server.ended(4).await;
    let mail = report(&logs, "GET /frames/mail");
    assert!(
        mail.contains("mails::{{closure}} at ") && mail.contains("waits_for_the_mail_server::{{closure}}"),
        "{mail}"
    );
    assert!(mail.contains("tests/observing/slow.rs:") && !mail.contains("asks_the_database"), "{mail}");
    assert!(mail.find("mails::").unwrap() < mail.find("waits_for_the_mail_server").unwrap(), "{mail}");
    let database = report(&logs, "GET /frames/database");
    assert!(database.contains("asks_the_database") && !database.contains("mail"), "{database}");
    let none = report(&logs, "GET /frames/none");
    assert!(!none.contains("frames=") && none.contains("handling"), "{none}");
    server.stop().await;
    // What has ended is no longer known.
    let left = async_backtrace::taskdump_tree(false);
    assert!(!left.contains("mails") && !left.contains("asks_the_database"), "{left}");
}

/// Reads all frames for as long as it lives.
struct Reader(Arc<AtomicBool>, Option<std::thread::JoinHandle<usize>>);

impl Reader {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let theirs = over.clone();
        let reads = move || {
            let mut frames = 0;
            while !theirs.load(Ordering::Relaxed) {
                frames += async_backtrace::taskdump_tree(false).matches("framed_once").count();
            }
            frames
        };
        Self(over, Some(std::thread::spawn(reads)))
    }

    /// How many it saw.
    fn stop(mut self) -> usize {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_leave_the_futures_around_them_and_those_that_are_dropped_keep_their_frames_in_order() {
    let _alone = FRAMES.lock().await;
    let reader = Reader::start();
    let begun = Arc::new(Notify::new());
    let theirs = begun.clone();
    let aborted = async move || {
        theirs.notify_one();
        framed_for_a_while().await;
        "late"
    };
    let finished = async |lifecycle: Lifecycle| {
        lifecycle.finish("hello").await.unwrap();
        framed_for_a_while().await;
    };
    let continued = async || (Continuation::new(framed_for_a_while()), "hello");
    let app = Router::new()
        .route("/aborted", get(aborted.clone()).layer(IgnoreAbortLayer::new()))
        .route("/dropped", get(aborted))
        .route("/finished", get(finished))
        .route("/continued", get(continued))
        .layer(TimeLimitLayer::new(MINUTE));
    let server = Server::with(app, |builder| builder.slow_after(Duration::from_millis(10))).await;
    for _ in 0..50 {
        for path in ["/aborted", "/dropped"] {
            let mut client = Client::connect(server.address).await;
            client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            begun.notified().await;
            drop(client);
        }
        assert_eq!(server.get("/finished").await.text(), "hello");
        assert_eq!(server.get("/continued").await.text(), "hello");
    }
    server.journal.ended(200).await;
    assert!(server.stop().await.is_clean());
    assert!(reader.stop() > 0);
}

#[async_backtrace::framed]
async fn framed_for_a_while() {
    for _ in 0..200 {
        framed_once().await;
    }
}

#[async_backtrace::framed]
async fn framed_once() {
    tokio::task::yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_at_one_report_has_the_next() {
    let fragile = Fragile { level: tracing::Level::WARN, times: AtomicUsize::new(1) };
    let _subscriber = tracing::subscriber::set_default(fragile);
    let server = start(Router::new().route("/", get(async || tokio::time::sleep(MINUTE).await)));
    // Named in one and the same moment.
    tokio::join!(server.get("/"), server.get("/"));
    server.ended(2).await;
    let told = server.journal.events().iter().filter(|event| event.kind().name() == "slow").count();
    assert_eq!(told, 1);
    server.stop().await;
}
