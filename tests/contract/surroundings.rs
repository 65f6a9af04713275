//! Task-locals and spans of a request go along into its continuation, its hooks, and a handler that outlives its
//! response.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    routing::get,
};
use tower_epilogue::{
    Continuation, EpilogueBuilder, IgnoreAbortLayer, Lifecycle, Output, OutputError, ShutdownHookLayer,
};
use tracing::Instrument;

use crate::{
    common::{Asked, Leave},
    support::{Gate, Notes, Server, logs},
};

tokio::task_local! {
    static TENANT: String;
    static UNSCOPED: String;
}

fn carries(builder: EpilogueBuilder) -> EpilogueBuilder {
    builder.carry(&TENANT).carry(&UNSCOPED)
}

fn tenant() -> String {
    assert!(UNSCOPED.try_with(|_| ()).is_err());
    TENANT.try_with(String::clone).unwrap_or_else(|_| "nobody".to_owned())
}

/// Scopes the tenant's name around our layers.
fn scoped(app: Router) -> Router {
    app.layer(from_fn(async |request: Request, next: Next| TENANT.scope("acme".to_owned(), next.run(request)).await))
}

#[tokio::test]
async fn a_carried_task_local_is_there_in_continuations_hooks_and_the_rest_of_a_handler() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let note = |what: &'static str| {
            let notes = theirs.clone();
            move || notes.add(format!("{what}: {}", tenant()))
        };
        let (hook, continuation, blocking, rest) =
            (note("hook"), note("continuation"), note("blocking continuation"), note("rest"));
        lifecycle.on_shutdown(async move |_| hook()).unwrap();
        lifecycle.finish("finished").await.unwrap();
        tokio::task::yield_now().await;
        rest();
        (Continuation::new(async move { continuation() }), Continuation::blocking(blocking), "late")
    };
    let layers = notes.clone();
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(async move |_| {
        layers.add(format!("layer's hook: {}", tenant()));
    }));
    let server = Server::with(scoped(app), carries).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    let expected = ["rest", "continuation", "blocking continuation", "layer's hook", "hook"];
    assert_eq!(notes.all(), expected.map(|what| format!("{what}: acme")));
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn it_is_there_in_a_handler_and_a_body_whose_client_left() {
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move || {
            theirs.add("started");
            opens.passed().await;
            theirs.add(tenant());
            let continuation = theirs.clone();
            (Continuation::new(async move { continuation.add(tenant()) }), "hello")
        };
        let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
        let server = Server::with(scoped(app), carries).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        let _left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["started", "acme", "acme"], "{leave:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// What it writes later, too, what comes behind its end, and the record of its failure.
#[tokio::test]
async fn it_is_there_with_the_span_in_what_writes_an_output() {
    let (logs, notes) = (logs(), Notes::default());
    let theirs = notes.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let notes = theirs.clone();
        let writes = move |mut output: Output| async move {
            notes.add(format!("begins: {}", tenant()));
            output.write("half").await?;
            output.flush().await?;
            notes.add(format!("goes on: {}", tenant()));
            output.finish().await?;
            tokio::task::yield_now().await;
            notes.add(format!("behind its end: {}", tenant()));
            Ok::<_, OutputError>(())
        };
        lifecycle.output(writes)
    };
    let fails = async |lifecycle: Lifecycle| {
        let writes = async |mut output: Output| {
            output.write("half").await?;
            Err::<(), _>(std::io::Error::other("the other half is missing"))
        };
        let span = tracing::info_span!("the_writer_of_half", tenant = "acme");
        async move { lifecycle.output(writes) }.instrument(span).await
    };
    let app = Router::new().route("/", get(handler)).route("/fails", get(fails));
    let server = Server::with(scoped(app), carries).await;
    assert_eq!(server.get("/").await.dechunked().as_deref(), Some(&b"half"[..]));
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["begins: acme", "goes on: acme", "behind its end: acme"]);
    assert_eq!(server.get("/fails").await.dechunked(), None);
    server.journal.ended(2).await;
    let told = logs.with("the other half is missing");
    assert!(told.len() == 1 && told[0].contains("the_writer_of_half"), "{told:?}");
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn what_is_not_carried_is_not_there() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        theirs.add(tenant());
        (Continuation::new(async move { notes.add(tenant()) }), "hello")
    };
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let server = Server::start(scoped(app)).await;
    assert_eq!(server.get("/").await.text(), "hello");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["acme", "nobody"]);
    assert!(server.stop().await.is_clean());
}

/// What hooks log stands in the span in which the handler ran; what runs after the response in spans of its own.
#[tokio::test]
async fn the_span_of_the_request_is_there_in_hooks_and_continuations_have_their_own() {
    let logs = logs();
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| tracing::info!("phase of this test: hook")).unwrap();
        lifecycle.finish("finished").await.unwrap();
        tokio::task::yield_now().await;
        tracing::info!("phase of this test: rest");
        (
            Continuation::new(async { tracing::info!("phase of this test: continuation") }),
            Continuation::blocking(|| tracing::info!("phase of this test: blocking continuation")),
        )
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(ShutdownHookLayer::new(async |_| tracing::info!("phase of this test: layer's hook")))
        .layer(from_fn(async |request: Request, next: Next| {
            next.run(request).instrument(tracing::info_span!("request_of_this_test", id = 7)).await
        }));
    let server = Server::start(app).await;
    assert_eq!(server.get("/").await.text(), "finished");
    server.journal.ended(1).await;
    let lines = logs.with("phase of this test: ");
    assert_eq!(lines.len(), 5, "{lines:#?}");
    for line in &lines {
        let of_hook = line.contains("hook");
        assert_eq!(line.contains("request_of_this_test{id=7}"), of_hook, "{lines:#?}");
        assert_eq!(line.contains("continuation{route=\"GET /\""), !of_hook, "{lines:#?}");
    }
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn the_span_is_there_in_a_handler_whose_client_left() {
    let logs = logs();
    for leave in Leave::FOR_GOOD {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move || {
            theirs.add("started");
            opens.passed().await;
            tracing::info!("went on without {leave:?}");
        };
        let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new()).layer(from_fn(
            async |request: Request, next: Next| {
                next.run(request).instrument(tracing::info_span!("request_that_was_left")).await
            },
        ));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        let _left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        let lines = logs.with(&format!("went on without {leave:?}"));
        assert!(lines.len() == 1 && lines[0].contains("request_that_was_left"), "{lines:#?}");
        assert!(server.stop().await.is_clean());
    }
}
