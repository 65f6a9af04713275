//! Continuations that fail, and the handler that is told.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::get};
use tower_epilogue::{Continuation, Failure, Lifecycle, LifecycleError};

use crate::support::{MemoryServer, Notes, Server, logs};

async fn failing(lifecycle: Lifecycle, notes: Notes) -> Result<(Continuation, &'static str), LifecycleError> {
    lifecycle.on_shutdown(async move |end| notes.add(format!("hook: {:?}", end.failure())))?;
    let work = async { Err(io::Error::other("the mail server is down")) };
    Ok((Continuation::try_new(work).class("mail"), "accepted"))
}

fn app(notes: &Notes) -> Router {
    let notes = notes.clone();
    let blocking = || Err::<(), _>("no room on the disk");
    Router::new()
        .route("/fails", get(async move |lifecycle: Lifecycle| failing(lifecycle, notes).await))
        .route("/blocks", get(async move || (Continuation::try_blocking(blocking), "accepted")))
        .route("/works", get(async || (Continuation::try_new(async { Ok::<(), io::Error>(()) }), "accepted")))
}

#[tokio::test]
async fn the_handler_is_told_of_each_error_before_the_hooks_run() {
    let (notes, failures) = (Notes::default(), Arc::new(Mutex::new(Vec::new())));
    let (theirs, list) = (notes.clone(), failures.clone());
    let server = Server::with(app(&notes), |builder| {
        builder.on_failure(move |failure: Failure| {
            let (notes, list) = (theirs.clone(), list.clone());
            async move {
                tokio::task::yield_now().await;
                notes.add(format!("failed: {}", failure.error));
                list.lock().unwrap().push(failure);
            }
        })
    })
    .await;
    for path in ["/fails", "/blocks", "/works"] {
        assert_eq!(server.get(path).await.text(), "accepted");
    }
    server.journal.ended(3).await;
    let told = notes.all();
    assert_eq!(told.len(), 3, "{told:?}");
    let place = |note: &str| told.iter().position(|other| other == note).unwrap();
    assert!(place("failed: the mail server is down") < place("hook: Some(\"the mail server is down\")"));
    place("failed: no room on the disk");
    let failures = failures.lock().unwrap();
    let mail = failures.iter().find(|failure| failure.class == Some("mail")).unwrap();
    assert_eq!(mail.route, "GET /fails");
    assert!(mail.error.downcast_ref::<io::Error>().is_some() && mail.status.is_normal());
    assert_eq!(server.journal.requests()[0], mail.request);
    let lines = server.journal.lines_of(mail.request);
    let failed = lines.iter().position(|line| line == "continuation_failed/0").unwrap();
    assert_eq!(lines[failed + 1], "continuation_end/0");
}

#[tokio::test]
async fn without_a_handler_it_is_logged_with_its_route_and_class() {
    let logs = logs();
    let server = Server::start(app(&Notes::default())).await;
    server.get("/fails").await;
    server.journal.ended(1).await;
    let lines = logs.with("the mail server is down");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["ERROR", "a continuation failed", "GET /fails", "mail"] {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
}

/// What says no more than that it failed, as clients of HTTP do; the reason is its source.
#[derive(Debug)]
struct Sending(io::Error);

impl std::fmt::Display for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request was not sent")
    }
}

impl std::error::Error for Sending {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test]
async fn the_log_and_the_hooks_have_the_reason_of_a_failure_too() {
    let (logs, notes) = (logs(), Notes::default());
    let theirs = notes.clone();
    let sends = async move |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async move |end| theirs.add(end.failure().unwrap_or_default()))?;
        let work = async { Err(Sending(io::Error::other("connection refused"))) };
        Ok::<_, LifecycleError>((Continuation::try_new(work), "accepted"))
    };
    let server = Server::start(Router::new().route("/reason", get(sends))).await;
    server.get("/reason").await;
    server.journal.ended(1).await;
    let said = "the request was not sent: connection refused";
    assert_eq!(notes.all(), [said]);
    assert_eq!(logs.with(said).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_or_hangs_costs_its_request_only() {
    let notes = Notes::default();
    let panics = MemoryServer::with(app(&notes), |builder| builder.on_failure(async |_| panic!("on purpose")));
    panics.get("/fails").await;
    panics.ended(1).await;
    let at_once = MemoryServer::with(app(&notes), |builder| {
        builder.on_failure(|_| -> std::future::Ready<()> { panic!("on purpose") })
    });
    at_once.get("/fails").await;
    at_once.ended(1).await;
    let hangs = MemoryServer::with(app(&notes), |builder| {
        builder.on_failure(|_| std::future::pending()).hook_limit(Duration::from_secs(7))
    });
    hangs.get("/fails").await;
    hangs.ended(1).await;
    assert!(hangs.journal.seen("hook_start").await.at() >= Duration::from_secs(7));
    assert_eq!(notes.all(), vec!["hook: Some(\"the mail server is down\")"; 3]);
    assert!(panics.stop().await.is_clean() && hangs.stop().await.is_clean());
}

/// What has failed runs no more: its place is another's while its failure is dealt with.
#[tokio::test(start_paused = true)]
async fn a_failure_handler_keeps_no_other_continuation_waiting() {
    let notes = Notes::default();
    let server = MemoryServer::with(app(&notes), |builder| {
        builder.max_running(1).on_failure(|_| std::future::pending()).hook_limit(Duration::from_secs(7))
    });
    let began = tokio::time::Instant::now();
    assert_eq!(server.get("/fails").await.status, 200);
    server.journal.seen("continuation_failed").await;
    assert_eq!(server.get("/works").await.status, 200);
    server.ended(1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    server.ended(2).await;
    assert!(began.elapsed() >= Duration::from_secs(7), "{:?}", began.elapsed());
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.reserved, load.over), (0, 0, 0, 0));
}
