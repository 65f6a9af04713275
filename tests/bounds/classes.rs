//! Classes, each with a bound of its own.

use std::time::Duration;

use axum::{Router, extract::Path, routing::get};
use tower_epilogue::{Bound, Continuation, Lifecycle, LifecycleError, ReserveLayer, WhenFull};

use crate::{
    Meter,
    support::{Gate, Notes, Server, logs},
};

/// `/{mail or thumb}/{name}`; only mail waits at the gate. Mail has its place reserved if asked.
fn app(notes: &Notes, gate: &Gate, meter: &Meter, reserve: bool) -> Router {
    let (notes, gate, meter) = (notes.clone(), gate.clone(), meter.clone());
    let thumbs = notes.clone();
    let mail = get(async move |Path(name): Path<String>| {
        notes.add(format!("handler {name}"));
        let work = async move {
            let _in = meter.enter();
            gate.passed().await;
            notes.add(format!("mailed {name}"));
        };
        (Continuation::new(work).class("mail"), "mail")
    });
    let thumb = async move |Path(name): Path<String>| {
        (Continuation::new(async move { thumbs.add(format!("thumb {name}")) }).class("thumb"), "thumb")
    };
    let mail = if reserve { mail.layer(ReserveLayer::class("mail")) } else { mail };
    Router::new().route("/mail/{name}", mail).route("/thumb/{name}", get(thumb))
}

#[tokio::test]
async fn slow_mail_keeps_no_thumbnail_waiting() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter, false), |builder| {
        builder.max_running(3).max_waiting(0).class("mail", Bound::new(2).max_waiting(100))
    })
    .await;
    for name in 0..20 {
        assert_eq!(server.get(&format!("/mail/{name}")).await.status, 200);
    }
    for name in 0..5 {
        assert_eq!(server.get(&format!("/thumb/{name}")).await.status, 200);
        notes.seen(&format!("thumb {name}")).await;
    }
    let load = server.epilogue.class_load("mail").unwrap();
    assert_eq!((load.running, load.waiting, load.over), (2, 18, 0));
    gate.open();
    server.journal.ended(25).await;
    assert_eq!(meter.most(), 2);
    assert_eq!(server.epilogue.class_load("thumb"), None);
}

/// Nor do those that cannot even wait, and whose responses are held back for that.
#[tokio::test]
async fn responses_that_are_held_for_their_class_keep_no_other_from_being_served() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter, false), |builder| {
        let hold = WhenFull::Hold(Duration::from_secs(3600));
        builder.max_running(2).max_waiting(0).class("mail", Bound::new(1).max_waiting(0).when_full(hold))
    })
    .await;
    assert_eq!(server.get("/mail/runs").await.status, 200);
    let mut held = Vec::new();
    for name in ["one", "two", "three"] {
        let mut client = server.connect().await;
        client.send_get(&format!("/mail/{name}")).await;
        notes.seen(&format!("handler {name}")).await;
        held.push(client);
    }
    for name in 0..3 {
        assert_eq!(server.get(&format!("/thumb/{name}")).await.status, 200);
        notes.seen(&format!("thumb {name}")).await;
    }
    gate.open();
    for client in &mut held {
        client.read_until("mail").await;
    }
    server.journal.ended(7).await;
    assert_eq!(meter.most(), 1);
    for load in [server.epilogue.load().unwrap(), server.epilogue.class_load("mail").unwrap()] {
        assert_eq!((load.running, load.waiting, load.reserved, load.refused, load.over), (0, 0, 0, 0, 0));
    }
}

