//! A returned continuation runs exactly once, whatever becomes of its response.

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{Layer, ServiceExt};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{Asked, HoldBack, Leave, held_back, settled, told},
    support::{
        Gate, Notes, Server,
        h2client::{Http2, read},
        soon, streamed,
    },
};

fn continuation(notes: &Notes) -> Continuation {
    let notes = notes.clone();
    Continuation::new(async move { notes.add("continuation") })
}

/// Responses of every framing.
fn response(kind: &str) -> Response {
    match kind {
        "length" => "hello".into_response(),
        "empty" => StatusCode::OK.into_response(),
        "no-content" => StatusCode::NO_CONTENT.into_response(),
        "not-modified" => StatusCode::NOT_MODIFIED.into_response(),
        "streamed" => streamed(&["hel", "lo"]).into_response(),
        "megabyte" => vec![b'x'; 1 << 20].into_response(),
        "trailers" => {
            let trailers = HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static("yes"))]);
            let frames = [Ok::<_, std::io::Error>(Frame::data("hello".into())), Ok(Frame::trailers(trailers))];
            Body::new(StreamBody::new(futures_util::stream::iter(frames))).into_response()
        }
        _ => panic!("no such kind: {kind}"),
    }
}

const KINDS: [&str; 7] = ["length", "empty", "no-content", "not-modified", "streamed", "megabyte", "trailers"];

/// A route for each kind, whose continuation is held back by the gate.
fn every_kind(gate: &Gate) -> Router {
    KINDS.iter().fold(Router::new(), |router, kind| {
        let gate = gate.clone();
        router.route(
            &format!("/{kind}"),
            get(async move || (Continuation::new(async move { gate.passed().await }), response(kind))),
        )
    })
}

#[tokio::test]
async fn it_starts_after_the_response_was_flushed_on_http1() {
    for (kind, method) in KINDS.iter().flat_map(|kind| [(kind, "GET"), (kind, "HEAD")]) {
        for early_close in [false, true] {
            let gate = Gate::closed();
            let app = every_kind(&gate);
            let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
            let server = Server::start(app).await;
            let mut client = server.connect().await;
            client.send(&format!("{method} /{kind} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            let reply = client.response(method == "HEAD").await;
            assert!(reply.status < 400, "{kind}: the whole response is there while the continuation waits");
            server.journal.seen("continuation_start").await;
            gate.open();
            server.journal.ended(1).await;
            in_order(&server.journal.lines(), &format!("{method} {kind}"));
            assert!(server.stop().await.is_clean());
        }
    }
}

#[tokio::test]
async fn it_starts_after_the_response_was_flushed_on_http2() {
    for (kind, method) in KINDS.iter().flat_map(|kind| [(kind, "GET"), (kind, "HEAD")]) {
        let gate = Gate::closed();
        let server = Server::start(every_kind(&gate)).await;
        let mut client = Http2::connect(server.address).await;
        let response = client.start(method, &format!("/{kind}")).await;
        let whole = soon("a response", async { read(response.await.unwrap()).await.unwrap() }).await;
        assert!(whole.status < 400, "{kind}: the whole response is there while the continuation waits");
        assert_eq!(whole.trailers.is_some(), (*kind, method) == ("trailers", "GET"));
        server.journal.seen("continuation_start").await;
        gate.open();
        server.journal.ended(1).await;
        in_order(&server.journal.lines(), &format!("{method} {kind}"));
        assert!(server.stop().await.is_clean());
    }
}

fn in_order(lines: &[String], what: &str) {
    let flushed = lines.iter().position(|line| line.starts_with("flushed:")).expect(what);
    let started = lines.iter().position(|line| line == "continuation_start/0").expect(what);
    assert!(flushed < started, "{what}: {lines:?}");
    assert_eq!(lines.last().unwrap(), "ended/0", "{what}");
}

#[tokio::test]
async fn it_runs_when_its_client_left_before_the_head() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let app = Router::new()
            .route("/", get(async move || (continuation(&theirs), "hello")))
            .layer(ShutdownHookLayer::new(told(&notes)))
            // The handler has answered, and something outside of our layers holds its response back.
            .layer(HoldBack::new(&notes, &gate));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("answered").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
        assert_eq!(notes.all(), ["answered", "continuation", "hook: ABORTED, Aborted"], "{leave:?}");
    }
}

#[tokio::test]
async fn it_runs_when_its_client_left_in_the_middle_of_the_body() {
    for leave in Leave::ALL {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let theirs = notes.clone();
        let app = Router::new()
            .route("/", get(async move || (continuation(&theirs), held_back(&theirs, &gate, "first", "second"))))
            .layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("producing").await;
        let _left = client.leave(leave).await;
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
        let all = notes.all();
        assert_eq!(all.iter().filter(|note| *note == "continuation").count(), 1, "{leave:?}: {all:?}");
        assert_eq!(all.last().unwrap(), "hook: ABORTED, Aborted", "{leave:?}");
    }
}

async fn replace(_: Response) -> &'static str {
    "replaced"
}

