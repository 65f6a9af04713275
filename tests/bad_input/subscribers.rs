//! A subscriber that panics at what it is told, as one does whose output nobody takes any more: it is told no more of that, and
//! nothing else comes of it.

use std::{
    fmt,
    future::{Ready, pending, ready},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tower_epilogue::{
    Continuation, End, EpilogueBuilder, Lifecycle, Output, OutputError, ReserveLayer, ShutdownHookLayer, TimeLimitLayer,
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::support::{Gate, Notes, PanicsIn, Server, h2client::Http2};

/// Panics where a message begins like that, and counts how often it did.
struct PanicsAt(&'static str, Arc<AtomicUsize>);

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for PanicsAt {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        if message.0.starts_with(self.0) {
            self.1.fetch_add(1, Ordering::SeqCst);
            panic!("the subscriber panics, as this test wants it");
        }
    }
}

/// Runs the test on a thread of its own, on whose runtime everything is told to such a subscriber.
fn told_of<F: Future<Output = ()>>(message: &'static str, test: impl FnOnce() -> F + Send + 'static) {
    let panics = Arc::new(AtomicUsize::new(0));
    let subscriber = tracing_subscriber::registry().with(PanicsAt(message, panics.clone()));
    assert!(told(subscriber, test), "at {message:?}");
    assert!(panics.load(Ordering::SeqCst) > 0, "it was never told {message:?}");
}

/// Whether the test passes.
fn told<F: Future<Output = ()>>(
    subscriber: impl Subscriber + Send + Sync + 'static,
    test: impl FnOnce() -> F + Send + 'static,
) -> bool {
    let thread = std::thread::spawn(move || {
        tracing::subscriber::with_default(subscriber, || {
            // Other tests have none, and may have come first.
            tracing::callsite::rebuild_interest_cache();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        });
    });
    thread.join().is_ok()
}

fn hook(
    notes: &Notes,
    note: &'static str,
) -> ShutdownHookLayer<impl FnOnce(End) -> Ready<()> + Clone + Send + Sync + use<>> {
    let notes = notes.clone();
    ShutdownHookLayer::new(move |end: End| {
        notes.add(format!("{note}: {}", end.status()));
        ready(())
    })
}

/// One request, and then the next; `/` is what the case is about.
async fn asked(app: Router, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder, status: u16, hooked: &[&str]) {
    let notes = Notes::default();
    let app = app.layer(hook(&notes, "last")).layer(hook(&notes, "hook")).route("/next", get(async || "next"));
    let server = Server::with(app, setup).await;
    assert_eq!(server.get("/").await.status, status);
    assert_eq!(server.get("/next").await.text(), "next");
    server.journal.ended(2).await;
    assert_eq!(notes.all(), hooked);
    assert_eq!((server.epilogue.running(), server.epilogue.lost()), (0, 0));
    assert!(server.stop().await.is_clean());
}

const HOOKED: [&str; 2] = ["hook: NORMAL", "last: NORMAL"];
const CUT: [&str; 2] = ["hook: TIMEOUT", "last: TIMEOUT"];
const LIMIT: Duration = Duration::from_millis(20);

#[test]
fn of_the_limit() {
    told_of("the time limit passed", || {
        let app = Router::new().route("/", get(pending::<()>)).layer(TimeLimitLayer::new(LIMIT));
        asked(app, |builder| builder, 503, &CUT)
    });
}

#[cfg(feature = "status-page")]
#[test]
fn of_a_status_page_that_is_off() {
    told_of("the status page is off", || async {
        let page = |epilogue: &tower_epilogue::Epilogue| epilogue.status_page();
        let server = Server::made(|builder| builder, page).await;
        assert_eq!(server.get("/").await.status, 404);
        assert!(server.stop().await.is_clean());
    });
}

#[test]
fn of_a_handler_that_panics() {
    told_of("a handler panicked", || {
        let handler = async || -> () { panic!("as this test wants it") };
        asked(Router::new().route("/", get(handler)), |builder| builder, 500, &HOOKED)
    });
}

#[test]
fn of_a_continuation_that_panics() {
    told_of("a continuation panicked", || {
        let handler = async || Continuation::new(async { panic!("as this test wants it") });
        asked(Router::new().route("/", get(handler)), |builder| builder, 200, &HOOKED)
    });
}

#[test]
fn of_a_continuation_that_fails() {
    told_of("a continuation failed", || {
        let handler = async || Continuation::try_new(async { Err::<(), _>("as this test wants it") });
        asked(Router::new().route("/", get(handler)), |builder| builder, 200, &HOOKED)
    });
}

#[test]
fn of_a_continuation_that_is_cut() {
    told_of("a continuation was dropped", || {
        let handler = async |lifecycle: Lifecycle| {
            Continuation::new(async move {
                // From here on: the response may take its time.
                lifecycle.set_time_limit(LIMIT);
                pending::<()>().await;
            })
        };
        asked(Router::new().route("/", get(handler)), |builder| builder, 200, &CUT)
    });
}

#[test]
fn of_a_thread_that_is_stuck() {
    told_of("a blocking continuation ran past", || {
        let (gate, opens) = std::sync::mpsc::channel::<()>();
        let opens = Arc::new(std::sync::Mutex::new(opens));
        let handler = async move |lifecycle: Lifecycle| {
            let opens = opens.clone();
            Continuation::blocking(move || {
                lifecycle.set_time_limit(LIMIT);
                let _ = opens.lock().unwrap().recv();
            })
        };
        async move {
            let app = Router::new().route("/", get(handler));
            asked(app, |builder| builder, 200, &CUT).await;
            drop(gate);
        }
    });
}

#[test]
fn of_a_hook_that_panics() {
    told_of("a hook panicked", || {
        let handler = async |lifecycle: Lifecycle| {
            lifecycle.on_shutdown(|_| async { assert_eq!(1, 2, "as this test wants it") }).unwrap();
        };
        asked(Router::new().route("/", get(handler)), |builder| builder, 200, &HOOKED)
    });
}

#[test]
fn of_a_hook_that_does_not_end() {
    told_of("a hook ran past", || {
        let handler = async |lifecycle: Lifecycle| lifecycle.on_shutdown(|_| pending::<()>()).unwrap();
        let setup = |builder: EpilogueBuilder| builder.hook_limit(LIMIT);
        asked(Router::new().route("/", get(handler)), setup, 200, &HOOKED)
    });
}

#[test]
fn of_a_hook_that_stops_the_others() {
    told_of("a hook stopped", || {
        let handler = async |lifecycle: Lifecycle| {
            lifecycle.on_shutdown(|_| ready(ControlFlow::Break(()))).unwrap();
            lifecycle.on_shutdown(|_| ready(())).unwrap();
        };
        asked(Router::new().route("/", get(handler)), |builder| builder, 200, &HOOKED)
    });
}

/// Panics where it is dropped.
struct Panics;

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "the destructor panics, as this test wants it");
    }
}

