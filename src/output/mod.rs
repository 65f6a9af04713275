//! Responses that are written step by step: `echo` and `flush()`.
//!
//! A handler returns [`lifecycle.output(…)`](crate::Lifecycle::output) and writes its response in there, while the
//! client reads it: progress of long work, a page whose head is known before its rest, tokens of a language model.
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{Lifecycle, Output, OutputError, OutputResponse, TimeLimitLayer};
//!
//! async fn import(lifecycle: Lifecycle) -> OutputResponse {
//!     let produce = async |mut output: Output| {
//!         for percent in [0, 50, 100] {
//!             output.write(format!("{percent} %\n")).await?;
//!             output.flush().await?; // the client sees it now
//!             // … a part of the work
//!         }
//!         Ok::<_, OutputError>(())
//!     };
//!     lifecycle.output(produce).no_proxy_buffering()
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app: Router = Router::new().route("/", get(import)).layer(TimeLimitLayer::default());
//! let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(response.headers()["x-accel-buffering"], "no");
//! let body = to_bytes(response.into_body(), 100).await.unwrap();
//! assert_eq!(body, "0 %\n50 %\n100 %\n");
//! # }
//! ```
//!
//! [`Output::channel`] is for work that runs elsewhere.
//!
//! # When what is written leaves
//!
//! As soon as the connection has room, or, [if so set](OutputResponse::hold_until_flush), with a flush. A flush is needed
//! where something collects output on its way, as a compressor does: it goes through
//! a `CompressedStreamLayer` (feature `compressed-stream`). An `EarlyCloseLayer` holds a body back for as long as its
//! [patience](crate::EarlyCloseLayer::patience); set that to zero on such routes, or answer with an event stream, which it
//! leaves alone.
//!
//! When the client takes nothing, the buffer fills, and writes wait. The server then asks for nothing more, and so a producer
//! stands still as a whole: a timeout of its own, or whatever else it waits for beside a write, acts only when the client reads
//! on. The time limit acts all the same, and so does the connection's [write stall](crate::Tracking::write_stall). Work
//! that is to notice a client that stalls, or not to hold something meanwhile, runs elsewhere, with an [`Output::channel`].
//!
//! # When the client leaves
//!
//! | | not ignored | ignored |
//! |---|---|---|
//! | the producer of `lifecycle.output` | is dropped at its next `.await` | runs to its end |
//! | a write | is an error value, where anybody is left to see it | is accepted and discarded |
//!
//! # Where the response ends
//!
//! With [`finish`](Output::finish), or when the producer returns `Ok`. An `Err`, a panic and an `Output` that is dropped
//! unfinished break the response off, as the time limit does: never is it short and looks whole (but for HTTP/1.0, [without a
//! tracked connection](crate::manual::connection#without-a-tracked-connection)). After `finish` nothing
//! can be written; what the producer still has to do runs as a [`Continuation`](crate::Continuation).
//!
//! Where you declare its length (`Content-Length`), that is its end as well: an HTTP/1 server lets go of it with its last byte,
//! and a producer that waits for anything between that byte and its `finish` is dropped there. The writer of a channel that
//! flushes or finishes after that is told that nobody takes its output any more, although all of it may have left;
//! [`Lifecycle::status`](crate::Lifecycle::status) tells whether its client did.
//!
//! # Differences from a body of a channel
//!
//! `Body::from_stream` around a channel's receiver needs a spawned task, which no limit, no drain and no hook knows of,
//! and which ends a response that is incomplete as if it were whole. Here, nothing is spawned.

pub use self::{error::OutputError, response::OutputResponse, writer::Output};

mod error;
mod pipe;
mod response;
mod writer;

/// How many written bytes wait in memory unless set otherwise.
const BUFFER: usize = 8 * 1024;
