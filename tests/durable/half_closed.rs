//! A client that has closed its sending side alone has left, and may be reading all the same: what it can be told while the
//! database is out.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::IntoResponse as _,
    routing::post,
};
use tower_epilogue::{
    IgnoreAbortLayer,
    durable::{Durable, DurableBuilder, DurableStore},
};

use crate::{
    common::{Node, Place, Record, Task, on_both, request},
    locked::Locked,
    strays::{Calls, waits},
    support::{Client, logs, soon},
    untold::{AGAIN, STORED, said, says, short},
};

on_both!(who_is_answered_by_another_is_kept_its_promise, who_reads_is_told_that_it_is_tried_again,);

/// A handler that waits for a gate, and its client, which has said that it says no more.
async fn half_closed(
    place: &Place,
    route: &str,
    store: DurableBuilder,
    around: impl FnOnce(Router) -> Router,
) -> (Node, Client, Locked) {
    let (calls, record) = (Calls::default(), Record::default());
    let (called, gate) = (calls.clone(), record.gate.clone());
    let handler = move || async move {
        waits(called, gate).await;
        Durable::new(Task::ok("half"))
    };
    let builder = store.state(record.clone()).register::<Task>();
    let app = |store: &DurableStore| {
        around(Router::new().route(route, post(handler)).layer(store.layer())).layer(IgnoreAbortLayer::new())
    };
    let node = Node::of(record, builder, |epilogue| epilogue, app).await;
    logs();
    let mut client = Client::connect(node.address).await;
    client.send(&request(route, &[], "")).await;
    soon("the handler runs", calls.subscribe().wait_for(|calls| *calls == 1)).await.unwrap();
    client.half_close().await;
    node.journal.seen("aborted").await;
    let locked = Locked::take(place).await;
    node.record.open();
    node.journal.seen("handler_end").await;
    (node, client, locked)
}

/// A middleware has no patience with its first attempt.
async fn who_is_answered_by_another_is_kept_its_promise(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/half-sqlite" } else { "/half-postgres" };
    let patience = tokio::sync::watch::Sender::new(true);
    let over = patience.subscribe();
    let impatient = from_fn(move |request: Request, next: Next| {
        let mut over = over.clone();
        async move {
            tokio::select! {
                response = next.run(request) => response,
                _ = over.wait_for(|patient| !patient) => "replaced".into_response(),
            }
        }
    });
    let (node, mut client, locked) = half_closed(&place, route, short(&place), |app| app.layer(impatient)).await;
    patience.send_replace(false);
    assert_eq!(client.reply().await.text(), "replaced");
    node.journal.ended(1).await;
    said(route, AGAIN).await;
    locked.release().await;
    node.record.begun("half", 1).await;
    assert!(says(route, STORED));
}

async fn who_reads_is_told_that_it_is_tried_again(place: Place) {
    let route = if matches!(place, Place::Sqlite(_)) { "/reads-sqlite" } else { "/reads-postgres" };
    let (node, mut client, locked) = half_closed(&place, route, short(&place), |app| app).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("it may be done twice"), "{}", reply.text());
    said(route, AGAIN).await;
    locked.release().await;
    node.record.begun("half", 1).await;
    assert!(says(route, STORED));
}
