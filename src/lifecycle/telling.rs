//! What the events of a request carry besides what happened.

use std::sync::Arc;

use super::shared::Shared;
use crate::{
    event::{Event, EventKind, Route},
    pool::lock,
    status::ConnectionStatus,
};

/// Kept from one event to the next; made only where somebody listens.
#[derive(Default)]
pub(super) struct Told {
    route: Option<Arc<Route>>,
    /// Of the continuation that runs or waits for its place.
    class: Option<&'static str>,
}

impl Shared {
    pub(super) fn event(&self, told: &mut Told, kind: EventKind, status: ConnectionStatus) -> Event {
        let class = told.class.filter(|_| kind.is_of_continuation());
        Event { request: self.id(), kind, status, at: self.elapsed(), route: self.told_route(told), class }
    }

    fn told_route(&self, told: &mut Told) -> Arc<Route> {
        #[cfg(feature = "serve")]
        let matched = self.has_route();
        #[cfg(not(feature = "serve"))]
        let matched = false;
        if let Some(route) = told.route.as_ref().filter(|route| route.matched == matched) {
            return route.clone();
        }
        let route = Route { name: self.route().into(), method: self.method().as_str().len(), matched };
        told.route.insert(Arc::new(route)).clone()
    }

    /// The class that the events to come are about.
    pub(super) fn note_told_class(&self, class: Option<&'static str>) {
        if self.pool().feed().is_some() {
            lock(&self.order).get_or_insert_default().class = class;
        }
    }
}
