//! A drain that is cut short.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::time::Instant;
use tower_epilogue::{Continuation, End, Epilogue, Event, ShutdownHookLayer};

use crate::{
    frames::{RawHttp2, SETTINGS, frame, request},
    support::{MemoryServer, Notes, Server, logs, soon},
};

const SECOND: Duration = Duration::from_secs(1);

/// A continuation that never ends, and a hook that tells.
fn endless(notes: &Notes) -> Router {
    let hooks = notes.clone();
    let handler = async || (Continuation::new(pending()).class("endless"), "accepted");
    Router::new()
        .route("/endless", get(handler))
        .layer(ShutdownHookLayer::new(async move |end| hooks.add(format!("hook {}", end.status()))))
}

#[tokio::test]
async fn a_second_word_cuts_at_once_and_hooks_still_run() {
    let (notes, logs) = (Notes::default(), logs());
    let app = Router::new().nest("/without-a-deadline", endless(&notes));
    let mut server = Server::with(app, |builder| builder.drain_deadline(None)).await;
    assert_eq!(server.get("/without-a-deadline/endless").await.text(), "accepted");
    server.journal.seen("continuation_start").await;
    // Without a drain there is nothing to cut.
    server.epilogue.cut();
    let epilogue = server.epilogue.clone();
    server.begin_drain();
    let cut = async {
        // It is not known from outside when the drain listens.
        while !notes.has("hook TIMEOUT") {
            epilogue.cut();
            tokio::task::yield_now().await;
        }
        pending::<()>().await;
    };
    let report = tokio::select! {
        report = server.drained() => report,
        () = cut => unreachable!(),
    };
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(report.stragglers()[0].class(), Some("endless"));
    assert_eq!(notes.all(), ["hook TIMEOUT"]);
    // None has passed, and none is said to have.
    assert!(report.to_string().starts_with("drained with 1 cut: GET /without-a-deadline/endless ("), "{report}");
    let lines = logs.with("/without-a-deadline");
    assert!(lines.iter().any(|line| line.contains("a drain cuts what is left")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("deadline passed")), "{lines:#?}");
}

