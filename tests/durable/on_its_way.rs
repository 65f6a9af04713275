//! Promises of a response that an early close *inside* their layer holds back when its client leaves.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{Request, StatusCode, response::Parts},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::post,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tower_epilogue::{
    EarlyCloseLayer, IgnoreAbortLayer, Lifecycle,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Node, Place, Task, on_both, request},
    strays::is_heard,
    support::{Client, h2client::Http2, soon},
};

on_both!(
    what_is_held_back_is_stored_when_its_client_leaves,
    what_is_held_back_to_its_limit_is_not,
    of_two_answers_the_one_that_leaves_is_kept,
    a_shield_that_ends_behind_the_client_loses_nothing,
    what_fails_by_itself_promises_nothing,
    a_function_that_heeds_the_abort_loses_nothing,
);

/// What the handlers and the test tell each other: how often a response was held back, and up to which it may go on.
#[derive(Clone)]
pub struct Told {
    held: Arc<watch::Sender<usize>>,
    freed: Arc<watch::Sender<usize>>,
    /// What reaches its limit while it is held back, which it does not do before on a busy machine.
    limited: Arc<Mutex<Option<Lifecycle>>>,
}

impl Told {
    pub fn new() -> Self {
        let (held, freed) = (Arc::new(watch::Sender::new(0)), Arc::new(watch::Sender::new(0)));
        Self { held, freed, limited: Arc::default() }
    }

    /// In the response of a handler.
    pub async fn held_back(self) {
        let mut number = 0;
        self.held.send_modify(|held| {
            *held += 1;
            number = *held;
        });
        if let Some(lifecycle) = self.limited.lock().unwrap().take_if(|_| *self.freed.borrow() < number) {
            lifecycle.set_time_limit(Duration::from_millis(10));
        }
        let _ = self.freed.subscribe().wait_for(|freed| *freed >= number).await;
    }

    /// Waits until so many were.
    pub async fn until(&self, number: usize) {
        soon("it is held back", self.held.subscribe().wait_for(|held| *held >= number)).await.unwrap();
    }

    pub fn free(&self, number: usize) {
        self.freed.send_replace(number);
    }
}

/// In two pieces, of which the second comes when it is let.
pub fn in_pieces(told: Told) -> Body {
    let second = stream::once(async move {
        told.held_back().await;
        Ok("b")
    });
    Body::from_stream(stream::once(async { Ok::<_, io::Error>("a") }).chain(second))
}

async fn handler(State(told): State<Told>, Path(how): Path<String>, lifecycle: Lifecycle, name: String) -> Response {
    if how.contains("limited") {
        *told.limited.lock().unwrap() = Some(lifecycle.clone());
    }
    let body = if how.contains("map") { Body::from("ab") } else { in_pieces(told) };
    let response = (StatusCode::CREATED, [("x-name", "it")], Durable::new(Task::ok(name)), body);
    if !how.contains("finish") {
        return response.into_response();
    }
    let _ = lifecycle.finish(response).await;
    StatusCode::OK.into_response()
}

fn app(store: &DurableStore, told: &Told) -> Router {
    let handler = || Router::new().route("/{how}", post(handler)).with_state(told.clone());
    let theirs = told.clone();
    let map = EarlyCloseLayer::new().map_buffer(move |parts, bytes: Bytes| {
        let told = theirs.clone();
        async move {
            told.held_back().await;
            Ok::<_, io::Error>((parts, bytes))
        }
    });
    let held = |early: EarlyCloseLayer| handler().layer(early).layer(store.layer());
    let layers = || {
        Router::new()
            .nest("/read", held(EarlyCloseLayer::new()))
            .nest("/compress", held(EarlyCloseLayer::new().compress()))
            .nest("/map", held(map.clone()))
    };
    Router::new().nest("/ends", layers()).nest("/ignored", layers().layer(IgnoreAbortLayer::new()))
}

#[derive(Clone, Copy, Debug)]
pub enum Leave {
    Close,
    Reset,
    /// HTTP/2: its stream, of which its server knows nothing more.
    ResetStream,
}

