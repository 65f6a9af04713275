//! Beside middleware that runs the handler in a task of its own, so that its panic costs nothing else: all is told once, of the
//! handler, and nothing of the middleware around it.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::Request,
    handler::Handler,
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::get,
};
use futures_util::{FutureExt, stream};
use tower::{Layer, Service, service_fn};
use tower_epilogue::{EpilogueBuilder, EventKind, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    common::{SECOND, SHORT},
    routes::{hook, work},
    support::{Gate, Notes, Server, h2client::Http2},
};

/// The middleware goes on, with what the handler returned, when the gate is open.
async fn serve<T: 'static>(
    notes: &Notes,
    gate: &Gate,
    handler: impl Handler<T, ()>,
    setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
) -> Server {
    let (theirs, opens) = (notes.clone(), gate.clone());
    let isolates = from_fn(move |request: Request, next: Next| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        async move {
            let response = tokio::spawn(next.run(request)).await.unwrap();
            notes.add("middleware");
            gate.passed().await;
            response
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(isolates);
    Server::with(app.layer((hook(notes), IgnoreAbortLayer::new())), setup).await
}

fn told_of_handlers(server: &Server) -> Vec<String> {
    server.journal.lines().into_iter().filter(|line| line.starts_with("handler_")).collect()
}

/// The handler has returned, although its middleware has yet to, which waits for it or for something else.
#[tokio::test]
async fn a_late_finish_is_refused() {
    for waits in [true, false] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let continuation = work(&theirs, "handler");
            tokio::spawn(async move {
                theirs.seen("returned").await;
                for _ in 0..50 {
                    tokio::task::yield_now().await;
                }
                let sent = lifecycle.finish("late").await;
                theirs.add(format!("late: {}", sent.is_err_and(|error| error.is_already_answered())));
                opens.open();
            });
            (continuation, "answer")
        };
        let (theirs, opens) = (notes.clone(), gate.clone());
        let isolates = from_fn(move |request: Request, next: Next| {
            let (notes, gate) = (theirs.clone(), opens.clone());
            async move {
                let task = tokio::spawn(async move {
                    let response = next.run(request).await;
                    notes.add("returned");
                    response
                });
                if waits {
                    let response = task.await.unwrap();
                    gate.passed().await;
                    return response;
                }
                gate.passed().await;
                task.await.unwrap()
            }
        });
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(isolates);
        let server = Server::start(app.layer(hook(&notes))).await;
        assert_eq!(server.get("/").await.text(), "answer");
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["returned", "late: true", "work: handler", "hook: GET / NORMAL Flushed"]);
        assert_eq!(told_of_handlers(&server), ["handler_start/0", "handler_end/0"]);
        assert!(server.stop().await.is_clean());
    }
}

