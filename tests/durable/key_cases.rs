//! The `Idempotency-Key` where it is less than plain: under a nested path, a second layer, a long queue, another clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode},
    response::Response,
    routing::post,
};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::watch;
use tower::ServiceExt as _;
use tower_epilogue::{
    Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableStore, IdempotencyKey},
};
use tower_http::limit::RequestBodyLimitLayer;

use crate::{
    commits::{node, ran_once},
    common::{Act, Node, Place, Record, Task, on_both, post as ask, quick},
    locked::Locked,
    strays::{Calls, waits},
    support::{Client, soon},
};

on_both!(
    a_key_counts_for_its_whole_path,
    a_layer_inside_of_another_answers_as_one,
    a_claim_is_renewed_while_the_queue_is_never_empty,
    a_claim_that_was_forgotten_is_lost_to_nobody,
    an_expired_key_promises_something_else,
    an_upload_that_breaks_is_not_blamed_on_its_key,
    the_first_answer_keeps_its_trailers,
    a_key_that_no_layer_has_read_is_the_servers_fault,
    a_handler_that_breaks_gives_its_key_back,
    an_answer_that_is_finished_early_is_kept,
    a_key_is_kept_while_its_handler_runs_on_after_a_finish,
    so_it_is_where_what_was_finished_could_not_be_stored,
    a_claim_that_another_clock_takes_for_expired_is_one_order,
);

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

fn order(name: &'static str) -> std::future::Ready<(Durable, &'static str)> {
    std::future::ready((Durable::new(Task::ok(name)), name))
}

async fn a_key_counts_for_its_whole_path(place: Place) {
    let node = Node::start(&place, |store| {
        let shop = |name| Router::new().route("/order", post(move || order(name))).layer(store.layer());
        Router::new().nest("/north", shop("north")).nest("/south", shop("south"))
    })
    .await;
    for (path, text) in [("/north/order", "north"), ("/south/order", "south"), ("/north/order", "north")] {
        assert_eq!(node.post(path, &KEY, "").await.text(), text);
    }
    node.completed(2).await;
}

