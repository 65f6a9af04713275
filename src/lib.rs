// Of two definitions of a link the first holds: the README's paths and addresses are for its readers elsewhere.
#![doc = concat!("[picture]: https://docs.rs/crate/tower-epilogue/", env!("CARGO_PKG_VERSION"), "/source/docs/status_page.png")]
#![doc = "[continuation]: crate::Continuation"]
#![doc = "[durable]: mod@crate::durable"]
#![doc = "[ignore_abort]: mod@crate::ignore_abort"]
#![doc = "[lifecycle]: crate::Lifecycle"]
#![doc = "[manual]: crate::manual"]
#![doc = "[shutdown_hook]: mod@crate::shutdown_hook"]
#![doc = "[status_page]: mod@crate::status_page"]
#![doc = "[time_limit]: mod@crate::time_limit"]
// Shown always; compiled as a test where its server exists.
#![cfg_attr(any(not(doctest), feature = "serve"), doc = include_str!("../README.md"))]
// The documentation is read with all features; without them some of what it links to is not there.
#![cfg_attr(not(feature = "full"), allow(rustdoc::broken_intra_doc_links))]
// Labels what needs a feature, where docs.rs builds the documentation: it sets this.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "compressed-stream")]
pub mod compressed_stream;
#[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
pub mod durable;
pub mod early_close;
pub mod ignore_abort;
pub mod manual;
pub mod output;
pub mod reply;
pub mod reserve;
pub mod shutdown_hook;
#[cfg(feature = "status-page")]
pub mod status_page;
#[cfg(feature = "test-util")]
pub mod test_util;
pub mod time_limit;

mod connection;
mod continuation;
#[cfg(any(feature = "compressed-stream", feature = "compression"))]
mod encoded;
mod epilogue;
mod event;
mod lifecycle;
mod listed;
#[cfg(feature = "metrics")]
mod metrics;
mod pool;
#[cfg(any(feature = "compressed-stream", feature = "status-page"))]
mod quality;
mod queue;
mod status;
mod sync;

#[cfg(feature = "compressed-stream")]
pub use self::compressed_stream::{CompressedStream, CompressedStreamLayer};
#[cfg(feature = "acknowledged")]
pub use self::connection::Acknowledged;
#[cfg(feature = "serve")]
pub use self::connection::TrackedListener;
#[cfg(feature = "serve")]
pub use self::epilogue::{MakeService, MakeServiceFuture, Serve, WithGracefulShutdown};
pub use self::{
    connection::{Connection, HalfClose, Linger, SocketHandle, TrackedIo, TrackedSocket, Tracking},
    continuation::Continuation,
    early_close::{EarlyClose, EarlyCloseLayer},
    epilogue::{DrainReport, Epilogue, EpilogueBuilder, ResponseFuture, Service, Straggler, shutdown_signal},
    event::{Event, EventKind, RequestId},
    ignore_abort::{IgnoreAbort, IgnoreAbortLayer},
    lifecycle::{
        ClockKind, End, Finish, HookOutcome, Lifecycle, LifecycleError, MissingLifecycle, Phase, SendBody, Shield,
    },
    output::{Output, OutputError, OutputResponse},
    pool::{
        Failure,
        bounds::{Bound, Load, WhenFull},
    },
    reserve::{Reserve, ReserveLayer},
    shutdown_hook::{ShutdownHook, ShutdownHookLayer},
    status::{ConnectionStatus, Sent},
    time_limit::{TimeLimit, TimeLimitLayer},
};
