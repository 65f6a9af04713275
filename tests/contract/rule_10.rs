//! Drain: `serve` returns when the last continuation and hook has ended, or at the deadline, with a report that
//! names each straggler.

use std::{
    future::pending,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer};

use crate::{
    common::{Asked, Leave, SHORT, held_back, told},
    support::{Gate, Notes, Server, h2client::Http2, logs, soon},
};

#[tokio::test]
async fn it_waits_for_continuations_and_hooks() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let (hook, in_hook) = (theirs.clone(), opens.clone());
        lifecycle
            .on_shutdown(async move |_| {
                in_hook.passed().await;
                tokio::task::yield_now().await;
                hook.add("hook");
            })
            .unwrap();
        let continuation = Continuation::new(async move {
            theirs.add("waits");
            opens.passed().await;
            tokio::task::yield_now().await;
            theirs.add("continuation");
        });
        (continuation, "hello")
    };
    let mut server = Server::with(Router::new().route("/", get(handler)), |builder| builder.drain_deadline(None)).await;
    assert_eq!(server.get("/").await.text(), "hello");
    notes.seen("waits").await;
    server.begin_drain();
    // Nobody connects any more, while the continuation still waits.
    soon("the listener closes", async {
        while tokio::net::TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(notes.all(), ["waits"]);
    gate.open();
    let report = server.drained().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(notes.all(), ["waits", "continuation", "hook"]);
}

#[tokio::test]
async fn it_waits_for_requests_in_flight() {
    for leave in [Leave::Close, Leave::ResetStream] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move || {
            theirs.add("started");
            opens.passed().await;
            "hello"
        };
        let mut server = Server::start(Router::new().route("/", get(handler))).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        server.begin_drain();
        gate.open();
        match client {
            Asked::Http1(mut client) => assert_eq!(client.reply().await.text(), "hello"),
            Asked::Http2(_client, response) => {
                let whole = crate::support::h2client::read(response.await.unwrap());
                assert_eq!(soon("the rest", whole).await.unwrap().body, b"hello");
            }
        }
        assert!(server.drained().await.is_clean());
    }
}

/// An HTTP/2 stream has a task of its own, which its connection does not wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_waits_for_a_poll_that_outlasts_its_connection_and_for_its_hooks() {
    for leave in [Leave::Close, Leave::ResetStream, Leave::LoseConnection] {
        let notes = Notes::default();
        let (release, released) = mpsc::channel::<()>();
        let (theirs, released) = (notes.clone(), Arc::new(Mutex::new(released)));
        let handler = async move |lifecycle: Lifecycle| {
            let hook = theirs.clone();
            lifecycle.on_shutdown(async move |_| hook.add("hook")).unwrap();
            theirs.add("here");
            // A long poll; in place, so that the other tasks of this worker go on meanwhile.
            tokio::task::block_in_place(|| released.lock().unwrap().recv().unwrap());
            theirs.add("answers");
        };
        let mut server = Server::start(Router::new().route("/", get(handler))).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("here").await;
        let _left = client.leave(leave).await;
        if leave == Leave::LoseConnection {
            server.journal.seen("aborted").await;
        }
        server.begin_drain();
        let journal = server.journal.clone();
        std::thread::spawn(move || {
            // For a drain that does not wait, to end before.
            std::thread::sleep(SHORT);
            release.send(()).unwrap();
        });
        let drained = notes.clone();
        assert!(server.drained().await.is_clean());
        drained.add("drained");
        assert_eq!(notes.all(), ["here", "answers", "hook", "drained"], "{leave:?}: {:?}", journal.lines());
        assert!(journal.lines().last().unwrap().starts_with("ended/"), "{leave:?}");
    }
}

