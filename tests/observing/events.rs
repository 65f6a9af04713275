//! What each event carries, and who is told of it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tower_epilogue::{
    Bound, Continuation, End, Event, EventKind, Lifecycle, ReserveLayer, ShutdownHookLayer, TimeLimitLayer, WhenFull,
};

use crate::support::{MemoryServer, Notes, Server};

type Kept = Arc<Mutex<Vec<Event>>>;

fn keep(events: &Kept) -> impl Fn(&Event) + Send + Sync + 'static {
    let events = events.clone();
    move |event| events.lock().unwrap().push(event.clone())
}

/// Its kind, route and class, of all events so far.
async fn told(server: &MemoryServer, events: &Kept) -> Vec<(&'static str, String, Option<&'static str>)> {
    server.epilogue.events_delivered().await;
    let events = std::mem::take(&mut *events.lock().unwrap());
    events.iter().map(|event| (event.kind().name(), event.route().to_owned(), event.class())).collect()
}

#[tokio::test(start_paused = true)]
async fn events_carry_the_matched_route_without_a_query_and_the_class_of_the_continuation_that_they_are_about() {
    let events = Kept::default();
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| {}).unwrap();
        let failing = Continuation::try_new(async { Err::<(), _>("no") }).class("mail");
        (failing, Continuation::new(async {}), Continuation::new(async { panic!("boom") }).class("thumbnails"), "hello")
    };
    let app = Router::new().route("/users/{id}", get(handler));
    let server = MemoryServer::with(app, |builder| builder.on_event(keep(&events)));
    assert_eq!(server.get("/users/7?secret=1").await.text(), "hello");
    server.ended(1).await;
    let route = "GET /users/{id}";
    let of = |kind, class| (kind, route.to_owned(), class);
    assert_eq!(
        told(&server, &events).await,
        [
            ("arrived", "GET /users/7".to_owned(), None),
            ("handler_start", "GET /users/7".to_owned(), None),
            of("handler_end", None),
            of("handed_over", None),
            of("flushed", None),
            of("continuation_start", Some("mail")),
            of("continuation_failed", Some("mail")),
            of("continuation_end", Some("mail")),
            of("continuation_start", None),
            of("continuation_end", None),
            of("continuation_start", Some("thumbnails")),
            of("panicked", Some("thumbnails")),
            of("continuation_end", Some("thumbnails")),
            of("hook_start", None),
            of("hook_end", None),
            of("ended", None),
        ]
    );
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_was_never_matched_is_no_matched_route() {
    let events = Kept::default();
    let app = Router::new()
        .route("/matched/{id}", get(async || "matched"))
        .fallback(async || "nothing")
        .layer(TimeLimitLayer::default());
    let server = MemoryServer::with(app, |builder| builder.on_event(keep(&events)));
    server.get("/matched/1").await;
    server.get("/a/path/of/the/clients?q=1").await;
    server.ended(2).await;
    server.epilogue.events_delivered().await;
    let ended: Vec<_> = events
        .lock()
        .unwrap()
        .iter()
        .filter(|event| *event.kind() == EventKind::Ended)
        .map(|event| (event.method().to_owned(), event.matched_route().map(str::to_owned), event.route().to_owned()))
        .collect();
    assert_eq!(
        ended,
        [
            ("GET".to_owned(), Some("/matched/{id}".to_owned()), "GET /matched/{id}".to_owned()),
            ("GET".to_owned(), None, "GET /a/path/of/the/clients".to_owned()),
        ]
    );
    server.stop().await;
}

