//! Bounds and the other limits: the clock, threads, what outlives its response, and the drain.

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Router, routing::get};
use tower_epilogue::{
    Bound, Continuation, EpilogueBuilder, Event, EventKind, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer,
    TimeLimitLayer,
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

/// What the second of two blocking continuations waits for: its place, or its thread.
const BEHIND: [fn(EpilogueBuilder) -> EpilogueBuilder; 2] =
    [|builder| builder.class("slow", Bound::new(1)), |builder| builder.max_blocking(1)];

/// Two of them at their limit, of which one has a thread, and the other waits for it.
async fn one_behind_another(
    notes: &Notes,
    bound: fn(EpilogueBuilder) -> EpilogueBuilder,
    drain_deadline: Option<Duration>,
) -> (Server, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel();
    let app = blocking(notes, &Meter::default(), released, true).layer(TimeLimitLayer::new(Duration::from_millis(100)));
    let server = Server::with(app, |builder| {
        bound(builder).drain_deadline(drain_deadline).hook_limit(Duration::from_millis(50))
    })
    .await;
    for _ in 0..2 {
        assert_eq!(server.get("/").await.status, 200);
    }
    server.journal.ended(2).await;
    assert_eq!(server.epilogue.stuck(), 2);
    (server, release)
}

/// Contract rule 1: what a drain's deadline leaves behind is in its report, also where its request had ended before.
#[tokio::test]
async fn a_drain_names_a_blocking_one_that_still_waits_at_its_deadline() {
    for bound in BEHIND {
        let notes = Notes::default();
        let (server, release) = one_behind_another(&notes, bound, Some(Duration::from_millis(200))).await;
        let report = server.stop().await;
        let named: Vec<_> = report.stragglers().iter().map(|one| (one.route(), one.class(), one.phase())).collect();
        assert_eq!(named, [("GET /", Some("slow"), "continuing")], "{report}");
        drop(release);
    }
}

#[tokio::test]
async fn a_drain_names_a_blocking_one_once_that_it_has_cut_while_it_waited() {
    let (notes, meter) = (Notes::default(), Meter::default());
    let (release, released) = mpsc::channel();
    let server = Server::with(blocking(&notes, &meter, released, true), |builder| {
        let short = Duration::from_millis(100);
        builder.class("slow", Bound::new(1)).drain_deadline(short).hook_limit(short)
    })
    .await;
    for _ in 0..2 {
        assert_eq!(server.get("/").await.status, 200);
    }
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 2, "{report}");
    drop(release);
}

/// From then on it is what any thread is that is busy past its limit.
#[tokio::test]
async fn a_drain_waits_for_a_late_blocking_one_until_it_has_its_thread() {
    for bound in BEHIND {
        let notes = Notes::default();
        let (mut server, release) = one_behind_another(&notes, bound, None).await;
        server.begin_drain();
        let (epilogue, mut stopped) = (server.epilogue.clone(), tokio::spawn(server.drained()));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut stopped).await.is_err());
        release.send(()).unwrap();
        assert!(soon("it drains", stopped).await.unwrap().is_clean());
        notes.count(3).await;
        assert_eq!((notes.all(), epilogue.stuck()), (["starts", "ends", "starts"].map(String::from).to_vec(), 1));
        release.send(()).unwrap();
        soon("its thread ends", async {
            while epilogue.stuck() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Contract rule 13.
#[test]
fn a_late_blocking_one_whose_runtime_ends_is_lost_and_counted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let notes = Notes::default();
    let (server, release) = runtime.block_on(one_behind_another(&notes, BEHIND[0], None));
    let epilogue = server.epilogue.clone();
    drop(runtime);
    // The thread of the other is busy all the same.
    assert_eq!((epilogue.stuck(), epilogue.lost()), (1, 1));
    release.send(()).unwrap();
    while epilogue.stuck() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(notes.all(), ["starts", "ends"]);
}

/// Whoever keeps a handle to the request keeps nothing of what was reserved for it.
#[test]
fn a_place_is_given_back_when_the_runtime_ends_before_the_continuation_took_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (sender, kept) = mpsc::channel();
    let handler = async move |lifecycle: Lifecycle| {
        sender.send(lifecycle).unwrap();
        (Continuation::new(async {}), vec![b'x'; 20_000_000])
    };
    let (server, _client) = runtime.block_on(async {
        let server = Server::with(Router::new().route("/", get(handler)), |builder| builder.max_running(1)).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        server.journal.seen("handler_end").await;
        (server, client)
    });
    let (epilogue, kept) = (server.epilogue.clone(), kept.recv().unwrap());
    assert_eq!(epilogue.load().unwrap().reserved, 1);
    drop(runtime);
    assert_eq!((epilogue.load().unwrap().reserved, epilogue.lost()), (0, 1));
    // There is no clock left that it could be on.
    kept.set_time_limit(SECOND);
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
        let named = (straggler.route(), straggler.class(), straggler.phase());
        assert_eq!(named, ("GET /", Some("mail"), "continuing"), "{report}");
    }
    assert!(report.to_string().contains("GET / (class mail, "), "{report}");
    // Contract rule 1: those that waited were started, and dropped where they first waited.
    assert_eq!(notes.all().len(), 3);
}
