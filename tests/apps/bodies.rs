//! Two bodies of one request, which a retry or a hedge makes of it: each is one that its hooks wait for.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tower::retry::{Policy as _, RetryLayer};
use tower_epilogue::{EarlyCloseLayer, EpilogueBuilder, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    common::SECOND,
    routes::hook,
    stacks::Again,
    support::{Gate, Notes, Server, h2client::Http2, logs},
};

const NAMES: [&str; 2] = ["first", "second"];

/// Gives its name, and ends behind its gate.
fn body(notes: &Notes, gate: &Gate, name: &'static str) -> Body {
    let (dropped, notes, gate) = (notes.on_drop(name), notes.clone(), gate.clone());
    let rest = stream::once(async move {
        gate.passed().await;
        notes.add(format!("{name} has ended"));
        drop(dropped);
        Ok(" and the rest")
    });
    Body::from_stream(stream::once(async move { Ok::<_, Infallible>(name) }).chain(rest))
}

/// The first attempt waits for its client to leave, and fails; the second does not wait. Both have bodies that wait.
async fn retried(
    notes: &Notes,
    gates: &[Gate; 2],
    limit: Duration,
    setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
) -> Server {
    let (theirs, gates, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| -> Response {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        let body = body(&theirs, &gates[attempt], NAMES[attempt]);
        if attempt == 0 {
            lifecycle.aborted().await;
            return (StatusCode::BAD_GATEWAY, body).into_response();
        }
        body.into_response()
    };
    let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::new(limit), IgnoreAbortLayer::new()));
    Server::with(app.layer(RetryLayer::new(Again(1))).layer(hook(notes)), setup).await
}