/// Its task is aborted by somebody else.
#[tokio::test]
async fn one_that_is_dropped_is_told_of_so() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        theirs.add("handler");
        std::future::pending::<()>().await;
    };
    let theirs = notes.clone();
    let aborts = from_fn(move |request: Request, next: Next| {
        let notes = theirs.clone();
        async move {
            let task = tokio::spawn(next.run(request));
            let handle = task.abort_handle();
            tokio::spawn(async move {
                notes.seen("handler").await;
                for _ in 0..50 {
                    tokio::task::yield_now().await;
                }
                handle.abort();
            });
            task.await.unwrap_or_else(|error| error.is_cancelled().to_string().into_response())
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(aborts);
    let server = Server::start(app.layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.text(), "true");
    server.journal.ended(1).await;
    assert_eq!(told_of_handlers(&server), ["handler_start/0", "handler_dropped/0"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn one_that_goes_on_without_its_client_is_counted_once() {
    let (notes, gate, waits) = (Notes::default(), Gate::closed(), Gate::closed());
    let (theirs, opens) = (notes.clone(), waits.clone());
    let handler = async move || {
        theirs.add("handler");
        opens.passed().await;
        "answer"
    };
    let server = serve(&notes, &gate, handler, |builder| builder.max_detached(2)).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    notes.seen("handler").await;
    drop(response);
    server.journal.seen("aborted").await;
    let response = client.start("GET", "/").await;
    notes.count(2).await;
    assert_eq!((notes.all(), server.epilogue.detached()), (vec!["handler".to_owned(); 2], 1));
    waits.open();
    gate.open();
    assert_eq!(response.await.unwrap().status(), 200);
    server.journal.ended(2).await;
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn its_panic_is_told_once() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let panicked = Notes::default();
    let theirs = panicked.clone();
    let told = move |event: &tower_epilogue::Event| {
        if let EventKind::Panicked { what, .. } = event.kind() {
            theirs.add(*what);
        }
    };
    let handler = async || -> &'static str { panic!("as this test wants it") };
    let server = serve(&notes, &gate, handler, |builder| builder.on_event(told)).await;
    assert_eq!(server.get("/").await.status, 500);
    let epilogue = server.epilogue.clone();
    assert!(server.stop().await.is_clean());
    assert_eq!((panicked.all(), epilogue.panicked()), (vec!["handler".to_owned()], 1));
    assert_eq!(notes.all(), ["hook: GET / NORMAL Flushed"]);
}

/// Whether its client has it, or has left before.
#[tokio::test]
async fn its_stream_ends_once() {
    for leaves in [false, true] {
        let (notes, gate, waits) = (Notes::default(), Gate::closed(), Gate::closed());
        let (theirs, opens) = (notes.clone(), waits.clone());
        let handler = async move || {
            theirs.add("handler");
            opens.passed().await;
            Body::from_stream(stream::iter(["a", "b"].map(Ok::<_, Infallible>)))
        };
        gate.open();
        let server = serve(&notes, &gate, handler, |builder| builder).await;
        let mut client = Http2::connect(server.address).await;
        let response = client.start("GET", "/").await;
        notes.seen("handler").await;
        if leaves {
            drop(response);
            server.journal.seen("aborted").await;
            waits.open();
        } else {
            waits.open();
            let whole = crate::support::h2client::read(response.await.unwrap()).await.unwrap();
            assert_eq!(whole.body, b"ab");
        }
        server.journal.ended(1).await;
        let ends = server.journal.lines().into_iter().filter(|line| line.starts_with("body_")).count();
        assert_eq!(ends, 1, "{leaves}: {:?}", server.journal.lines());
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// In a task of the handler's own, which begins when that has returned. What is around the handler has not been polled since.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_finish_behind_its_answer_is_refused() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let notes = theirs.clone();
        tokio::spawn(async move { notes.add(format!("late: {}", lifecycle.finish("late").await.is_ok())) });
        "answer"
    };
    let spawns = from_fn(|request: Request, next: Next| async { tokio::spawn(next.run(request)).await.unwrap() });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(spawns);
    let server = Server::start(app.layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.text(), "answer");
    server.journal.ended(1).await;
    assert!(notes.has("late: false"), "{:?}", notes.all());
    assert!(server.stop().await.is_clean());
}

/// A service that spawns in its `call`, which a layer of ours is around, and is polled later.
#[tokio::test]
async fn it_may_begin_before_what_is_around_it_is_polled() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        tokio::spawn(async move {
            notes.seen("middleware").await;
            let late = lifecycle.finish("late").now_or_never();
            notes.add(format!("late: {late:?}"));
            gate.open();
        });
        theirs.add("handler");
        "answer"
    };
    let mut inner = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let spawns = service_fn(move |request: Request| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        let task = tokio::spawn(Service::<Request>::call(&mut inner, request));
        async move {
            let response = task.await.unwrap();
            notes.add("middleware");
            gate.passed().await;
            // Whoever was woken by what is late has its turn.
            tokio::task::yield_now().await;
            response
        }
    });
    let answer = TimeLimitLayer::new(60 * SECOND).layer(spawns).call(Request::new(Body::empty()));
    notes.seen("handler").await;
    let body = answer.await.unwrap().into_body();
    assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "answer");
    assert!(notes.all()[2].starts_with("late: Some(Err"), "{:?}", notes.all());
}

/// By a middleware which waited when the client left, and then calls it, in a task or not.
#[tokio::test]
async fn one_that_begins_without_its_client_is_counted_once() {
    for spawned in [false, true] {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let (theirs, opens) = (notes.clone(), gates[1].clone());
        let handler = async move || {
            theirs.add("handler");
            opens.passed().await;
        };
        let (theirs, opens) = (notes.clone(), gates[0].clone());
        let waits = from_fn(move |request: Request, next: Next| {
            let (notes, gate) = (theirs.clone(), opens.clone());
            async move {
                notes.add("middleware");
                gate.passed().await;
                match spawned {
                    true => tokio::spawn(next.run(request)).await.unwrap(),
                    false => next.run(request).await,
                }
            }
        });
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(waits);
        let server = Server::start(app.layer((hook(&notes), IgnoreAbortLayer::new()))).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("middleware").await;
        client.half_close().await;
        server.journal.seen("aborted").await;
        gates[0].open();
        notes.seen("handler").await;
        // What is around it has been polled.
        tokio::time::sleep(SHORT).await;
        assert_eq!(server.epilogue.detached(), 1, "{spawned}");
        gates[1].open();
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
    }
}

/// It has begun in another thread meanwhile, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_its_middleware_finishes_while_it_begins_is_the_answer() {
    for panics in [false, true] {
        its_middleware_finishes_while_it_begins(panics).await;
    }
}

async fn its_middleware_finishes_while_it_begins(panics: bool) {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move || {
        theirs.add("handler");
        opens.passed().await;
    };
    let theirs = notes.clone();
    let finishes = from_fn(move |lifecycle: Lifecycle, request: Request, next: Next| {
        let notes = theirs.clone();
        async move {
            tokio::spawn(next.run(request));
            tokio::task::block_in_place(|| {
                while !notes.has("handler") {
                    std::thread::yield_now();
                }
            });
            assert!(lifecycle.finish((work(&notes, "finished"), "finished")).now_or_never().is_none());
            assert!(!panics, "as this test wants it");
            (work(&notes, "returned"), "returned")
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(finishes);
    let server = Server::start(app.layer(hook(&notes))).await;
    assert_eq!(server.get("/").await.text(), "finished");
    gate.open();
    server.journal.ended(1).await;
    let mut all = notes.all();
    let last = all.pop();
    all[1..].sort_unstable();
    let works: &[&str] = if panics { &["work: finished"] } else { &["work: finished", "work: returned"] };
    assert_eq!(all[1..], *works);
    assert_eq!(last.as_deref(), Some("hook: GET / NORMAL Flushed"));
    let told = server.journal.lines().iter().filter(|line| line.starts_with("continuation_start")).count();
    assert_eq!((told, server.epilogue.panicked()), (works.len(), usize::from(panics)));
    assert!(server.stop().await.is_clean());
}
