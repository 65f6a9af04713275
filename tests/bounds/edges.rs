//! Bounds of none and of any number, set twice, or with another policy; and the order in which threads are given.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, extract::Path, routing::get};
use tower_epilogue::{Bound, Continuation, EpilogueBuilder, ReserveLayer, WhenFull};

use crate::{
    Meter, app,
    support::{Gate, MemoryServer, Notes, Server},
};

/// `/{name}` has a continuation that blocks until it is let go.
fn blocks(notes: &Notes, released: mpsc::Receiver<()>) -> Router {
    let (notes, released) = (notes.clone(), Arc::new(Mutex::new(released)));
    let handler = async move |Path(name): Path<String>| {
        let work = move || {
            notes.add(format!("starts {name}"));
            released.lock().unwrap().recv().unwrap();
        };
        (Continuation::blocking(work), "accepted")
    };
    Router::new().route("/{name}", get(handler))
}

#[tokio::test]
async fn of_a_bound_of_none_one_runs_and_a_bound_of_any_number_is_one() {
    type Setup = fn(EpilogueBuilder) -> EpilogueBuilder;
    let setups: [Setup; 3] = [
        |builder| builder.max_running(0).max_waiting(5),
        |builder| builder.max_running(usize::MAX).max_waiting(usize::MAX),
        |builder| builder.class("none", Bound::new(0)).class("any", Bound::new(usize::MAX)),
    ];
    for setup in setups {
        let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
        gate.open();
        let classes = ["none", "any"].map(|class| {
            let handler = async move || (Continuation::new(async {}).class(class), "accepted");
            (format!("/{class}"), get(handler))
        });
        let app = classes.into_iter().fold(app(&notes, &gate, &meter), |app, (path, route)| app.route(&path, route));
        let server = Server::with(app, setup).await;
        for path in ["/task/a", "/none", "/any"] {
            assert_eq!(server.get(path).await.text(), "accepted");
        }
        server.journal.ended(3).await;
        assert!(notes.has("ends a"));
    }
}

#[tokio::test]
async fn of_no_threads_and_none_that_wait_for_one_nobody_is_refused() {
    let notes = Notes::default();
    let (release, released) = mpsc::channel();
    let app = blocks(&notes, released);
    let server = Server::with(app, |builder| builder.max_blocking(0).max_waiting(0)).await;
    assert_eq!(server.get("/a").await.text(), "accepted");
    release.send(()).unwrap();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["starts a"]);
}

#[tokio::test]
async fn those_that_wait_for_a_thread_get_it_in_their_order_and_refuse_nobody_under_another_policy() {
    let notes = Notes::default();
    let (release, released) = mpsc::channel();
    let setup = |builder: EpilogueBuilder| builder.max_blocking(1).max_waiting(1).when_full(WhenFull::Run);
    let server = Server::with(blocks(&notes, released), setup).await;
    for (place, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        assert_eq!(server.get(&format!("/{name}")).await.text(), "accepted", "{name}");
        let started = |events: &[tower_epilogue::Event]| {
            events.iter().filter(|event| event.kind().name() == "continuation_start").count()
        };
        server.journal.until("it waits", |events| started(events) > place).await;
    }
    (0..4).for_each(|_| release.send(()).unwrap());
    server.journal.ended(4).await;
    assert_eq!(notes.all(), ["starts a", "starts b", "starts c", "starts d"]);
}

#[tokio::test]
async fn a_refusal_says_one_second_at_least_and_of_two_bounds_of_a_class_the_last_holds() {
    let gate = Gate::closed();
    let opens = gate.clone();
    let handler = async move || {
        let gate = opens.clone();
        (Continuation::new(async move { gate.passed().await }).class("mail"), "accepted")
    };
    let app = Router::new().route("/", get(handler).layer(ReserveLayer::class("mail")));
    let server = Server::with(app, |builder| {
        let bound = |most| Bound::new(most).max_waiting(0);
        builder.class("mail", bound(1)).class("mail", bound(2)).retry_after(Duration::ZERO)
    })
    .await;
    for _ in 0..2 {
        assert_eq!(server.get("/").await.text(), "accepted");
    }
    let refusal = server.get("/").await;
    assert_eq!((refusal.status, refusal.header("retry-after")), (503, Some("1")));
    gate.open();
    server.journal.ended(3).await;
}

/// When the time is over, those that there is room for have it.
#[tokio::test(start_paused = true)]
async fn a_response_that_was_held_in_vain_goes_beyond_the_bound_with_no_more_than_it_must() {
    let gate = Gate::closed();
    let opens = gate.clone();
    let handler = async move |Path(count): Path<usize>| {
        let mut response = axum::response::Response::new(axum::body::Body::from("accepted"));
        for _ in 0..count {
            let gate = opens.clone();
            Continuation::new(async move { gate.passed().await }).attach(&mut response);
        }
        response
    };
    let app = Router::new().route("/{count}", get(handler));
    let hold = WhenFull::Hold(Duration::from_secs(5));
    let server = MemoryServer::with(app, |builder| builder.max_running(1).max_waiting(1).when_full(hold));
    for count in ["/1", "/2"] {
        assert_eq!(server.get(count).await.text(), "accepted");
    }
    assert_eq!(server.epilogue.load().unwrap().over, 1);
    gate.open();
    server.ended(2).await;
}
