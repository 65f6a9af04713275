//! Hooks run exactly once, in order of registration, when handler, body producer and continuation have all ended,
//! and the response was flushed, aborted, broken off or given up on, however they ended.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, Leave, SHORT, held_back},
    support::{Gate, Journal, Notes, Server, h2client::Http2, soon},
};

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Return,
    Finish,
    ErrorResponse,
    Panic,
    PanicInContinuation,
    AbortOfHandler,
    AbortOfBody,
    LimitOfHandler,
    LimitOfBody,
    LimitOfContinuation,
    Drain,
}

const ENDINGS: [Ending; 11] = [
    Ending::Return,
    Ending::Finish,
    Ending::ErrorResponse,
    Ending::Panic,
    Ending::PanicInContinuation,
    Ending::AbortOfHandler,
    Ending::AbortOfBody,
    Ending::LimitOfHandler,
    Ending::LimitOfBody,
    Ending::LimitOfContinuation,
    Ending::Drain,
];

async fn handler(ending: Ending, notes: Notes, lifecycle: Lifecycle) -> Response {
    let (first, second) = (notes.clone(), notes.clone());
    lifecycle
        .on_shutdown(async move |end| {
            let third = first.clone();
            end.on_shutdown(async move |_| third.add("registered by a hook")).unwrap();
            tokio::task::yield_now().await;
            first.add("first of the handler");
        })
        .unwrap();
    lifecycle.on_shutdown(async move |_| second.add("second of the handler")).unwrap();
    if matches!(ending, Ending::LimitOfHandler | Ending::LimitOfBody | Ending::LimitOfContinuation) {
        lifecycle.set_time_limit(SHORT);
    }
    notes.add("started");
    let never = Gate::closed();
    match ending {
        Ending::Return => "returned".into_response(),
        Ending::Finish => lifecycle.finish("finished").await.map(|_| "too late").into_response(),
        Ending::ErrorResponse => StatusCode::BAD_GATEWAY.into_response(),
        Ending::Panic => panic!("the handler panics, as this test wants it"),
        Ending::PanicInContinuation => Continuation::new(async {
            panic!("the continuation panics, as this test wants it");
        })
        .into_response(),
        Ending::AbortOfBody | Ending::LimitOfBody => held_back(&notes, &never, "first", "second").into_response(),
        Ending::AbortOfHandler | Ending::LimitOfHandler | Ending::Drain => pending().await,
        Ending::LimitOfContinuation => Continuation::new(pending()).into_response(),
    }
}

#[tokio::test]
async fn they_run_exactly_once_in_order_of_registration_however_it_ended() {
    for (ending, leave) in ENDINGS.into_iter().flat_map(|ending| [(ending, Leave::Close), (ending, Leave::ResetStream)])
    {
        let notes = Notes::default();
        let theirs = notes.clone();
        let hook = |name: &'static str| {
            let notes = notes.clone();
            ShutdownHookLayer::new(async move |_| notes.add(name))
        };
        let app = Router::new()
            .route("/", get(move |lifecycle| handler(ending, theirs.clone(), lifecycle)))
            .layer((hook("outer layer"), hook("inner layer")));
        let mut server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
        let client = Asked::get(&server, leave).await;
        let mut left = None;
        match ending {
            Ending::AbortOfHandler => {
                notes.seen("started").await;
                left = Some(client.leave(leave).await);
            }
            Ending::AbortOfBody => {
                notes.seen("producing").await;
                left = Some(client.leave(leave).await);
            }
            Ending::Drain => {
                notes.seen("started").await;
                server.begin_drain();
            }
            // The client waits for its answer, which it need not read here.
            _ => server.journal.ended(1).await,
        }
        let report = server.stop().await;
        assert_eq!(report.is_clean(), ending != Ending::Drain, "{ending:?}: {report}");
        drop(left);
        let others = ["started", "producing", "body dropped"];
        let hooks: Vec<_> = notes.all().into_iter().filter(|note| !others.contains(&note.as_str())).collect();
        let expected =
            ["outer layer", "inner layer", "first of the handler", "second of the handler", "registered by a hook"];
        assert_eq!(hooks, expected, "{ending:?} {leave:?}");
    }
}