#[tokio::test]
async fn cut_on_does_so_for_a_server_and_only_once_it_drains() {
    let (notes, epilogue) = (Notes::default(), Epilogue::builder().drain_deadline(None).build());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = epilogue
        .serve(listener, endless(&notes))
        .with_graceful_shutdown(async { stopped.await.unwrap() })
        .cut_on(std::future::ready(()));
    let serving = tokio::spawn(server.into_future());
    let mut client = crate::support::Client::connect(address).await;
    client.send_get("/endless").await;
    assert_eq!(client.reply_by_length(false).await.text(), "accepted");
    while epilogue.running() == 0 {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    let report = soon("it drains", serving).await.unwrap().unwrap();
    assert_eq!((report.stragglers().len(), notes.all()), (1, vec!["hook TIMEOUT".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn early_repeated_and_concurrent_drains_are_safe() {
    let (notes, epilogue) = (Notes::default(), Epilogue::builder().drain_deadline(5 * SECOND).build());
    assert!(epilogue.drain().await.is_clean(), "before anything began");
    drop(epilogue);
    let server = MemoryServer::with(endless(&notes), |builder| builder.drain_deadline(5 * SECOND));
    let epilogue = server.epilogue.clone();
    assert!(epilogue.drain().await.is_clean());
    server.get("/endless").await;
    let began = Instant::now();
    let (one, two, three) = tokio::join!(epilogue.drain(), epilogue.drain(), server.stop());
    assert_eq!(began.elapsed().as_secs(), 5);
    // Whoever comes first cuts it; nobody finds something else.
    let found = [one, two, three].iter().map(|report| report.stragglers().len()).sum::<usize>();
    assert!((1..=3).contains(&found), "{found}");
    assert_eq!(notes.all(), ["hook TIMEOUT"]);
    assert!(epilogue.drain().await.is_clean(), "once more");
}

/// As `Epilogue::serve` says of several.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_waits_for_the_continuations_of_another_and_cuts_them() {
    let notes = Notes::default();
    let goes_on = MemoryServer::with(endless(&notes), |builder| builder.drain_deadline(5 * SECOND));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stops = goes_on.epilogue.serve(listener, Router::new()).with_graceful_shutdown(std::future::ready(()));
    assert_eq!(goes_on.get("/endless").await.text(), "accepted");
    goes_on.journal.seen("continuation_start").await;
    let began = Instant::now();
    let report = stops.await.unwrap();
    assert_eq!((began.elapsed().as_secs(), report.stragglers().len()), (5, 1), "{report}");
    assert_eq!(notes.all(), ["hook TIMEOUT"]);
    assert_eq!(goes_on.get("/endless").await.text(), "accepted");
}

/// Far more hooks than there is time for.
const MANY: u32 = 1_000_000;

/// A hook that never waits, and registers itself again.
fn again(end: &End, count: &Arc<AtomicU32>) {
    let theirs = count.clone();
    let hook = async move |end: End| {
        if theirs.fetch_add(1, Ordering::Relaxed) < MANY {
            again(&end, &theirs);
        }
    };
    end.on_shutdown(hook).unwrap();
}

#[tokio::test]
async fn hooks_that_never_end_hold_up_no_others_and_no_drain() {
    let (count, others) = (Arc::new(AtomicU32::new(0)), Notes::default());
    let (theirs, seen) = (count.clone(), others.clone());
    let endless = ShutdownHookLayer::new(async move |end: End| again(&end, &theirs));
    let other = ShutdownHookLayer::new(async move |_| seen.add("another"));
    let app = Router::new()
        .route("/endless", get(async || "hello").layer(endless))
        .route("/other", get(async || "hello").layer(other));
    let short = Duration::from_millis(20);
    // Without an event function: they would be too many.
    let epilogue = Epilogue::builder().drain_deadline(short).hook_limit(short).build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = epilogue.serve(listener, app).with_graceful_shutdown(async { stopped.await.unwrap() });
    let serving = tokio::spawn(server.into_future());
    for path in ["/endless", "/other"] {
        let mut client = crate::support::Client::connect(address).await;
        client.send_get(path).await;
        assert_eq!(client.reply_by_length(false).await.text(), "hello");
    }
    others.seen("another").await;
    stop.send(()).unwrap();
    let report = soon("it drains", serving).await.unwrap().unwrap();
    assert!(report.stragglers().iter().any(|left| left.phase() == "ending"), "{report}");
    assert!(count.load(Ordering::Relaxed) < MANY, "the others had to wait for all of them");
}

#[tokio::test(start_paused = true)]
async fn progress_is_logged_each_second() {
    let logs = logs();
    let server =
        MemoryServer::with(endless(&Notes::default()), |builder| builder.drain_deadline(Duration::from_millis(3900)));
    for _ in 0..7 {
        server.get("/endless").await;
    }
    server.stop().await;
    let lines = logs.with("running=7");
    let lines: Vec<_> = lines.iter().filter(|line| line.contains("draining")).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().zip(1..).all(|(line, second)| line.contains(&format!("elapsed={second}"))), "{lines:?}");
}

/// Each of them runs in a task of its own, which may see that its connection ends before that tells. They had been answered
/// with a 503, for which their client leaves no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_end_of_an_http2_connection_is_no_abort_of_its_streams() {
    const STREAMS: u32 = 100;
    // `SETTINGS_INITIAL_WINDOW_SIZE` of 0 (RFC 9113, section 6.5.2).
    let no_room = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let short = Duration::from_millis(20);
    for _ in 0..5 {
        let app = Router::new().route("/", get(pending::<()>));
        let server = Server::with(app, |builder| builder.drain_deadline(short).hook_limit(short)).await;
        let mut client = RawHttp2::connect(server.address).await;
        let requests = (0..STREAMS).flat_map(|number| request("GET", "/", 2 * number + 1, true));
        client.send(&no_room.iter().copied().chain(requests).collect::<Vec<_>>()).await;
        let journal = server.journal.clone();
        let started = |events: &[Event]| {
            events.iter().filter(|event| event.kind().name() == "handler_start").count() == STREAMS as usize
        };
        journal.until("all of them are handled", started).await;
        assert_eq!(server.stop().await.stragglers().len(), STREAMS as usize);
        journal.ended(STREAMS as usize).await;
        let aborted = journal.events().into_iter().find(|event| event.status().is_aborted());
        assert!(aborted.is_none(), "{aborted:?}");
    }
}

/// Its continuation and its hooks are over, but its response is still on its way to a reader who was given up on.
#[tokio::test]
async fn a_response_that_outlasts_its_request_is_named_as_one_on_its_way() {
    let handler = async || (Continuation::new(async {}), vec![b'x'; 20_000_000]);
    let app = Router::new().route("/outlasts", get(handler));
    let brief = Duration::from_millis(50);
    let server = Server::with(app, |builder| builder.patience(brief).drain_deadline(brief).hook_limit(2 * brief)).await;
    let mut client = server.connect().await;
    client.send_get("/outlasts").await;
    server.journal.ended(1).await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(report.stragglers()[0].phase(), "sending", "{report}");
    assert_eq!(report.closed_connections(), 1, "{report}");
}
