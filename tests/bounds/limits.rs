//! Bounds and the other limits: the clock, threads, what outlives its response, and the drain.

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, routing::get};
use tower_epilogue::{
    Bound, Continuation, Event, EventKind, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
};

use crate::{
    Meter, app,
    support::{Client, Gate, MemoryServer, Notes, Server, soon},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn one_whose_limit_passes_while_it_waits_is_polled_once_and_its_hooks_run() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let hooks = notes.clone();
    let app = app(&notes, &gate, &meter)
        .layer(TimeLimitLayer::new(5 * SECOND))
        .layer(ShutdownHookLayer::new(async move |end| hooks.add(format!("hook {}", end.status()))));
    let server = MemoryServer::with(app, |builder| builder.max_running(1));
    server.get("/task/a").await;
    server.get("/task/b").await;
    server.ended(2).await;
    assert!(notes.has("starts b") && !notes.has("ends b"));
    assert_eq!(notes.all().iter().filter(|note| *note == "hook TIMEOUT").count(), 2, "{:?}", notes.all());
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.reserved), (0, 0, 0));
}

/// Continuations that block until they are let go, one after the other.
fn blocking(notes: &Notes, meter: &Meter, released: mpsc::Receiver<()>, class: bool) -> Router {
    let (notes, meter, released) = (notes.clone(), meter.clone(), Arc::new(Mutex::new(released)));
    let handler = async move || {
        let work = Continuation::blocking(move || {
            let _in = meter.enter();
            notes.add("starts");
            released.lock().unwrap().recv().unwrap();
            notes.add("ends");
        });
        (if class { work.class("slow") } else { work }, "accepted")
    };
    Router::new().route("/", get(handler))
}

#[tokio::test]
async fn blocking_continuations_have_a_cap_of_their_own_and_do_not_count_for_the_others() {
    let (notes, meter) = (Notes::default(), Meter::default());
    let (release, released) = mpsc::channel();
    let app = blocking(&notes, &meter, released, false)
        .route("/quick", get(async || (Continuation::new(async {}), "accepted")));
    let server = Server::with(app, |builder| builder.max_blocking(2).max_running(1).max_waiting(3)).await;
    for _ in 0..5 {
        assert_eq!(server.get("/").await.status, 200);
    }
    notes.count(2).await;
    server
        .journal
        .until("all five", |events| {
            events.iter().filter(|event| event.kind().name() == "continuation_start").count() == 5
        })
        .await;
    // Three wait for a thread: as many as may.
    assert_eq!(server.get("/").await.status, 503);
    release.send(()).unwrap();
    notes.count(4).await;
    assert_eq!(server.get("/quick").await.status, 200);
    for _ in 0..4 {
        release.send(()).unwrap();
    }
    server.journal.ended(7).await;
    assert_eq!(notes.all().iter().filter(|note| *note == "ends").count(), 5);
    assert_eq!(meter.most(), 2);
}

#[tokio::test]
async fn a_blocking_one_whose_limit_passes_while_it_waits_for_its_class_runs_when_its_turn_comes() {
    let (notes, meter) = (Notes::default(), Meter::default());
    let (release, released) = mpsc::channel();
    let app = blocking(&notes, &meter, released, true).layer(TimeLimitLayer::new(Duration::from_millis(100)));
    let server = Server::with(app, |builder| builder.class("slow", Bound::new(1))).await;
    for _ in 0..2 {
        assert_eq!(server.get("/").await.status, 200);
    }
    server.journal.ended(2).await;
    // The thread of the one, and the other that has none yet.
    assert_eq!((server.epilogue.stuck(), meter.most()), (2, 1));
    for _ in 0..2 {
        release.send(()).unwrap();
    }
    notes.count(4).await;
    assert_eq!((notes.all(), meter.most()), (["starts", "ends"].repeat(2).into_iter().map(String::from).collect(), 1));
    assert!(server.stop().await.is_clean());
}

/// Waits until so many outlive their response: no event tells when they are counted.
async fn detached(server: &Server, works: usize) {
    soon("they are counted", async {
        while server.epilogue.detached() != works {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn while_too_many_handlers_outlive_their_response_requests_are_refused() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (finishes, ignores) = (gate.clone(), gate.clone());
    let app = Router::new()
        .route(
            "/finishes",
            get(async move |lifecycle: Lifecycle| {
                lifecycle.finish("finished").await.unwrap();
                finishes.passed().await;
            }),
        )
        .route("/ignores", get(async move || ignores.passed().await))
        .layer(IgnoreAbortLayer::new());
    let server = Server::with(app, |builder| builder.max_detached(2)).await;
    for _ in 0..2 {
        assert_eq!(server.get("/finishes").await.text(), "finished");
    }
    assert_eq!(server.epilogue.detached(), 2);
    let refusal = server.get("/finishes").await;
    assert_eq!((refusal.status, refusal.header("retry-after")), (503, Some("1")));
    assert_eq!(server.epilogue.refused(), 1);
    gate.open();
    server.journal.ended(3).await;
    detached(&server, 0).await;
    assert_eq!(server.get("/ignores").await.status, 200);
    drop(notes);
}

/// They go on in their connections' tasks.
#[tokio::test]
async fn handlers_whose_clients_left_count_among_those_that_outlive_their_response() {
    let gate = Gate::closed();
    let ignores = gate.clone();
    let app = Router::new()
        .route("/ignores", get(async move || ignores.passed().await))
        .route("/other", get(async || "hello"))
        .layer(IgnoreAbortLayer::new());
    let server = Server::with(app, |builder| builder.max_detached(2)).await;
    for (before, leaves) in [Client::reset, Client::close].into_iter().enumerate() {
        let mut client = server.connect().await;
        client.send_get("/ignores").await;
        let starts = |events: &[Event]| events.iter().filter(|event| *event.kind() == EventKind::HandlerStart).count();
        server.journal.until("its handler starts", |events| starts(events) > before).await;
        leaves(client);
    }
    detached(&server, 2).await;
    assert_eq!(server.get("/other").await.status, 503);
    gate.open();
    server.journal.ended(3).await;
    detached(&server, 0).await;
    assert_eq!(server.get("/other").await.text(), "hello");
}

/// None outlive their response: there is nothing to refuse for.
#[tokio::test]
async fn a_bound_of_none_that_outlive_their_response_refuses_no_other() {
    let app = Router::new().route("/", get(async || "hello"));
    let server = Server::with(app, |builder| builder.max_detached(0)).await;
    assert_eq!(server.get("/").await.text(), "hello");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_those_that_wait_and_its_report_names_their_class() {
    let (notes, meter) = (Notes::default(), Meter::default());
    let theirs = notes.clone();
    let handler = async move || {
        let (notes, meter) = (theirs.clone(), meter.clone());
        let work = Continuation::new(async move {
            let _in = meter.enter();
            notes.add("starts");
            pending::<()>().await;
        });
        (work.class("mail"), "accepted")
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| {
        builder.class("mail", Bound::new(1)).drain_deadline(5 * SECOND)
    });
    for _ in 0..3 {
        assert_eq!(server.get("/").await.status, 200);
    }
    notes.seen("starts").await;
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 3, "{report}");
    for straggler in report.stragglers() {
        assert_eq!((straggler.route(), straggler.class()), ("GET /", Some("mail")), "{report}");
    }
    assert!(report.to_string().contains("GET / (class mail, "), "{report}");
    // Contract rule 1: those that waited were started, and dropped where they first waited.
    assert_eq!(notes.all().len(), 3);
}