#[tokio::test]
async fn they_run_when_handler_continuation_and_flush_are_over() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let (hook, rest, own) = (theirs.clone(), theirs.clone(), theirs);
        lifecycle.on_shutdown(async move |_| hook.add("hook")).unwrap();
        let continuation = Continuation::new(async move {
            tokio::task::yield_now().await;
            rest.add("continuation");
        });
        lifecycle.finish((continuation, "finished")).await.unwrap();
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        own.add("handler");
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    let (notes, lines) = (notes.all(), server.journal.lines());
    assert_eq!(notes[2], "hook", "{notes:?}");
    let place = |name: &str| lines.iter().position(|line| line == name).unwrap();
    let hook = place("hook_start:0/0");
    for earlier in ["flushed:8/0", "handler_end/0", "continuation_end/0"] {
        assert!(place(earlier) < hook, "{earlier}: {lines:?}");
    }
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn they_wait_for_a_body_producer_that_goes_on_without_its_reader() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, hook, opens) = (notes.clone(), notes.clone(), gate.clone());
        let app = Router::new()
            .route("/", get(async move || held_back(&theirs, &opens, "first", "second")))
            .layer((IgnoreAbortLayer::new(), ShutdownHookLayer::new(async move |_| hook.add("hook"))));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("producing").await;
        let _left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        assert!(!notes.has("hook"));
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["producing", "produced", "body dropped", "hook"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// Its connection is gone before its handler is first polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn they_run_after_a_handler_that_begins_when_its_connection_is_gone() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        theirs.add("handler");
        let hook = theirs.clone();
        lifecycle.on_shutdown(async move |_| hook.add("handler's hook")).unwrap();
    };
    let hook = notes.clone();
    let app =
        Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(async move |_| hook.add("layer's hook")));
    let (release, released) = mpsc::channel();
    let (outer, released) = (notes.clone(), Arc::new(Mutex::new(released)));
    let app = tower::ServiceBuilder::new()
        .map_request(move |request: Request| {
            outer.add("called");
            // In place, so that the other tasks of this worker go on meanwhile.
            let released: Result<(), _> = tokio::task::block_in_place(|| released.lock().unwrap().recv());
            released.unwrap();
            request
        })
        .service(app);
    let journal = Journal::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(journal.epilogue().build().serve(listener, app).into_future());

    let stream = std::net::TcpStream::connect(address).unwrap();
    let end = stream.try_clone().unwrap();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://test/").body(()).unwrap();
    let response = send.ready().await.unwrap().send_request(request, true).unwrap().0;
    notes.seen("called").await;
    end.shutdown(std::net::Shutdown::Write).unwrap();
    // Until the server has closed it too.
    let _ = soon("the end of the connection", connection).await;
    release.send(()).unwrap();
    notes.seen("handler's hook").await;
    journal.ended(1).await;
    assert_eq!(notes.all(), ["called", "handler", "layer's hook", "handler's hook"]);
    drop(response);
    server.abort();
}

/// A handler that registers the given hooks.
macro_rules! with_hooks {
    ($notes:expr, $($hook:expr),+) => {{
        let notes: Notes = $notes.clone();
        Router::new().route("/", get(async move |lifecycle: Lifecycle| {
            $(
                let notes_of_hook = notes.clone();
                let hook = $hook;
                lifecycle.on_shutdown(async move |end| hook(notes_of_hook, end).await).unwrap();
            )+
            "hello"
        }))
    }};
}

#[tokio::test]
async fn a_hook_that_panics_does_not_keep_the_rest_from_running() {
    let notes = Notes::default();
    let app = with_hooks!(
        notes,
        async |_, _| -> () { panic!("the hook panics, as this test wants it") },
        async |notes: Notes, end: tower_epilogue::End| notes.add(format!("second: {}", end.panic().unwrap()))
    );
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["second: the hook panics, as this test wants it"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_hook_can_stop_the_rest() {
    let notes = Notes::default();
    let app = with_hooks!(
        notes,
        async |notes: Notes, _| notes.add("first"),
        async |notes: Notes, end: tower_epilogue::End| {
            let theirs = notes.clone();
            end.on_shutdown(async move |_| theirs.add("registered by the second")).unwrap();
            notes.add("second");
            ControlFlow::Break(())
        },
        async |notes: Notes, _| notes.add("third")
    );
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first", "second"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_hook_that_goes_on_lets_the_rest_run() {
    let notes = Notes::default();
    let app =
        with_hooks!(notes, async |_, _| ControlFlow::<()>::Continue(()), async |notes: Notes, _| notes.add("second"));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["second"]);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn hooks_have_a_time_limit_of_their_own() {
    let notes = Notes::default();
    let app = with_hooks!(
        notes,
        async |notes: Notes, _| {
            let _dropped = notes.on_drop("first dropped");
            pending::<()>().await;
        },
        async |notes: Notes, end: tower_epilogue::End| notes.add(format!("second: {}", end.status()))
    );
    // That of the request is another one.
    let app = app.layer(TimeLimitLayer::new(Duration::from_secs(60)));
    let server = Server::with(app, |builder| builder.hook_limit(SHORT)).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/").await.unwrap().body, b"hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first dropped", "second: NORMAL"]);
    assert!(server.stop().await.is_clean());
}

/// What is still to run goes with the runtime, also where it keeps the request that keeps it.
#[test]
fn the_end_of_the_runtime_lets_go_of_what_was_still_to_run() {
    let runtimes = [tokio::runtime::Builder::new_current_thread, tokio::runtime::Builder::new_multi_thread];
    for (mut runtime, answers) in runtimes.into_iter().flat_map(|make| [(make(), false), (make(), true)]) {
        let runtime = runtime.enable_all().build().unwrap();
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let kept = |what| (theirs.on_drop(what), lifecycle.clone());
            let (hook, waiting) = (kept("hook dropped"), kept("continuation dropped"));
            lifecycle.on_shutdown(async move |_| drop(hook)).unwrap();
            if !answers {
                pending::<()>().await;
            }
            (Continuation::new(pending()), Continuation::new(async move { drop(waiting) }), "hello")
        };
        let _client = runtime.block_on(async {
            let server = Server::start(Router::new().route("/", get(handler))).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            server.journal.seen(if answers { "continuation_start" } else { "handler_start" }).await;
            client
        });
        assert!(notes.all().is_empty());
        drop(runtime);
        let mut all = notes.all();
        all.sort_unstable();
        assert_eq!(all, ["continuation dropped", "hook dropped"], "answers: {answers}");
    }
}
