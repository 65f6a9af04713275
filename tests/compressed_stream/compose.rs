//! Among the other layers, and beside tower-http's compression.

use axum::{Router, routing::get};
use http::Method;
use tower::ServiceExt;
use tower_epilogue::{
    CompressedStreamLayer, Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, Output, OutputError,
};
use tower_http::compression::CompressionLayer;

use super::decode::{Decoded, ENCODINGS, ask, request};
use crate::support::{Gate, Notes, Server, soon, streamed};

type Stack = fn(Router, CompressedStreamLayer, CompressionLayer, EarlyCloseLayer) -> Router;

/// A continuation starts after the last compressed byte, whichever layers stand around.
#[tokio::test]
async fn a_continuation_waits_for_the_last_compressed_byte() {
    let route = |notes: &Notes| {
        let notes = notes.clone();
        let handler = async move || {
            let work = Continuation::new(async move { notes.add("continued") });
            (work, streamed(&["some", " ", "text"]))
        };
        Router::new().route("/", get(handler))
    };
    let (ours, theirs, close) = (CompressedStreamLayer::new(), CompressionLayer::new(), EarlyCloseLayer::new());
    let stacks: [(&str, Stack); 6] = [
        ("ours", |app, ours, _: CompressionLayer, _: EarlyCloseLayer| app.layer(ours)),
        ("theirs outside", |app, ours: CompressedStreamLayer, theirs, _| app.layer(ours).layer(theirs)),
        ("theirs inside", |app, ours, theirs, _| app.layer(theirs).layer(ours)),
        ("close outside", |app, ours, _, close| app.layer(ours).layer(close)),
        ("close inside", |app, ours, _, close| app.layer(close).layer(ours)),
        ("all", |app, ours, theirs, close| app.layer(ours).layer(theirs).layer(close).layer(IgnoreAbortLayer::new())),
    ];
    for (name, stack) in stacks {
        for encoding in ENCODINGS {
            for http2 in [false, true] {
                let notes = Notes::default();
                let server = Server::start(stack(route(&notes), ours, theirs.clone(), close.clone())).await;
                let client = Decoded::get(server.address, http2, "/", encoding).await;
                // What is measured inside of ours has a known length.
                let expected = if name == "close inside" { "" } else { encoding };
                assert_eq!(client.encoding(), expected, "{name}");
                assert_eq!(
                    client.headers.get_all("content-encoding").iter().count(),
                    usize::from(!expected.is_empty())
                );
                assert_eq!(client.rest().await.unwrap(), b"some text", "{name}, {encoding}, http2: {http2}");
                server.journal.ended(1).await;
                assert_eq!(notes.all(), ["continued"], "{name}, {encoding}, http2: {http2}");
                let lines = server.journal.lines();
                let at = |event: &str| lines.iter().position(|line| line.starts_with(event)).unwrap();
                assert!(at("flushed") < at("continuation_start"), "{name}: {lines:?}");
            }
        }
    }
}

/// It is the innermost layer, and the response of `finish` still passes through it.
#[tokio::test]
async fn a_finished_response_is_compressed_as_well() {
    let gate = Gate::closed();
    let theirs = gate.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let _ = lifecycle.finish(streamed(&["some", " text"])).await;
        theirs.passed().await;
    };
    let server = Server::start(Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new())).await;
    let client = Decoded::get(server.address, false, "/", "gzip").await;
    assert_eq!(client.encoding(), "gzip");
    assert_eq!(client.rest().await.unwrap(), b"some text");
    gate.open();
    server.journal.ended(1).await;
}

