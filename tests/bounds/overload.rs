//! Far more is offered than may run: nothing that was accepted is lost, and the counts agree.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::{task::JoinSet, time::sleep};
use tower_epilogue::Continuation;

use crate::{
    Meter,
    support::{Client, Server, soon},
};

const CLIENTS: u64 = 40;
const EACH: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_and_the_counts_agree() {
    let (meter, ran, handled) = (Meter::default(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (metered, runs, handles) = (meter.clone(), ran.clone(), handled.clone());
    let handler = async move || {
        handles.fetch_add(1, Ordering::SeqCst);
        let work = async move {
            let _in = metered.enter();
            sleep(Duration::from_millis(20)).await;
            runs.fetch_add(1, Ordering::SeqCst);
        };
        (Continuation::new(work), "accepted")
    };
    let app = Router::new().route("/", get(handler));
    let server = Server::with(app, |builder| builder.max_running(10).max_waiting(20)).await;
    let clients: JoinSet<_> = (0..CLIENTS)
        .map(|_| {
            let address = server.address;
            async move {
                let mut client = Client::connect(address).await;
                let (mut accepted, mut refused) = (0, 0);
                for _ in 0..EACH {
                    client.send_get("/").await;
                    match client.reply_by_length(false).await.status {
                        200 => accepted += 1,
                        503 => refused += 1,
                        other => panic!("{other}"),
                    }
                }
                (accepted, refused)
            }
        })
        .collect();
    let answers = soon("all answers", clients.join_all()).await;
    let (accepted, refused) = answers.iter().fold((0, 0), |(a, r), (x, y)| (a + x, r + y));
    let (journal, epilogue) = (server.journal.clone(), server.epilogue.clone());
    assert!(server.stop().await.is_clean());
    assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
    assert_eq!(accepted + refused, CLIENTS * EACH);
    assert_eq!((handled.load(Ordering::SeqCst), ran.load(Ordering::SeqCst)), (accepted, accepted));
    let load = epilogue.load().unwrap();
    assert_eq!((load.refused, load.over, load.running, load.waiting, load.reserved), (refused, 0, 0, 0, 0));
    assert!(meter.most() <= 10, "{}", meter.most());
    let count = |name| journal.events().iter().filter(|event| event.kind().name() == name).count() as u64;
    assert_eq!((count("refused"), count("continuation_end"), count("ended")), (refused, accepted, accepted + refused));
}
