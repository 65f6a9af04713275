//! For your own tests: a server, clients that disconnect in every way, and a journal with assertions.
//!
//! A [`TestServer`] serves an app as [`Epilogue::serve`](crate::Epilogue::serve) does, on a real socket or in memory.
//! A [`TestClient`] sends and reads bytes, and disconnects where it is told to. The [`Journal`] records each phase of
//! each request, and a [`Story`] from it asserts what became of one request.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_epilogue::{Continuation, test_util::TestServer};
//!
//! async fn signup() -> (Continuation, &'static str) {
//!     (Continuation::new(async { /* … a mail is sent. */ }), "welcome")
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let server = TestServer::on_socket(Router::new().route("/signup", post(signup))).await;
//! let mut client = server.connect().await;
//! client.send_post("/signup", "name=Ada").await;
//! assert_eq!(client.response().await.text(), "welcome");
//!
//! server.settled().await; // Every continuation and hook has ended.
//! let story = server.journal().only();
//! story.assert_flushed_before_continuation();
//! story.assert_continuations(1);
//! # }
//! ```
//!
//! # Clients that leave
//!
//! A client can stop at any byte of its request ([`stop_request_at`](TestClient::stop_request_at)) or of the response
//! ([`stop_response_at`](TestClient::stop_response_at)), in any of the ways of [`Leave`]: with a FIN, a close, a
//! reset, or silently. It can read [slowly](TestClient::read_slowly), shut down its [sending
//! side](TestClient::half_close), and send several requests [at once](TestClient::pipeline).
//!
//! If a client leaves right after sending its request, a server may never see the request. Wait until the handler has
//! [begun](Journal::begun) in between.
//!
//! These clients speak HTTP/1. For HTTP/2, connect a client of your own to the server's
//! [address](TestServer::address): the journal has its requests, and [`settled`](TestServer::settled) waits for those
//! that have begun.
//!
//! [`every_await_point`] runs a handler once for each of its await points, with a client that leaves there, and so finds handlers
//! that are not cancel safe.
//!
//! # Time
//!
//! Under a paused clock (`#[tokio::test(start_paused = true)]`, tokio's feature `test-util`) limits, patience and
//! sleeps pass at once, and exactly. Serve [in memory](TestServer::in_memory) then: a paused clock jumps while it
//! waits for sockets. When nothing else is left to do, the clock jumps to the next timer, whichever that is: so a
//! client that stays connected without a request is disconnected
//! ([`header_read_timeout`](crate::EpilogueBuilder::header_read_timeout)). The patience of the harness itself is
//! always in wall-clock time.
//!
//! A paused clock does not wait for other threads. So a [blocking](crate::Continuation::blocking) continuation
//! reaches its limit at once, and a database appears not to answer: test blocking continuations without a limit, and
//! durable jobs with the clock running.
//!
//! # Durable jobs
//!
//! Start their store in the server's `Epilogue`, which [`on_socket_with`](TestServerBuilder::on_socket_with) passes
//! to a closure that makes the app. In the journal, an attempt at a job appears like a request.
//! [`settled`](TestServer::settled) waits for attempts that are running, but does not know of those still to come: wait for
//! them in the journal, or until the store [counts](crate::durable::DurableStore::counts) the job as completed, which
//! it does a moment later. Only a store can create a [`JobContext`](crate::durable::JobContext): to test a part of a
//! job without one, move it into a function of its own.
//!
//! ```
//! # #[cfg(feature = "durable-sqlite")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use axum::{Router, routing::post};
//! use serde::{Deserialize, Serialize};
//! use tower_epilogue::{
//!     durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
//!     test_util::{Story, TestServer},
//! };
//!
//! #[derive(Serialize, Deserialize)]
//! struct Welcome { name: String }
//!
//! impl DurableJob for Welcome {
//!     const KIND: &'static str = "welcome";
//!
//!     async fn run(self, _: JobContext) -> Result<(), JobError> {
//!         Ok(()) // … a mail is sent to `self.name`.
//!     }
//! }
//!
//! let directory = std::env::temp_dir().join(format!("welcome-{}", std::process::id()));
//! std::fs::create_dir_all(&directory).unwrap();
//! let app = async |epilogue: &_| {
//!     let store = DurableStore::sqlite(directory.join("jobs.db")).register::<Welcome>().start(epilogue).await.unwrap();
//!     Router::new().route("/signup", post(async |name| Durable::new(Welcome { name }))).layer(store.layer())
//! };
//! let server = TestServer::builder().in_memory_with(app).await;
//! let mut client = server.connect().await;
//! client.send_post("/signup", "Ada").await;
//! assert_eq!(client.response().await.status, 200);
//!
//! let tried = |story: &Story| story.route() == "JOB /welcome" && story.has_ended();
//! server.journal().until(|stories| stories.iter().any(tried)).await;
//! server.stop().await;
//! std::fs::remove_dir_all(directory).unwrap();
//! # }
//! # #[cfg(not(feature = "durable-sqlite"))] fn main() {}
//! ```
//!
//! # A whole test file
//!
//! ```no_run
#![doc = include_str!("../../tests/test_util/example.rs")]
//! ```
//!
//! # Differences from `tower::ServiceExt::oneshot` and `axum_test`
//!
//! Those call the app without a connection: nothing is flushed, nobody leaves, and there is no way to know that a
//! continuation has ended. Use them to test what a handler responds; use this to test what becomes of the response
//! and of the work after it.

use std::{fmt, future::Future, panic::Location, pin::pin, time::Duration};

pub use self::{
    await_points::{Interrupted, every_await_point},
    client::{Leave, TestClient},
    journal::Journal,
    request::request_bytes,
    response::TestResponse,
    server::{TestServer, TestServerBuilder},
    story::Story,
};

mod await_points;
mod client;
mod journal;
mod listener;
mod presence;
mod request;
mod response;
mod server;
mod story;

/// Where in a test a method was called: its future is polled elsewhere.
type Line = &'static Location<'static>;

/// What `future` gives; `None` if it has not within `patience`.
///
/// On the wall: under a paused clock a timer would pass at once, and would make the others pass.
async fn in_time<F: Future>(patience: Duration, future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = pin!(future) => Some(output),
        () = futures_timer::Delay::new(patience) => None,
    }
}

/// Bytes in a message: not too many of them.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 1024;
        let (bytes, rest) = self.0.split_at(self.0.len().min(MOST));
        write!(f, "\"{}\"", bytes.escape_ascii())?;
        if rest.is_empty() { Ok(()) } else { write!(f, " and {} bytes more", rest.len()) }
    }
}
