//! What a connection really tells of its client: when a response was flushed, and when the client left.
//!
//! What hyper shows a tower layer is not enough: a response body is dropped before its last bytes are written,
//! and a response future is dropped for other reasons than a client that left, or not at all. So the IO is
//! wrapped, and this room keeps the account: [`TrackedIo`] reports reads, writes and flushes, [`Connection`]
//! holds the exchanges that are in flight on it and tells each what became of it.

#[cfg(feature = "acknowledged")]
pub use self::acknowledged::Acknowledged;
#[cfg(feature = "acknowledged")]
pub(crate) use self::acknowledged::Delivered;
#[cfg(feature = "serve")]
pub(crate) use self::lent::Lent;
#[cfg(feature = "serve")]
pub use self::listener::TrackedListener;
#[cfg(feature = "test-util")]
pub(crate) use self::memory::{MemoryClient, MemoryStream, pair};
#[cfg(feature = "serve")]
pub(crate) use self::state::Asked;
pub use self::state::Connection;
pub use self::{
    below::{SocketHandle, TrackedSocket},
    io::TrackedIo,
    settings::{HalfClose, Linger, Tracking},
};
pub(crate) use self::{
    exchange::Exchange,
    parties::Party,
    state::{Coming, WhyDropped},
};

#[cfg(feature = "acknowledged")]
mod acknowledged;
mod below;
mod chunks;
mod exchange;
mod io;
#[cfg(feature = "serve")]
mod lent;
mod linger;
#[cfg(feature = "serve")]
mod listener;
#[cfg(feature = "test-util")]
mod memory;
mod observed;
mod others;
mod parties;
mod reader;
#[cfg(all(feature = "acknowledged", target_os = "linux"))]
mod send_queue;
mod settings;
mod socket;
mod stall;
mod state;
mod turn;
mod watch;
mod windows;
