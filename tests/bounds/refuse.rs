//! `Refuse`: a 503 with `Retry-After` before the handler runs.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use tower_epilogue::{Bound, Continuation, Lifecycle, Load, ReserveLayer, WhenFull};

use crate::{
    Meter, app,
    support::{Gate, Logs, MemoryServer, Notes, Server, h2client::Http2, logs, soon, streamed},
};

#[tokio::test]
async fn past_what_may_run_and_wait_requests_are_refused_before_their_handler() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter), |builder| {
        builder.max_running(2).max_waiting(1).retry_after(Duration::from_millis(1500))
    })
    .await;
    for name in ["a", "b", "c"] {
        assert_eq!(server.get(&format!("/task/{name}")).await.text(), "accepted");
    }
    notes.seen("starts b").await;
    server.journal.seen("continuation_waits").await;
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.reserved, load.refused, load.over), (2, 1, 0, 0, 0));
    for path in ["/task/d", "/plain"] {
        let refusal = server.get(path).await;
        assert_eq!((refusal.status, refusal.header("retry-after")), (503, Some("2")));
        assert_eq!(refusal.text(), "The server is busy. Try again later.\n");
    }
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/task/d").await.unwrap().status, 503);
    assert!(!notes.has("handler d") && !notes.has("plain"));
    assert_eq!((server.epilogue.load().unwrap().refused, server.epilogue.refused()), (3, 3));
    let refused = server.journal.requests()[3];
    assert_eq!(server.journal.lines_of(refused), ["refused/0", "flushed:37/0", "ended/0"]);
    gate.open();
    server.journal.ended(6).await;
    assert!(notes.has("ends a") && notes.has("ends b") && notes.has("ends c"));
    assert_eq!(meter.most(), 2);
    assert_eq!(server.get("/task/e").await.status, 200);
    server.journal.ended(7).await;
    let Load { running, waiting, reserved, .. } = server.epilogue.load().unwrap();
    assert_eq!((running, waiting, reserved), (0, 0, 0));
}

#[tokio::test]
async fn those_that_wait_run_in_their_order() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter), |builder| builder.max_running(1)).await;
    for name in 0..10 {
        assert_eq!(server.get(&format!("/task/{name}")).await.status, 200);
        server
            .journal
            .until("it waits or runs", |events| {
                let begun = |name: &&str| ["continuation_waits", "continuation_start"].contains(name);
                events.iter().map(|event| event.kind().name()).filter(begun).count() > name
            })
            .await;
    }
    gate.open();
    server.journal.ended(10).await;
    let started: Vec<_> = notes.all().into_iter().filter(|note| note.starts_with("starts")).collect();
    assert_eq!(started, (0..10).map(|name| format!("starts {name}")).collect::<Vec<_>>());
    assert_eq!(meter.most(), 1);
}

#[tokio::test]
async fn a_place_is_given_back_when_the_handler_returns_without_a_continuation() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let (opens, shown) = (gate.clone(), notes.clone());
    let app = app(&notes, &gate, &meter)
        .route("/stream", get(async || streamed(&["a", "b"])))
        .route("/panics", get(async || -> &'static str { panic!("on purpose") }))
        .route(
            "/endless",
            get(async move || {
                let opens = opens.clone();
                shown.add("endless");
                Body::from_stream(futures_util::stream::once(async move {
                    opens.passed().await;
                    Ok::<_, std::io::Error>("x")
                }))
            }),
        );
    let server = Server::with(app, |builder| builder.max_running(1).max_waiting(0)).await;
    let mut endless = server.connect().await;
    endless.send_get("/endless").await;
    notes.seen("endless").await;
    for path in ["/plain", "/stream", "/panics", "/none"] {
        for _ in 0..3 {
            assert_ne!(server.get(path).await.status, 503, "{path}");
        }
    }
    // One whose handler runs has the place.
    assert_eq!(server.get("/task/a").await.status, 200);
    assert_eq!(server.get("/plain").await.status, 503);
    gate.open();
    endless.read_until("x").await;
}

#[tokio::test]
async fn a_handler_that_runs_has_a_place_and_one_that_is_dropped_gives_it_back() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move || {
        theirs.add("handler");
        let _dropped = theirs.on_drop("dropped");
        opens.passed().await;
        "done"
    };
    let app = Router::new().route("/", get(handler));
    let server = Server::with(app, |builder| builder.max_running(1).max_waiting(0)).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("handler").await;
    assert_eq!(server.epilogue.load().unwrap().reserved, 1);
    assert_eq!(server.get("/").await.status, 503);
    client.close();
    notes.seen("dropped").await;
    server.journal.ended(2).await;
    assert_eq!(server.epilogue.load().unwrap().reserved, 0);
}

