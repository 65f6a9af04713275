//! A middleware between the durable layer and what goes on behind it, when its client has left and that is ignored.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::post,
};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::Notify;
use tower_epilogue::{
    EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Act, Node, Place, Task, on_both, request},
    on_its_way::{self, Leave, Told, in_pieces},
    support::{Client, soon},
};

on_both!(
    who_asks_again_meanwhile_has_it_done_once,
    who_asks_again_after_two_attempts_has_it_done_once,
    who_asks_again_while_one_of_two_goes_on_has_it_done_once,
    who_asks_again_after_a_late_answer_has_it_done_once,
    what_hangs_behind_another_attempt_keeps_the_key_to_its_limit,
    parts_of_a_request_lose_nothing,
    what_is_returned_after_finish_is_another_promise,
);

const SECOND: Duration = Duration::from_secs(1);
const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

/// Asks, and leaves when that is on its way, though it reads on.
pub async fn leaves(node: &Node, told: &Told, body: &str) -> Client {
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &KEY, body)).await;
    told.until(1).await;
    client.half_close().await;
    node.journal.seen("aborted").await;
    client
}

/// A job, by a handler that takes its time, or whose response does and is `held` back.
async fn promise(name: String, told: Told, held: bool) -> (StatusCode, Durable, Body) {
    let body = if held {
        in_pieces(told)
    } else {
        told.held_back().await;
        Body::from("ab")
    };
    (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
}

pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A middleware that gives up on the first attempt when it is `over`, and makes so many more.
pub fn attempts(over: Arc<Notify>, more: usize) -> impl FnMut(Request<Body>, Next) -> Answer + Clone {
    move |request, next| {
        let over = over.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = to_bytes(body, 1_000).await.unwrap();
            let attempt = || next.clone().run(Request::from_parts(parts.clone(), Body::from(bytes.clone())));
            tokio::select! {
                response = attempt() => return response,
                () = over.notified() => {}
            }
            let mut last = StatusCode::GATEWAY_TIMEOUT.into_response();
            for _ in 0..more {
                tokio::select! {
                    response = attempt() => last = response,
                    () = over.notified() => {}
                }
            }
            last
        })
    }
}

