//! Rows of the PHP table: the server stops while continuations run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{future::pending, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use support::{Client, Gate, Journal, MemoryServer, Server, soon};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep},
};
use tower_epilogue::{ConnectionStatus, Continuation, End, Lifecycle, ShutdownHookLayer};

const SECOND: Duration = Duration::from_secs(1);

fn count(journal: &Journal, name: &str) -> usize {
    journal.events().iter().filter(|event| event.kind().name() == name).count()
}

#[tokio::test]
async fn a_stop_while_continuations_run_waits_for_them_and_for_their_hooks() {
    let gate = Gate::closed();
    let (returns, finishes) = (gate.clone(), gate.clone());
    let app = Router::new()
        .route("/returns", get(async move || (Continuation::new(async move { returns.passed().await }), "hello")))
        .route(
            "/finishes",
            get(async move |lifecycle: Lifecycle| {
                lifecycle.finish("hello").await.unwrap();
                finishes.passed().await;
            }),
        )
        .layer(ShutdownHookLayer::new(async |_| tokio::task::yield_now().await));
    let mut server = Server::start(app).await;
    let journal = server.journal.clone();
    for path in ["/returns", "/finishes"] {
        assert_eq!(server.get(path).await.text(), "hello");
    }
    let address = server.address;
    server.begin_drain();
    // The listener goes first: then nobody can connect any more.
    soon("the listener is closed", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(count(&journal, "ended"), 0);
    gate.open();
    let report = server.drained().await;
    assert!(report.is_clean(), "{report}");
    // All of it had happened when the server returned.
    assert_eq!((count(&journal, "continuation_end"), count(&journal, "hook_end"), count(&journal, "ended")), (1, 2, 2));
}

#[tokio::test]
async fn a_stop_lets_a_handler_answer_and_then_closes_the_connection() {
    let gate = Gate::closed();
    let answer = gate.clone();
    let handler = async move || {
        answer.passed().await;
        "hello"
    };
    let mut server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = Client::connect(server.address).await;
    client.send_get("/").await;
    server.journal.seen("handler_start").await;
    server.begin_drain();
    gate.open();
    assert_eq!(client.reply().await.text(), "hello");
    assert!(server.drained().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_stop_kills_no_continuation_by_default() {
    let app = Router::new().route("/", get(async || (Continuation::new(sleep(20 * SECOND)), "hello")));
    let server = MemoryServer::start(app);
    let journal = server.journal.clone();
    server.get("/").await;
    let began = Instant::now();
    let report = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert!(began.elapsed() >= 19 * SECOND && began.elapsed() < 21 * SECOND, "{:?}", began.elapsed());
    assert_eq!(count(&journal, "continuation_end"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_cuts_at_its_deadline_and_names_what_it_cut() {
    let (sender, mut ends) = mpsc::unbounded_channel();
    let app = Router::new()
        .route("/task/{id}", get(async || (Continuation::new(pending()), "hello")))
        .route("/waits", get(pending::<()>))
        .route("/short", get(async || (Continuation::new(sleep(5 * SECOND)), "hello")))
        .layer(ShutdownHookLayer::new(async move |end: End| sender.send((end.route(), end.status())).unwrap()));
    let server = MemoryServer::with(app, |builder| builder.drain_deadline(10 * SECOND));
    let journal = server.journal.clone();
    assert_eq!(server.get("/task/7").await.text(), "hello");
    sleep(SECOND).await;
    assert_eq!(server.get("/short").await.text(), "hello");
    let mut waits = server.connect();
    waits.send("GET /waits HTTP/1.1\r\nhost: test\r\n\r\n").await;
    journal
        .until("three handlers", |events| {
            events.iter().filter(|event| event.kind().name() == "handler_start").count() == 3
        })
        .await;

    let began = Instant::now();
    let report = server.stop().await;
    assert!(began.elapsed() >= 10 * SECOND && began.elapsed() < 11 * SECOND, "{:?}", began.elapsed());
    let named: Vec<_> = report.stragglers().iter().map(|cut| (cut.route(), cut.phase(), cut.age().as_secs())).collect();
    assert_eq!(named, [("GET /task/{id}", "continuing", 11), ("GET /waits", "handling", 10)], "the oldest first");
    let told = report.to_string();
    assert!(told.contains("GET /task/{id} (continuing, 11.0 s old)"), "{told}");

    assert_eq!(ends.recv().await, Some(("GET /short".to_owned(), ConnectionStatus::NORMAL)));
    let mut cut = [ends.recv().await.unwrap(), ends.recv().await.unwrap()];
    cut.sort_by(|one, other| one.0.cmp(&other.0));
    let timeout = ConnectionStatus::TIMEOUT;
    assert_eq!(cut, [("GET /task/{id}".to_owned(), timeout), ("GET /waits".to_owned(), timeout)]);
    assert_eq!((count(&journal, "continuation_dropped"), count(&journal, "ended")), (1, 3));
    // Whoever still waited for an answer has one.
    assert_eq!(waits.reply().await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn reload_repeated_stops_are_idempotent() {
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = runs.clone();
    let handler = async move || {
        let work = async move {
            sleep(2 * SECOND).await;
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        (Continuation::new(work), "hello")
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(async |_| {}));
    let server = MemoryServer::start(app);
    let (journal, epilogue) = (server.journal.clone(), server.epilogue.clone());
    server.get("/").await;
    let began = Instant::now();
    // Again and again, at the same time and afterwards.
    let (first, second, third) = tokio::join!(epilogue.drain(), server.stop(), epilogue.drain());
    assert!(first.is_clean() && second.is_clean() && third.is_clean());
    assert!(began.elapsed() >= SECOND && began.elapsed() < 3 * SECOND, "{:?}", began.elapsed());
    let again = Instant::now();
    assert!(epilogue.drain().await.is_clean());
    assert_eq!(again.elapsed(), Duration::ZERO);
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!((count(&journal, "hook_end"), count(&journal, "ended"), epilogue.running()), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn reload_a_drain_has_a_hard_end() {
    let handler = async |lifecycle: Lifecycle| {
        for _ in 0..100 {
            lifecycle.on_shutdown(|_| pending::<()>()).unwrap();
        }
        (Continuation::new(pending()), "hello")
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| {
        builder.drain_deadline(10 * SECOND).hook_limit(5 * SECOND)
    });
    server.get("/").await;
    let began = Instant::now();
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1);
    // The deadline, and a bounded grace for the hooks: not the 500 seconds that they would take.
    assert!(began.elapsed() >= 10 * SECOND && began.elapsed() <= 25 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn reload_a_stuck_thread_does_not_hold_up_a_stop() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begins, begun) = std::sync::mpsc::channel::<()>();
    let work = Arc::new(std::sync::Mutex::new(Some((begins, held))));
    let handler = async move || {
        let (begins, held) = work.lock().unwrap().take().unwrap();
        let work = move || {
            begins.send(()).unwrap();
            held.recv().unwrap();
        };
        (Continuation::blocking(work), "hello")
    };
    let server =
        MemoryServer::with(Router::new().route("/stuck", get(handler)), |builder| builder.drain_deadline(10 * SECOND));
    let epilogue = server.epilogue.clone();
    server.get("/stuck").await;
    // A drain waits for one that has no thread yet; and tokio's clock stands still while such a task runs.
    tokio::task::spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
    let began = Instant::now();
    let report = server.stop().await;
    assert_eq!(report.stragglers()[0].route(), "GET /stuck");
    assert!(began.elapsed() < 11 * SECOND, "{:?}", began.elapsed());
    assert_eq!(epilogue.stuck(), 1);
    release.send(()).unwrap();
}