async fn a_layer_inside_of_another_answers_as_one(place: Place) {
    let calls = Arc::new(AtomicU32::new(0));
    let called = calls.clone();
    let handler = move || {
        called.fetch_add(1, Ordering::SeqCst);
        order("shoes")
    };
    let node = Node::start(&place, |store| {
        let strict = post(handler).layer(store.layer().require_key());
        Router::new().route("/", strict).layer(store.layer())
    })
    .await;
    assert_eq!(node.post("/", &[], "").await.status, 400, "the inner layer requires one");
    let first = node.post("/", &KEY, "").await;
    assert_eq!((first.status, first.text().as_str(), first.header("idempotency-replayed")), (200, "shoes", None));
    let again = node.post("/", &KEY, "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("shoes", Some("true")));
    assert_eq!(node.post("/", &KEY, "other").await.status, 422);
    node.completed(1).await;
    assert_eq!((calls.load(Ordering::SeqCst), node.record.runs().len()), (1, 1));
}

/// As many ask the store at once as it takes for one to be always there.
async fn a_claim_is_renewed_while_the_queue_is_never_empty(place: Place) {
    let (calls, record) = (Arc::new(AtomicU32::new(0)), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move || async move {
        called.fetch_add(1, Ordering::SeqCst);
        let _ = gate.subscribe().wait_for(|open| *open).await;
        (Durable::new(Task::ok("shoes")), "shoes")
    };
    let builder = quick(place.store()).claim(Duration::from_millis(300)).state(record.clone());
    let app = |store: &DurableStore| Router::new().route("/", post(handler)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    let address = node.address;
    let first = tokio::spawn(async move { ask(address, "/", &KEY, "").await.status });
    soon("the handler begins", async {
        while calls.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let over = Arc::new(AtomicBool::new(false));
    let crowd = (0..64).map(|_| {
        let (store, over) = (node.store.clone(), over.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                store.enqueue(Durable::new(Task::ok("crowd")).with_key("crowd")).await.unwrap();
            }
        })
    });
    let crowd: Vec<_> = crowd.collect();
    let expires = || place.number("SELECT expires_ms FROM tower_epilogue_answer");
    let claimed = expires().await;
    soon("the claim is renewed", async { while expires().await == claimed {} }).await;
    over.store(true, Ordering::SeqCst);
    for one in crowd {
        one.await.unwrap();
    }
    node.record.open();
    assert_eq!((first.await.unwrap(), calls.load(Ordering::SeqCst)), (200, 1));
}

/// Its process was suspended, or the database was out, for longer than a claim holds; and another process has tidied up.
async fn a_claim_that_was_forgotten_is_lost_to_nobody(place: Place) {
    let (calls, record) = (Calls::default(), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move || async move {
        waits(called, gate).await;
        (Durable::new(Task::ok("shoes")), "shoes")
    };
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| Router::new().route("/", post(handler)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    let address = node.address;
    let first = tokio::spawn(async move { ask(address, "/", &KEY, "").await });
    soon("the handler begins", calls.subscribe().wait_for(|calls| *calls == 1)).await.unwrap();
    place.execute("DELETE FROM tower_epilogue_answer").await;
    node.record.open();
    let first = first.await.unwrap();
    assert_eq!((first.status, first.text().as_str()), (200, "shoes"));
    let again = node.post("/", &KEY, "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("shoes", Some("true")));
    node.completed(1).await;
    assert_eq!((*calls.borrow(), node.record.runs().len()), (1, 1));
}

/// The first job is not done yet, and is not what the second request asked for.
async fn an_expired_key_promises_something_else(place: Place) {
    let handler = async |body: String| (Durable::new(Task::new(body, Act::Wait)), "taken");
    let set = |store: tower_epilogue::durable::DurableBuilder| store.keep_answers(Duration::from_millis(1));
    let app = |store: &DurableStore| Router::new().route("/", post(handler)).layer(store.layer());
    let node = Node::with(&place, set, |epilogue| epilogue, app).await;
    assert_eq!(node.post("/", &KEY, "shoes").await.text(), "taken");
    node.record.begun("shoes", 1).await;
    assert_eq!(node.post("/", &KEY, "boots").await.text(), "taken");
    node.record.begun("boots", 1).await;
    node.record.open();
    node.completed(2).await;
}

async fn an_upload_that_breaks_is_not_blamed_on_its_key(place: Place) {
    let node = Node::start(&place, |store| {
        Router::new()
            .route("/", post(|_: String| order("shoes")))
            .layer(store.layer())
            .layer(RequestBodyLimitLayer::new(100))
    })
    .await;
    let head = "POST / HTTP/1.1\r\nhost: test\r\nconnection: close\r\nidempotency-key: k\r\ntransfer-encoding: chunked";
    for (chunks, status) in [(format!("c8\r\n{}\r\n0\r\n\r\n", "x".repeat(200)), 413), ("no chunk\r\n".to_owned(), 400)]
    {
        let mut client = Client::connect(node.address).await;
        client.send(&format!("{head}\r\n\r\n{chunks}")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text().contains("malformed")), (status, false), "{}", reply.text());
    }
    assert_eq!(node.post("/", &KEY, "").await.text(), "shoes");
}

async fn the_first_answer_keeps_its_trailers(place: Place) {
    async fn handler() -> Response {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("17"))]);
        let body = Full::new(Bytes::from_static(b"ok")).with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut response = Response::new(Body::new(body));
        Durable::new(Task::ok("shoes")).attach(&mut response);
        response
    }
    let node = Node::start(&place, |_| Router::new()).await;
    let app = Router::new().route("/", post(handler)).layer(node.store.layer());
    let request = Request::post("/").header(KEY[0].0, KEY[0].1).body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(response.trailers().map(|trailers| trailers["x-sum"].clone()), Some(HeaderValue::from_static("17")));
    assert_eq!(response.to_bytes(), "ok");
}

async fn a_key_that_no_layer_has_read_is_the_servers_fault(place: Place) {
    let handler = async |key: IdempotencyKey| (StatusCode::OK, key.as_str().to_owned());
    let optional = async |key: Option<IdempotencyKey>| if key.is_some() { "a key" } else { "none" };
    let app =
        |_: &_| Router::new().route("/", post(handler).get(handler)).route("/optional", post(optional).get(optional));
    let node = Node::start(&place, app).await;
    assert_eq!(node.post("/", &[], "").await.status, 400);
    assert_eq!(node.post("/", &KEY, "").await.status, 500);
    // Not as if there were none: what its client sent twice would be done twice.
    assert_eq!(node.post("/optional", &KEY, "").await.status, 500);
    assert_eq!(node.post("/optional", &[], "").await.text(), "none");
    // What is safe needs no key, and none is read.
    let mut client = Client::connect(node.address).await;
    let (name, key) = KEY[0];
    client.send(&format!("GET /optional HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{name}: {key}\r\n\r\n")).await;
    assert_eq!(client.reply().await.text(), "none");
}

async fn a_handler_that_breaks_gives_its_key_back(place: Place) {
    let calls = Arc::new(AtomicU32::new(0));
    let called = calls.clone();
    let handler = move || async move {
        match called.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("this handler panics"),
            1 => std::future::pending().await,
            _ => order("shoes").await,
        }
    };
    let node = Node::start(&place, |store| {
        let limit = TimeLimitLayer::new(Duration::from_millis(500));
        Router::new().route("/", post(handler)).layer((store.layer(), limit))
    })
    .await;
    for status in [500, 503, 200] {
        assert_eq!(node.post("/", &KEY, "").await.status, status);
        node.store.settled().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

async fn an_answer_that_is_finished_early_is_kept(place: Place) {
    let handler = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish(order("shoes").await).await;
    };
    let node = Node::start(&place, |store| Router::new().route("/", post(handler)).layer(store.layer())).await;
    assert_eq!(node.post("/", &KEY, "").await.text(), "shoes");
    let again = node.post("/", &KEY, "").await;
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("shoes", Some("true")));
    node.completed(1).await;
}

/// Its client has an answer, and the first still runs; in the layer's own future, and in that of a layer inside.
async fn a_key_is_kept_while_its_handler_runs_on_after_a_finish(place: Place) {
    let (record, calls) = (Record::default(), Arc::new(AtomicU32::new(0)));
    let (gate, called) = (record.gate.clone(), calls.clone());
    let handler = move |lifecycle: Lifecycle| async move {
        called.fetch_add(1, Ordering::Relaxed);
        let _ = lifecycle.finish("accepted").await;
        let _ = gate.subscribe().wait_for(|open| *open).await;
        Durable::new(Task::ok("order"))
    };
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| {
        let inside = post(handler.clone()).layer(TimeLimitLayer::off());
        Router::new().route("/", post(handler)).route("/inside", inside).layer(store.layer())
    };
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    for path in ["/", "/inside"] {
        assert_eq!(node.post(path, &KEY, "").await.text(), "accepted");
        assert_eq!(node.post(path, &KEY, "").await.status, 409);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    node.record.open();
    node.completed(2).await;
    // An answer that promised nothing is not kept.
    for path in ["/", "/inside"] {
        soon("the key is free", async { while node.post(path, &KEY, "").await.status != 200 {} }).await;
    }
    node.completed(4).await;
}

async fn so_it_is_where_what_was_finished_could_not_be_stored(place: Place) {
    let (record, calls) = (Record::default(), Arc::new(AtomicU32::new(0)));
    let (gate, called, locks) = (record.gate.clone(), calls.clone(), place.clone());
    let handler = move |lifecycle: Lifecycle| async move {
        // Only then, so that its key is claimed.
        let locked = match called.fetch_add(1, Ordering::Relaxed) {
            0 => Some(Locked::take(&locks).await),
            _ => None,
        };
        let _ = lifecycle.finish(order("shoes").await).await;
        if let Some(locked) = locked {
            locked.release().await;
        }
        let _ = gate.subscribe().wait_for(|open| *open).await;
    };
    let short = match &place {
        Place::Sqlite(_) => place.clone(),
        // Who waits for another's lock has reached the database.
        Place::Postgres(url) => Place::Postgres(format!("{url}?options[statement_timeout]=1000")),
    };
    let builder = quick(short.store()).busy_timeout(Duration::from_secs(1)).state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| Router::new().route("/", post(handler)).layer(store.layer());
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    assert_eq!(node.post("/", &KEY, "").await.status, 503);
    soon("the database is back", async { while node.store.enqueue(Durable::new(Task::ok("back"))).await.is_err() {} })
        .await;
    assert_eq!(node.post("/", &KEY, "").await.status, 409);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    node.record.open();
    soon("the key is free", async { while node.post("/", &KEY, "").await.status != 200 {} }).await;
    node.record.begun("shoes", 1).await;
}

async fn a_claim_that_another_clock_takes_for_expired_is_one_order(place: Place) {
    let gate = Arc::new(watch::Sender::new(false));
    let waits = gate.clone();
    let node = node(&place, |store| {
        let handler = move |name: String| async move {
            // The first one waits; the second finds the gate open.
            let _ = waits.subscribe().wait_for(|open| *open).await;
            (Durable::new(Task::ok(name)), "promised")
        };
        Router::new().route("/", post(handler)).layer(store.layer())
    })
    .await;
    let (address, key) = (node.address, [("Idempotency-Key", "k")]);
    let first = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "one").await });
    node.journal.seen("handler_start").await;
    let claimed = "SELECT count(*) FROM tower_epilogue_answer";
    soon("its key is claimed", async { while place.number(claimed).await == 0 {} }).await;
    // What a process does whose clock is ahead.
    place.execute("UPDATE tower_epilogue_answer SET owner = 'another', expires_ms = 0").await;
    let second = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "one").await });
    let taken = "SELECT count(*) FROM tower_epilogue_answer WHERE owner <> 'another'";
    soon("it is claimed again", async { while place.number(taken).await == 0 {} }).await;
    gate.send_replace(true);
    let mut statuses = [first.await.unwrap().status, second.await.unwrap().status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503], "one of them has lost its claim, and has promised nothing");
    assert_eq!(node.post("/", &key, "one").await.header("idempotency-replayed"), Some("true"));
    ran_once(&node, "one").await;
}
