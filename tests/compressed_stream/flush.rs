//! Token by token: the next one is only written after the client has decoded the one before.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt as _;
use tokio::{sync::mpsc, time::Instant};
use tower::ServiceExt;
use tower_epilogue::{CompressedStreamLayer, Lifecycle, Output, OutputError, TimeLimitLayer, compressed_stream::Level};

use super::decode::{Decoded, ENCODINGS, request};
use crate::support::{Server, soon};

const TOKENS: [&str; 6] = ["The", " quick", " brown", " fox", " fox", " fox"];

/// Tokens that a test sends to the handler of its next request.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<Option<mpsc::UnboundedReceiver<&'static str>>>>);

impl Tokens {
    fn sender(&self) -> mpsc::UnboundedSender<&'static str> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.lock().unwrap() = Some(receiver);
        sender
    }

    fn receiver(&self) -> mpsc::UnboundedReceiver<&'static str> {
        self.0.lock().unwrap().take().unwrap()
    }
}

/// Checks that a client decodes each token before the next is there.
async fn each_token_arrives(app: Router, tokens: &Tokens, around: impl Fn(&str) -> String) {
    let server = Server::start(app).await;
    for encoding in ENCODINGS {
        for http2 in [false, true] {
            let sender = tokens.sender();
            let mut client = Decoded::get(server.address, http2, "/", encoding).await;
            assert_eq!((client.status, client.encoding()), (200, encoding));
            for token in TOKENS {
                sender.send(token).unwrap();
                client.expect(&around(token)).await;
            }
            drop(sender);
            assert_eq!(client.rest().await.unwrap(), b"", "{encoding}");
        }
    }
    server.journal.ended(6).await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn what_a_producer_flushes_reaches_the_client() {
    for level in [Level::Fastest, Level::Default, Level::Best] {
        let tokens = Tokens::default();
        let theirs = tokens.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let mut tokens = theirs.receiver();
            lifecycle.output(async move |mut output: Output| {
                while let Some(token) = tokens.recv().await {
                    output.write(token).await?;
                    output.flush().await?;
                }
                Ok::<_, OutputError>(())
            })
        };
        // By its word alone, and not because it pauses.
        let layer = CompressedStreamLayer::new().flush_on_pause(None).level(level);
        each_token_arrives(Router::new().route("/", get(handler)).layer(layer), &tokens, str::to_owned).await;
    }
}

#[tokio::test]
async fn what_any_body_marks_with_an_empty_frame_reaches_the_client() {
    let tokens = Tokens::default();
    let theirs = tokens.clone();
    let handler = async move || {
        let tokens = stream::unfold(theirs.receiver(), async |mut tokens| Some((tokens.recv().await?, tokens)));
        Body::from_stream(tokens.flat_map(|token| stream::iter([token, ""].map(Ok::<_, Infallible>))))
    };
    let layer = CompressedStreamLayer::new().flush_on_pause(None);
    each_token_arrives(Router::new().route("/", get(handler)).layer(layer), &tokens, str::to_owned).await;
}

#[tokio::test]
async fn an_event_stream_reaches_the_client_when_it_pauses() {
    let tokens = Tokens::default();
    let theirs = tokens.clone();
    let handler = async move || {
        let tokens = stream::unfold(theirs.receiver(), async |mut tokens| Some((tokens.recv().await?, tokens)));
        Sse::new(tokens.map(|token| Ok::<_, Infallible>(Event::default().data(token))))
    };
    let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new());
    each_token_arrives(app, &tokens, |token| format!("data: {token}\n\n")).await;
}

/// A body of the handler's own, polled by hand under a paused clock: what comes when.
struct Polled {
    tokens: mpsc::UnboundedSender<&'static str>,
    body: Body,
}

impl Polled {
    async fn new(layer: CompressedStreamLayer, encoding: &str) -> Self {
        let tokens = Tokens::default();
        let sender = tokens.sender();
        let handler = async move || {
            let tokens = stream::unfold(tokens.receiver(), async |mut tokens| Some((tokens.recv().await?, tokens)));
            Body::from_stream(tokens.map(Ok::<_, Infallible>))
        };
        let app = Router::new().route("/", get(handler)).layer(layer);
        let response = app.oneshot(request("/", encoding)).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], encoding);
        Self { tokens: sender, body: response.into_body() }
    }

    /// The bytes that come within `limit`, and after which time the last of them came.
    async fn within(&mut self, limit: Duration) -> (usize, Duration) {
        let began = Instant::now();
        let (mut bytes, mut last) = (0, Duration::ZERO);
        let all = async {
            loop {
                let next = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
                bytes += next.unwrap().unwrap().into_data().unwrap().len();
                last = began.elapsed();
            }
        };
        let _: Result<(), _> = tokio::time::timeout(limit, all).await;
        (bytes, last)
    }
}