/// The middleware has no patience with a handler, or with a response that is held back.
async fn who_asks_again_meanwhile_has_it_done_once(place: Place) {
    for held in [false, true] {
        let place = place.another();
        let (told, over) = (Told::new(), Arc::new(Notify::new()));
        let (theirs, is_over) = (told.clone(), over.clone());
        let handler = async move |name: String| promise(name, theirs, held).await;
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
            inside.layer(from_fn(attempts(is_over, 0))).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
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

/// It asks again for the same, and what the first attempt was goes on, alone or held back; the second promises nothing.
async fn who_asks_again_after_two_attempts_has_it_done_once(place: Place) {
    for held in [false, true] {
        let place = place.another();
        let (told, calls, over) = (Told::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (theirs, counted, is_over) = (told.clone(), calls.clone(), over.clone());
        let handler = async move |name: String| {
            if counted.fetch_add(1, Ordering::SeqCst) > 0 {
                let fails = stream::once(async { Err::<Bytes, _>(io::Error::other("it cannot be made")) });
                return (StatusCode::CREATED, Durable::new(Task::ok(name)), Body::from_stream(fails));
            }
            promise(name, theirs, held).await
        };
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
            inside.layer(from_fn(attempts(over.clone(), 1))).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
        is_over.notify_one();
        assert_eq!(client.reply().await.status, 500);
        assert_eq!(node.post("/", &KEY, "it").await.status, 409, "{held}: the first is still running");
        told.free(1);
        node.record.begun("it", 1).await;
        let again = node.post("/", &KEY, "it").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{held}");
        node.completed(1).await;
        assert_eq!((node.record.runs().len(), calls.load(Ordering::SeqCst)), (1, 2), "{held}");
    }
}

/// The middleware has given up, and takes its time to answer.
async fn who_asks_again_after_a_late_answer_has_it_done_once(place: Place) {
    for held in [false, true] {
        let place = place.another();
        let (told, over, answers) = (Told::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (theirs, is_over, may_answer) = (told.clone(), over.clone(), answers.clone());
        let dropped = Arc::new(Notify::new());
        let drops = dropped.clone();
        let handler = async move |name: String| promise(name, theirs, held).await;
        let slow = from_fn(move |request: Request<Body>, next: Next| {
            let (over, answers, drops) = (over.clone(), answers.clone(), drops.clone());
            async move {
                tokio::select! {
                    response = next.run(request) => return response,
                    () = over.notified() => {}
                }
                drops.notify_one();
                answers.notified().await;
                StatusCode::GATEWAY_TIMEOUT.into_response()
            }
        });
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
            inside.layer(slow).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
        is_over.notify_one();
        soon("it is dropped", dropped.notified()).await;
        told.free(1);
        place.until("SELECT count(*) FROM river_job", 1).await;
        may_answer.notify_one();
        assert_eq!(client.reply().await.status, 504, "{held}");
        let again = node.post("/", &KEY, "it").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{held}");
        node.completed(1).await;
        assert_eq!(node.record.runs().len(), 1, "{held}");
    }
}

/// Both are held back behind their client, and the first fails.
async fn who_asks_again_while_one_of_two_goes_on_has_it_done_once(place: Place) {
    let (told, calls, over) = (Told::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (theirs, counted, is_over) = (told.clone(), calls.clone(), over.clone());
    let handler = async move |name: String| {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            return promise(name, theirs, true).await;
        }
        let fails = stream::once(async move {
            theirs.held_back().await;
            Err::<Bytes, _>(io::Error::other("it cannot be made"))
        });
        (StatusCode::CREATED, Durable::new(Task::ok(name)), Body::from_stream(fails))
    };
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
        inside.layer(from_fn(attempts(over, 1))).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = Node::start(&place, app).await;
    let mut client = leaves(&node, &told, "it").await;
    is_over.notify_one();
    told.until(2).await;
    is_over.notify_one();
    assert_eq!(client.reply().await.status, 504);
    told.free(1);
    node.journal.seen("body_dropped").await;
    for _ in 0..5 {
        assert_eq!(node.post("/", &KEY, "it").await.status, 409, "the second is still running");
    }
    told.free(2);
    node.record.begun("it", 1).await;
    let again = node.post("/", &KEY, "it").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// The second attempt is over, and promises nothing.
async fn what_hangs_behind_another_attempt_keeps_the_key_to_its_limit(place: Place) {
    let (told, calls, over) = (Told::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (theirs, counted, is_over) = (told.clone(), calls.clone(), over.clone());
    let handle = Arc::new(OnceLock::new());
    let second = handle.clone();
    let handler = async move |lifecycle: Lifecycle, name: String| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => promise(name, theirs, false).await.into_response(),
        1 => {
            assert!(second.set(lifecycle).is_ok());
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        _ => (StatusCode::CREATED, Durable::new(Task::ok(name))).into_response(),
    };
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off());
        inside.layer(from_fn(attempts(over, 1))).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = Node::start(&place, app).await;
    let mut client = leaves(&node, &told, "it").await;
    is_over.notify_one();
    assert_eq!(client.reply().await.status, 503);
    assert_eq!(node.post("/", &KEY, "it").await.status, 409, "the first is still running");
    handle.get().unwrap().set_time_limit(Duration::from_millis(10));
    node.journal.ended(1).await;
    assert_eq!(node.post_again("/", &KEY, "it").await.status, 201);
    node.completed(1).await;
    assert_eq!((node.record.runs().len(), calls.load(Ordering::SeqCst)), (1, 3));
}

/// Of a request that a middleware takes apart, a part goes on, alone or held back, and promises something else than another.
async fn parts_of_a_request_lose_nothing(place: Place) {
    for held in [false, true] {
        for waits in [false, true] {
            let place = place.another();
            let (told, over, answers) = (Told::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (theirs, is_over, may_answer) = (told.clone(), over.clone(), answers.clone());
            let second = Arc::new(Notify::new());
            let begins = second.clone();
            let handler = async move |name: String| {
                if name == "one" {
                    return promise(name, theirs, held).await;
                }
                begins.notify_one();
                (StatusCode::CREATED, Durable::new(Task::new(name, Act::Wait)), Body::from("ab"))
            };
            let parts = from_fn(move |request: Request<Body>, next: Next| {
                let (over, answers) = (over.clone(), answers.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    drop(to_bytes(body, 1_000).await.unwrap());
                    let part = |name: &'static str| Request::from_parts(parts.clone(), Body::from(name));
                    tokio::select! {
                        response = next.clone().run(part("one")) => return response,
                        () = over.notified() => {}
                    }
                    let response = next.run(part("two")).await;
                    answers.notified().await;
                    response
                }
            });
            let app = |store: &DurableStore| {
                let inside =
                    Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().patience(60 * SECOND));
                inside.layer(parts).layer(store.layer()).layer(IgnoreAbortLayer::new())
            };
            let node = Node::start(&place, app).await;
            let mut client = leaves(&node, &told, "both").await;
            is_over.notify_one();
            soon("the second part", second.notified()).await;
            // The one is stored before the other, or behind it.
            if waits {
                may_answer.notify_one();
                assert_eq!(client.reply().await.status, 201);
                told.free(1);
            } else {
                told.free(1);
                place.until("SELECT count(*) FROM river_job", 1).await;
                may_answer.notify_one();
                assert_eq!(client.reply().await.status, 201);
            }
            for name in ["one", "two"] {
                node.record.begun(name, 1).await;
            }
            assert_eq!(place.number("SELECT count(*) FROM river_job").await, 2, "{held}, {waits}");
        }
    }
}

/// With a layer of ours inside, which what was finished comes through; or which holds that back, perhaps behind its client.
async fn what_is_returned_after_finish_is_another_promise(place: Place) {
    for (held, leaves) in [(false, false), (true, false), (true, true)] {
        let place = place.another();
        let (told, over) = (Told::new(), Arc::new(Notify::new()));
        let (theirs, is_over) = (told.clone(), over.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let body = if held { in_pieces(theirs) } else { Body::from("ab") };
            let mut finish = Box::pin(lifecycle.finish((Durable::new(Task::new("finished", Act::Wait)), body)));
            tokio::select! { _ = &mut finish => {}, () = over.notified() => {} }
            Durable::new(Task::new("returned", Act::Wait))
        };
        let app = |store: &DurableStore| {
            let layers = (TimeLimitLayer::off(), EarlyCloseLayer::new().patience(60 * SECOND));
            Router::new().route("/", post(handler).layer(layers)).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = Client::connect(node.address).await;
        if leaves {
            on_its_way::leaves(&node, &told, "/", Some("k"), "it", Leave::ResetStream).await;
        } else {
            client.send(&request("/", &KEY, "it")).await;
        }
        if held {
            told.until(1).await;
            is_over.notify_one();
            place.until("SELECT count(*) FROM river_job", 1).await;
            told.free(1);
        }
        if !leaves {
            assert_eq!(client.reply().await.text(), "ab", "{held}");
        }
        for name in ["finished", "returned"] {
            node.record.begun(name, 1).await;
        }
        let again = node.post("/", &KEY, "it").await;
        assert_eq!((again.header("idempotency-replayed"), again.text().as_str()), (Some("true"), "ab"), "{leaves}");
        assert_eq!(place.number("SELECT count(*) FROM river_job").await, 2, "{held}, {leaves}");
    }
}
