//! Attempts that go on beside each other behind their client: whose layer stores what each of them promises.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    middleware::{Next, from_fn},
    response::IntoResponse as _,
    routing::post,
};
use tokio::{sync::Notify, task::JoinSet};
use tower_epilogue::{
    Continuation, IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    between::{attempts, leaves},
    common::{Node, Place, Task, on_both},
    on_its_way::{self, Leave, Told},
    support::soon,
};

on_both!(
    of_a_layer_inside_each_attempt_has_its_own,
    each_part_is_stored_where_it_belongs,
    what_the_second_finishes_is_stored_when_the_first_is_over,
    what_is_about_to_go_on_by_itself_keeps_its_layer_and_key,
    what_is_finished_behind_a_middleware_is_kept_under_its_key,
    what_is_finished_before_another_is_answered_has_the_key,
    what_is_returned_beside_the_finish_of_another_has_the_key,
);

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];
const JOBS: &str = "SELECT count(*) FROM river_job";

/// The second attempt finds the key of the first in use.
async fn of_a_layer_inside_each_attempt_has_its_own(place: Place) {
    let (told, over, calls) = (Told::new(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (theirs, counted) = (told.clone(), calls.clone());
    let handler = async move |name: String| {
        counted.fetch_add(1, Ordering::SeqCst);
        theirs.held_back().await;
        (StatusCode::CREATED, Durable::new(Task::ok(name)), "ab")
    };
    let again = from_fn(attempts(over.clone(), 1));
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(store.layer()).layer(again).layer(IgnoreAbortLayer::new())
    };
    let node = Node::start(&place, app).await;
    let mut client = leaves(&node, &told, "it").await;
    over.notify_one();
    assert_eq!(client.reply().await.status, 409, "the second attempt");
    assert_eq!(node.post("/", &KEY, "it").await.status, 409, "the first is still running");
    told.free(1);
    let again = node.post_again("/", &KEY, "it").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    node.completed(1).await;
    assert_eq!((calls.load(Ordering::SeqCst), place.number(JOBS).await), (1, 1));
}

/// Two parts of a request, under a store each. The second has ended before the first, or has not.
async fn each_part_is_stored_where_it_belongs(place: Place) {
    for second_runs in [false, true] {
        let (place, place_of_the_second) = (place.another(), place.another());
        let other = Node::start(&place_of_the_second, |_| Router::new()).await;
        let (told, over, ends) = (Told::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (theirs, is_over, may_end) = (told.clone(), over.clone(), ends.clone());
        let one = async move |name: String| {
            theirs.held_back().await;
            (StatusCode::CREATED, Durable::new(Task::ok(name)), "one")
        };
        let began = Arc::new(Notify::new());
        let begins = began.clone();
        let two = async move || {
            begins.notify_one();
            may_end.notified().await;
            "two"
        };
        let parts = from_fn(move |request: Request<Body>, next: Next| {
            let over = is_over.clone();
            async move {
                let (parts, body) = request.into_parts();
                drop(to_bytes(body, 1_000).await.unwrap());
                let part = |path: &'static str| {
                    let mut part = Request::from_parts(parts.clone(), Body::from(path));
                    *part.uri_mut() = path.parse().unwrap();
                    part
                };
                tokio::select! {
                    response = next.clone().run(part("/one")) => return response,
                    () = over.notified() => {}
                }
                next.run(part("/two")).await
            }
        });
        let second = other.store.layer();
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/one", post(one).layer(store.layer()));
            let inside = inside.route("/two", post(two).layer(second));
            Router::new().fallback_service(inside).layer(parts).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "both").await;
        over.notify_one();
        soon("the second part begins", began.notified()).await;
        if second_runs {
            told.free(1);
            place.until(JOBS, 1).await;
            ends.notify_one();
            assert_eq!(client.reply().await.text(), "two");
        } else {
            ends.notify_one();
            assert_eq!(client.reply().await.text(), "two");
            told.free(1);
        }
        node.record.begun("/one", 1).await;
        node.journal.ended(1).await;
        assert_eq!((place.number(JOBS).await, place_of_the_second.number(JOBS).await), (1, 0), "{second_runs}");
    }
}