#[test]
fn of_a_destructor_that_panics() {
    told_of("a destructor panicked", || {
        let handler = async || {
            let panics = Panics;
            pending::<()>().await;
            drop(panics);
        };
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(LIMIT));
        asked(app, |builder| builder, 503, &CUT)
    });
}

/// On HTTP/2 it is the connection's own task that refuses.
#[test]
fn of_requests_that_are_refused() {
    told_of("requests are refused", || async {
        let (gate, notes) = (Gate::closed(), Notes::default());
        let (opens, theirs) = (gate.clone(), notes.clone());
        let handler = async move || {
            theirs.add("begins");
            opens.passed().await;
            "hello"
        };
        let app = Router::new().route("/", get(handler)).layer(ReserveLayer::class("mail"));
        let server = Server::with(app, |builder| builder.max_running(1).max_waiting(0)).await;
        let mut client = Http2::connect(server.address).await;
        let first = client.start("GET", "/").await;
        notes.seen("begins").await;
        assert_eq!(client.get("/").await.unwrap().status, 503);
        gate.open();
        assert_eq!(first.await.unwrap().status(), 200);
        drop(client);
        server.journal.ended(2).await;
        assert!(server.stop().await.is_clean());
    });
}

#[test]
fn of_a_drain() {
    for message in ["a drain begins", "draining", "the drain's deadline has passed"] {
        told_of(message, || async {
            let app = Router::new().route("/", get(async || (Continuation::new(pending()), "hello")));
            let server = Server::with(app, |builder| builder.drain_deadline(Duration::from_millis(1100))).await;
            assert_eq!(server.get("/").await.text(), "hello");
            assert_eq!(server.stop().await.stragglers().len(), 1);
        });
    }
}

