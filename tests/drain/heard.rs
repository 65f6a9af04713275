//! A drain is heard of by what has no end of its own, which ends with it.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::sse::{Event, Sse},
    routing::get,
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{Request, StatusCode};
use tower::ServiceExt as _;
use tower_epilogue::{Continuation, Epilogue, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::support::{Gate, Notes, Server, h2client::Http2, soon};

/// Ends when a drain begins, and not before.
async fn events(lifecycle: Lifecycle) -> Sse<impl futures_util::Stream<Item = Result<Event, Infallible>>> {
    let first = stream::once(async { Ok(Event::default().data("first")) });
    let last = stream::once(async { Ok(Event::default().data("last")) });
    Sse::new(first.chain(stream::pending()).take_until(lifecycle.draining()).chain(last))
}

fn app() -> Router {
    Router::new().route("/", get(events)).layer((TimeLimitLayer::off(), IgnoreAbortLayer::new()))
}

#[tokio::test]
async fn an_event_stream_that_asks_ends_in_order() {
    for http2 in [false, true] {
        let mut server = Server::with(app(), |builder| builder.drain_deadline(None)).await;
        let text = if http2 {
            let mut client = Http2::connect(server.address).await;
            let mut body = soon("the head", client.start("GET", "/").await).await.unwrap().into_body();
            let mut read = Vec::new();
            while !read.ends_with(b"first\n\n") {
                read.extend(soon("an event", body.data()).await.unwrap().unwrap());
            }
            server.begin_drain();
            while let Some(data) = soon("the end", body.data()).await {
                read.extend(data.unwrap());
            }
            String::from_utf8(read).unwrap()
        } else {
            let mut client = server.connect().await;
            client.send_get("/").await;
            let mut read = client.read_until("first\n\n").await;
            server.begin_drain();
            read += &client.read_until("0\r\n\r\n").await;
            read
        };
        assert!(text.contains("data: first\n\n") && text.contains("data: last\n\n"), "http2: {http2}, {text:?}");
        let report = server.drained().await;
        assert!(report.is_clean(), "http2: {http2}, {report}");
    }
}

/// So does work that has no end of its own; and one whose client has left.
#[tokio::test]
async fn a_continuation_that_asks_ends_too() {
    for leaves in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            theirs.add("handler");
            let (drains, notes) = (lifecycle.draining(), theirs.clone());
            if leaves {
                lifecycle.aborted().await;
            }
            let work = async move {
                notes.add("works");
                drains.await;
                notes.add("drains");
            };
            (Continuation::new(work), "hello")
        };
        let app = Router::new().route("/", get(handler)).layer((TimeLimitLayer::off(), IgnoreAbortLayer::new()));
        let server = Server::with(app, |builder| builder.drain_deadline(None)).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("handler").await;
        if leaves {
            client.close();
        } else {
            client.read_until("hello").await;
        }
        notes.seen("works").await;
        assert!(!notes.has("drains"));
        assert!(server.stop().await.is_clean());
        assert_eq!(notes.all(), ["handler", "works", "drains"]);
    }
}

/// As a probe does, and what begins while it lasts.
#[tokio::test]
async fn a_drain_is_seen_while_it_lasts() {
    async fn ready(State(epilogue): State<Epilogue>, lifecycle: Lifecycle) -> StatusCode {
        let begun = lifecycle.draining().now_or_never().is_some();
        assert_eq!(begun, epilogue.is_draining());
        if begun { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    }
    let gate = Gate::closed();
    let opens = gate.clone();
    let waits = async move || opens.passed().await;
    let app = move |epilogue: &Epilogue| {
        Router::new().route("/ready", get(ready)).route("/waits", get(waits)).with_state(epilogue.clone())
    };
    let mut server = Server::made(|builder| builder.drain_deadline(None), app).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/ready").await.unwrap().status, 200);
    let waiting = client.start("GET", "/waits").await;
    // Asked for before the drain, and before the server hears of it: it is served all the same.
    let epilogue = server.epilogue.clone();
    let begins = epilogue.draining();
    server.begin_drain();
    soon("the drain begins", begins).await;
    assert!(epilogue.is_draining());
    soon("it is told at once", epilogue.draining()).await;
    gate.open();
    assert_eq!(soon("what was under way", waiting).await.unwrap().status(), 200);
    drop(client);
    assert!(server.drained().await.is_clean());
    assert!(!epilogue.is_draining());
}

/// Short ones are not missed; those of before are nobody's any more.
#[tokio::test]
async fn each_is_heard_of_by_those_who_asked_before() {
    let epilogue = Epilogue::new();
    let before = epilogue.draining();
    assert!(epilogue.drain().await.is_clean());
    assert_eq!(before.now_or_never(), Some(()));
    let later = epilogue.draining();
    assert_eq!(later.now_or_never(), None);
}

/// One that is dropped is over, and one of another epilogue is none.
#[tokio::test(start_paused = true)]
async fn where_none_is_nobody_is_told() {
    let (epilogue, gate) = (Epilogue::new(), Gate::closed());
    let opens = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let waits = tokio::time::timeout(Duration::from_secs(60), lifecycle.draining());
        opens.open();
        if waits.await.is_ok() { "drains" } else { "does not" }
    };
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let response = tokio::spawn(app.oneshot(Request::new(Body::empty())));
    gate.passed().await;
    assert!(epilogue.drain().await.is_clean());
    let body = response.await.unwrap().unwrap().into_body();
    assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "does not");
}