/// The deadline passes while its connection is gone and its task has not been told.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_that_shows_after_the_deadline_is_cut_and_named_too() {
    let notes = Notes::default();
    let (release, released) = mpsc::channel::<()>();
    let (theirs, released) = (notes.clone(), Arc::new(Mutex::new(released)));
    let handler = async move |lifecycle: Lifecycle| {
        let hook = theirs.clone();
        lifecycle.on_shutdown(async move |end| hook.add(format!("hook {}", end.status()))).unwrap();
        theirs.add("here");
        tokio::task::block_in_place(|| released.lock().unwrap().recv().unwrap());
        lifecycle.ignore_abort(true);
        pending::<()>().await;
    };
    let deadline = |builder: tower_epilogue::EpilogueBuilder| builder.drain_deadline(SHORT);
    let app = Router::new().route("/", get(handler));
    let mut server = Server::with(app, deadline).await;
    let client = Asked::get(&server, Leave::LoseConnection).await;
    notes.seen("here").await;
    let _left = client.leave(Leave::LoseConnection).await;
    server.journal.seen("aborted").await;
    server.begin_drain();
    std::thread::spawn(move || {
        // The deadline is past by then.
        std::thread::sleep(SHORT * 5);
        release.send(()).unwrap();
    });
    let report = server.drained().await;
    assert_eq!(notes.all(), ["here", "hook ABORTED | TIMEOUT"]);
    assert_eq!(report.stragglers().len(), 1, "{report}");
}

/// Where the deadline finds a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Handler,
    HandlerWithoutItsClient,
    Body,
    BodyWithoutItsReader,
    Continuation,
    BlockingContinuation,
    Hook,
}

impl At {
    const ALL: [Self; 7] = [
        Self::Handler,
        Self::HandlerWithoutItsClient,
        Self::Body,
        Self::BodyWithoutItsReader,
        Self::Continuation,
        Self::BlockingContinuation,
        Self::Hook,
    ];

    fn phase(self) -> &'static str {
        match self {
            Self::Handler | Self::HandlerWithoutItsClient => "handling",
            Self::Body | Self::BodyWithoutItsReader => "sending",
            Self::Continuation | Self::BlockingContinuation => "continuing",
            Self::Hook => "ending",
        }
    }
}

/// A thread waits for the end of the test.
type Blocked = Arc<Mutex<mpsc::Receiver<()>>>;

async fn handler(at: At, notes: Notes, blocked: Blocked, lifecycle: Lifecycle) -> Response {
    let never = Gate::closed();
    match at {
        At::Handler | At::HandlerWithoutItsClient => {
            notes.add("here");
            pending().await
        }
        At::Body | At::BodyWithoutItsReader => held_back(&notes, &never, "first", "second").into_response(),
        At::Continuation => Continuation::new(async move {
            notes.add("here");
            pending::<()>().await;
        })
        .into_response(),
        At::BlockingContinuation => Continuation::blocking(move || {
            notes.add("here");
            // Past the deadline; a thread cannot be ended, and need not be waited for.
            let _ = blocked.lock().unwrap().recv();
        })
        .into_response(),
        At::Hook => {
            let hook = async move |_| {
                notes.add("here");
                pending::<()>().await;
            };
            lifecycle.on_shutdown(hook).unwrap();
            "hello".into_response()
        }
    }
}

/// Once it is there where the deadline is to find it, the report names it.
async fn cut(at: At, leave: Leave, with_hook: bool) {
    let notes = Notes::default();
    let theirs = notes.clone();
    let (_ends, blocked) = mpsc::channel();
    let blocked = Arc::new(Mutex::new(blocked));
    let app = Router::new().route("/", get(move |lifecycle| handler(at, theirs.clone(), blocked.clone(), lifecycle)));
    let app = if with_hook { app.layer(ShutdownHookLayer::new(told(&notes))) } else { app };
    let ignores = matches!(at, At::HandlerWithoutItsClient | At::BodyWithoutItsReader);
    let app = if ignores { app.layer(IgnoreAbortLayer::new()) } else { app };
    // Its own limit is not to end the hook before the deadline finds it, on a busy machine either.
    let hook_limit = if at == At::Hook { SHORT * 20 } else { SHORT * 2 };
    let mut server = Server::with(app, |builder| builder.drain_deadline(SHORT).hook_limit(hook_limit)).await;
    let client = Asked::get(&server, leave).await;
    notes.seen(if matches!(at, At::Body | At::BodyWithoutItsReader) { "producing" } else { "here" }).await;
    let (mut stays, mut left) = (Some(client), None);
    if let Some(client) = stays.take_if(|_| ignores) {
        left = Some(client.leave(leave).await);
        server.journal.seen("aborted").await;
    }
    server.begin_drain();
    let journal = server.journal.clone();
    let report = server.drained().await;
    let what = format!("{at:?} {leave:?}, hook: {with_hook}: {report}");
    assert_eq!(report.stragglers().len(), 1, "{what}");
    let straggler = &report.stragglers()[0];
    assert_eq!((straggler.route(), straggler.phase()), ("GET /", at.phase()), "{what}");
    assert!(straggler.age() >= SHORT && straggler.age() < Duration::from_secs(10), "{what}");
    let timeout = match (at, ignores) {
        // Its response had left and its work had ended: the hooks' limit is their own.
        (At::Hook, _) => "NORMAL",
        (_, false) => "TIMEOUT",
        (_, true) => "ABORTED | TIMEOUT",
    };
    if with_hook {
        let told: Vec<_> = notes.all().into_iter().filter(|note| note.starts_with("hook: ")).collect();
        assert_eq!(told.len(), 1, "{what}: {told:?}");
        assert!(told[0].starts_with(&format!("hook: {timeout}, ")), "{what}: {told:?}");
    }
    let lines = journal.lines();
    assert!(lines.last().unwrap().starts_with("ended/"), "{what}: {lines:?}");
    drop((stays, left));
}

