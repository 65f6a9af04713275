//! A middleware between the durable layer and what goes on behind it, when its client has left and that is ignored.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::post,
};
use tokio::sync::Notify;
use tower_epilogue::{
    EarlyCloseLayer, IgnoreAbortLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Act, Node, Place, Task, on_both, request},
    on_its_way::{Told, in_pieces},
    support::Client,
};

on_both!(who_asks_again_meanwhile_has_it_done_once, two_attempts_promise_the_same,);

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

/// Asks, and leaves when that is on its way, though it reads on.
async fn leaves(node: &Node, told: &Told) -> Client {
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &KEY, "it")).await;
    told.until(1).await;
    client.half_close().await;
    node.journal.seen("aborted").await;
    client
}

/// The middleware has no patience with a handler, or with a response that is held back.
async fn who_asks_again_meanwhile_has_it_done_once(place: Place) {
    for held in [false, true] {
        let place = if let Place::Sqlite(_) = place { Place::sqlite() } else { Place::postgres() };
        let (told, over) = (Told::new(), Arc::new(Notify::new()));
        let (theirs, is_over) = (told.clone(), over.clone());
        let handler = async move |name: String| {
            let body = if held {
                in_pieces(theirs)
            } else {
                theirs.held_back().await;
                Body::from("ab")
            };
            (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
        };
        let impatient = from_fn(move |request: Request<Body>, next: Next| {
            let over = is_over.clone();
            async move {
                tokio::select! {
                    response = next.run(request) => response,
                    () = over.notified() => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
        });
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new());
            inside.layer(impatient).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told).await;
        over.notify_one();
        assert_eq!(client.reply().await.status, 504);
        assert_eq!(node.post("/", &KEY, "it").await.status, 409, "{held}: it is still running");
        told.free(1);
        node.record.begun("it", 1).await;
        let again = node.post("/", &KEY, "it").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{held}");
        assert_eq!(again.text(), "ab", "{held}");
        node.completed(1).await;
        assert_eq!(place.number("SELECT count(*) FROM river_job").await, 1, "{held}");
    }
}

/// Of which it takes the one, and lets go of the other.
async fn two_attempts_promise_the_same(place: Place) {
    let (told, calls, second) = (Told::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (theirs, counted, begins) = (told.clone(), calls.clone(), second.clone());
    let handler = async move |name: String| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let body = if is_first { in_pieces(theirs) } else { Body::from("ab") };
        (StatusCode::CREATED, Durable::new(Task::new(name, Act::Wait)), body)
    };
    let hedge = from_fn(move |request: Request<Body>, next: Next| {
        let begins = begins.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = to_bytes(body, 1_000).await.unwrap();
            let attempt = || Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            let mut first = Box::pin(next.clone().run(attempt()));
            tokio::select! {
                response = &mut first => return response,
                () = begins.notified() => {}
            }
            let response: Response = tokio::select! {
                response = first => response,
                response = next.run(attempt()) => response,
            };
            response
        }
    });
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new()).layer(hedge);
        inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = Node::start(&place, app).await;
    let mut client = leaves(&node, &told).await;
    second.notify_one();
    assert_eq!(client.reply().await.status, 201);
    node.record.begun("it", 1).await;
    told.free(1);
    node.journal.ended(1).await;
    let again = node.post("/", &KEY, "it").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    node.record.open();
    node.completed(1).await;
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 1);
    assert_eq!((node.record.runs().len(), calls.load(Ordering::SeqCst)), (1, 2));
}