#[tokio::test(start_paused = true)]
async fn the_pause_before_a_flush_is_a_setting() {
    let (hour, pause) = (Duration::from_secs(3600), Duration::from_millis(50));
    for encoding in ENCODINGS {
        // Whatever an encoder says first, before it was flushed.
        let mut never = Polled::new(CompressedStreamLayer::new().flush_on_pause(None), encoding).await;
        never.tokens.send("token").unwrap();
        let (unflushed, _) = never.within(hour).await;
        assert!(unflushed <= 10, "{encoding}: {unflushed} bytes without a flush");
        never.tokens.send("").unwrap();
        assert!(never.within(hour).await.0 > 5, "{encoding}: its word is enough");

        let mut at_once = Polled::new(CompressedStreamLayer::new(), encoding).await;
        at_once.tokens.send("token").unwrap();
        let (bytes, after) = at_once.within(hour).await;
        assert!(bytes > 5 && after.is_zero(), "{encoding}: {bytes} bytes after {after:?}");
        assert_eq!(at_once.within(hour).await.0, 0, "{encoding}: a pause is flushed once");

        let mut later = Polled::new(CompressedStreamLayer::new().flush_on_pause(pause), encoding).await;
        later.tokens.send("token").unwrap();
        assert!(later.within(pause / 2).await.0 <= 10, "{encoding}: not yet");
        later.tokens.send("token").unwrap();
        let (bytes, after) = later.within(hour).await;
        // The second token began the pause anew.
        assert!(bytes > 5 && (pause..pause * 2).contains(&after), "{encoding}: {bytes} bytes after {after:?}");
    }
}

/// Each would cost its client some bytes.
#[tokio::test]
async fn a_flush_of_nothing_gives_nothing() {
    for encoding in ENCODINGS {
        let marked = async || Body::from_stream(stream::iter(["", "token", "", "", ""].map(Ok::<_, Infallible>)));
        let app = Router::new().route("/", get(marked)).layer(CompressedStreamLayer::new().flush_on_pause(None));
        let mut body = app.oneshot(request("/", encoding)).await.unwrap().into_body();
        let mut frames = 0;
        while let Some(frame) = body.frame().await {
            frame.unwrap();
            frames += 1;
        }
        assert_eq!(frames, 2, "{encoding}: what was flushed, and the end");
    }
}

/// A producer that finds nothing more among much, and has its task's turn used up whenever it waits: tokio's timers wait
/// then, too.
#[tokio::test]
async fn a_pause_that_uses_up_every_turn_is_a_pause() {
    let handler = async || {
        let searches = stream::once(async {
            loop {
                tokio::task::coop::consume_budget().await;
            }
            #[expect(unreachable_code, reason = "it tells of what nothing is found")]
            Ok::<_, Infallible>("")
        });
        Body::from_stream(stream::iter([Ok("token")]).chain(searches))
    };
    let layer = CompressedStreamLayer::new().flush_on_pause(Duration::from_millis(20));
    let server = Server::start(Router::new().route("/", get(handler)).layer(layer)).await;
    // On HTTP/1 the server writes in the same turn, and has none.
    Decoded::get(server.address, true, "/", "gzip").await.expect("token").await;
}

/// It compresses to nearly nothing and is never pending: the others on its thread, and its own limit, have their turn.
#[tokio::test]
async fn a_stream_that_only_repeats_itself_lets_its_limit_end_it() {
    for (encoding, size) in ENCODINGS.into_iter().flat_map(|encoding| [(encoding, 16 * 1024), (encoding, 0)]) {
        let endless = async move || Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(vec![0; size])));
        let app = Router::new()
            .route("/", get(endless))
            .layer((CompressedStreamLayer::new(), TimeLimitLayer::new(Duration::from_millis(200))));
        let server = Server::start(app).await;
        let client = Decoded::get(server.address, false, "/", encoding).await;
        assert!(client.rest().await.is_err(), "{encoding}, {size}: what was cut does not look whole");
        server.journal.ended(1).await;
        assert!(server.journal.lines().last().unwrap() == "ended/2", "{encoding}, {size}");
    }
}

