//! A drain that is cut short, what it says meanwhile, and what takes long or panics while a server runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{
    future::{Future as _, pending},
    pin::pin,
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _, routing::get};
use support::{MemoryServer, Notes, Server, logs, soon};
use tokio::{net::TcpListener, sync::oneshot};
use tower_epilogue::{Continuation, End, Epilogue, EventKind, Lifecycle, Sent};

/// A continuation that never ends by itself, of the class `mail`.
fn endless(notes: &Notes) -> Router {
    let notes = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let (hook, theirs) = (notes.clone(), notes.clone());
        lifecycle.on_shutdown(async move |end: End| hook.add(format!("hook: {}", end.status()))).unwrap();
        let work = async move {
            theirs.add("here");
            pending::<()>().await;
        };
        (Continuation::new(work).class("mail"), "accepted")
    };
    Router::new().route("/mail", get(handler))
}

#[tokio::test]
async fn a_second_signal_cuts_at_once_and_the_report_names_route_class_and_phase() {
    let notes = Notes::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (first, second) = (oneshot::channel::<()>(), oneshot::channel::<()>());
    let signal = |received: oneshot::Receiver<()>| async move { received.await.unwrap_or(()) };
    let epilogue = Epilogue::builder().drain_deadline(None).build();
    let serve = epilogue.serve(listener, endless(&notes));
    let serve = serve.with_graceful_shutdown(signal(first.1)).cut_on(signal(second.1));
    let server = tokio::spawn(serve.into_future());
    let mut client = support::Client::connect(address).await;
    client.send("GET /mail HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "accepted");
    notes.seen("here").await;
    // The second one counts only while the server drains: it may come first.
    second.0.send(()).unwrap();
    tokio::task::yield_now().await;
    assert!(!server.is_finished());
    first.0.send(()).unwrap();
    let report = soon("the server is cut", server).await.unwrap().unwrap();
    let stragglers: Vec<_> =
        report.stragglers().iter().map(|one| (one.route().to_owned(), one.class(), one.phase().to_owned())).collect();
    assert_eq!(stragglers, [("GET /mail".to_owned(), Some("mail"), "continuing".to_owned())], "{report}");
    assert_eq!(notes.all(), ["here", "hook: TIMEOUT"]);
}

#[tokio::test]
async fn drains_that_are_under_way_are_cut_together_and_later_ones_are_not_concerned() {
    let epilogue = Epilogue::builder().drain_deadline(None).build();
    // An early drain has nothing to wait for.
    assert!(epilogue.drain().await.is_clean());
    let notes = Notes::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(epilogue.serve(listener, endless(&notes)).into_future());
    let ask = async || {
        let mut client = support::Client::connect(address).await;
        client.send("GET /mail HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
        assert_eq!(client.reply().await.text(), "accepted");
    };
    ask().await;
    notes.seen("here").await;
    {
        let (mut one, mut other) = (pin!(epilogue.drain()), pin!(epilogue.drain()));
        // Both wait now.
        std::future::poll_fn(|cx| {
            assert!(one.as_mut().poll(cx).is_pending() && other.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        epilogue.cut();
        let (one, other) = soon("both are cut", async { tokio::join!(one, other) }).await;
        // The one that is first cuts; the other finds it gone, or names it as well.
        assert_eq!(one.stragglers().len().max(other.stragglers().len()), 1, "{one} {other}");
    }
    ask().await;
    notes.count(3).await;
    let mut later = pin!(epilogue.drain());
    std::future::poll_fn(|cx| {
        assert!(later.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    epilogue.cut();
    assert_eq!(soon("it is cut", later).await.stragglers().len(), 1);
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn each_second_the_drain_says_how_much_is_left() {
    let logs = logs();
    let handler = async || (Continuation::new(tokio::time::sleep(Duration::from_millis(3_500))), "accepted");
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| builder);
    assert_eq!(server.get("/").await.text(), "accepted");
    let before = logs.with("draining").len();
    assert!(server.stop().await.is_clean());
    let lines = logs.with("draining");
    let lines = &lines[before..];
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("running=1")), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_takes_long_is_named_once_while_it_still_does() {
    let logs = logs();
    let slow = async || {
        let work = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        (Continuation::new(work).class("reports"), "accepted")
    };
    let app = Router::new()
        .route("/slow-report", get(slow))
        .route(
            "/slow-handler",
            get(async || {
                tokio::time::sleep(Duration::from_secs(60)).await;
                "late"
            }),
        )
        .route("/quick", get(async || "quick"));
    let server = MemoryServer::with(app, |builder| builder.slow_after(Duration::from_secs(5)));
    for path in ["/quick", "/slow-report", "/slow-handler"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    server.ended(3).await;
    let slow: Vec<_> = server.journal.events().into_iter().filter(|event| *event.kind() == EventKind::Slow).collect();
    assert_eq!(slow.len(), 2, "{slow:#?}");
    for event in &slow {
        assert!(event.at() >= Duration::from_secs(5) && event.at() <= Duration::from_secs(7), "{event:?}");
    }
    let (report, handler) = (logs.with("GET /slow-report"), logs.with("GET /slow-handler"));
    assert!(report.len() == 1 && report[0].contains("reports") && report[0].contains("continuing"), "{report:#?}");
    assert!(handler.len() == 1 && handler[0].contains("handling"), "{handler:#?}");
    assert!(logs.with("GET /quick").is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_poll_that_holds_its_thread_up_is_named() {
    let logs = logs();
    let handler = async || {
        // What the test is about.
        std::thread::sleep(Duration::from_millis(30));
        "blocked"
    };
    let app = Router::new().route("/blocks-its-thread", get(handler)).route("/polls-quickly", get(async || "quick"));
    let server = Server::with(app, |builder| builder.slow_poll(Duration::from_millis(20))).await;
    assert_eq!(server.get("/blocks-its-thread").await.text(), "blocked");
    let lines = logs.with("GET /blocks-its-thread");
    assert!(lines.iter().any(|line| line.contains("held up its thread")), "{lines:#?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn each_panic_costs_its_own_request_is_logged_and_counted_and_its_hooks_see_it() {
    let logs = logs();
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |axum::extract::Path(place): axum::extract::Path<String>, lifecycle: Lifecycle| {
        let hook = theirs.clone();
        if place == "hook" {
            lifecycle.on_shutdown(async |end: End| assert!(end.sent() == Sent::GivenUp, "boom in the hook")).unwrap();
        }
        lifecycle.on_shutdown(async move |end: End| hook.add(end.panic().unwrap_or_default())).unwrap();
        match place.as_str() {
            "handler" => panic!("boom in the handler"),
            "body" => Body::from_stream(futures_util::stream::poll_fn(
                |_| -> std::task::Poll<Option<Result<&str, std::io::Error>>> { panic!("boom in the body") },
            ))
            .into_response(),
            "continuation" => Continuation::new(async { panic!("boom in the continuation") }).into_response(),
            _ => "hello".into_response(),
        }
    };
    let server = Server::start(Router::new().route("/panics/{place}", get(handler))).await;
    for (index, place) in ["handler", "body", "continuation", "hook"].into_iter().enumerate() {
        server.get(&format!("/panics/{place}")).await;
        server.journal.ended(index + 1).await;
        assert_eq!(notes.all()[index], format!("boom in the {place}"));
        assert_eq!(server.epilogue.panicked(), index + 1);
        let lines = logs.with(&format!("boom in the {place}"));
        assert!(lines.iter().any(|line| line.contains("GET /panics/")), "{lines:#?}");
    }
    assert_eq!(server.get("/panics/none").await.text(), "hello");
    assert!(server.stop().await.is_clean());
}
