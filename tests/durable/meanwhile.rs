//! A client that leaves while what its handler promises is being stored for the first time.

use std::sync::Arc;

use axum::{Router, http::Request, middleware::map_response, response::Response, routing::post};
use tokio::sync::watch;
use tower_epilogue::{
    IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Node, Place, Record, Task, on_both, request},
    locked::Locked,
    support::{Client, h2client::Http2, logs, soon},
    untold::{AGAIN, STORED, said, says, short},
};

on_both!(
    where_that_is_ignored_it_outlasts_an_outage,
    who_may_be_reading_is_told_that_it_is_tried_again,
    who_waits_is_told_that_it_was_not_stored,
    behind_a_finish_it_outlasts_an_outage,
    what_is_stored_at_once_leaves_no_receipt,
);

/// How many answers the layer has been given: in the same moment it begins to store what they promise.
type Answers = Arc<watch::Sender<usize>>;

async fn until(answers: &Answers, number: usize) {
    soon("it is being stored", answers.subscribe().wait_for(|answers| *answers == number)).await.unwrap();
}

/// With routes of its own, to be found in the log: to one that returns its promise, and to one that finishes with it.
async fn node(place: &Place, name: &str, layer: IgnoreAbortLayer) -> (Node, [String; 2], Answers) {
    let kind = if matches!(place, Place::Sqlite(_)) { "sqlite" } else { "postgres" };
    let routes = ["returned", "finished"].map(|how| format!("/meanwhile-{name}-{how}-{kind}"));
    let finishes = async |lifecycle: Lifecycle, name: String| {
        let _ = lifecycle.finish((Durable::new(Task::ok(name)), "finished")).await;
    };
    let returns = async |name: String| (Durable::new(Task::ok(name)), "ordered");
    let (record, told) = (Record::default(), Answers::default());
    let tells = told.clone();
    let answers = move |response: Response| {
        tells.send_modify(|answers| *answers += 1);
        std::future::ready(response)
    };
    let builder = short(place).state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| {
        let inside = Router::new().route(&routes[0], post(returns)).route(&routes[1], post(finishes));
        // The innermost of ours gives the middleware what is finished, too.
        inside.layer(TimeLimitLayer::off()).layer(map_response(answers)).layer(store.layer()).layer(layer)
    };
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    logs();
    (node, routes, told)
}

async fn where_that_is_ignored_it_outlasts_an_outage(place: Place) {
    let (node, routes, answers) = node(&place, "reset", IgnoreAbortLayer::new()).await;
    let locked = Locked::take(&place).await;
    let mut reset = Client::connect(node.address).await;
    reset.send(&request(&routes[0], &[], "reset")).await;
    until(&answers, 1).await;
    let cancels = Http2::connect(node.address).await;
    let request = Request::post(format!("http://test{}", routes[1])).body(()).unwrap();
    let (cancelled, mut body) = cancels.send.clone().ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data("cancelled".into(), true).unwrap();
    until(&answers, 2).await;
    reset.reset();
    drop((cancelled, body));
    node.journal.seen_times("aborted", 2).await;
    for route in &routes {
        said(route, AGAIN).await;
    }
    locked.release().await;
    for (route, name) in routes.iter().zip(["reset", "cancelled"]) {
        node.record.begun(name, 1).await;
        said(route, STORED).await;
    }
    node.completed(2).await;
    node.store.settled().await;
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 2);
    assert_eq!(place.number("SELECT count(*) FROM tower_epilogue_answer").await, 0);
}

async fn who_may_be_reading_is_told_that_it_is_tried_again(place: Place) {
    let (node, routes, answers) = node(&place, "half", IgnoreAbortLayer::new()).await;
    let locked = Locked::take(&place).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request(&routes[0], &[], "half")).await;
    until(&answers, 1).await;
    client.half_close().await;
    node.journal.seen("aborted").await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("it may be done twice"), "{}", reply.text());
    said(&routes[0], AGAIN).await;
    locked.release().await;
    node.record.begun("half", 1).await;
}

async fn who_waits_is_told_that_it_was_not_stored(place: Place) {
    let (node, routes, _) = node(&place, "waits", IgnoreAbortLayer::new()).await;
    let locked = Locked::take(&place).await;
    for route in &routes {
        let reply = node.post(route, &[], "refused").await;
        assert_eq!(reply.status, 503);
        assert!(reply.text().contains("nothing was promised"), "{}", reply.text());
        said(route, "its client is answered with a 503").await;
    }
    node.journal.ended(2).await;
    locked.release().await;
    assert_eq!(node.post(&routes[0], &[], "after").await.status, 200);
    node.completed(1).await;
    assert!(!routes.iter().any(|route| says(route, AGAIN)));
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 1);
}

/// A handler that has finished is ended by no abort, whatever is ignored.
async fn behind_a_finish_it_outlasts_an_outage(place: Place) {
    let (node, routes, answers) = node(&place, "not-ignored", IgnoreAbortLayer::off()).await;
    let locked = Locked::take(&place).await;
    let mut client = Client::connect(node.address).await;
    client.send(&request(&routes[1], &[], "finished")).await;
    until(&answers, 1).await;
    client.reset();
    node.journal.seen("aborted").await;
    said(&routes[1], AGAIN).await;
    locked.release().await;
    node.record.begun("finished", 1).await;
    said(&routes[1], STORED).await;
}

async fn what_is_stored_at_once_leaves_no_receipt(place: Place) {
    let (node, routes, _) = node(&place, "once", IgnoreAbortLayer::new()).await;
    for route in &routes {
        assert_eq!(node.post(route, &[], "once").await.status, 200);
    }
    node.completed(2).await;
    node.store.settled().await;
    assert_eq!(place.number("SELECT count(*) FROM tower_epilogue_answer").await, 0);
}
