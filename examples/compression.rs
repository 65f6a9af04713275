//! A compressed page with an exact `Content-Length`, and work that runs when its last byte has left.
//!
//! Run with: `cargo run --example compression --features compression`
//!
//! ```sh
//! # Compressed, with a content-length and `connection: close`, at once, although the work after it takes 2 s:
//! curl -i --compressed 'http://127.0.0.1:3000/within/known?id=1'
//! # The same for a page whose length is not known in advance, in any encoding that the client asks for:
//! curl -is -H 'accept-encoding: br' -o /dev/null -D - 'http://127.0.0.1:3000/within/streamed?id=2'
//! # A HEAD request gets the headers of its GET:
//! curl -I --compressed 'http://127.0.0.1:3000/within/streamed?id=3'
//! # tower-http's layer outside the early close: chunked, and just as early.
//! curl -i --compressed 'http://127.0.0.1:3000/outside/known?id=4'
//! # A function on the whole page, before it is compressed:
//! curl -s --compressed 'http://127.0.0.1:3000/stamped/known?id=5' | tail -1
//! # Whose work has been done:
//! curl http://127.0.0.1:3000/done
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::response::Parts,
    response::Html,
    routing::get,
};
use futures_util::stream;
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue};
use tower_http::compression::CompressionLayer;

#[derive(serde::Deserialize)]
struct Asked {
    id: String,
    /// How long the work takes.
    #[serde(default = "two_seconds")]
    then_ms: u64,
}

fn two_seconds() -> u64 {
    2000
}

/// The visitors whose work is done.
#[derive(Clone, Default)]
struct Done(Arc<Mutex<Vec<String>>>);

impl Done {
    fn after(self, asked: Asked) -> Continuation {
        Continuation::new(async move {
            tokio::time::sleep(Duration::from_millis(asked.then_ms)).await;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(asked.id);
        })
    }
}

fn lines() -> impl Iterator<Item = String> {
    (0..2000).map(|number| format!("<p>line {number} of the page</p>\n"))
}

async fn known(State(done): State<Done>, Query(asked): Query<Asked>) -> (Continuation, Html<String>) {
    (done.after(asked), Html(lines().collect()))
}

async fn streamed(State(done): State<Done>, Query(asked): Query<Asked>) -> (Continuation, Html<Body>) {
    let lines = stream::iter(lines().map(Ok::<_, Infallible>));
    (done.after(asked), Html(Body::from_stream(lines)))
}

/// Says at the end of a page how long it is.
async fn stamp(parts: Parts, page: Bytes) -> Result<(Parts, String), std::string::FromUtf8Error> {
    let page = String::from_utf8(page.into())?;
    let length = page.len();
    Ok((parts, format!("{page}<p>{length} bytes</p>\n")))
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let pages =
        || Router::new().route("/known", get(known).post(known)).route("/streamed", get(streamed).post(streamed));
    let app = Router::new()
        // The early close compresses, and declares the length of what comes of it.
        .nest("/within", pages().layer(EarlyCloseLayer::new().compress()))
        // tower-http's layer outside takes the length off again, since it is no longer true.
        .nest("/outside", pages().layer(EarlyCloseLayer::new()).layer(CompressionLayer::new()))
        // tower-http's layer inside: the early close measures what comes of it.
        .nest("/inside", pages().layer(CompressionLayer::new()).layer(EarlyCloseLayer::new()))
        .nest("/stamped", pages().layer(EarlyCloseLayer::new().compress().map_buffer(stamp)))
        .route(
            "/done",
            get(async |State(done): State<Done>| done.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")),
        )
        .with_state(Done::default());

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
