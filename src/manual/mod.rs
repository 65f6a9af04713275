//! The guarantees of this crate, and how to choose its settings: prose, with no API of its own.
//!
//! - [`contract`]: the thirteen rules that comments and tests cite by number, the code that keeps each of them, and
//!   the cases they leave open.
//! - [`ordering`]: why the order of the layers does not matter, and where other middleware goes (compression,
//!   timeouts, tracing, catch-panic, retries).
//! - [`limits`]: how to choose timeouts, bounds and buffers: the time limit, the patience, the hook limit, the
//!   deadline of a graceful shutdown, how many continuations run at once; server-sent events, WebSockets and proxies.
//! - `durable` (features `durable-sqlite`, `durable-postgres`): what stored jobs survive, what can still go wrong,
//!   and what to do about it.
//! - [`observing`]: what can be observed of requests: events, tracing spans, logs, metrics, and slow requests.
//! - [`timing`]: responses whose timing reveals nothing, such as that of a password reset.
//! - [`sessions`]: when a session is stored, and what a continuation may still change.
//! - [`connection`]: what "flushed" and "aborted" mean on HTTP/1 and on HTTP/2, how a server stops and connections
//!   linger, and your own accept loop.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | *flushed* | the kernel accepted every byte of the response |
//! | *aborted* | the client left (disconnected) before that |
//! | *continuation* | work that runs after the response: a background task that is tracked |
//! | *hook* | code that runs at the very end of its request |
//! | *drain* | finishing what is open when the server stops: a graceful shutdown that includes continuations |
//! | *cut* | ending what is left at a drain's deadline |
//! | *straggler* | a request that was cut |
//! | *patience* | how long a continuation waits for a slow reader of its response |
//! | *place* | the right of a continuation to run, where their number is bounded |
//! | *producer* | whatever makes a response's body: a stream that a handler returned, for example |
//! | *tracked* | of a connection: its IO is a [`TrackedIo`](crate::TrackedIo) |

pub mod connection;
pub mod contract;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub mod durable;
pub mod limits;
pub mod observing;
pub mod ordering;
pub mod sessions;
pub mod timing;
