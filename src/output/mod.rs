//! Streaming responses that are written step by step: PHP's `echo` and `flush()`.
//!
//! A handler returns [`lifecycle.output(…)`](crate::Lifecycle::output), whose closure writes the response while the
//! client reads it: progress of long work, a page whose top is known before the rest, tokens of a language model.
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
//! As soon as the connection has room, or only with a flush if [so set](OutputResponse::hold_until_flush). A flush is
//! needed if something on the way collects output, as a compressor does: the flush passes through a
//! `CompressedStreamLayer` (feature `compressed-stream`). An `EarlyCloseLayer` holds a body back for the time of its
//! [patience](crate::EarlyCloseLayer::patience); set that to zero on such routes, or respond with an event stream, which it
//! leaves alone.
//!
//! When the client stops reading, the buffer fills, and writes wait (backpressure). The server then no longer polls
//! the body, so the whole producer stands still: a timeout of its own, or whatever else it awaits besides a write,
//! makes no progress until the client reads on. The time limit still applies, and so does the connection's [write
//! stall](crate::Tracking::write_stall). Work that has to notice a stalled client, or must not hold a resource
//! meanwhile, should run elsewhere, with an [`Output::channel`].
//!
//! # When the client leaves
//!
//! | | aborts are not ignored (default) | aborts are ignored |
//! |---|---|---|
//! | the producer of `lifecycle.output` | is dropped at its next `.await` | runs to its end |
//! | a write | returns an error, if its task is still there (an [`Output::channel`]) | is accepted and discarded |
//!
//! # Where the response ends
//!
//! With [`finish`](Output::finish), or when the producer returns `Ok`. An `Err`, a panic, or an `Output` that is
//! dropped unfinished breaks the response off, as the time limit does: a truncated response never looks complete
//! (except on HTTP/1.0 [without a tracked connection](crate::manual::connection#without-a-tracked-connection)). After
//! `finish` nothing can be written; what the producer still has to do runs as a
//! [`Continuation`](crate::Continuation).
//!
//! If you declare a `Content-Length`, the response also ends there: an HTTP/1 server drops the body after its last
//! byte, and a producer that awaits anything between that byte and its `finish` is dropped. The writer of a channel
//! that flushes or finishes after that gets an error saying that nobody reads its output any more, although all of it
//! may have left; [`Lifecycle::status`](crate::Lifecycle::status) tells whether its client did leave.
//!
//! # Differences from a body of a channel
//!
//! `Body::from_stream` around a channel's receiver needs a spawned task, of which no limit, drain or hook knows, and
//! if that fails, the incomplete response ends as if it were complete. Here, nothing is spawned.

pub use self::{error::OutputError, response::OutputResponse, writer::Output};

mod error;
mod pipe;
mod response;
mod writer;

/// How many written bytes wait in memory unless set otherwise.
const BUFFER: usize = 8 * 1024;
