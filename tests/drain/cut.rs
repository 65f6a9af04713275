//! A drain that is cut short.

use std::{future::pending, time::Duration};

use axum::{Router, routing::get};
use tokio::time::Instant;
use tower_epilogue::{Continuation, Epilogue, ShutdownHookLayer};

use crate::support::{MemoryServer, Notes, Server, logs, soon};

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
    let notes = Notes::default();
    let mut server = Server::with(endless(&notes), |builder| builder.drain_deadline(None)).await;
    assert_eq!(server.get("/endless").await.text(), "accepted");
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