/// Sockets that take none of TCP's options.
#[cfg(unix)]
struct NotTcp(tokio::sync::mpsc::UnboundedReceiver<tokio::net::UnixStream>);

#[cfg(unix)]
impl axum::serve::Listener for NotTcp {
    type Io = tokio::net::TcpStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        let Some(accepted) = self.0.recv().await else { return pending().await };
        let accepted = std::os::fd::OwnedFd::from(accepted.into_std().unwrap());
        (tokio::net::TcpStream::from_std(accepted.into()).unwrap(), ())
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// It is the server's own task that accepts.
#[test]
#[cfg(unix)]
fn of_a_socket_that_cannot_be_set_up() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    told_of("a socket's options could not be set", || async {
        let (connections, accepted) = tokio::sync::mpsc::unbounded_channel();
        let (notes, (stop, stopped)) = (Notes::default(), tokio::sync::oneshot::channel::<()>());
        let app = Router::new().route("/", get(async || "hello")).layer(hook(&notes, "hook"));
        let serve = tower_epilogue::Epilogue::new().serve(NotTcp(accepted), app);
        let server = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
        for _ in 0..2 {
            let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
            connections.send(server).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.unwrap();
            assert!(reply.ends_with("\r\n\r\nhello"), "{reply}");
        }
        stop.send(()).unwrap();
        assert!(server.await.unwrap().unwrap().is_clean());
        assert_eq!(notes.all(), ["hook: NORMAL"; 2]);
    });
}

/// Work of every kind that has such a span.
fn spanned(notes: &Notes) -> Router {
    let works = |note: &'static str| {
        let notes = notes.clone();
        move || {
            let notes = notes.clone();
            async move {
                tokio::task::yield_now().await;
                notes.add(note);
            }
        }
    };
    let (waits, fails, finishes, writes) = (works("waits"), works("fails"), works("finishes"), works("writes"));
    let fails = async move || {
        let work = fails();
        Continuation::try_new(async move {
            work.await;
            Err::<(), _>("as this test wants it")
        })
    };
    let theirs = notes.clone();
    let blocks = async move || Continuation::blocking(move || theirs.add("blocks"));
    let finishes = async move |lifecycle: Lifecycle| {
        lifecycle.finish("hello").await.unwrap();
        finishes().await;
    };
    let writes = async move |lifecycle: Lifecycle| {
        lifecycle.output(async move |mut output: Output| {
            output.finish().await?;
            writes().await;
            Ok::<_, OutputError>(())
        })
    };
    Router::new()
        .route("/waits", get(async move || Continuation::new(waits())))
        .route("/fails", get(fails))
        .route("/blocks", get(blocks))
        .route("/finishes", get(finishes))
        .route("/writes", get(writes))
        .layer(hook(notes, "hook"))
}

#[test]
fn of_the_span_of_a_continuation() {
    for what in ["new", "record", "enter", "exit", "close"] {
        let panics = Arc::new(AtomicUsize::new(0));
        let subscriber = tracing_subscriber::registry().with(PanicsIn(what, "continuation", panics.clone()));
        let passes = told(subscriber, || async {
            let notes = Notes::default();
            let server = Server::start(spanned(&notes)).await;
            for (number, kind) in ["waits", "fails", "blocks", "finishes", "writes"].into_iter().enumerate() {
                assert_eq!(server.get(&format!("/{kind}")).await.status, 200);
                server.journal.ended(number + 1).await;
                assert_eq!(notes.all()[2 * number..], [kind, "hook: NORMAL"]);
            }
            assert_eq!((server.epilogue.running(), server.epilogue.lost()), (0, 0));
            assert!(server.stop().await.is_clean());
        });
        assert!(passes, "at {what:?}");
        assert!(panics.load(Ordering::SeqCst) >= 5, "it was told {what:?} too seldom");
    }
}
