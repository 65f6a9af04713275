//! Nothing of a request is kept once it is over, however it ended.

use std::{future::pending, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use tower::ServiceBuilder;
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};
use tower_http::{compression::CompressionLayer, trace::TraceLayer};

use crate::{
    common::{Asked, Leave},
    support::{NoteOnDrop, Notes, Server, soon},
};

/// What everything of a request holds on to.
type Token = Arc<NoteOnDrop>;

/// What the handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answers,
    Streams,
    StreamsAndWaits,
    Waits,
    Finishes,
    FinishesAndWaits,
    Panics,
    /// And a middleware has its response.
    IsHeld,
}

const ALL: [Does; 8] = [
    Does::Answers,
    Does::Streams,
    Does::StreamsAndWaits,
    Does::Waits,
    Does::Finishes,
    Does::FinishesAndWaits,
    Does::Panics,
    Does::IsHeld,
];

impl Does {
    /// Whether only its client, or its limit, ends it.
    fn waits(self) -> bool {
        matches!(self, Self::StreamsAndWaits | Self::Waits | Self::FinishesAndWaits | Self::IsHeld)
    }
}

async fn handle(does: Does, token: Token, notes: Notes, lifecycle: Lifecycle) -> Response {
    let held = token.clone();
    lifecycle.on_shutdown(async move |_| drop(held)).unwrap();
    let (held, handle) = (token.clone(), lifecycle.clone());
    let work = Continuation::new(async move {
        tokio::task::yield_now().await;
        drop((held, handle));
    });
    let waits = does.waits();
    let response = match does {
        Does::Answers | Does::IsHeld => "hello".into_response(),
        Does::Streams | Does::StreamsAndWaits => {
            let held = token.clone();
            let rest = stream::once(async move {
                let _held = held;
                if waits {
                    notes.add("waits");
                    pending::<()>().await;
                }
                "rest"
            });
            Body::from_stream(stream::iter(["first"]).chain(rest).map(Ok::<_, io::Error>)).into_response()
        }
        Does::Waits => {
            notes.add("waits");
            pending().await
        }
        Does::Finishes => {
            lifecycle.finish((work, "finished")).await.unwrap();
            return ().into_response();
        }
        Does::FinishesAndWaits => {
            let _ = lifecycle.finish((work, "finished")).await;
            notes.add("waits");
            return pending().await;
        }
        Does::Panics => panic!("the handler panics, as this test wants it"),
    };
    let mut response = (work, response).into_response();
    response.extensions_mut().insert(token);
    response
}

fn app(does: Does, token: &Token, notes: &Notes, ignored: bool) -> Router {
    let (theirs, noted) = (token.clone(), notes.clone());
    let held = token.clone();
    let hook = ShutdownHookLayer::new(async move |_| drop(held));
    let ignore = if ignored { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
    let holds = notes.clone();
    let stack = ServiceBuilder::new()
        .layer(hook)
        .layer(EarlyCloseLayer::new().patience(Duration::ZERO))
        .layer(TraceLayer::new_for_http())
        .layer(CompressionLayer::new())
        .layer(TimeLimitLayer::new(Duration::from_millis(60)));
    Router::new()
        .route("/", get(move |lifecycle: Lifecycle| handle(does, theirs.clone(), noted.clone(), lifecycle)))
        .layer(from_fn(move |request: Request, next: Next| {
            let notes = holds.clone();
            async move {
                let response = next.run(request).await;
                if does == Does::IsHeld {
                    notes.add("waits");
                    pending::<()>().await;
                }
                response
            }
        }))
        .layer(ignore)
        .layer(stack)
}

#[tokio::test]
async fn by_anybody_after_its_end() {
    for does in ALL {
        for (leave, ignored) in Leave::FOR_GOOD.into_iter().flat_map(|leave| [(leave, false), (leave, true)]) {
            // One that leaves at once may not have asked.
            for leaves in [false, true].into_iter().filter(|leaves| does.waits() || !leaves) {
                let notes = Notes::default();
                let token = Token::new(notes.on_drop("gone"));
                let server = Server::start(app(does, &token, &notes, ignored)).await;
                let client = Asked::get(&server, leave).await;
                if does.waits() {
                    // On a machine that is slow the limit may come first.
                    tokio::select! {
                        () = notes.seen("waits") => {}
                        () = server.journal.ended(1) => {}
                    }
                }
                let left = if leaves { Ok(client.leave(leave).await) } else { Err(client) };
                server.journal.ended(1).await;
                drop(left);
                server.stop().await;
                let what = format!("{does:?}, {leave:?}, leaves: {leaves}, ignored: {ignored}");
                drop(token);
                soon(&what, notes.seen("gone")).await;
            }
        }
    }
}
