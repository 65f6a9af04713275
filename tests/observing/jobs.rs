//! Attempts at durable jobs are observed as requests are.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    routing::post,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_epilogue::{
    Epilogue, Event, EventKind,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
};
use tracing::{Instrument as _, info, info_span};

use super::recorder::Recorder;
use crate::support::{Client, Journal};

#[derive(Serialize, Deserialize)]
struct Mail {}

impl DurableJob for Mail {
    const KIND: &'static str = "mail";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        info!("mails");
        tokio::task::yield_now().await;
        info!("has mailed");
        Ok(())
    }
}

#[tokio::test]
async fn an_attempt_has_a_span_of_its_own_and_events_with_a_route() {
    let directory = std::env::temp_dir().join(format!("epilogue-observing-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (seen, guard) = Recorder::install();
    let (journal, ends) = (Journal::default(), Arc::new(Mutex::new(Vec::new())));
    let theirs = ends.clone();
    let listener = move |event: &Event| {
        if *event.kind() == EventKind::Ended {
            theirs.lock().unwrap().push((event.route().to_owned(), event.matched_route().map(str::to_owned)));
        }
    };
    let epilogue = Epilogue::builder().on_event(listener).on_event(journal.listener()).build();
    let store = DurableStore::sqlite(directory.join("jobs.db")).migrate(true).register::<Mail>();
    let store = store.start(&epilogue).await.unwrap();
    let spanned = async |request: Request, next: Next| next.run(request).instrument(info_span!("request")).await;
    let app = Router::new()
        .route("/signup", post(async || (Durable::new(Mail {}), "accepted")))
        .layer(store.layer())
        .layer(middleware::from_fn(spanned));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let server = tokio::spawn(epilogue.serve(tcp, app).into_future());
    let mut client = Client::connect(address).await;
    client.send("POST /signup HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "accepted");
    journal.ended(2).await;
    epilogue.events_delivered().await;
    server.abort();
    drop(guard);
    std::fs::remove_dir_all(&directory).unwrap();

    let ends = ends.lock().unwrap().clone();
    assert_eq!(
        ends,
        [("POST /signup", "/signup"), ("JOB /mail", "/mail")]
            .map(|(route, matched)| { (route.to_owned(), Some(matched.to_owned())) })
    );
    let lines = seen.lines();
    let begins = |name: &str| lines.iter().any(|line| line.starts_with(name));
    // That of the engine is the root.
    assert!(begins("new river_job < - {") && begins("new durable_job < river_job {kind=\"mail\""), "{lines:#?}");
    let places = ["close request", "in durable_job: mails", "in durable_job: has mailed", "close durable_job"];
    assert!(places.map(|line| seen.place(line)).is_sorted(), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("new continuation")), "{lines:#?}");
}