/// Asks, and leaves when the response is held back.
pub async fn leaves(node: &Node, told: &Told, path: &str, key: Option<&str>, name: &str, how: Leave) {
    let number = *told.held.borrow() + 1;
    let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    if let Leave::ResetStream = how {
        let client = Http2::connect(node.address).await;
        let request = Request::post(format!("http://test{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut send = client.send.clone().ready().await.unwrap();
        let (response, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(name.to_owned().into(), true).unwrap();
        told.until(number).await;
        drop((response, body));
        is_heard(&client).await;
    } else {
        let mut client = Client::connect(node.address).await;
        client.send(&request(path, &headers, name)).await;
        told.until(number).await;
        if let Leave::Reset = how {
            client.reset();
        } else {
            client.close();
        }
    }
    if path.contains("ignored") {
        told.free(number);
    }
}

async fn what_is_held_back_is_stored_when_its_client_leaves(place: Place) {
    let told = Told::new();
    let node = Node::start(&place, |store| app(store, &told)).await;
    let mut count = 0;
    for path in ["/ends", "/ignored"] {
        for end in ["/read/return", "/read/finish", "/compress/return", "/map/return-map", "/map/finish-map"] {
            let path = format!("{path}{end}");
            for how in [Leave::Close, Leave::Reset, Leave::ResetStream] {
                let name = format!("{path} {how:?}");
                leaves(&node, &told, &path, None, &name, how).await;
                node.record.begun(&name, 1).await;
                // So it is under a key, and its answer is kept, as far as there was one.
                let key = format!("{name} with a key");
                leaves(&node, &told, &path, Some(&key), &key, how).await;
                node.record.begun(&key, 1).await;
                let again = node.post(&path, &[("Idempotency-Key", &key)], &key).await;
                assert_eq!(again.status, 201, "{key}: {again:?}");
                assert_eq!(again.header("x-name"), Some("it"), "{key}: {again:?}");
                let body = if path.contains("ignored") { "ab" } else { "" };
                assert_eq!(again.text(), body, "{key}: {again:?}");
                count += 2;
                assert_eq!(*told.held.borrow(), count, "{key}: the handler ran once");
            }
        }
    }
    node.completed(count as u64).await;
    assert_eq!(node.record.runs().len(), count);
}

/// Its client is told, and who asks again has it done.
async fn what_is_held_back_to_its_limit_is_not(place: Place) {
    let told = Told::new();
    let node = Node::start(&place, |store| app(store, &told)).await;
    let mut count = 0;
    for (layer, how) in [("read", "limited"), ("compress", "limited"), ("map", "limited-map")] {
        let (path, headers) = (format!("/ends/{layer}/{how}"), [("Idempotency-Key", layer)]);
        assert_eq!(node.post(&path, &headers, layer).await.status, 503, "{layer}");
        count += 2;
        told.free(count);
        for _ in 0..2 {
            let reply = node.post(&path, &headers, layer).await;
            assert_eq!((reply.status, reply.text().as_ref()), (201, "ab"), "{layer}");
        }
        assert_eq!(*told.held.borrow(), count, "{layer}: what is kept is the answer");
        node.record.begun(layer, 1).await;
    }
    node.completed(3).await;
    assert_eq!(node.record.runs().len(), 3);
}

/// A middleware asks twice, and takes the first answer; the other is let go of when that has left.
async fn of_two_answers_the_one_that_leaves_is_kept(place: Place) {
    let (told, calls) = (Told::new(), Arc::new(AtomicUsize::new(0)));
    let (theirs, counted) = (told.clone(), calls.clone());
    let (loser, lost) = watch::channel(None);
    let handler = async move |name: String| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let body = if is_first { in_pieces(theirs) } else { Body::from("ab") };
        (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
    };
    let hedge = from_fn(move |request: Request<Body>, next: Next| {
        let (told, loser) = (told.clone(), loser.clone());
        async move {
            let (parts, body) = request.into_parts();
            let bytes = axum::body::to_bytes(body, 1_000).await.unwrap();
            let first = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            loser.send_replace(Some(tokio::spawn(next.clone().run(first))));
            told.until(1).await;
            next.run(Request::from_parts(parts, Body::from(bytes))).await
        }
    });
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new()).layer(hedge).layer(store.layer())
    };
    let node = Node::start(&place, app).await;
    for _ in 0..3 {
        let reply = node.post("/", &[("Idempotency-Key", "k")], "it").await;
        assert_eq!((reply.status, reply.text().as_ref()), (201, "ab"));
        if let Some(loser) = lost.borrow().as_ref() {
            loser.abort();
        }
    }
    node.completed(1).await;
    assert_eq!((node.record.runs().len(), calls.load(Ordering::SeqCst)), (1, 2));
}

/// A critical section in the body, during which the client leaves, and behind which nothing ignores that.
async fn a_shield_that_ends_behind_the_client_loses_nothing(place: Place) {
    let told = Told::new();
    let theirs = told.clone();
    let handler = async move |lifecycle: Lifecycle, name: String| {
        let shield = lifecycle.shield();
        let rest = stream::once(async move {
            theirs.held_back().await;
            drop(shield);
            std::future::pending().await
        });
        let body = Body::from_stream(stream::once(async { Ok::<_, io::Error>("a") }).chain(rest));
        (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new()).layer(store.layer())
    };
    let node = Node::start(&place, app).await;
    leaves(&node, &told, "/", None, "it", Leave::ResetStream).await;
    told.free(1);
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 1);
}

