//! Producers that outlive their reader: to their end, and no further than their limits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

#[allow(dead_code, unreachable_pub, reason = "its `main` is not ours")]
#[path = "../examples/llm_stream.rs"]
mod llm_stream;

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, routing::get};
use futures_util::{StreamExt, stream};
use llm_stream::{Answers, model};
use support::{Gate, Notes, Server, h2client::Http2, logs};
use tower_epilogue::{EarlyCloseLayer, HalfClose, IgnoreAbortLayer, TimeLimitLayer, Tracking};

/// The showcase: a reader that leaves half-way, and the whole answer in SQLite.
#[tokio::test]
async fn the_answer_whose_reader_left_half_way_is_stored_whole() {
    for leaves in ["not", "closes", "resets", "drops its stream"] {
        let answers = Answers::open(":memory:").await.unwrap();
        let half_way = Gate::closed();
        let gate = half_way.clone();
        let ask = move || {
            let gate = gate.clone();
            let (first, rest) = (model(Duration::ZERO).take(5), model(Duration::ZERO).skip(5));
            let pause = stream::once(async move { gate.passed().await }).filter_map(async |()| None);
            first.chain(pause).chain(rest)
        };
        let server = Server::start(llm_stream::app(answers.clone(), ask)).await;
        let path = "/ask?question=why";
        let mut http2 = None;
        if leaves == "drops its stream" {
            let client = http2.insert(Http2::connect(server.address).await);
            let mut body = client.start("GET", path).await.await.unwrap().into_body();
            let mut read = Vec::new();
            while !String::from_utf8_lossy(&read).contains("closes") {
                read.extend(body.data().await.unwrap().unwrap());
            }
            drop(body);
        } else {
            let mut client = server.connect().await;
            client.send_get(path).await;
            client.read_until("closes").await;
            match leaves {
                "closes" => client.close(),
                "resets" => client.reset(),
                _ => {
                    half_way.open();
                    client.read_until("event: end\ndata: stored").await;
                }
            }
        }
        if leaves != "not" {
            server.journal.seen("aborted").await;
            assert!(answers.all().await.unwrap().is_empty(), "nothing is stored half-way");
        }
        half_way.open();
        server.journal.ended(1).await;
        let stored = answers.all().await.unwrap();
        let whole = model(Duration::ZERO).collect::<String>().await;
        assert_eq!(stored.len(), 1, "{leaves}");
        assert_eq!((&stored[0].answer, stored[0].read_to_its_end), (&whole, leaves == "not"), "{leaves}");
        drop(http2);
        assert!(server.stop().await.is_clean(), "{leaves}");
    }
}