/// Neither has anybody to answer.
async fn what_the_second_finishes_is_stored_when_the_first_is_over(place: Place) {
    for first_is_over in [false, true] {
        let place = place.another();
        let (told, over, calls) = (Told::new(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (theirs, ended) = (told.clone(), Arc::new(Notify::new()));
        let ends = ended.clone();
        let handler = async move |lifecycle: Lifecycle, name: String| {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                theirs.held_back().await;
                return Continuation::new(async move { ends.notify_one() }).into_response();
            }
            theirs.held_back().await;
            let _ = lifecycle.finish((StatusCode::CREATED, Durable::new(Task::ok(name)), "ab")).await;
            ().into_response()
        };
        let again = from_fn(attempts(over.clone(), 1));
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off());
            inside.layer(again).layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
        over.notify_one();
        told.until(2).await;
        over.notify_one();
        assert_eq!(client.reply().await.status, 504);
        if first_is_over {
            told.free(1);
            soon("the first is over", ended.notified()).await;
        }
        told.free(2);
        node.record.begun("it", 1).await;
        node.journal.ended(1).await;
        assert_eq!(place.number(JOBS).await, 1, "{first_is_over}");
    }
}

/// Takes its time to be dropped, and says so.
struct SlowDrop(Arc<Notify>);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        self.0.notify_one();
        thread::sleep(Duration::from_millis(200));
    }
}

