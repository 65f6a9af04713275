//! Rows of the PHP table: the client leaves, and that is ignored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use std::{convert::Infallible, future::pending};

use axum::{
    Router,
    routing::{MethodRouter, get, post},
};
use support::{Gate, Server, h2client::Http2, soon};
use tokio::sync::mpsc;
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

/// A handler that samples its status before, while and after the client leaves, and then still has work.
fn sampling(work: &Gate, samples: &mpsc::UnboundedSender<(&'static str, bool)>) -> MethodRouter {
    let (work, samples) = (work.clone(), samples.clone());
    get(async move |lifecycle: Lifecycle| {
        let sample = |when| samples.send((when, lifecycle.is_aborted())).unwrap();
        sample("before");
        lifecycle.aborted().await;
        sample("at once");
        work.passed().await;
        sample("after the work");
        "hello"
    })
}

const TIMELINE: [(&str, bool); 4] = [("before", false), ("at once", true), ("after the work", true), ("hook", true)];

fn sampling_app(work: &Gate) -> (Router, mpsc::UnboundedReceiver<(&'static str, bool)>) {
    let (samples, timeline) = mpsc::unbounded_channel();
    let route = sampling(work, &samples);
    let hook = async move |end: tower_epilogue::End| samples.send(("hook", end.status().is_aborted())).unwrap();
    (Router::new().route("/", route).layer((ShutdownHookLayer::new(hook), IgnoreAbortLayer::new())), timeline)
}

#[tokio::test]
async fn s7_an_ignored_abort_lets_all_work_complete_and_its_flag_stays() {
    for reset in [false, true] {
        let work = Gate::closed();
        let (app, mut timeline) = sampling_app(&work);
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        server.journal.seen("handler_start").await;
        if reset {
            client.reset();
        } else {
            client.close();
        }
        server.journal.seen("aborted").await;
        work.open();
        server.journal.ended(1).await;
        let mut samples = Vec::new();
        soon("it is told", timeline.recv_many(&mut samples, 4)).await;
        assert_eq!(samples, TIMELINE, "by a reset: {reset}");
        let lines = server.journal.lines();
        assert_eq!(lines[..3], ["handler_start/0", "aborted/1", "handler_end/1"], "by a reset: {reset}");
        assert_eq!(lines[lines.len() - 3..], ["hook_start:0/1", "hook_end:0/1", "ended/1"], "by a reset: {reset}");
    }
}

#[tokio::test]
async fn s7_on_http_2_an_ignored_abort_lets_all_work_complete() {
    let work = Gate::closed();
    let (app, mut timeline) = sampling_app(&work);
    let server = Server::start(app).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    server.journal.seen("handler_start").await;
    drop(response);
    server.journal.seen("aborted").await;
    work.open();
    server.journal.ended(1).await;
    let mut samples = Vec::new();
    soon("it is told", timeline.recv_many(&mut samples, 4)).await;
    assert_eq!(samples, TIMELINE);
    assert_eq!(
        server.journal.lines(),
        ["handler_start/0", "aborted/1", "handler_end/1", "hook_start:0/1", "hook_end:0/1", "ended/1"]
    );
}

#[tokio::test]
async fn a_client_that_only_shuts_its_sending_side_still_gets_an_ignored_abort_s_answer() {
    let work = Gate::closed();
    let (app, _timeline) = sampling_app(&work);
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    server.journal.seen("handler_start").await;
    client.half_close().await;
    server.journal.seen("aborted").await;
    work.open();
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert_eq!(lines[..4], ["handler_start/0", "aborted/1", "handler_end/1", "flushed:5/1"], "the bit stays");
}

#[tokio::test]
async fn a_request_that_comes_along_with_its_client_s_end_runs_where_aborts_are_ignored() {
    let work = Gate::closed();
    let (app, mut timeline) = sampling_app(&work);
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.half_close().await;
    work.open();
    assert_eq!(client.reply().await.text(), "hello");
    server.journal.ended(1).await;
    let mut samples = Vec::new();
    soon("it is told", timeline.recv_many(&mut samples, 4)).await;
    assert_eq!(samples[1..], TIMELINE[1..]);
}

#[tokio::test]
async fn pipelined_requests_of_a_client_that_shut_its_sending_side_run_where_aborts_are_ignored() {
    let work = Gate::closed();
    let (app, _timeline) = sampling_app(&work);
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    server.journal.seen("handler_start").await;
    client.send_get("/").await;
    client.half_close().await;
    server.journal.seen("aborted").await;
    work.open();
    let replies = client.reply().await;
    server.journal.ended(2).await;
    let both = format!("{}{}", replies.head, replies.text());
    assert_eq!(both.matches("hello").count(), 2, "{both}");
}

#[tokio::test]
async fn a_shield_holds_for_its_section_and_no_longer() {
    let (section, (sender, mut reached)) = (Gate::closed(), mpsc::unbounded_channel());
    let work = section.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let shield = lifecycle.shield();
        work.passed().await;
        sender.send("the section's end").unwrap();
        drop(shield);
        pending::<()>().await;
        sender.send("past the next await").unwrap();
    };
    let server = Server::start(Router::new().route("/", post(handler))).await;
    let mut client = server.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n").await;
    server.journal.seen("handler_start").await;
    client.close();
    server.journal.seen("aborted").await;
    section.open();
    server.journal.ended(1).await;
    assert_eq!(soon("it is told", reached.recv()).await, Some("the section's end"));
    assert!(reached.try_recv().is_err());
    assert_eq!(server.journal.lines(), ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
}

#[tokio::test]
async fn s28_reading_the_setting_does_not_set_it() {
    let (sender, mut answers) = mpsc::unbounded_channel();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send([lifecycle.ignores_abort(), lifecycle.ignores_abort()]).unwrap();
    };
    let app = Router::new()
        .route("/ignored", get(handler.clone()).layer(IgnoreAbortLayer::new()))
        .route(
            "/off",
            get(handler.clone()).layer::<_, Infallible>(IgnoreAbortLayer::off()).layer(IgnoreAbortLayer::new()),
        )
        .route("/plain", get(handler));
    let server = Server::start(app).await;
    for (path, ignores) in [("/plain", false), ("/ignored", true), ("/off", false)] {
        assert_eq!(server.get(path).await.status, 200);
        assert_eq!(soon("it is told", answers.recv()).await, Some([ignores; 2]), "{path}: the layer is the setting");
    }
}

#[tokio::test]
async fn s28_a_setting_that_was_only_read_leaves_the_abort_its_effect() {
    let handler = async |lifecycle: Lifecycle| {
        assert!(!lifecycle.ignores_abort());
        pending::<()>().await;
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    server.journal.seen("handler_start").await;
    client.reset();
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines(), ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
}

#[tokio::test]
async fn bug72300_the_setter_returns_the_previous_value() {
    let (sender, mut answers) = mpsc::unbounded_channel();
    let handler = async move |lifecycle: Lifecycle| {
        let previous = [true, true, false, false].map(|ignore| lifecycle.ignore_abort(ignore));
        // A shield is not the setting.
        let shield = lifecycle.shield();
        let beside = lifecycle.ignore_abort(false);
        let ignored = lifecycle.ignores_abort();
        drop(shield);
        sender.send((previous, beside, ignored, lifecycle.ignores_abort())).unwrap();
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    server.get("/").await;
    assert_eq!(soon("it is told", answers.recv()).await, Some(([false, true, true, false], false, true, false)));
}
