//! Promises whose response goes nowhere: its client has left, or was answered before.

use axum::{Router, http::Request, routing::post};
use tokio::{net::TcpListener, sync::watch};
use tower_epilogue::{
    IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Act, Node, Place, Record, Task, on_both, post as ask, quick},
    support::{h2client::Http2, soon},
};

on_both!(
    a_server_of_no_kind_of_ours_loses_no_promise,
    what_is_finished_after_the_client_left_is_stored,
    a_layer_inside_changes_nothing_of_a_key,
    a_stray_stays_with_the_store_of_its_layer,
    a_list_of_discarded_jobs_has_ours_alone
);

pub type Calls = std::sync::Arc<watch::Sender<u32>>;

/// Counts, and waits until it is let go.
pub async fn waits(calls: Calls, gate: std::sync::Arc<watch::Sender<bool>>) {
    calls.send_modify(|calls| *calls += 1);
    let _ = gate.subscribe().wait_for(|open| *open).await;
}

/// A request with a key over HTTP/2.
pub async fn starts(client: &Http2, path: &str) -> h2::client::ResponseFuture {
    let request = Request::post(format!("http://test{path}")).header("idempotency-key", "k").body(()).unwrap();
    client.send.clone().ready().await.unwrap().send_request(request, true).unwrap().0
}

/// The server has heard of all that came before.
pub async fn is_heard(client: &Http2) {
    let mut ping = client.send.clone().ready().await.unwrap();
    let request = Request::get("http://test/nowhere").body(()).unwrap();
    assert_eq!(soon("an answer", ping.send_request(request, true).unwrap().0).await.unwrap().status(), 404);
}

/// Asks, and cancels its stream as soon as the handler runs.
pub async fn asks_and_leaves(address: std::net::SocketAddr, path: &str, calls: &Calls) {
    let before = *calls.borrow();
    let client = Http2::connect(address).await;
    let mut response = starts(&client, path).await;
    let mut calls = calls.subscribe();
    tokio::select! {
        called = soon("the handler runs", calls.wait_for(|calls| *calls > before)) => drop(called.unwrap()),
        response = &mut response => panic!("the handler has not run: {response:?}"),
    }
    drop(response);
    is_heard(&client).await;
}

async fn a_server_of_no_kind_of_ours_loses_no_promise(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    let calls = Calls::default();
    let (called, gate) = (calls.clone(), node.record.gate.clone());
    let left = move || async move {
        waits(called, gate).await;
        Durable::new(Task::ok("left"))
    };
    let late = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("early").await;
        Durable::new(Task::ok("late"))
    };
    let app = Router::new()
        .route("/left", post(left))
        .route("/late", post(late))
        .layer(node.store.layer())
        .layer(IgnoreAbortLayer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    assert_eq!(ask(address, "/late", &[], "").await.text(), "early");
    node.record.begun("late", 1).await;
    let client = Http2::connect(address).await;
    let request = Request::post("http://test/left").body(()).unwrap();
    let (response, _) = client.send.clone().ready().await.unwrap().send_request(request, true).unwrap();
    soon("the handler runs", calls.subscribe().wait_for(|calls| *calls > 0)).await.unwrap();
    drop(response);
    let request = Request::get("http://test/nowhere").body(()).unwrap();
    let mut send = client.send.clone().ready().await.unwrap();
    assert_eq!(soon("an answer", send.send_request(request, true).unwrap().0).await.unwrap().status(), 404);
    node.record.open();
    node.record.begun("left", 1).await;
    node.completed(2).await;
}

async fn what_is_finished_after_the_client_left_is_stored(place: Place) {
    let calls = Calls::default();
    let record = Record::default();
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move |lifecycle: Lifecycle| async move {
        waits(called, gate).await;
        let _ = lifecycle.finish((Durable::new(Task::ok("finished")), "late")).await;
    };
    let app = |store: &DurableStore| {
        Router::new().route("/", post(handler)).layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    asks_and_leaves(node.address, "/", &calls).await;
    node.record.open();
    node.record.begun("finished", 1).await;
}

async fn a_layer_inside_changes_nothing_of_a_key(place: Place) {
    let calls = Calls::default();
    let record = Record::default();
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move || async move {
        waits(called, gate).await;
        (Durable::new(Task::ok("order")), "ordered")
    };
    let app = |store: &DurableStore| {
        let inside = Router::new().route("/", post(handler)).layer(TimeLimitLayer::default());
        inside.layer(store.layer()).layer(IgnoreAbortLayer::new())
    };
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    asks_and_leaves(node.address, "/", &calls).await;
    node.record.open();
    node.completed(1).await;
    assert_eq!(node.post("/", &[("Idempotency-Key", "k")], "").await.text(), "ordered");
    node.store.settled().await;
    assert_eq!(*calls.borrow(), 1);
}

/// Both run its kind.
async fn a_stray_stays_with_the_store_of_its_layer(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    let other = Place::sqlite();
    let second = quick(other.store()).state(node.record.clone()).register::<Task>();
    let second = second.start(&node.epilogue).await.unwrap();
    let late = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("early").await;
        Durable::new(Task::ok("late"))
    };
    let app = Router::new().route("/", post(late)).layer(second.layer()).layer(node.store.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(node.epilogue.serve(listener, app).into_future());
    assert_eq!(ask(address, "/", &[], "").await.text(), "early");
    node.record.begun("late", 1).await;
    other.until("SELECT count(*) FROM river_job", 1).await;
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 0);
}

/// Others may use the engine's tables, too.
async fn a_list_of_discarded_jobs_has_ours_alone(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    place
        .execute(
            "INSERT INTO river_job (kind, queue, args, state, finalized_at, max_attempts) \
             VALUES ('theirs', 'theirs', '{}', 'discarded', CURRENT_TIMESTAMP, 1)",
        )
        .await;
    node.store.enqueue(Durable::new(Task::new("ours", Act::GiveUp))).await.unwrap();
    node.until("it is discarded", |counts| counts.discarded == 1).await;
    let discarded = node.store.discarded(1).await.unwrap();
    assert_eq!(discarded.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), ["task"]);
    let theirs = place.number("SELECT id FROM river_job WHERE kind = 'theirs'").await;
    node.store.revive(theirs).await.unwrap();
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE kind = 'theirs' AND state = 'discarded'").await, 1);
}
