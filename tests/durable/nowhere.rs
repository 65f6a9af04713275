//! What a request with a key comes to whose handler goes on alone: its answer, its jobs, and when its key is free again.

use std::{
    convert::Infallible,
    future::{Future as _, pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::post,
};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tower::ServiceExt as _;
use tower_epilogue::{
    EpilogueBuilder, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{HOUR, Node, Place, Record, Task, on_both, quick},
    locked::Locked,
    strays::{Calls, asks_and_leaves, is_heard, starts, waits},
    support::h2client::Http2,
};

on_both!(
    what_is_returned_beside_a_finish_that_nobody_awaits_is_stored,
    a_key_is_kept_while_its_handler_runs_on_after_a_finish_that_nobody_gets,
    a_handler_that_panics_gives_its_key_back_before_its_hooks_end,
    what_a_middleware_inside_has_still_to_do_is_waited_for,
    an_answer_that_never_comes_is_waited_for_to_the_limit,
    an_answer_that_was_given_in_the_moment_in_which_the_client_left_is_kept,
);

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

type Gate = Arc<watch::Sender<bool>>;

async fn open(gate: &Gate) {
    let _ = gate.subscribe().wait_for(|open| *open).await;
}

async fn node(
    place: &Place,
    record: Record,
    epilogue: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
    app: impl FnOnce(&DurableStore) -> Router,
) -> Node {
    Node::of(record.clone(), quick(place.store()).state(record).register::<Task>(), epilogue, app).await
}

/// Its `finish` has begun, and is not awaited.
async fn early_and_late(place: &Place) -> Node {
    let handler = async |lifecycle: Lifecycle| {
        let mut finish = Box::pin(lifecycle.finish("early"));
        poll_fn(|cx| Poll::Ready(finish.as_mut().poll(cx).is_pending())).await;
        Durable::new(Task::ok("late"))
    };
    Node::start(place, |store| Router::new().route("/", post(handler)).layer(store.layer())).await
}

async fn what_is_returned_beside_a_finish_that_nobody_awaits_is_stored(place: Place) {
    let node = early_and_late(&place).await;
    assert_eq!(node.post("/", &[], "").await.text(), "early");
    node.record.begun("late", 1).await;
}

#[test]
fn where_the_runtime_ends_before_that_it_is_lost_and_not_in_silence() {
    let place = Place::sqlite();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let epilogue = runtime.block_on(async {
        let node = early_and_late(&place).await;
        std::mem::forget(Locked::take(&place).await);
        assert_eq!(node.post("/", &[], "").await.text(), "early");
        node.epilogue.clone()
    });
    assert_eq!(epilogue.lost(), 0);
    drop(runtime);
    assert_eq!(epilogue.lost(), 1);
}

async fn a_key_is_kept_while_its_handler_runs_on_after_a_finish_that_nobody_gets(place: Place) {
    let (calls, record, finished, rest) = (Calls::default(), Record::default(), Gate::default(), Gate::default());
    let (called, gate, told, goes_on) = (calls.clone(), record.gate.clone(), finished.clone(), rest.clone());
    let handler = move |lifecycle: Lifecycle| async move {
        waits(called, gate).await;
        let _ = lifecycle.finish("accepted").await;
        told.send_replace(true);
        open(&goes_on).await;
        Durable::new(Task::ok("order"))
    };
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off());
        inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = node(&place, record, |epilogue| epilogue, app).await;
    asks_and_leaves(node.address, "/", &calls).await;
    // Its stream's own task may be told later than its connection's.
    node.journal.seen("aborted").await;
    node.record.open();
    open(&finished).await;
    assert_eq!(node.post("/", &KEY, "").await.status, 409);
    rest.send_replace(true);
    node.completed(1).await;
    assert_eq!(*calls.borrow(), 1);
}

async fn a_handler_that_panics_gives_its_key_back_before_its_hooks_end(place: Place) {
    async fn handler() {
        panic!("as this test wants it");
    }
    let app = |store: &DurableStore| {
        let hook = ShutdownHookLayer::new(|_| pending::<()>());
        Router::new().route("/", post(handler)).layer(store.layer()).layer(hook)
    };
    let node = node(&place, Record::default(), |epilogue| epilogue.hook_limit(HOUR), app).await;
    for _ in 0..2 {
        assert_eq!(node.post("/", &KEY, "").await.status, 500);
    }
}

