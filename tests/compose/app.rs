//! The app that every stack of layers stands around: one route for each row of the table.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::State,
    routing::{MethodRouter, get},
};
use bytes::Bytes;
use futures_util::stream;
use tower_epilogue::{Continuation, End, Lifecycle};

use crate::support::{Gate, Notes};

/// A limit that no row reaches but the one that is about limits.
pub const LONG: Duration = Duration::from_secs(60);
/// The limit in the row that is about limits.
pub const SHORT: Duration = Duration::from_millis(30);

/// A row of the table: what is asked, and what the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// An answer with a continuation.
    Plain,
    /// The same for a `HEAD` request.
    Head,
    /// A handler that lets its response leave and goes on.
    Finish,
    /// A body of unknown length.
    Stream,
    /// The same for a `HEAD` request.
    HeadOfStream,
    /// The client leaves while the handler waits.
    Leave,
    /// The client leaves in the middle of a body.
    ReaderLeaves,
    /// The handler waits for longer than the limit.
    Limit,
    /// The handler panics.
    Panic,
    /// The handler waits for longer than a timeout of tower-http's.
    TheirTimeout,
    /// An answer that is worth compressing, with a continuation.
    Large,
}

/// The rows that are for every stack.
pub const ROWS: [Row; 9] = [
    Row::Plain,
    Row::Head,
    Row::Finish,
    Row::Stream,
    Row::HeadOfStream,
    Row::Leave,
    Row::ReaderLeaves,
    Row::Limit,
    Row::Panic,
];

impl Row {
    pub fn method(self) -> &'static str {
        if matches!(self, Self::Head | Self::HeadOfStream) { "HEAD" } else { "GET" }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Plain | Self::Head => "/plain",
            Self::Finish => "/finish",
            Self::Stream | Self::HeadOfStream => "/stream",
            Self::Leave => "/leave",
            Self::ReaderLeaves => "/reader-leaves",
            Self::Limit => "/limit",
            Self::Panic => "/panic",
            Self::TheirTimeout => "/their-timeout",
            Self::Large => "/large",
        }
    }

    /// The limit that a time limit layer sets.
    pub fn limit(self) -> Duration {
        if self == Self::Limit { SHORT } else { LONG }
    }

    /// The limit that a timeout layer of tower-http's sets.
    pub fn their_timeout(self) -> Duration {
        if self == Self::TheirTimeout { SHORT } else { LONG }
    }

    /// Whether no limit is so short that another request could reach it.
    pub fn has_time(self) -> bool {
        self.limit() == LONG && self.their_timeout() == LONG
    }

    /// How long an early close waits for the rest of a body.
    pub fn patience(self) -> Duration {
        if self == Self::ReaderLeaves { Duration::ZERO } else { LONG }
    }
}

#[derive(Clone)]
pub struct App {
    pub row: Row,
    pub notes: Notes,
    /// Holds the handler or body back whose client leaves.
    pub gate: Gate,
    /// A time limit stands around it.
    pub limited: bool,
}

impl App {
    pub fn new(row: Row, limited: bool) -> Self {
        Self { row, notes: Notes::default(), gate: Gate::closed(), limited }
    }

    /// The row's route, with `layered` around it.
    pub fn router(&self, layered: impl Fn(MethodRouter<Self>) -> MethodRouter<Self>) -> Router<Self> {
        let handler = match self.row {
            Row::Plain | Row::Head => get(plain),
            Row::Finish => get(finish),
            Row::Stream | Row::HeadOfStream => get(streamed),
            Row::Leave => get(leave),
            Row::ReaderLeaves => get(reader_leaves),
            Row::Limit => get(limit),
            Row::Panic => get(panics),
            Row::TheirTimeout => get(waits),
            Row::Large => get(large),
        };
        Router::new().route(self.row.path(), layered(handler)).route("/ping", get(|| async { "pong" }))
    }

    fn hook(&self, lifecycle: &Lifecycle) {
        let notes = self.notes.clone();
        lifecycle.on_shutdown(async move |end| notes.add(note("handler", &end))).unwrap();
    }
}

/// What a hook saw.
pub fn note(who: &str, end: &End) -> String {
    let panicked = if end.panic().is_some() { ", panicked" } else { "" };
    format!("{who}'s hook: {}, {:?}{panicked}", end.status(), end.sent())
}

async fn plain(State(app): State<App>, lifecycle: Lifecycle) -> (Continuation, &'static str) {
    app.hook(&lifecycle);
    let notes = app.notes;
    (Continuation::new(async move { notes.add("continuation") }), "plain")
}

async fn finish(State(app): State<App>, lifecycle: Lifecycle) {
    app.hook(&lifecycle);
    let sent = lifecycle.finish("early").await.unwrap();
    app.notes.add(format!("finish: {sent:?}"));
    tokio::task::yield_now().await;
    app.notes.add("rest");
}

async fn streamed(State(app): State<App>, lifecycle: Lifecycle) -> Body {
    app.hook(&lifecycle);
    Body::from_stream(stream::iter(["str", "eam"].map(Ok::<_, std::io::Error>)))
}

async fn leave(State(app): State<App>, lifecycle: Lifecycle) -> &'static str {
    app.hook(&lifecycle);
    app.notes.add("started");
    app.gate.passed().await;
    app.notes.add("went on");
    "left"
}

async fn reader_leaves(State(app): State<App>, lifecycle: Lifecycle) -> Body {
    app.hook(&lifecycle);
    let frames = stream::unfold(0, move |frame| {
        let app = app.clone();
        async move {
            let bytes = match frame {
                0 => Bytes::from_static(b"first"),
                1 => {
                    app.gate.passed().await;
                    app.notes.add("produced on");
                    Bytes::from_static(b"second")
                }
                _ => return None,
            };
            Some((Ok::<_, std::io::Error>(bytes), frame + 1))
        }
    });
    Body::from_stream(frames)
}

async fn limit(State(app): State<App>, lifecycle: Lifecycle) -> &'static str {
    app.hook(&lifecycle);
    if app.limited {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(SHORT * 2).await;
    "late"
}

async fn panics(State(app): State<App>, lifecycle: Lifecycle) {
    app.hook(&lifecycle);
    panic!("the handler panics, as this row wants it");
}

async fn waits(State(app): State<App>, lifecycle: Lifecycle) {
    app.hook(&lifecycle);
    std::future::pending::<()>().await;
}

async fn large(State(app): State<App>, lifecycle: Lifecycle) -> (Continuation, String) {
    app.hook(&lifecycle);
    let notes = app.notes;
    (Continuation::new(async move { notes.add("continuation") }), "large ".repeat(1000))
}
