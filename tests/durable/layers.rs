//! The layer keeps its promise wherever it stands among the others (contract rule 12).

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use tokio::io::AsyncReadExt as _;
use tower_epilogue::{
    EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Node, Place, Task, on_both, request},
    support::{Client, soon},
};

on_both!(
    every_order_of_the_layers_gives_the_same,
    beside_the_layers_of_tower_http,
    what_streams_behind_the_limit_is_no_answer_for_good,
);

async fn handler(name: String) -> (StatusCode, Durable, &'static str) {
    (StatusCode::ACCEPTED, Durable::new(Task::ok(name)), "accepted")
}

/// All orders of so many.
fn orders(of: usize) -> Vec<Vec<usize>> {
    if of == 0 {
        return vec![vec![]];
    }
    let longer = |shorter: Vec<usize>| {
        (0..of).map(move |place| {
            let mut order = shorter.clone();
            order.insert(place, of - 1);
            order
        })
    };
    orders(of - 1).into_iter().flat_map(longer).collect()
}

fn layered(router: Router, layer: usize, store: &DurableStore) -> Router {
    match layer {
        0 => router.layer(store.layer()),
        1 => router.layer(EarlyCloseLayer::new()),
        2 => router.layer(IgnoreAbortLayer::new()),
        3 => router.layer(TimeLimitLayer::new(Duration::from_secs(60))),
        _ => router.layer(ShutdownHookLayer::new(|_| async {})),
    }
}

async fn every_order_of_the_layers_gives_the_same(place: Place) {
    let orders = orders(5);
    assert_eq!(orders.len(), 120);
    let node = Node::start(&place, |store| {
        orders.iter().enumerate().fold(Router::new(), |app, (number, order)| {
            let router = Router::new().route("/", post(handler));
            let router = order.iter().fold(router, |router, layer| layered(router, *layer, store));
            app.nest(&format!("/{number}"), router)
        })
    })
    .await;
    for (number, order) in orders.iter().enumerate() {
        let key = format!("key {number}");
        for again in [false, true] {
            let reply = node.post(&format!("/{number}"), &[("Idempotency-Key", &key)], &format!("job {number}")).await;
            assert_eq!((reply.status, reply.text().as_str()), (202, "accepted"), "{order:?}");
            assert_eq!(reply.header("connection"), Some("close"), "{order:?}");
            assert_eq!(reply.header("idempotency-replayed").is_some(), again, "{order:?}");
        }
    }
    node.completed(120).await;
    assert_eq!(node.record.runs().len(), 120);
    assert!(node.stop().await.is_clean());
}

/// The first answer computes past its limit. Its job is stored all the same, and who asks again is not told for ever that
/// there was no time, and the job runs once.
async fn what_streams_behind_the_limit_is_no_answer_for_good(place: Place) {
    let handler = async |lifecycle: Lifecycle, headers: HeaderMap, name: String| {
        let is_first = !headers.contains_key("again");
        while is_first && lifecycle.time_left() != Some(Duration::ZERO) {}
        let never_ends = futures_util::stream::pending::<Result<&str, std::io::Error>>();
        let body = if is_first { Body::from_stream(never_ends) } else { Body::from("again") };
        (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
    };
    let limit = TimeLimitLayer::new(Duration::from_millis(30));
    let node =
        Node::start(&place, |store| Router::new().route("/", post(handler)).layer(limit).layer(store.layer())).await;
    for number in 0..20 {
        let (key, name) = (format!("key {number}"), format!("job {number}"));
        let mut client = Client::connect(node.address).await;
        client.send(&request("/", &[("Idempotency-Key", &key)], &name)).await;
        let mut bytes = Vec::new();
        let _ = soon("the end", client.stream.read_to_end(&mut bytes)).await;
        assert!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&bytes));
        node.record.begun(&name, 1).await;
        let again = node.post_again("/", &[("Idempotency-Key", &key), ("again", "1")], &name).await;
        assert_eq!(again.status, 201, "{name}");
        node.record.begun(&name, 1).await;
    }
    node.completed(20).await;
    assert_eq!(node.record.runs().len(), 20);
}

async fn beside_the_layers_of_tower_http(place: Place) {
    use tower_http::{
        catch_panic::CatchPanicLayer, compression::CompressionLayer, timeout::TimeoutLayer, trace::TraceLayer,
    };
    let timeout = || TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(60));
    let node = Node::start(&place, |store| {
        let inside = Router::new().route("/", post(handler)).layer(store.layer()).layer((
            TraceLayer::new_for_http(),
            CompressionLayer::new(),
            timeout(),
            CatchPanicLayer::new(),
        ));
        let outside = Router::new()
            .route("/", post(handler))
            .layer((TraceLayer::new_for_http(), CompressionLayer::new(), timeout(), CatchPanicLayer::new()))
            .layer(store.layer());
        Router::new().nest("/inside", inside).nest("/outside", outside)
    })
    .await;
    for path in ["/inside", "/outside"] {
        let reply = node.post(path, &[], path).await;
        assert_eq!((reply.status, reply.text().as_str()), (202, "accepted"));
        node.record.begun(path, 1).await;
    }
    node.completed(2).await;
}