/// Its layer is being dropped, and the first attempt ends in this moment.
async fn what_is_about_to_go_on_by_itself_keeps_its_layer_and_key(place: Place) {
    for continues in [false, true] {
        let place = place.another();
        let (told, over, calls) = (Told::new(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (away, drops) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (theirs, counted) = (told.clone(), calls.clone());
        let handler = async move |name: String| {
            let attempt = counted.fetch_add(1, Ordering::SeqCst);
            theirs.held_back().await;
            match attempt {
                0 if continues => Continuation::new(async {}).into_response(),
                0 => "nothing".into_response(),
                _ => (StatusCode::CREATED, Durable::new(Task::ok(name)), "ab").into_response(),
            }
        };
        let (is_over, dropping, is_away) = (over.clone(), drops.clone(), away.clone());
        let twice = from_fn(move |request: Request<Body>, next: Next| {
            let (over, drops) = (is_over.clone(), dropping.clone());
            async move {
                let (parts, body) = request.into_parts();
                let bytes = to_bytes(body, 1_000).await.unwrap();
                let attempt = || next.clone().run(Request::from_parts(parts.clone(), Body::from(bytes.clone())));
                tokio::select! {
                    response = attempt() => return response,
                    () = over.notified() => {}
                }
                let second = attempt();
                tokio::pin!(second);
                let _slow = SlowDrop(drops);
                second.as_mut().await
            }
        });
        let outside = from_fn(move |request: Request<Body>, next: Next| {
            let away = is_away.clone();
            async move {
                tokio::select! {
                    response = next.run(request) => response,
                    () = away.notified() => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
        });
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off()).layer(twice);
            inside.layer(store.layer()).layer(outside).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
        over.notify_one();
        told.until(2).await;
        away.notify_one();
        soon("it is dropped", drops.notified()).await;
        told.free(1);
        assert_eq!(client.reply().await.status, 504);
        assert_eq!(node.post("/", &KEY, "it").await.status, 409, "the second goes on");
        told.free(2);
        let again = node.post_again("/", &KEY, "it").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{continues}");
        node.completed(1).await;
        assert_eq!((place.number(JOBS).await, calls.load(Ordering::SeqCst)), (1, 2), "{continues}");
    }
}

/// Which waits when its client leaves, before the handler has begun.
async fn what_is_finished_behind_a_middleware_is_kept_under_its_key(place: Place) {
    let (told, calls) = (Told::new(), Arc::new(AtomicUsize::new(0)));
    let (theirs, counted) = (told.clone(), calls.clone());
    let handler = async move |lifecycle: Lifecycle, name: String| {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = lifecycle.finish((StatusCode::CREATED, Durable::new(Task::ok(name)), "ab")).await;
    };
    let waits = from_fn(move |request: Request<Body>, next: Next| {
        let told = theirs.clone();
        async move {
            told.held_back().await;
            next.run(request).await
        }
    });
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off()).route_layer(waits);
        inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let node = Node::start(&place, app).await;
    on_its_way::leaves(&node, &told, "/", Some("k"), "it", Leave::ResetStream).await;
    node.journal.seen("aborted").await;
    told.free(10);
    let again = node.post_again("/", &KEY, "it").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(again.text(), "ab");
    node.completed(1).await;
    assert_eq!((place.number(JOBS).await, calls.load(Ordering::SeqCst)), (1, 1));
}

/// The first one finishes, when the second has begun: in a handler that waits, or behind a middleware that does.
async fn what_is_finished_before_another_is_answered_has_the_key(place: Place) {
    for between in [false, true] {
        let place = place.another();
        let (told, over, calls) = (Told::new(), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (theirs, counted) = (told.clone(), calls.clone());
        let handler = async move |lifecycle: Lifecycle, name: String| {
            counted.fetch_add(1, Ordering::SeqCst);
            if !between {
                theirs.held_back().await;
            }
            let _ = lifecycle.finish((StatusCode::CREATED, Durable::new(Task::ok(name)), "ab")).await;
        };
        let theirs = told.clone();
        let waits = from_fn(move |request: Request<Body>, next: Next| {
            let told = theirs.clone();
            async move {
                if between {
                    told.held_back().await;
                }
                next.run(request).await
            }
        });
        let again = from_fn(attempts(over.clone(), 1));
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off()).layer(waits);
            let inside = inside.layer(TimeLimitLayer::off()).layer(again);
            inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        let mut client = leaves(&node, &told, "it").await;
        over.notify_one();
        told.until(2).await;
        told.free(1);
        place.until(JOBS, 1).await;
        over.notify_one();
        assert_eq!(client.reply().await.status, 504);
        told.free(2);
        node.journal.ended(1).await;
        let again = node.post_again("/", &KEY, "it").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{between}");
        node.completed(1).await;
        assert_eq!((place.number(JOBS).await, calls.load(Ordering::SeqCst)), (1, 2), "{between}");
    }
}

/// A retry's, after an error that the first has given to `finish`. That has ended before it, or has not. Each is in a task of
/// its own, which ends with the middleware, or is not.
async fn what_is_returned_beside_the_finish_of_another_has_the_key(place: Place) {
    for (first_is_over, spawned) in [(false, false), (true, false), (false, true), (true, true)] {
        let place = place.another();
        let (first, second, calls) = (Told::new(), Told::new(), Arc::new(AtomicUsize::new(0)));
        let (waits, returns, counted) = (first.clone(), second.clone(), calls.clone());
        let handler = async move |lifecycle: Lifecycle, name: String| {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                let begun = lifecycle.finish(StatusCode::BAD_GATEWAY);
                let _ = tokio::time::timeout(Duration::ZERO, begun).await;
                waits.held_back().await;
                return ().into_response();
            }
            returns.held_back().await;
            (StatusCode::CREATED, Durable::new(Task::ok(name)), "ab").into_response()
        };
        let again = from_fn(move |request: Request<Body>, next: Next| async move {
            let (parts, body) = request.into_parts();
            let bytes = to_bytes(body, 1_000).await.unwrap();
            let attempt = async || {
                let attempt = next.clone().run(Request::from_parts(parts.clone(), Body::from(bytes.clone())));
                if !spawned {
                    return attempt.await;
                }
                let mut tasks = JoinSet::new();
                tasks.spawn(attempt);
                tasks.join_next().await.unwrap().unwrap()
            };
            let response = attempt().await;
            if response.status().is_server_error() { attempt().await } else { response }
        });
        let app = |store: &DurableStore| {
            let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::off()).layer(again);
            inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
        };
        let node = Node::start(&place, app).await;
        on_its_way::leaves(&node, &second, "/", Some("k"), "it", Leave::ResetStream).await;
        node.journal.seen("aborted").await;
        first.until(1).await;
        let frees = if first_is_over { [&first, &second] } else { [&second, &first] };
        frees[0].free(1);
        if first_is_over {
            assert_eq!(node.post("/", &KEY, "it").await.status, 409);
        } else {
            node.record.begun("it", 1).await;
        }
        frees[1].free(1);
        let again = node.post_again("/", &KEY, "it").await;
        let which = (first_is_over, spawned);
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{which:?}");
        node.completed(1).await;
        assert_eq!((place.number(JOBS).await, calls.load(Ordering::SeqCst)), (1, 2), "{which:?}");
    }
}
