//! tower-http's `CompressionLayer` outside of an early close, which compresses itself or not, and inside.

use axum::{Router, response::IntoResponse, routing::get};
use http::{Method, header};
use tower_epilogue::{Continuation, Lifecycle, LifecycleError};
use tower_http::compression::CompressionLayer;

use crate::{
    ENCODINGS, early_close,
    fetch::{Framing, Version, fetch, request},
    streamed,
    support::{Gate, Notes, Server},
    text,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Compression inside of the early close.
    Within,
    /// The early close does not compress, and tower-http's layer stands outside.
    TheirsOutside,
    /// Both compress.
    Both,
    /// tower-http's layer inside, and the early close measures.
    TheirsInside,
}

const ORDERS: [Order; 4] = [Order::Within, Order::TheirsOutside, Order::Both, Order::TheirsInside];

fn app(order: Order, gate: &Gate, notes: &Notes) -> Router {
    let work = {
        let (gate, notes) = (gate.clone(), notes.clone());
        move || {
            let (gate, notes) = (gate.clone(), notes.clone());
            async move {
                gate.passed().await;
                notes.add("continuation");
            }
        }
    };
    let (known, unknown, finished) = (work.clone(), work.clone(), work);
    let app = Router::new()
        .route("/known", get(async move || (Continuation::new(known()), text(5000)).into_response()))
        .route("/streamed", get(async move || (Continuation::new(unknown()), streamed(&text(5000)))))
        .route(
            "/finished",
            get(async move |lifecycle: Lifecycle| {
                lifecycle.finish(text(5000)).await?;
                finished().await;
                Ok::<_, LifecycleError>(())
            }),
        );
    let (ours, theirs) = (early_close(), CompressionLayer::new());
    match order {
        Order::Within => app.layer(ours.compress()),
        Order::TheirsOutside => app.layer(ours).layer(theirs),
        Order::Both => app.layer(ours.compress()).layer(theirs),
        Order::TheirsInside => app.layer(theirs).layer(ours),
    }
}

#[tokio::test]
async fn every_order_gives_one_encoding_and_then_the_continuation() {
    for order in ORDERS {
        for version in Version::ALL {
            for path in ["/known", "/streamed", "/finished"] {
                for encoding in ENCODINGS {
                    let what = format!("{order:?} {version:?} {path} {encoding}");
                    let (gate, notes) = (Gate::closed(), Notes::default());
                    let server = Server::start(app(order, &gate, &notes)).await;
                    let accept = [(header::ACCEPT_ENCODING, encoding)];
                    let got = fetch(server.address, version, request(Method::GET, path, &accept)).await;
                    assert!(notes.all().is_empty(), "it left before the work was done: {what}");
                    // A finished response starts at the innermost of our services, which here is the outer layer.
                    let encoded = order != Order::TheirsInside || path != "/finished";
                    let encodings: Vec<_> = got.headers.get_all(header::CONTENT_ENCODING).iter().collect();
                    assert_eq!(encodings, if encoded { vec![encoding] } else { vec![] }, "{what}");
                    assert!(got.whole && got.decoded().await == text(5000).as_bytes(), "{what}");
                    match order {
                        Order::TheirsOutside => assert!(!matches!(got.framing, Framing::Length(_)), "{what}"),
                        _ => assert_eq!(got.framing, Framing::Length(got.body.len() as u64), "{what}"),
                    }
                    gate.open();
                    server.journal.ended(1).await;
                    notes.seen("continuation").await;
                    let lines = server.journal.lines();
                    let flushed = format!("flushed:{}/0", got.body.len());
                    let place = |line: &str| lines.iter().position(|other| other == line);
                    assert!(place(&flushed).is_some(), "{what}: {lines:?}");
                    if path != "/finished" {
                        assert!(place(&flushed) < place("continuation_start/0"), "{what}: {lines:?}");
                    }
                    assert_eq!(lines.last().unwrap(), "ended/0", "{what}");
                }
            }
        }
    }
}
