//! Far more is offered than may run: the page's totals are those of the clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::request::Parts, routing::get};
use tokio::{task::JoinSet, time::sleep};
use tower_epilogue::{Continuation, EpilogueBuilder};

use crate::{
    page::{json_when, samples, serve, shown},
    support::{Client, soon},
};

const CLIENTS: u64 = 40;
const EACH: u64 = 100;
const ALL: u64 = CLIENTS * EACH;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_totals_are_those_of_the_clients() {
    let ran = Arc::new(AtomicU64::new(0));
    let runs = ran.clone();
    let handler = async move || {
        let work = async move {
            sleep(Duration::from_millis(20)).await;
            runs.fetch_add(1, Ordering::SeqCst);
        };
        (Continuation::new(work), "accepted")
    };
    let app = Router::new().route("/", get(handler));
    let never_refused = |request: &Parts| request.uri.path().starts_with("/status");
    let bounds = |builder: EpilogueBuilder| builder.max_running(10).max_waiting(20);
    let server = serve(app, |builder| bounds(builder).admit_always(never_refused)).await;
    let clients: JoinSet<_> = (0..CLIENTS)
        .map(|_| {
            let address = server.address;
            async move {
                let mut client = Client::connect(address).await;
                let mut accepted = 0;
                for _ in 0..EACH {
                    client.send_get("/").await;
                    match client.reply_by_length(false).await.status {
                        200 => accepted += 1,
                        503 => {}
                        other => panic!("{other}"),
                    }
                }
                accepted
            }
        })
        .collect();
    // It is looked at meanwhile: that changes nothing, and no count goes down.
    let looks = async {
        let mut before = std::collections::BTreeMap::new();
        loop {
            let now = samples(&server.get("/status/metrics").await);
            for (name, value) in now.iter().filter(|(name, _)| name.contains("_total")) {
                assert!(before.get(name).is_none_or(|earlier| earlier <= value), "{name}");
            }
            before = now;
        }
    };
    let accepted: u64 = tokio::select! {
        accepted = soon("all answers", clients.join_all()) => accepted.into_iter().sum(),
        () = looks => unreachable!(),
    };
    let refused = ALL - accepted;
    assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
    let page = json_when(&server, "all have ended", |page| page["requests"]["in_flight"] == 0).await;
    let requests = &page["requests"];
    assert_eq!((&requests["accepted"], &requests["refused"]), (&accepted.into(), &refused.into()), "{page:#}");
    assert_eq!((&requests["ended"], &requests["flushed"]), (&accepted.into(), &accepted.into()), "{page:#}");
    assert_eq!((&page["continuations"]["started"], &page["bounds"][0]["refused"]), (&accepted.into(), &refused.into()));
    assert_eq!((&page["lost"], &page["bounds"][0]["over"]), (&0.into(), &0.into()));
    assert_eq!(ran.load(Ordering::SeqCst), accepted);
    let html = server.get("/status").await.text();
    assert_eq!((shown(&html, "accepted"), shown(&html, "refused")), (accepted, refused));
    let metrics = samples(&server.get("/status/metrics").await);
    assert_eq!(metrics["epilogue_pool_requests_total"], accepted as f64);
    assert_eq!(metrics["epilogue_pool_requests_refused_total"], refused as f64);
    assert!(server.stop().await.is_clean());
}
