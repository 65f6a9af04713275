//! Promises whose response goes nowhere: its client has left, or was answered before.

use axum::{Router, http::Request, routing::post};
use tokio::{net::TcpListener, sync::watch};
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, durable::Durable};

use crate::{
    common::{Act, Node, Place, Task, on_both, post as ask, quick},
    support::{h2client::Http2, soon},
};

on_both!(
    a_server_of_no_kind_of_ours_loses_no_promise,
    a_stray_stays_with_the_store_of_its_layer,
    a_list_of_discarded_jobs_has_ours_alone
);

type Calls = std::sync::Arc<watch::Sender<u32>>;

/// Counts, and waits until it is let go.
async fn waits(calls: Calls, gate: std::sync::Arc<watch::Sender<bool>>) {
    calls.send_modify(|calls| *calls += 1);
    let _ = gate.subscribe().wait_for(|open| *open).await;
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
    let app = Router::new().route("/", post(late)).layer(second.layer());
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
}
