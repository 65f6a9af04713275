//! How long a body is held back: under a paused clock, on connections in memory.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use futures_util::{FutureExt, StreamExt, stream};
use http::Request;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_epilogue::{EarlyCloseLayer, TimeLimitLayer};

use crate::support::MemoryServer;

/// "part" after each of these many milliseconds.
fn paced(pauses: &'static [u64]) -> Body {
    Body::from_stream(stream::iter(pauses.iter().enumerate()).then(async |(number, pause)| {
        sleep(Duration::from_millis(*pause)).await;
        Ok::<_, std::io::Error>(format!("part {number}\n"))
    }))
}

fn app(pauses: &'static [u64], layer: EarlyCloseLayer) -> Router {
    Router::new().route("/", get(async move || paced(pauses))).layer(layer)
}

#[tokio::test(start_paused = true)]
async fn what_comes_within_the_patience_is_measured() {
    let server = MemoryServer::start(app(&[300, 300, 300], EarlyCloseLayer::new()));
    let began = Instant::now();
    let reply = server.get("/").await;
    assert_eq!(began.elapsed(), Duration::from_millis(900));
    assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("21"), "part 0\npart 1\npart 2\n"));
}

#[tokio::test(start_paused = true)]
async fn past_the_patience_what_was_held_back_leaves_and_the_rest_follows() {
    let server = MemoryServer::start(app(&[300, 1000, 1000], EarlyCloseLayer::new()));
    let began = Instant::now();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let first = client.read_until("part 0\n").await;
    assert!(first.contains("transfer-encoding: chunked"), "{first}");
    assert!(first.contains("connection: close"), "{first}");
    assert_eq!(began.elapsed(), Duration::from_secs(1), "the default patience, from the head on");
    let rest = client.reply().await;
    assert_eq!(began.elapsed(), Duration::from_millis(2300));
    // Nothing was lost, and nothing sent twice.
    let all = format!("{first}{}{}", rest.head, rest.text());
    assert_eq!(["part 0", "part 1", "part 2"].map(|part| all.matches(part).count()), [1, 1, 1], "{all}");
    assert!(all.ends_with("\r\n0\r\n\r\n"), "{all}");
}

#[tokio::test(start_paused = true)]
async fn without_patience_only_what_is_there_at_once_is_measured() {
    let layer = EarlyCloseLayer::new().patience(Duration::ZERO);
    let server = MemoryServer::start(app(&[1], layer.clone()));
    assert_eq!(server.get("/").await.header("transfer-encoding"), Some("chunked"));

    // More pieces than are taken in one turn, and all of them there.
    let many = Router::new().route(
        "/",
        get(async || Body::from_stream(stream::iter((0..1000).map(|_| Ok::<_, std::io::Error>("0123456789"))))),
    );
    let reply = MemoryServer::start(many.layer(layer)).get("/").await;
    assert_eq!((reply.header("content-length"), reply.body.len()), (Some("10000"), 10_000));
}

/// A body of no bytes and no end, which is always ready, holds up neither the server nor its client for longer.
#[tokio::test]
async fn an_endless_body_of_nothing_is_held_back_no_longer_than_the_patience() {
    let nothing = async || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>("")));
    let app = Router::new().route("/", get(nothing)).route("/ping", get(async || "pong")).layer((
        EarlyCloseLayer::new().patience(Duration::from_millis(20)),
        TimeLimitLayer::new(Duration::from_secs(10)),
    ));
    let server = crate::support::Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(server.get("/ping").await.text(), "pong", "on the same thread");
    client.read_until("transfer-encoding: chunked").await;
}

/// Frames without a byte are nothing that is there at once, however many there are.
#[tokio::test]
async fn an_endless_body_of_nothing_is_not_held_back_without_patience() {
    let nothing = async || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>("")));
    let layer = EarlyCloseLayer::new().patience(Duration::ZERO);
    let server = crate::support::Server::start(Router::new().route("/", get(nothing)).layer(layer)).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.read_until("transfer-encoding: chunked").await;
}

/// One that finds nothing among much, and has its task's turn used up whenever it waits: tokio's timers wait then, too.
#[tokio::test]
async fn a_body_that_uses_up_every_turn_is_held_back_no_longer_than_the_patience() {
    let searches = async || {
        Body::from_stream(stream::once(async {
            loop {
                tokio::task::coop::consume_budget().await;
            }
            #[expect(unreachable_code, reason = "it tells of what nothing is found")]
            Ok::<_, std::io::Error>("")
        }))
    };
    for patience in [Duration::ZERO, Duration::from_millis(20)] {
        let app = Router::new().route("/", get(searches)).layer(EarlyCloseLayer::new().patience(patience));
        let server = crate::support::Server::start(app).await;
        // On HTTP/1 the server writes in the same turn, and has none.
        let mut client = crate::support::h2client::Http2::connect(server.address).await;
        let head = crate::support::soon("the head", client.start("GET", "/").await).await.unwrap();
        assert_eq!(head.headers().get("content-length"), None, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_in_a_body_that_is_held_back_is_a_503() {
    let layers =
        (TimeLimitLayer::new(Duration::from_secs(2)), EarlyCloseLayer::new().patience(Duration::from_secs(60)));
    for method in ["GET", "HEAD"] {
        let app = Router::new().route("/", get(async || paced(&[5000]))).layer(layers.clone());
        let server = MemoryServer::start(app);
        let began = Instant::now();
        let mut client = server.connect();
        client.send(&format!("{method} / HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (503, Some("close")), "{method}");
        assert_eq!(began.elapsed(), Duration::from_secs(2), "{method}");
        server.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/2", "{method}");
    }
}

/// That of a `HEAD`, too, which nothing but its measuring reads.
#[tokio::test(start_paused = true)]
async fn the_busy_time_of_a_body_that_is_held_back_counts_without_a_server_of_ours() {
    let layers =
        (TimeLimitLayer::busy(Duration::from_secs(2)), EarlyCloseLayer::new().patience(Duration::from_secs(60)));
    // Each part is computed for so long, on the paused clock.
    let computes = async || {
        let parts = stream::iter(0..20).then(async |_| {
            let _ = tokio::time::advance(Duration::from_millis(300)).now_or_never();
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>("part\n")
        });
        Body::from_stream(parts)
    };
    for method in ["GET", "HEAD"] {
        let app = Router::new().route("/", get(computes)).layer(layers.clone());
        let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
        assert_eq!(app.oneshot(request).await.unwrap().status(), 503, "{method}");
    }
}

/// What has used up its task's turn is told to wait by tokio, whatever is there.
#[tokio::test]
async fn without_patience_a_used_up_turn_is_no_pause() {
    let handler = async || {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        for part in ["all ", "of ", "it"] {
            sender.send(Ok::<_, std::io::Error>(part)).unwrap();
        }
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver))
    };
    let layer = EarlyCloseLayer::new().patience(Duration::ZERO);
    let reply = MemoryServer::start(Router::new().route("/", get(handler)).layer(layer)).get("/").await;
    assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("9"), "all of it"));
}
