//! A draft.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod early_close;
pub mod ignore_abort;
pub mod shutdown_hook;
pub mod time_limit;

mod connection;
mod continuation;
mod epilogue;
mod event;
mod lifecycle;
mod pool;
mod status;

#[cfg(feature = "serve")]
pub use self::connection::TrackedListener;
#[cfg(feature = "serve")]
pub use self::epilogue::{
    DrainReport, MakeService, MakeServiceFuture, Serve, Service, Straggler, WithGracefulShutdown,
};
pub use self::{
    connection::{Connection, TrackedIo},
    continuation::Continuation,
    early_close::{EarlyClose, EarlyCloseLayer},
    epilogue::{Epilogue, EpilogueBuilder},
    event::{Event, EventKind, RequestId},
    ignore_abort::{IgnoreAbort, IgnoreAbortLayer},
    lifecycle::{
        ClockKind, End, HookOutcome, Lifecycle, LifecycleError, MissingLifecycle, Phase, ResponseFuture, SendBody,
        Shield,
    },
    shutdown_hook::{ShutdownHook, ShutdownHookLayer},
    status::{ConnectionStatus, Sent},
    time_limit::{TimeLimit, TimeLimitLayer},
};
