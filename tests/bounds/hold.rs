//! `Hold`: the response waits until there is a place for its continuation, and not longer than said.

use std::time::Duration;

use axum::{Router, extract::Path, routing::get};
use tokio::time::Instant;
use tower_epilogue::{Bound, Continuation, TimeLimitLayer, WhenFull};

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

/// Also behind another request of its, which is not read yet.
#[tokio::test]
async fn a_client_that_leaves_meanwhile_has_aborted_and_the_continuation_runs() {
    for pipelines in [false, true] {
        let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
        let hold = WhenFull::Hold(3600 * SECOND);
        let app = app(&notes, &gate, &meter);
        let server = Server::with(app, |builder| builder.max_running(1).max_waiting(0).when_full(hold)).await;
        assert_eq!(server.get("/task/a").await.status, 200);
        let mut client = server.connect().await;
        client.send_get("/task/b").await;
        notes.seen("handler b").await;
        if pipelines {
            client.send_get("/plain").await;
            client.reset();
        } else {
            client.close();
        }
        server.journal.seen("aborted").await;
        assert!(!notes.has("starts b"));
        gate.open();
        server.journal.ended(2).await;
        assert!(notes.has("ends b"), "pipelines: {pipelines}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_passes_meanwhile_is_answered_with_a_503() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hold = WhenFull::Hold(3600 * SECOND);
    let app = app(&notes, &gate, &meter);
    let app = Router::new().nest("/limited", app.clone().layer(TimeLimitLayer::new(5 * SECOND))).merge(app);
    let server = MemoryServer::with(app, |builder| builder.max_running(1).max_waiting(0).when_full(hold));
    let first = server.get("/task/a");
    assert_eq!(first.await.status, 200);
    let second = server.get("/limited/task/b").await;
    assert_eq!((second.status, second.text()), (503, "This request could not be finished in time.\n".to_owned()));
    server.ended(1).await;
    // It was promised: it is started, and dropped where it first waits.
    assert!(notes.has("starts b") && !notes.has("ends b"));
}

/// `/{classes}` answers with one continuation for each letter, of the class of that name; each waits at its class's gate.
/// `-` is one of no class.
fn classes(notes: &Notes, gates: [(&'static str, &Gate); 3]) -> Router {
    let (notes, gates) = (notes.clone(), gates.map(|(class, gate)| (class, gate.clone())));
    let handler = async move |Path(classes): Path<String>| {
        notes.add(format!("handler {classes}"));
        let mut response = axum::response::Response::new(axum::body::Body::empty());
        for letter in classes.chars() {
            let (class, gate) = gates.iter().find(|(class, _)| class.starts_with(letter)).unwrap().clone();
            let notes = notes.clone();
            let work = Continuation::new(async move {
                gate.passed().await;
                notes.add(format!("ends {class}"));
            });
            let work = if class == "-" { work } else { work.class(class) };
            work.attach(&mut response);
        }
        response
    };
    Router::new().route("/{classes}", get(handler))
}

fn open() -> Gate {
    let gate = Gate::closed();
    gate.open();
    gate
}

/// They run one after the other, and so never wait for each other.
#[tokio::test(start_paused = true)]
async fn a_response_does_not_wait_for_the_places_of_its_own_continuations() {
    let (notes, gate) = (Notes::default(), open());
    let hold = WhenFull::Hold(3600 * SECOND);
    let server = MemoryServer::with(classes(&notes, [("a", &gate), ("b", &gate), ("-", &gate)]), |builder| {
        builder.max_running(1).max_waiting(0).when_full(hold)
    });
    let began = Instant::now();
    assert_eq!(server.get("/---").await.status, 200);
    server.ended(1).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!(notes.all().len(), 4);
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.reserved, load.over), (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn two_responses_never_wait_for_the_places_that_the_other_keeps() {
    let (notes, a, b) = (Notes::default(), Gate::closed(), Gate::closed());
    let bound = Bound::new(1).max_waiting(0).when_full(WhenFull::Hold(3600 * SECOND));
    let server = MemoryServer::with(classes(&notes, [("a", &a), ("b", &b), ("-", &a)]), |builder| {
        builder.class("a", bound).class("b", bound)
    });
    for path in ["/a", "/b"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    let (mut first, mut second) = (server.connect(), server.connect());
    first.send("GET /ab HTTP/1.1\r\nhost: test\r\n\r\n").await;
    notes.seen("handler ab").await;
    second.send("GET /ba HTTP/1.1\r\nhost: test\r\n\r\n").await;
    notes.seen("handler ba").await;
    let began = Instant::now();
    b.open();
    server.ended(1).await;
    a.open();
    server.ended(4).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    for class in ["a", "b"] {
        let load = server.epilogue.class_load(class).unwrap();
        assert_eq!((load.running, load.waiting, load.reserved, load.over), (0, 0, 0, 0), "{class}");
    }
}

/// Nor does a continuation that has its place in its class wait for what is kept for those that wait there.
#[tokio::test(start_paused = true)]
async fn the_first_of_a_class_does_not_wait_for_those_behind_it() {
    let (notes, a, opened) = (Notes::default(), Gate::closed(), open());
    let server = MemoryServer::with(classes(&notes, [("a", &a), ("b", &opened), ("-", &opened)]), |builder| {
        builder.class("a", Bound::new(1)).max_running(1).max_waiting(3).when_full(WhenFull::Hold(3600 * SECOND))
    });
    assert_eq!(server.get("/a").await.status, 200);
    // It waits for its class, with two places for what comes after it.
    assert_eq!(server.get("/a--").await.status, 200);
    let mut held = server.connect();
    held.send("GET /a-- HTTP/1.1\r\nhost: test\r\n\r\n").await;
    notes.count(3).await;
    let began = Instant::now();
    a.open();
    server.ended(3).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!(notes.all().iter().filter(|note| note.starts_with("ends")).count(), 7);
    for load in [server.epilogue.load().unwrap(), server.epilogue.class_load("a").unwrap()] {
        assert_eq!((load.running, load.waiting, load.reserved, load.over), (0, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_held_no_longer_than_said_for_however_many_places() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let hold = WhenFull::Hold(3 * SECOND);
    let bound = Bound::new(1).max_waiting(0).when_full(hold);
    let server = MemoryServer::with(classes(&notes, [("a", &gate), ("b", &gate), ("-", &gate)]), |builder| {
        builder.class("a", bound).class("b", bound).max_running(2).max_waiting(0).when_full(hold)
    });
    for path in ["/a", "/b"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    let began = Instant::now();
    assert_eq!(server.get("/ab").await.status, 200);
    assert!(began.elapsed() >= 3 * SECOND && began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    gate.open();
    server.ended(3).await;
}
