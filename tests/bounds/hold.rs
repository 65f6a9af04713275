//! `Hold`: the response waits until there is a place for its continuation, and not longer than said.

use std::time::Duration;

use tokio::time::Instant;
use tower_epilogue::{TimeLimitLayer, WhenFull};

use crate::{
    Meter, app,
    support::{Gate, MemoryServer, Notes, Server},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_response_waits_for_the_place_of_its_continuation() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hold = WhenFull::Hold(3600 * SECOND);
    let server =
        Server::with(app(&notes, &gate, &meter), |builder| builder.max_running(1).max_waiting(1).when_full(hold)).await;
    for name in ["a", "b"] {
        assert_eq!(server.get(&format!("/task/{name}")).await.status, 200);
    }
    let mut held = server.connect().await;
    held.send_get("/task/c").await;
    notes.seen("handler c").await;
    // Others are not held up: they have nothing to wait for.
    assert_eq!(server.get("/plain").await.text(), "plain");
    let answered = held.stream.try_read(&mut [0; 16]);
    assert!(answered.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    gate.open();
    held.read_until("accepted").await;
    server.journal.ended(4).await;
    assert!(notes.has("ends c"));
    assert_eq!((meter.most(), server.epilogue.load().unwrap().over), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn it_leaves_all_the_same_when_the_time_is_over_and_that_is_counted() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hold = WhenFull::Hold(3 * SECOND);
    let server =
        MemoryServer::with(app(&notes, &gate, &meter), |builder| builder.max_running(1).max_waiting(0).when_full(hold));
    let began = Instant::now();
    assert_eq!(server.get("/task/a").await.status, 200);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(server.get("/task/b").await.status, 200);
    assert!(began.elapsed() >= 3 * SECOND && began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.over), (1, 1, 1));
    gate.open();
    server.ended(2).await;
    assert_eq!(meter.most(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_meanwhile_has_aborted_and_the_continuation_runs() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hold = WhenFull::Hold(3600 * SECOND);
    let server =
        Server::with(app(&notes, &gate, &meter), |builder| builder.max_running(1).max_waiting(0).when_full(hold)).await;
    assert_eq!(server.get("/task/a").await.status, 200);
    let mut client = server.connect().await;
    client.send_get("/task/b").await;
    notes.seen("handler b").await;
    client.close();
    server.journal.seen("aborted").await;
    assert!(!notes.has("starts b"));
    gate.open();
    server.journal.ended(2).await;
    assert!(notes.has("ends b"));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_passes_meanwhile_is_answered_with_a_503() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hold = WhenFull::Hold(3600 * SECOND);
    let app = app(&notes, &gate, &meter);
    let app = axum::Router::new().nest("/limited", app.clone().layer(TimeLimitLayer::new(5 * SECOND))).merge(app);
    let server = MemoryServer::with(app, |builder| builder.max_running(1).max_waiting(0).when_full(hold));
    let first = server.get("/task/a");
    assert_eq!(first.await.status, 200);
    let second = server.get("/limited/task/b").await;
    assert_eq!((second.status, second.text()), (503, "The time limit for this request has passed.\n".to_owned()));
    server.ended(1).await;
    // It was promised: it is started, and dropped where it first waits.
    assert!(notes.has("starts b") && !notes.has("ends b"));
}