/// An app whose body gives its first chunk and then `rest`, with aborts ignored.
fn ignoring<S>(rest: impl Fn() -> S + Clone + Send + Sync + 'static, limit: Duration) -> Router
where
    S: futures_util::Stream<Item = Result<&'static str, std::io::Error>> + Send + 'static,
{
    let handler = async move || Body::from_stream(stream::once(async { Ok("first") }).chain(rest()));
    Router::new().route("/", get(handler)).layer((IgnoreAbortLayer::new(), TimeLimitLayer::new(limit)))
}

async fn read_and_left(server: &Server) {
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("first").await;
    client.reset();
    server.journal.seen("aborted").await;
}

/// Nobody's pace holds it up, and it is never pending: on the only thread there is.
#[tokio::test]
async fn an_endless_producer_without_a_reader_is_ended_by_its_limit() {
    let gate = Gate::closed();
    let opens = gate.clone();
    let endless = move || {
        let gate = opens.clone();
        let wait = stream::once(async move { gate.passed().await }).filter_map(async |()| None);
        wait.chain(stream::repeat_with(|| Ok("again")))
    };
    let server = Server::start(ignoring(endless, Duration::from_millis(100))).await;
    read_and_left(&server).await;
    gate.open();
    server.journal.ended(1).await;
    let lines = server.journal.lines();
    assert!(lines.contains(&"body_dropped/3".to_owned()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "ended/3");
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_drain_waits_for_a_producer_without_a_reader_and_cuts_it_at_its_deadline() {
    for opens in [true, false] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, held) = (notes.clone(), gate.clone());
        let rest = move || {
            let (notes, gate) = (theirs.clone(), held.clone());
            stream::once(async move {
                let _dropped = notes.on_drop("dropped");
                gate.passed().await;
                notes.add("to its end");
                Ok("second")
            })
        };
        let deadline = Duration::from_millis(if opens { 10_000 } else { 50 });
        let app = ignoring(rest, Duration::ZERO);
        let mut server = Server::with(app, |builder| builder.drain_deadline(deadline)).await;
        read_and_left(&server).await;
        server.begin_drain();
        if opens {
            gate.open();
        }
        let report = server.drained().await;
        assert_eq!(report.is_clean(), opens, "{report}");
        assert_eq!(report.to_string().contains("GET /"), !opens, "{report}");
        let expected: &[_] = if opens { &["to its end", "dropped"] } else { &["dropped"] };
        assert_eq!(notes.all(), expected);
    }
}

#[tokio::test]
async fn a_producer_that_fails_without_a_reader_is_logged() {
    let logs = logs();
    let gate = Gate::closed();
    let opens = gate.clone();
    let fails = move || {
        let gate = opens.clone();
        stream::once(async move {
            gate.passed().await;
            Err(std::io::Error::other("the model broke down unread"))
        })
    };
    let server = Server::start(ignoring(fails, Duration::ZERO)).await;
    read_and_left(&server).await;
    gate.open();
    server.journal.ended(1).await;
    let logged = logs.with("the model broke down unread");
    assert!(logged.iter().any(|line| line.contains("WARN") && line.contains("GET /")), "{logged:?}");
}

/// One that gives nothing, and always at once, lets others have their turn: its limit for one.
#[tokio::test]
async fn a_producer_of_nothing_is_ended_by_its_limit() {
    let nothing = async || Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>("")));
    let limit = TimeLimitLayer::new(Duration::from_millis(50));
    let app = Router::new()
        .route("/", get(nothing))
        .merge(Router::new().route("/measured", get(nothing)).layer(EarlyCloseLayer::new()))
        .layer(limit);
    for path in ["/", "/measured"] {
        let server = Server::start(app.clone()).await;
        let mut client = server.connect().await;
        client.send_get(path).await;
        assert_eq!(client.reply().await.dechunked(), None, "{path}: what was cut does not look whole");
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/2", "{path}");
    }
}

/// An app whose body is so many pieces, which are more than the windows of an HTTP/2 client take; half of them before
/// the gate.
fn wide(notes: &Notes, gate: &Gate, before: usize, after: usize) -> Router {
    let (notes, gate) = (notes.clone(), gate.clone());
    let handler = async move || {
        let pieces = |count| stream::repeat_with(|| Ok::<_, Infallible>("x".repeat(16 * 1024))).take(count);
        let wait = stream::once(async move { gate.passed().await }).filter_map(async |()| None);
        let told = stream::once(async move { notes.add("produced") }).filter_map(async |()| None);
        let first = stream::iter([Ok("first".to_owned())]);
        Body::from_stream(first.chain(pieces(before)).chain(wait).chain(pieces(after)).chain(told))
    };
    Router::new().route("/", get(handler))
}

/// Reads so many bytes, widens no window, and leaves.
async fn read_within_its_windows(server: &Server, bytes: usize) {
    let mut client = Http2::connect(server.address).await;
    let mut body = client.start("GET", "/").await.await.unwrap().into_body();
    let mut read = 0;
    while read < bytes {
        read += body.data().await.unwrap().unwrap().len();
    }
    client.abort();
    drop(body);
}

/// Behind them nothing is written any more that could tell that nobody is there.
#[tokio::test]
async fn a_client_that_left_behind_full_windows_holds_no_producer_up() {
    for (before, after, read) in [(10, 0, 65_535), (0, 10, 5)] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = Server::start(wide(&notes, &gate, before, after).layer(IgnoreAbortLayer::new())).await;
        read_within_its_windows(&server, read).await;
        server.journal.seen("aborted").await;
        gate.open();
        notes.seen("produced").await;
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/1");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn behind_full_windows_a_client_has_left_also_where_it_may_close_its_half() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let tracking = Tracking::default().half_close(HalfClose::Serve);
    let server = Server::with(wide(&notes, &gate, 10, 0), |builder| builder.tracking(tracking)).await;
    read_within_its_windows(&server, 65_535).await;
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines()[2..], ["aborted/1", "body_dropped/1", "ended/1"]);
    assert!(server.stop().await.is_clean());
}