#[tokio::test]
async fn a_reserving_route_is_refused_when_its_class_is_full_and_no_other() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server =
        Server::with(app(&notes, &gate, &meter, true), |builder| builder.class("mail", Bound::new(1).max_waiting(1)))
            .await;
    for name in ["a", "b"] {
        assert_eq!(server.get(&format!("/mail/{name}")).await.status, 200);
    }
    let refusal = server.get("/mail/c").await;
    assert_eq!((refusal.status, refusal.header("retry-after")), (503, Some("1")));
    assert!(!notes.has("handler c"));
    assert_eq!(server.get("/thumb/x").await.status, 200);
    let load = server.epilogue.class_load("mail").unwrap();
    assert_eq!((load.refused, load.over, server.epilogue.refused()), (1, 0, 1));
    let refused = server.journal.requests()[2];
    // What is around the layer begins before that, and ends with it.
    let told = ["handler_start/0", "refused/0", "handler_end/0", "flushed:37/0", "ended/0"];
    assert_eq!(server.journal.lines_of(refused), told);
    gate.open();
    server.journal.ended(4).await;
    assert!(notes.has("mailed a") && notes.has("mailed b"));
    assert_eq!(server.get("/mail/d").await.status, 200);
}

#[tokio::test]
async fn what_was_not_reserved_runs_when_its_turn_comes_and_is_counted() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server =
        Server::with(app(&notes, &gate, &meter, false), |builder| builder.class("mail", Bound::new(1).max_waiting(0)))
            .await;
    for name in 0..3 {
        assert_eq!(server.get(&format!("/mail/{name}")).await.status, 200);
    }
    server
        .journal
        .until("two wait", |events| {
            events.iter().filter(|event| event.kind().name() == "continuation_waits").count() == 2
        })
        .await;
    assert_eq!(server.epilogue.class_load("mail").unwrap().over, 2);
    gate.open();
    server.journal.ended(3).await;
    assert_eq!(meter.most(), 1);
    assert!((0..3).all(|name| notes.has(&format!("mailed {name}"))));
}

#[tokio::test]
async fn a_class_that_only_counts_holds_nothing_up() {
    let (notes, gate, meter) = (Notes::default(), Gate::closed(), Meter::default());
    let server = Server::with(app(&notes, &gate, &meter, true), |builder| {
        builder.class("mail", Bound::new(1).when_full(WhenFull::Run))
    })
    .await;
    for name in 0..3 {
        assert_eq!(server.get(&format!("/mail/{name}")).await.status, 200);
    }
    server
        .journal
        .until("all run", |events| {
            events.iter().filter(|event| event.kind().name() == "continuation_start").count() == 3
        })
        .await;
    let load = server.epilogue.class_load("mail").unwrap();
    assert_eq!((load.running, load.over), (3, 2));
    gate.open();
}

#[tokio::test]
async fn a_place_that_a_finished_handler_does_not_need_is_given_back_while_its_other_continuation_runs() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        lifecycle.finish("finished").await?;
        let work = async move {
            notes.add("starts");
            gate.passed().await;
        };
        Ok::<_, LifecycleError>(Continuation::new(work).class("thumb"))
    };
    let app = Router::new().route("/", get(handler).layer(ReserveLayer::class("mail")));
    let server = Server::with(app, |builder| builder.class("mail", Bound::new(1))).await;
    assert_eq!(server.get("/").await.text(), "finished");
    notes.seen("starts").await;
    assert_eq!(server.epilogue.class_load("mail").unwrap().reserved, 0);
    gate.open();
    server.journal.ended(1).await;
}

/// Contract rule 13: a name that is misspelt would bound nothing, in silence.
#[tokio::test]
async fn a_place_in_a_class_without_a_bound_is_told_of_once_where_others_have_one() {
    let logs = logs();
    let app = || {
        let mail = async || (Continuation::new(async {}).class("letters"), "mail");
        Router::new().route("/misspelt/{number}", get(mail).layer(ReserveLayer::class("leters")))
    };
    let told = || logs.with("`ReserveLayer` does nothing");
    // As in a test of the app, which bounds nothing.
    let unbounded = Server::with(app(), |builder| builder.max_running(3)).await;
    assert_eq!(unbounded.get("/misspelt/1").await.status, 200);
    assert_eq!(told(), [""; 0]);
    let server = Server::with(app(), |builder| builder.class("letters", Bound::new(2))).await;
    for number in 0..3 {
        assert_eq!(server.get(&format!("/misspelt/{number}")).await.status, 200);
    }
    let [line] = &told()[..] else { panic!("{:?}", told()) };
    for part in ["WARN", "GET /misspelt/{number}", "leters", "letters"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}