#[tokio::test]
async fn a_handler_that_goes_on_behind_its_finish_keeps_its_place_for_what_it_may_return() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.finish("finished").await.unwrap();
        theirs.add("rest");
        opens.passed().await;
        let notes = theirs.clone();
        Continuation::new(async move { notes.add("continuation") })
    };
    let server =
        Server::with(Router::new().route("/", get(handler)), |builder| builder.max_running(1).max_waiting(0)).await;
    assert_eq!(server.get("/").await.text(), "finished");
    notes.seen("rest").await;
    assert_eq!(server.epilogue.load().unwrap().reserved, 1);
    assert_eq!(server.get("/").await.status, 503);
    gate.open();
    notes.seen("continuation").await;
    server.journal.ended(2).await;
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.reserved, load.running, load.over), (0, 0, 0));
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn what_is_always_admitted_is_never_refused() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter), |builder| {
        builder.max_running(1).max_waiting(0).admit_always(|request| {
            assert!(request.headers.contains_key("host"));
            assert_ne!(request.uri.path(), "/task/panics", "on purpose");
            request.uri.path() == "/plain"
        })
    })
    .await;
    assert_eq!(server.get("/task/a").await.status, 200);
    assert_eq!(server.get("/task/b").await.status, 503);
    assert_eq!(server.get("/task/panics").await.status, 503);
    assert_eq!(server.get("/plain").await.text(), "plain");
    gate.open();
}

/// Also not for a class. Inside of a nested router it is the whole path that is asked about.
#[tokio::test]
async fn what_is_always_admitted_is_not_refused_by_its_route_either() {
    let gate = Gate::closed();
    let theirs = gate.clone();
    let handler = async move || {
        let gate = theirs.clone();
        (Continuation::new(async move { gate.passed().await }).class("mail"), "accepted")
    };
    let mail = get(handler).layer(ReserveLayer::class("mail"));
    let app = Router::new().nest("/inside", Router::new().route("/mail", mail.clone()).route("/urgent", mail));
    let server = Server::with(app, |builder| {
        let bound = Bound::new(1).max_waiting(0);
        builder.class("mail", bound).admit_always(|request| request.uri.path() == "/inside/urgent")
    })
    .await;
    assert_eq!(server.get("/inside/mail").await.status, 200);
    assert_eq!(server.get("/inside/mail").await.status, 503);
    assert_eq!(server.get("/inside/urgent").await.status, 200);
    assert_eq!(server.epilogue.refused(), 1);
    server.journal.seen("continuation_waits").await;
    let load = server.epilogue.class_load("mail").unwrap();
    assert_eq!((load.running, load.waiting, load.over), (1, 1, 1));
    gate.open();
    server.journal.ended(3).await;
}

#[tokio::test]
async fn run_has_no_bound_and_counts() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter), |builder| {
        builder.max_running(2).max_waiting(0).when_full(WhenFull::Run)
    })
    .await;
    for name in 0..5 {
        assert_eq!(server.get(&format!("/task/{name}")).await.status, 200);
        notes.seen(&format!("starts {name}")).await;
    }
    let load = server.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.refused, load.over), (5, 0, 0, 3));
    gate.open();
    server.journal.ended(5).await;
}

#[tokio::test]
async fn without_a_bound_nothing_is_counted_or_refused() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::start(app(&notes, &gate, &meter)).await;
    for name in 0..20 {
        assert_eq!(server.get(&format!("/task/{name}")).await.status, 200);
    }
    notes.count(40).await;
    assert_eq!((meter.now(), server.epilogue.load(), server.epilogue.refused()), (20, None, 0));
    gate.open();
    soon("they end", server.journal.ended(20)).await;
}

/// The log's numbers of refused requests with this route.
fn told(logs: &Logs, route: &str) -> Vec<u64> {
    let lines = logs.with(&format!("route=\"GET {route}\"")).into_iter();
    let lines = lines.filter(|line| line.contains("WARN") && line.contains("requests are refused"));
    lines.map(|line| line.split("count=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()).collect()
}

/// An overload that lasts for a moment is to be seen as large as it was.
#[tokio::test(start_paused = true)]
async fn the_log_has_the_number_of_those_that_were_refused_in_one_moment() {
    let logs = logs();
    let accept = async || (Continuation::new(tokio::time::sleep(Duration::from_secs(60))), "accepted");
    let detached = async |lifecycle: Lifecycle| {
        let _ = lifecycle.finish("accepted").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    for (route, app) in [("/moment", get(accept)), ("/moment/detached", get(detached))] {
        let app = Router::new().route(route, app);
        let server = MemoryServer::with(app, |builder| builder.max_running(1).max_waiting(0).max_detached(1));
        assert_eq!(server.get(route).await.status, 200);
        for _ in 0..5 {
            assert_eq!(server.get(route).await.status, 503);
        }
        assert_eq!(told(&logs, route), [1]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        // None came any more, and nothing is told of twice.
        assert_eq!(told(&logs, route), [1, 4]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(told(&logs, route), [1, 4]);
    }
}