#[tokio::test]
async fn at_the_deadline_the_report_names_each_straggler_and_its_hooks_see_timeout() {
    for at in At::ALL {
        for leave in [Leave::Close, Leave::ResetStream] {
            cut(at, leave, true).await;
        }
    }
}

#[tokio::test]
async fn the_report_names_stragglers_without_hooks_too() {
    for at in At::ALL {
        for leave in [Leave::Close, Leave::ResetStream] {
            cut(at, leave, false).await;
        }
    }
}

#[tokio::test]
async fn the_report_names_all_of_them_the_oldest_first() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let waits = |name: &'static str| {
        let notes = theirs.clone();
        get(async move || {
            Continuation::new(async move {
                notes.add(name);
                pending::<()>().await;
            })
        })
    };
    let app = Router::new()
        .route("/first", waits("first"))
        .route("/second/{id}", waits("second"))
        // The matched route is known inside of the router alone.
        .layer(IgnoreAbortLayer::off());
    let server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
    let mut client = Http2::connect(server.address).await;
    assert_eq!(client.get("/first").await.unwrap().status, 200);
    notes.seen("first").await;
    assert_eq!(client.get("/second/7").await.unwrap().status, 200);
    notes.seen("second").await;
    let report = server.stop().await;
    let routes: Vec<_> = report.stragglers().iter().map(|straggler| straggler.route().to_owned()).collect();
    assert_eq!(routes, ["GET /first", "GET /second/{id}"], "{report}");
}

#[tokio::test]
async fn a_continuation_that_the_deadline_cuts_is_named_in_a_log() {
    let logs = logs();
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        Continuation::new(async move {
            theirs.add("here");
            pending::<()>().await;
        })
    };
    let app = Router::new().route("/cut-by-a-drain", get(handler));
    let server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
    assert_eq!(server.get("/cut-by-a-drain").await.status, 200);
    notes.seen("here").await;
    assert!(!server.stop().await.is_clean());
    let lines = logs.with("GET /cut-by-a-drain");
    let named = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!((named("deadline has passed"), named("continuation was dropped")), (1, 1), "{lines:#?}");
    // A promise that was not kept is for somebody to look at.
    assert!(lines.iter().any(|line| line.contains("ERROR") && line.contains("deadline has passed")), "{lines:#?}");
}

#[tokio::test]
async fn a_hook_gets_its_time_after_the_deadline() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let hook = theirs.clone();
        lifecycle
            .on_shutdown(async move |end| {
                tokio::time::sleep(SHORT).await;
                hook.add(format!("hook: {}", end.status()));
            })
            .unwrap();
        theirs.add("here");
        pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler));
    let server = Server::with(app, |builder| builder.drain_deadline(SHORT)).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("here").await;
    assert_eq!(server.stop().await.stragglers().len(), 1);
    assert_eq!(notes.all(), ["here", "hook: TIMEOUT"]);
    // It was answered, and not just let go; and not told of a limit, of which it has none.
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text()), (503, "This request could not be finished in time.\n".to_owned()));
}
