//! Whose a promise is: of two stores each keeps its own, and what no layer saw is in the log.

use std::sync::Arc;

use axum::{Router, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower_epilogue::{
    IgnoreAbortLayer,
    durable::{Durable, DurableJob, JobContext, JobError},
};

use crate::{
    commits::{count, node},
    common::{HOUR, Node, Place, on_both, post as ask},
    support::{logs, soon},
};

on_both!(a_promise_that_no_layer_saw_is_in_the_log, each_of_two_stores_keeps_its_own);

/// One of a kind for each line that is looked for.
#[derive(Serialize, Deserialize)]
struct Unkept<const LINE: u8>;

impl<const LINE: u8> DurableJob for Unkept<LINE> {
    const KIND: &'static str = ["unkept-0", "unkept-1", "unkept-2", "unkept-3"][LINE as usize];

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

fn unkept<const LINE: u8>() -> Router {
    Router::new().route("/", post(|| async { (Durable::new(Unkept::<LINE>), "promised") }))
}

async fn a_promise_that_no_layer_saw_is_in_the_log(place: Place) {
    let logs = logs();
    let (replaced, plain, lines) = match &place {
        Place::Sqlite(_) => (unkept::<0>(), unkept::<1>(), ["unkept-0", "unkept-1"]),
        Place::Postgres(_) => (unkept::<2>(), unkept::<3>(), ["unkept-2", "unkept-3"]),
    };
    let said = |line: usize| logs.with(lines[line]).iter().any(|line| line.contains("before a `DurableLayer` saw it"));
    let replace = axum::middleware::map_response(|_: axum::response::Response| async { "replaced" });
    let node = Node::start(&place, |store| replaced.layer(replace).layer(store.layer())).await;
    assert_eq!(node.post("/", &[], "").await.text(), "replaced");
    assert!(said(0));
    // A server of no kind of ours cannot refuse it, and says it too.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, plain).into_future());
    assert_eq!(ask(address, "/", &[], "").await.text(), "promised");
    logs.until("it is said", |_| said(1)).await;
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
}

/// Known to the second store alone.
#[derive(Serialize, Deserialize)]
struct Second(String);

impl DurableJob for Second {
    const KIND: &'static str = "second";

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<tokio::sync::mpsc::UnboundedSender<String>>()?.send(self.0)?;
        Ok(())
    }
}

/// Two stores in one `Epilogue`: what is stored by hand in one is begun there, under the layer of the other; and what a
/// client has left behind goes to the one that runs it.
async fn each_of_two_stores_keeps_its_own(place: Place) {
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<String>();
    let gate = Arc::new(watch::Sender::new(false));
    let waits = gate.clone();
    let node = node(&place, |_| Router::new()).await;
    let other = Place::sqlite();
    let builder = crate::common::quick(other.store()).lease(HOUR).register::<Second>().state(sender);
    let second = builder.start(&node.epilogue).await.unwrap();
    let (by_hand, layer, own) = (second.clone(), node.store.layer(), second.layer());
    let stored = move |name: String| async move {
        let mut transaction = by_hand.begin_sqlite().await.unwrap();
        let durable = Durable::in_transaction(Second(name), &by_hand, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        durable
    };
    let left = move |name: String| async move {
        let _ = waits.subscribe().wait_for(|open| *open).await;
        Durable::new(Second(name))
    };
    let app = Router::new()
        .route("/stored", post(stored).layer(layer))
        .route("/left", post(left).layer((IgnoreAbortLayer::new(), own)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(node.epilogue.serve(listener, app).into_future());
    assert_eq!(ask(address, "/stored", &[], "stored by hand").await.status, 200);
    assert_eq!(soon("it runs", ran.recv()).await.as_deref(), Some("stored by hand"));
    let mut client = crate::support::h2client::Http2::connect(address).await;
    let before = count(&node.journal.events(), "handler_start");
    let response = client.start("POST", "/left").await;
    node.journal.until("its handler starts", |events| count(events, "handler_start") > before).await;
    drop(response);
    node.journal.seen("aborted").await;
    gate.send_replace(true);
    assert_eq!(soon("it runs", ran.recv()).await.as_deref(), Some(""));
}