/// A linear congruence: nothing repeats.
fn noise(length: u32) -> Vec<u8> {
    (0..length)
        .scan(1_u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 24) as u8)
        })
        .collect()
}

/// A piece may be a whole file. It is not compressed in one poll, in which its thread does nothing else, and what came of it
/// does not wait for a slow reader all at once.
#[tokio::test]
async fn a_large_piece_is_compressed_as_it_is_read() {
    let whole = noise(3_000_000);
    for encoding in ENCODINGS {
        let theirs = whole.clone();
        let handler = async move || Body::from_stream(stream::iter([Ok::<_, Infallible>(theirs), Ok(b"end".to_vec())]));
        let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new());
        let (parts, mut body) = app.oneshot(request("/", encoding)).await.unwrap().into_parts();
        let (mut compressed, mut polls) = (Vec::new(), 0);
        let frames = std::future::poll_fn(|cx| {
            polls += 1;
            while let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                polls += 1;
                let Some(frame) = frame else { return Poll::Ready(()) };
                compressed.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
            Poll::Pending
        });
        soon("the end", frames).await;
        assert!(polls > 20, "{encoding}: in {polls} polls");
        let read = Decoded::of(Response::from_parts(parts, Body::from(compressed))).rest().await.unwrap();
        assert!(read == [&whole[..], b"end"].concat(), "{encoding}");
    }
}

/// What an encoder keeps to find more repetitions in takes memory, for each stream, and time, for its client.
#[tokio::test]
async fn an_encoder_keeps_no_more_than_a_part_of_a_long_stream() {
    const PIECE: usize = 50_000;
    for encoding in ENCODINGS {
        let taken = Arc::new(AtomicUsize::new(0));
        let theirs = taken.clone();
        let handler = async move || {
            let pieces = noise(4_000_000);
            let pieces: Vec<_> = pieces.chunks(PIECE).map(<[u8]>::to_vec).collect();
            let counted = move |piece: Vec<u8>| {
                theirs.fetch_add(piece.len(), Ordering::Relaxed);
                Ok::<_, Infallible>(piece)
            };
            Body::from_stream(stream::iter(pieces).map(counted))
        };
        let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new().flush_on_pause(None));
        let mut body = app.oneshot(request("/", encoding)).await.unwrap().into_body();
        let (mut given, mut most) = (0, 0);
        while let Some(frame) = soon("a frame", body.frame()).await {
            // Noise does not get smaller: what has not come out is kept.
            most = most.max(taken.load(Ordering::Relaxed) - given);
            given += frame.unwrap().into_data().unwrap().len();
        }
        assert!(most < 700_000, "{encoding}: {most} bytes were kept");
    }
}

/// It is taken for each stream that is open, and an event stream may be open for hours.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_best_level_has_no_table_of_many_megabytes() {
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let handler = async || Body::from_stream(stream::iter([Ok::<_, Infallible>("token")]).chain(stream::pending()));
    let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new().level(Level::Best));
    for encoding in ENCODINGS {
        let (before, mut open) = (resident(), Vec::new());
        for _ in 0..6 {
            let mut client = Decoded::of(app.clone().oneshot(request("/", encoding)).await.unwrap());
            client.expect("token").await;
            open.push(client);
        }
        // Other tests run beside this one.
        let each = resident().saturating_sub(before) / open.len();
        assert!(each < 40 << 20, "{encoding}: {each} bytes for each stream");
    }
}

#[tokio::test]
async fn large_and_incompressible_bodies_come_through_whole() {
    let noise = noise(300_000);
    let text = "a line that repeats itself\n".repeat(40_000).into_bytes();
    for whole in [noise, text, b"x".to_vec()] {
        for size in [1, 7_000, 1_000_000].into_iter().filter(|size| whole.len() / size < 1_000) {
            let theirs = whole.clone();
            let handler = async move || {
                let chunks: Vec<_> = theirs.chunks(size).map(|chunk| Ok::<_, Infallible>(chunk.to_vec())).collect();
                Body::from_stream(stream::iter(chunks)).into_response()
            };
            let server =
                Server::start(Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new())).await;
            for encoding in ENCODINGS {
                for http2 in [false, true] {
                    let client = Decoded::get(server.address, http2, "/", encoding).await;
                    assert_eq!(client.encoding(), encoding);
                    let read = soon("the whole body", client.rest()).await.unwrap();
                    assert!(read == whole, "{encoding}: {} bytes in chunks of {size}", whole.len());
                }
            }
        }
    }
}