/// A continuation whose response is replaced inside of our layers, between them, and outside of them.
#[tokio::test]
async fn it_runs_when_another_layer_replaced_its_response() {
    for place in 0..4 {
        let notes = Notes::default();
        let theirs = notes.clone();
        let app = Router::new().route("/", get(async move || (continuation(&theirs), "hello")));
        let replaced = map_response(replace);
        let (hook, limit) = (ShutdownHookLayer::new(told(&notes)), TimeLimitLayer::default());
        let app = match place {
            0 => app.layer((hook, limit, replaced)),
            1 => app.layer((hook, replaced, limit)),
            2 => app.layer((replaced, hook, limit)),
            // No layer of ours at all: the service that a connection is given is one of ours.
            _ => app.layer(replaced),
        };
        let server = Server::start(app).await;
        assert_eq!(server.get("/").await.text(), "replaced");
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
        let hooks = if place < 3 { &["continuation", "hook: NORMAL, Flushed"][..] } else { &["continuation"] };
        assert_eq!(notes.all(), hooks, "place {place}");
    }
}

/// The same on a server that is not ours.
#[tokio::test(start_paused = true)]
async fn it_runs_when_another_layer_replaced_its_response_without_a_server_of_ours() {
    for place in 0..4 {
        let notes = Notes::default();
        let theirs = notes.clone();
        let app = Router::new().route("/", get(async move || (continuation(&theirs), "hello")));
        let replaced = map_response(replace);
        let (hook, limit) = (ShutdownHookLayer::new(told(&notes)), TimeLimitLayer::default());
        let app = match place {
            0 => app.layer((hook, limit, replaced)),
            1 => app.layer((hook, replaced, limit)),
            2 => app.layer((replaced, hook, limit)),
            // Nobody of ours is there at all: it runs on its own.
            _ => app.layer(replaced),
        };
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "replaced");
        settled().await;
        assert_eq!(notes.all().iter().filter(|note| *note == "continuation").count(), 1, "place {place}");
        assert_eq!(notes.all().len(), if place < 3 { 2 } else { 1 }, "place {place}");
    }
}

/// A handler that loses a response, and asks an app of its own within the same poll, whose handler loses one, too.
#[tokio::test]
async fn a_lost_one_belongs_to_the_request_whose_handler_lost_it() {
    let notes = Notes::default();
    let noting = move |notes: &Notes, what: &'static str| {
        let notes = notes.clone();
        Continuation::new(async move { notes.add(what) })
    };
    let (at_inner, at_outer) = (notes.clone(), notes.clone());
    let inner = Router::new()
        .route("/", get(async move || drop((noting(&at_inner, "lost by the inner"), "hello").into_response())))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let outer = Router::new().route(
        "/",
        get(async move || {
            drop((noting(&at_outer, "lost by the outer"), "hello").into_response());
            let response = inner.oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
            at_outer.seen("hook: NORMAL, Flushed").await;
            at_outer.add("the outer goes on");
        }),
    );
    let server = Server::start(outer.layer(ShutdownHookLayer::new(told(&notes)))).await;
    assert_eq!(server.get("/").await.text(), "");
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
    assert_eq!(
        notes.all(),
        [
            "lost by the inner",
            "hook: NORMAL, Flushed",
            "the outer goes on",
            "lost by the outer",
            "hook: NORMAL, Flushed"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn it_runs_when_its_response_future_was_dropped() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let theirs = notes.clone();
    let app = Router::new().route("/", get(async move || (continuation(&theirs), "hello")));
    let layers = (ShutdownHookLayer::new(told(&notes)), HoldBack::new(&notes, &gate), IgnoreAbortLayer::new());
    let response = layers.layer(app).oneshot(Request::new(Body::empty()));
    tokio::select! {
        _ = response => panic!("answered"),
        () = notes.seen("answered") => {}
    }
    settled().await;
    assert_eq!(notes.all(), ["answered", "continuation", "hook: ABORTED, Aborted"]);
}

#[tokio::test(start_paused = true)]
async fn it_runs_when_its_body_was_dropped_unread() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = Router::new()
        .route("/", get(async move || (continuation(&theirs), "hello")))
        .layer(ShutdownHookLayer::new(told(&notes)));
    drop(app.oneshot(Request::new(Body::empty())).await.unwrap());
    settled().await;
    assert_eq!(notes.all(), ["continuation", "hook: ABORTED, Aborted"]);
}

#[tokio::test]
async fn it_runs_when_the_client_of_a_handler_that_goes_on_has_left() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let app = Router::new()
            .route(
                "/",
                get(async move || {
                    theirs.add("started");
                    opens.passed().await;
                    (continuation(&theirs), "hello")
                }),
            )
            .layer((IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes))));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        let _left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
        let all = notes.all();
        assert_eq!(all[..2], ["started", "continuation"], "{leave:?}");
        // The last bytes may have gone to a socket whose other end had just been closed.
        assert!(all[2].starts_with("hook: ABORTED") && all.len() == 3, "{leave:?}: {all:?}");
    }
}

#[tokio::test]
async fn a_blocking_one_runs_too_inside_the_runtime() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let app = Router::new().route(
        "/",
        get(async move || {
            let blocking = Continuation::blocking(move || {
                tokio::runtime::Handle::current().block_on(async { theirs.add("continuation") });
            });
            (blocking, "hello")
        }),
    );
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    in_order(&server.journal.lines(), "blocking");
    assert!(server.stop().await.is_clean());
    assert_eq!(notes.all(), ["continuation"]);
}
