//! Who is told of every request and connection of a pool when it begins: its status page.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use super::Straggler;
use crate::event::RequestId;

/// Told in the task that the request or the connection is served in, so that what happens later finds it known.
///
/// None of this runs user code.
pub(crate) trait Census: Send + Sync {
    /// A request arrived; or, if it is `stored`, an attempt at a durable job began.
    fn arrived(&self, request: RequestId, stored: bool, straggler: Weak<dyn Straggler>);
    fn connected(&self, connection: Weak<dyn Open>);
    /// For the page, which knows what it is.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A connection, which may be open.
pub(crate) trait Open: Send + Sync {
    fn is_open(&self) -> bool;
}