/// Its handler has returned, and it has not, when its client has left.
async fn what_a_middleware_inside_has_still_to_do_is_waited_for(place: Place) {
    let (calls, record, saved, saves) = (Calls::default(), Record::default(), Gate::default(), Gate::default());
    let (called, may_save, saving) = (calls.clone(), saved.clone(), saves.clone());
    let handler = move || async move {
        called.send_modify(|calls| *calls += 1);
        (Durable::new(Task::ok("order")), "ordered")
    };
    let save = from_fn(move |request: Request, next: Next| {
        let (saved, saves) = (may_save.clone(), saving.clone());
        async move {
            let response = next.run(request).await;
            saves.send_replace(true);
            open(&saved).await;
            response
        }
    });
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off());
        inside.route_layer(save).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = node(&place, record, |epilogue| epilogue, app).await;
    // So that the client leaves while its key is claimed.
    let locked = Locked::take(&place).await;
    let client = Http2::connect(node.address).await;
    drop(starts(&client, "/").await);
    is_heard(&client).await;
    node.journal.seen("aborted").await;
    locked.release().await;
    open(&saves).await;
    assert_eq!(node.post("/", &KEY, "").await.status, 409, "it is still running");
    node.journal.ended(2).await;
    let events = node.journal.events();
    assert_eq!(events.iter().filter(|event| event.kind().name() == "ended").count(), 2, "{events:?}");
    saved.send_replace(true);
    node.record.begun("order", 1).await;
    node.journal.ended(3).await;
    assert_eq!(node.post("/", &KEY, "").await.text(), "ordered");
    assert_eq!(*calls.borrow(), 1);
}

/// Of five bytes, which never come.
struct Never;

impl http_body::Body for Never {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(5)
    }
}

async fn an_answer_that_never_comes_is_waited_for_to_the_limit(place: Place) {
    let (calls, record) = (Calls::default(), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move |lifecycle: Lifecycle| async move {
        waits(called, gate).await;
        let _ = lifecycle.finish((Durable::new(Task::ok("order")), Body::new(Never))).await;
        lifecycle.set_time_limit(Duration::from_millis(50));
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = node(&place, record, |epilogue| epilogue, app).await;
    asks_and_leaves(node.address, "/", &calls).await;
    node.record.open();
    node.journal
        .until("both have ended", |events| events.iter().filter(|event| event.kind().name() == "ended").count() == 2)
        .await;
    assert!(node.stop().await.is_clean());
}

/// A task of the handler's gives it to `finish`, and its response future is dropped before it could take it.
async fn an_answer_that_was_given_in_the_moment_in_which_the_client_left_is_kept(place: Place) {
    let calls = Calls::default();
    let (given, mut lifecycles) = tokio::sync::mpsc::unbounded_channel();
    let (called, gate) = (calls.clone(), Gate::default());
    let goes_on = gate.clone();
    let handler = move |lifecycle: Lifecycle| async move {
        called.send_modify(|calls| *calls += 1);
        given.send(lifecycle).unwrap();
        open(&goes_on).await;
    };
    let node = Node::start(&place, |_| Router::new()).await;
    let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off());
    let app = inside.layer(node.store.layer()).layer(IgnoreAbortLayer::new());
    let asks = || {
        let request = Request::post("/").header("idempotency-key", "k").body(Body::empty()).unwrap();
        Box::pin(app.clone().oneshot(request))
    };
    let mut response = asks();
    let lifecycle = tokio::select! {
        lifecycle = lifecycles.recv() => lifecycle.unwrap(),
        _ = &mut response => unreachable!("its handler goes on"),
    };
    let mut finish = Box::pin(lifecycle.finish((Durable::new(Task::ok("order")), "ordered")));
    assert!(poll_fn(|cx| Poll::Ready(finish.as_mut().poll(cx).is_pending())).await);
    drop(response);
    node.record.begun("order", 1).await;
    gate.send_replace(true);
    let again = asks().await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!((&again[..], *calls.borrow()), (&b"ordered"[..], 1));
}