/// Though its shield ends with it, behind a client that has left.
async fn what_fails_by_itself_promises_nothing(place: Place) {
    let told = Told::new();
    let theirs = told.clone();
    let handler = async move |lifecycle: Lifecycle, name: String| {
        let shield = lifecycle.shield();
        let rest = stream::once(async move {
            let _shield = shield;
            theirs.held_back().await;
            Err(io::Error::other("the rest cannot be made"))
        });
        let body = Body::from_stream(stream::once(async { Ok::<_, io::Error>("a") }).chain(rest));
        (StatusCode::CREATED, Durable::new(Task::ok(name)), body)
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new()).layer(store.layer())
    };
    let node = Node::start(&place, app).await;
    let mut count = 0;
    for how in [Leave::Close, Leave::Reset, Leave::ResetStream] {
        let key = format!("{how:?}");
        leaves(&node, &told, "/", Some(&key), "it", how).await;
        node.journal.seen_times("aborted", count / 2 + 1).await;
        count += 2;
        told.free(count);
        let headers = [("Idempotency-Key", key.as_str())];
        let again = node.post_again("/", &headers, "it").await;
        // Nothing was kept of it.
        assert_eq!(again.status, 500, "{how:?}");
        assert_eq!(*told.held.borrow(), count, "{how:?}");
    }
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 0);
}

/// It fails because its client has left, which nobody ignores.
async fn a_function_that_heeds_the_abort_loses_nothing(place: Place) {
    let (told, handle) = (Told::new(), Arc::new(Mutex::new(None::<Lifecycle>)));
    let (theirs, left) = (told.clone(), handle.clone());
    let map = move |_, _| {
        let (told, handle) = (theirs.clone(), left.clone());
        async move {
            told.held.send_modify(|held| *held += 1);
            let lifecycle = handle.lock().unwrap().clone().unwrap();
            lifecycle.aborted().await;
            Err::<(Parts, Bytes), _>(io::Error::other("nobody is there"))
        }
    };
    let handler = async move |lifecycle: Lifecycle, name: String| {
        *handle.lock().unwrap() = Some(lifecycle);
        (StatusCode::CREATED, Durable::new(Task::ok(name)), "ab")
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new().map_buffer(map)).layer(store.layer())
    };
    let node = Node::start(&place, app).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request("/", &[], "it")).await;
    told.until(1).await;
    client.half_close().await;
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 1);
}