/// What hyper lets through: C1 control characters, which a terminal obeys as it does an escape, a line's end of Unicode's, and
/// what turns the direction of writing.
#[tokio::test(start_paused = true)]
async fn a_path_that_no_route_matched_is_told_in_ascii() {
    let (events, hooked) = (Kept::default(), Arc::new(Mutex::new(String::new())));
    let told = hooked.clone();
    let app = Router::new().layer(ShutdownHookLayer::new(async move |end: End| *told.lock().unwrap() = end.route()));
    let server = MemoryServer::with(app, |builder| builder.on_event(keep(&events)));
    let mut client = server.connect();
    let path = "/a%20b\u{9b}31m\u{85}\u{202e}/\u{fc}ber";
    client.send(&format!("GET {path}?q=\u{fc} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
    assert_eq!(client.reply().await.status, 404);
    server.ended(1).await;
    server.epilogue.events_delivered().await;
    let as_sent_by_others = "GET /a%20b%C2%9B31m%C2%85%E2%80%AE/%C3%BCber";
    assert!(events.lock().unwrap().iter().all(|event| event.route() == as_sent_by_others), "{events:?}");
    assert_eq!(*hooked.lock().unwrap(), as_sent_by_others);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_listener_is_told_of_every_event_also_beside_one_that_panics() {
    let (first, second) = (Kept::default(), Kept::default());
    let server = MemoryServer::with(Router::new().route("/", get(async || "hello")), |builder| {
        let builder = builder.on_event(keep(&first));
        builder.on_event(|_: &Event| panic!("as this test wants it")).on_event(keep(&second))
    });
    server.get("/").await;
    server.ended(1).await;
    let (first, second) = (told(&server, &first).await, told(&server, &second).await);
    assert_eq!(first, second);
    assert_eq!(first.len(), 6, "{first:?}");
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_is_told_of_with_the_class_that_had_no_room() {
    let events = Kept::default();
    let handler = async || (Continuation::new(tokio::time::sleep(Duration::from_secs(60))).class("mail"), "accepted");
    let app = Router::new().route("/mail", get(handler).layer(ReserveLayer::class("mail")));
    let server = MemoryServer::with(app, |builder| {
        builder.on_event(keep(&events)).class("mail", Bound::new(1).max_waiting(1).when_full(WhenFull::Refuse))
    });
    for status in [200, 200, 503] {
        assert_eq!(server.get("/mail").await.status, status);
    }
    server.ended(3).await;
    let told = told(&server, &events).await;
    let count = |kind: &str, class| told.iter().filter(|told| (told.0, told.2) == (kind, class)).count();
    assert_eq!((count("refused", Some("mail")), count("refused", None)), (1, 0), "{told:?}");
    assert_eq!(count("continuation_waits", Some("mail")), 1, "{told:?}");
    assert_eq!((count("continuation_start", Some("mail")), count("continuation_end", Some("mail"))), (2, 2));
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_beside_a_continuation_is_not_told_of_with_its_class() {
    let events = Kept::default();
    let handler = async || {
        let work = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        (Continuation::new(work).class("mail"), vec![7; 100_000])
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| {
        builder.on_event(keep(&events)).patience(Duration::from_secs(1))
    });
    let mut client = server.connect_narrow(1024);
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    server.journal.seen("continuation_start").await;
    assert_eq!(client.reply().await.body.len(), 100_000);
    server.ended(1).await;
    let told = told(&server, &events).await;
    let of = |kind: &str| told.iter().find(|told| told.0 == kind).map(|told| told.2).unwrap();
    assert_eq!((of("continuation_start"), of("flushed"), of("continuation_end")), (Some("mail"), None, Some("mail")));
    let kinds: Vec<_> = told.iter().map(|told| told.0).collect();
    assert_eq!(kinds[kinds.len() - 4..], ["continuation_start", "flushed", "continuation_end", "ended"], "{kinds:?}");
    server.stop().await;
}

fn never() -> bool {
    false
}

#[tokio::test(start_paused = true)]
async fn what_panicked_is_told() {
    let events = Kept::default();
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| assert!(never(), "in the hook")).unwrap();
        assert!(never(), "in the handler");
    };
    let server = MemoryServer::with(Router::new().route("/", get(handler)), |builder| builder.on_event(keep(&events)));
    assert_eq!(server.get("/").await.status, 500);
    server.ended(1).await;
    server.epilogue.events_delivered().await;
    let panicked: Vec<_> = events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event.kind() {
            EventKind::Panicked { what } => Some(*what),
            _ => None,
        })
        .collect();
    assert_eq!(panicked, ["handler", "hook"]);
    server.stop().await;
}

/// A server whose event function never returns until the sender is gone, and whose drain has the deadline.
async fn hung(deadline: Option<Duration>, notes: &Notes) -> (Server, std::sync::mpsc::Sender<()>) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let notes = notes.clone();
    let waits = async move || {
        notes.add("waits");
        std::future::pending::<()>().await;
    };
    let app = Router::new().route("/", get(async || "hello")).route("/waits", get(waits));
    let server = Server::with(app, |builder| {
        // The runtime is told, so that the threads that are left do the work of this one.
        let hangs = move |_: &Event| tokio::task::block_in_place(|| released.lock().unwrap().recv().unwrap_or(()));
        builder.on_event(hangs).drain_deadline(deadline).hook_limit(Duration::from_millis(50))
    })
    .await;
    assert_eq!(server.get("/").await.text(), "hello");
    (server, release)
}

/// What listens may hang; the end of the server does not depend on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_function_that_never_returns_holds_no_drain_up_beyond_its_time() {
    let (server, release) = hung(Some(Duration::from_millis(50)), &Notes::default()).await;
    assert!(server.stop().await.is_clean());
    drop(release);
}

/// One without a deadline has all the time that it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_without_a_deadline_ends_when_everything_was_told() {
    let (mut server, release) = hung(None, &Notes::default()).await;
    server.begin_drain();
    {
        let mut drained = std::pin::pin!(server.drained());
        let early = tokio::time::timeout(Duration::from_millis(50), drained.as_mut()).await;
        assert!(early.is_err(), "the event function has not returned");
        drop(release);
        assert!(drained.await.is_clean());
    }
}

/// Nor does that of one that has all the time, once it is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_function_that_never_returns_holds_no_drain_up_that_is_cut() {
    let notes = Notes::default();
    let (mut server, release) = hung(None, &notes).await;
    let mut client = server.connect().await;
    client.send_get("/waits").await;
    notes.seen("waits").await;
    server.begin_drain();
    // Until it has begun.
    let epilogue = server.epilogue.clone();
    let cuts = tokio::spawn(async move {
        loop {
            epilogue.cut();
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(server.drained().await.stragglers().len(), 1);
    cuts.abort();
    drop(release);
}

/// A subscriber that panics at records of that level, so often.
pub(super) struct Fragile {
    pub(super) level: tracing::Level,
    pub(super) times: AtomicUsize,
}

impl tracing::Subscriber for Fragile {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == self.level
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        let left = self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "as this test wants it");
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn no_event_is_lost_where_the_subscriber_panics_at_the_record_of_a_panic() {
    let fragile = Fragile { level: tracing::Level::ERROR, times: AtomicUsize::new(usize::MAX) };
    let _subscriber = tracing::subscriber::set_default(fragile);
    let events = Kept::default();
    let server = MemoryServer::with(Router::new().route("/", get(async || "hello")), |builder| {
        builder.on_event(|_: &Event| panic!("as this test wants it")).on_event(keep(&events))
    });
    server.get("/").await;
    server.ended(1).await;
    assert_eq!(told(&server, &events).await.len(), 6);
    server.stop().await;
}
