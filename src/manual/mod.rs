//! What this crate promises, and how to choose its settings: prose, and no code to call.
//!
//! - [`contract`]: the thirteen rules that comments and tests cite by number, what keeps each of them, and
//!   the cases that they leave open.
//! - [`ordering`]: why the order of the layers does not matter, and where other middleware stands.
//! - [`limits`]: how to choose the time limit, the patience, the limit of hooks, the deadline of a drain, and
//!   the buffer of an early close.
//! - `durable` (features `durable-sqlite`, `durable-postgres`): what jobs that are stored survive, what can still go wrong,
//!   and what to do about it.
//! - [`observing`]: what can be seen of requests from outside: events, spans, the log, metrics, and what takes long.
//! - [`timing`]: answers whose timing tells nothing, such as that of a password reset.
//! - [`sessions`]: what of a session is committed when, and what a continuation may still change.
//! - [`connection`]: what "flushed" and "aborted" mean on HTTP/1 and on HTTP/2, and what cannot be known.
//!
//! # Words
//!
//! *Flushed*: the kernel took every byte of the response. *Aborted*: the client left before that. A
//! *continuation* is work that runs after the response; a *hook* is what runs at the very end of its request. To
//! *drain* is to finish what is open when the server stops. The *producer* is what a response's body is made by:
//! a stream of the handler's, for example. *Tracked* is a connection whose IO is a
//! [`TrackedIo`](crate::TrackedIo).

pub mod connection;
pub mod contract;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub mod durable;
pub mod limits;
pub mod observing;
pub mod ordering;
pub mod sessions;
pub mod timing;