#[tokio::test]
async fn a_producer_whose_reader_left_runs_on_where_that_is_ignored() {
    for encoding in ENCODINGS {
        for ignored in [false, true] {
            for http2 in [false, true] {
                let (notes, gate) = (Notes::default(), Gate::closed());
                let (theirs, opens) = (notes.clone(), gate.clone());
                let handler = async move |lifecycle: Lifecycle| {
                    lifecycle.output(async move |mut output: Output| {
                        let _dropped = theirs.on_drop("dropped");
                        output.write("first").await?;
                        output.flush().await?;
                        opens.passed().await;
                        output.write("second").await?;
                        output.finish().await?;
                        theirs.add("finished");
                        Ok::<_, OutputError>(())
                    })
                };
                let layer = if ignored { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
                let app = Router::new().route("/", get(handler)).layer(CompressedStreamLayer::new()).layer(layer);
                let server = Server::start(app).await;
                let mut client =
                    Decoded::of(soon("the head", ask(server.address, http2, request("/", encoding))).await);
                client.expect("first").await;
                drop(client);
                server.journal.seen("aborted").await;
                if !ignored {
                    notes.seen("dropped").await;
                }
                gate.open();
                server.journal.ended(1).await;
                let expected: &[_] = if ignored { &["finished", "dropped"] } else { &["dropped"] };
                assert_eq!(notes.all(), expected, "{encoding}, ignored: {ignored}");
            }
        }
    }
}

/// The flush of what an early close held back is done when that leaves.
#[tokio::test(start_paused = true)]
async fn a_flush_passes_an_early_close_that_has_no_patience_left() {
    for encoding in ENCODINGS {
        let gate = Gate::closed();
        let theirs = gate.clone();
        let handler = async move |lifecycle: Lifecycle| {
            lifecycle.output(async move |mut output: Output| {
                output.write("first").await?;
                output.flush().await?;
                theirs.passed().await;
                output.write("second").await
            })
        };
        let layer = CompressedStreamLayer::new().flush_on_pause(None);
        let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new()).layer(layer);
        let response = app.oneshot(request("/", encoding)).await.unwrap();
        let mut client = Decoded::of(response);
        assert_eq!(client.encoding(), encoding);
        client.expect("first").await;
        gate.open();
        assert_eq!(client.rest().await.unwrap(), b"second");
    }
}

#[tokio::test]
async fn of_several_the_innermost_decides() {
    let none = CompressedStreamLayer::new().gzip(false).br(false).zstd(false);
    let routes = Router::new()
        .route("/plain", get(async || streamed(&["some", " text"])).layer(none))
        .route("/gzip", get(async || streamed(&["some", " text"])).layer(none.gzip(true)))
        .route("/any", get(async || streamed(&["some", " text"])));
    let app = routes.layer(IgnoreAbortLayer::off()).layer(CompressedStreamLayer::new());
    for (path, accepts, encoding) in [
        ("/plain", "gzip, br, zstd", ""),
        ("/gzip", "gzip, br, zstd", "gzip"),
        ("/gzip", "br, zstd", ""),
        ("/any", "br", "br"),
    ] {
        let client = Decoded::of(app.clone().oneshot(request(path, accepts)).await.unwrap());
        assert_eq!(client.encoding(), encoding, "{path} for {accepts}");
        assert_eq!(client.rest().await.unwrap(), b"some text", "{path} for {accepts}");
    }
}

/// It is measured by an early close outside as its `GET` is, which has the length of the compressed bytes.
#[tokio::test]
async fn head_declares_the_length_that_its_get_has() {
    for encoding in ENCODINGS {
        for early_close in [EarlyCloseLayer::new(), EarlyCloseLayer::new().buffer_limit(100)] {
            let app = Router::new().route("/", get(async || streamed(&["a line that repeats itself\n"; 300])));
            let app = app.layer(CompressedStreamLayer::new()).layer(early_close);
            let mut heads = Vec::new();
            for method in [Method::GET, Method::HEAD] {
                let mut request = request("/", encoding);
                *request.method_mut() = method;
                let response = soon("a response", app.clone().oneshot(request)).await.unwrap();
                assert_eq!(response.headers()["content-encoding"], encoding);
                heads.push(response.headers().clone());
            }
            assert_eq!(heads[0], heads[1], "{encoding}");
        }
    }
}
