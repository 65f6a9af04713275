//! A middleware that answers at once and has the handler run in a task of its own: what that returns may come when its request
//! has ended.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::get,
};
use futures_util::stream;
use tower_epilogue::{Continuation, Failure, IgnoreAbortLayer, ShutdownHookLayer};

use crate::{
    common::{SHORT, told},
    routes::work,
    support::{Gate, Notes, Server},
};

/// The handler begins when the gate is open.
fn app(notes: &Notes, gate: &Gate, work: fn(&Notes, &Gate) -> Continuation, goes_on: &Gate) -> Router {
    let (theirs, goes_on, gate) = (notes.clone(), goes_on.clone(), gate.clone());
    let handler = async move || (work(&theirs, &goes_on), "nobody reads this");
    let answers_at_once = from_fn(move |request: Request, next: Next| {
        let gate = gate.clone();
        async move {
            tokio::spawn(async move {
                gate.passed().await;
                next.run(request).await
            });
            "accepted"
        }
    });
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    app.layer(answers_at_once).layer(ShutdownHookLayer::new(told(notes)))
}

fn waiting(notes: &Notes, gate: &Gate) -> Continuation {
    let (notes, gate) = (notes.clone(), gate.clone());
    Continuation::new(async move {
        let _dropped = notes.on_drop("dropped");
        notes.add("begun");
        gate.passed().await;
        notes.add("continuation");
    })
}

fn blocking(notes: &Notes, gate: &Gate) -> Continuation {
    let (notes, gate) = (notes.clone(), gate.clone());
    Continuation::blocking(move || {
        notes.add("begun");
        tokio::runtime::Handle::current().block_on(gate.passed());
        notes.add("continuation");
    })
}

const KINDS: [fn(&Notes, &Gate) -> Continuation; 2] = [waiting, blocking];

#[tokio::test]
async fn its_continuation_is_waited_for_by_a_drain() {
    for work in KINDS {
        let (notes, gate, goes_on) = (Notes::default(), Gate::closed(), Gate::closed());
        let mut server = Server::start(app(&notes, &gate, work, &goes_on)).await;
        assert_eq!(server.get("/").await.text(), "accepted");
        server.journal.ended(1).await;
        gate.open();
        notes.seen("begun").await;
        assert_eq!(server.epilogue.running(), 1);
        server.begin_drain();
        let mut stopped = std::pin::pin!(server.stop());
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut stopped).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(!notes.has("continuation"));
        goes_on.open();
        assert!(stopped.await.is_clean());
        assert!(notes.has("continuation"));
        assert_eq!(notes.all()[0], "hook: NORMAL, Flushed");
    }
}

#[tokio::test]
async fn its_continuation_is_cut_and_named_at_a_drains_deadline() {
    for work in KINDS {
        let (notes, gate, goes_on) = (Notes::default(), Gate::closed(), Gate::closed());
        let app = app(&notes, &gate, work, &goes_on);
        let server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
        let epilogue = server.epilogue.clone();
        assert_eq!(server.get("/").await.text(), "accepted");
        server.journal.ended(1).await;
        gate.open();
        notes.seen("begun").await;
        let report = server.stop().await;
        let [straggler] = report.stragglers() else { panic!("{report}") };
        assert_eq!((straggler.route(), straggler.phase(), straggler.class()), ("GET /", "continuing", None));
        assert!(!notes.has("continuation"));
        // A thread cannot be ended, and is counted until it ends.
        let is_blocking = !notes.has("dropped");
        assert_eq!(epilogue.stuck(), usize::from(is_blocking));
        goes_on.open();
        if is_blocking {
            notes.seen("continuation").await;
        }
    }
}

#[tokio::test]
async fn its_error_goes_to_the_failure_handler() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let theirs = notes.clone();
    let told = move |failure: Failure| {
        let notes = theirs.clone();
        async move { notes.add(format!("{} {:?} {}", failure.route, failure.class, failure.error)) }
    };
    let fails = |_: &Notes, _: &Gate| Continuation::try_new(async { Err("no mail today") }).class("mail");
    let app = app(&notes, &gate, fails, &gate);
    let server = Server::with(app, |builder| builder.on_failure(told)).await;
    assert_eq!(server.get("/").await.text(), "accepted");
    server.journal.ended(1).await;
    gate.open();
    notes.seen("GET / Some(\"mail\") no mail today").await;
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn its_panic_is_counted() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let panics = |notes: &Notes, _: &Gate| {
        let notes = notes.clone();
        Continuation::new(async move {
            let _dropped = notes.on_drop("dropped");
            panic!("no mail ever");
        })
    };
    let server = Server::start(app(&notes, &gate, panics, &gate)).await;
    let epilogue = server.epilogue.clone();
    assert_eq!(server.get("/").await.text(), "accepted");
    server.journal.ended(1).await;
    gate.open();
    notes.seen("dropped").await;
    assert!(server.stop().await.is_clean());
    assert_eq!(epilogue.panicked(), 1);
}

/// It begins, and returns, while a hook runs.
#[tokio::test]
async fn its_continuation_runs_behind_the_hooks() {
    let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
    let theirs = notes.clone();
    let handler =
        async move || (work(&theirs, "late"), Body::from_stream(stream::pending::<Result<String, Infallible>>()));
    let (theirs, begins) = (notes.clone(), gates[0].clone());
    let answers_at_once = from_fn(move |request: Request, next: Next| {
        let (notes, gate) = (theirs.clone(), begins.clone());
        async move {
            tokio::spawn(async move {
                gate.passed().await;
                drop(next.run(request).await);
                notes.add("returned");
            });
            "accepted"
        }
    });
    let (theirs, may_end) = (notes.clone(), gates[1].clone());
    let slow = ShutdownHookLayer::new(move |_| {
        let (notes, gate) = (theirs.clone(), may_end.clone());
        async move {
            notes.add("hook");
            gate.passed().await;
        }
    });
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let server = Server::start(app.layer(answers_at_once).layer(slow)).await;
    assert_eq!(server.get("/").await.text(), "accepted");
    notes.seen("hook").await;
    gates[0].open();
    notes.seen("returned").await;
    gates[1].open();
    notes.seen("work: late").await;
    server.journal.ended(1).await;
    // It is not told of: nothing but hooks comes behind the first of them.
    let is_told = |line: &String| line.starts_with("handler_") || line.starts_with("body_");
    let handlers = server.journal.lines().into_iter().filter(is_told);
    assert_eq!(handlers.collect::<Vec<_>>(), ["handler_start/0", "handler_end/0"]);
    let epilogue = server.epilogue.clone();
    assert!(server.stop().await.is_clean());
    assert_eq!((epilogue.lost(), notes.all().len()), (0, 3));
}