/// What the retry threw away goes on without its reader, as aborts are ignored.
#[tokio::test]
async fn hooks_wait_for_a_body_that_a_retry_has_thrown_away() {
    for first_ends_last in [false, true] {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = retried(&notes, &gates, 60 * SECOND, |builder| builder).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.half_close().await;
        client.read_until("second").await;
        let mut order = [0, 1];
        if first_ends_last {
            order.reverse();
        }
        for attempt in order {
            gates[attempt].open();
            notes.seen(NAMES[attempt]).await;
        }
        server.journal.ended(1).await;
        let [one, other] = order.map(|attempt| NAMES[attempt]);
        let ended = |name| format!("{name} has ended");
        let last = "hook: GET / ABORTED Flushed".to_owned();
        assert_eq!(notes.all(), [ended(one), one.into(), ended(other), other.into(), last]);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_limit_ends_both_bodies() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let server = retried(&notes, &gates, Duration::from_millis(200), |builder| builder).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.half_close().await;
    client.read_until("second").await;
    server.journal.ended(1).await;
    let mut all = notes.all();
    all[..2].sort_unstable();
    assert_eq!(all, ["first", "second", "hook: GET / ABORTED | TIMEOUT BrokenOff"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_drain_cuts_both_bodies() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let setup = |builder: EpilogueBuilder| builder.drain_deadline(Duration::from_millis(30));
    let server = retried(&notes, &gates, 60 * SECOND, setup).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.half_close().await;
    client.read_until("second").await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    let mut all = notes.all();
    all[..2].sort_unstable();
    assert_eq!(all, ["first", "second", "hook: GET / ABORTED | TIMEOUT BrokenOff"]);
}

/// Nothing is asked of a body on HTTP/2 while its client leaves no room: whatever has become of the other, and where it is.
#[tokio::test]
async fn the_limit_ends_what_nobody_asks_for_beside_another() {
    for kept in [false, true] {
        let (notes, asked) = (Notes::default(), Arc::new(AtomicUsize::new(0)));
        let theirs = notes.clone();
        let handler = async move || {
            let dropped = theirs.on_drop(NAMES[asked.fetch_add(1, Ordering::SeqCst)]);
            Body::from_stream(stream::repeat_with(move || {
                let _produces = &dropped;
                Ok::<_, Infallible>("x".repeat(16 * 1024))
            }))
        };
        let mirrors = move |request: Request, next: Next| async move {
            let copy = Again(1).clone_request(&request).unwrap();
            let first = next.clone().run(copy).await;
            let second = next.run(request).await.into_body();
            let kept = kept.then_some(second);
            first.map(|body| {
                let body = body.into_data_stream();
                Body::from_stream(
                    body.inspect(move |_| assert!(kept.as_ref().is_none_or(|body| !body.is_end_stream()))),
                )
            })
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(Duration::from_millis(200)));
        let server = Server::start(app.layer(from_fn(mirrors)).layer(hook(&notes))).await;
        let mut client = Http2::connect(server.address).await;
        let mut body = client.start("GET", "/").await.await.unwrap().into_body();
        let mut read = 0;
        while read < 65_535 {
            read += body.data().await.unwrap().unwrap().len();
        }
        // The client has its stream, and widens no window.
        server.journal.ended(1).await;
        let mut all = notes.all();
        all[..2].sort_unstable();
        assert_eq!(all, ["first", "second", "hook: GET / TIMEOUT BrokenOff"], "kept: {kept}");
        drop((body, client));
        assert!(server.stop().await.is_clean());
    }
}

/// Nobody asks for what an application keeps, on either protocol, however long it does.
#[tokio::test]
async fn the_limit_ends_one_that_is_kept_elsewhere() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move || {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        body(&theirs, &opens[attempt], NAMES[attempt])
    };
    let keeps = Arc::new(Mutex::new(None));
    let kept = keeps.clone();
    let mirrors = move |request: Request, next: Next| {
        let kept = kept.clone();
        async move {
            let copy = Again(1).clone_request(&request).unwrap();
            let first = next.clone().run(copy).await;
            *kept.lock().unwrap() = Some(next.run(request).await.into_body());
            first
        }
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(Duration::from_millis(200)));
    let server = Server::start(app.layer(from_fn(mirrors)).layer(hook(&notes))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("first").await;
    server.journal.ended(1).await;
    let mut all = notes.all();
    all[..2].sort_unstable();
    assert_eq!(all, ["first", "second", "hook: GET / TIMEOUT BrokenOff"]);
    assert!(keeps.lock().unwrap().take().is_some());
    assert!(server.stop().await.is_clean());
}

/// The one that was held back is told of, and so is the one that its client got.
#[tokio::test]
async fn of_each_that_fails_it_is_told() {
    let (logs, gate, asked) = (logs(), Gate::closed(), Arc::new(AtomicUsize::new(0)));
    let opens = gate.clone();
    let handler = async move || {
        let (attempt, gate) = (asked.fetch_add(1, Ordering::SeqCst), opens.clone());
        let first = stream::iter([Ok("x".repeat([1, 100][attempt]))]);
        Body::from_stream(first.chain(stream::once(async move {
            if attempt == 1 {
                gate.passed().await;
            }
            Err(std::io::Error::other(format!("attempt {attempt} breaks")))
        })))
    };
    let app = Router::new().route("/breaks-twice", get(handler)).layer(EarlyCloseLayer::new().buffer_limit(10));
    let server = Server::start(app.layer(RetryLayer::new(Again(2)))).await;
    let mut client = server.connect().await;
    client.send_get("/breaks-twice").await;
    client.read_until("xxx").await;
    gate.open();
    server.journal.ended(1).await;
    let lines = logs.with("/breaks-twice");
    let told = |line: &str, text| line.contains(text) && line.contains("failed");
    assert!(lines.len() == 2 && told(&lines[0], "attempt 0") && told(&lines[1], "attempt 1"), "{lines:?}");
    assert!(server.stop().await.is_clean());
}

/// Both are produced at once: each in a task of its own, as a hedge does that keeps what comes late.
#[tokio::test]
async fn the_limit_ends_two_bodies_that_are_read_at_once() {
    for opens in [None, Some(0), Some(1)] {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let (theirs, behind, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
        let handler = async move || {
            let attempt = asked.fetch_add(1, Ordering::SeqCst);
            body(&theirs, &behind[attempt], NAMES[attempt])
        };
        let hedges = async |request: Request, next: Next| -> Response {
            let copy = Again(1).clone_request(&request).unwrap();
            let mut first = next.clone().run(copy).await.into_body();
            let (waits, it_waits) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                first.frame().await.unwrap().unwrap();
                let mut rest = first.frame();
                assert!(futures_util::poll!(&mut rest).is_pending());
                waits.send(()).unwrap();
                rest.await
            });
            it_waits.await.unwrap();
            next.run(request).await
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(Duration::from_millis(200)));
        let server = Server::start(app.layer(from_fn(hedges)).layer(hook(&notes))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.read_until("second").await;
        if let Some(attempt) = opens {
            gates[attempt].open();
            notes.seen(NAMES[attempt]).await;
        }
        server.journal.ended(1).await;
        let mut all: Vec<_> = notes.all().into_iter().filter(|note| !note.ends_with("has ended")).collect();
        all[..2].sort_unstable();
        let sent = if opens == Some(1) { "Flushed" } else { "BrokenOff" };
        assert_eq!(all, ["first".to_owned(), "second".to_owned(), format!("hook: GET / TIMEOUT {sent}")], "{opens:?}");
        assert!(server.stop().await.is_clean());
    }
}
