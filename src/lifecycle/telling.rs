//! What the events of a request carry besides what happened.

use std::sync::Arc;

use super::{shared::Shared, word};
use crate::{
    event::{Event, EventKind, Route},
    pool::Told,
    status::ConnectionStatus,
};

impl Shared {
    pub(super) fn event(&self, told: &mut Told, kind: EventKind, status: ConnectionStatus) -> Event {
        let class = told.class.filter(|_| kind.is_of_continuation());
        Event { request: self.id(), kind, status, at: self.elapsed(), route: self.told_route(told), class }
    }

    fn told_route(&self, told: &mut Told) -> Arc<Route> {
        // There are as many jobs as the application has kinds.
        let matched = self.is_job;
        #[cfg(feature = "serve")]
        let matched = matched || self.has_route();
        if let Some(route) = told.route.as_ref().filter(|route| route.matched == matched) {
            return route.clone();
        }
        let name = self.route().into_boxed_str();
        // A method has no space in it (RFC 9110, section 9.1).
        let method = name.find(' ').unwrap_or_default();
        let route = Route { name, method, matched };
        told.route.insert(Arc::new(route)).clone()
    }

    /// The class that the events to come are about.
    pub(super) fn note_told_class(&self, class: Option<&'static str>) {
        if let Some(feed) = self.pool().feed() {
            let mut told = feed.told(self.id());
            // Of one that has ended nothing is kept.
            if !self.word().has(word::ENDED) {
                told.of(self.id()).class = class;
            }
        }
    }
}

impl Drop for Shared {
    /// Nothing more is told of it, also if its end never was, since its runtime ended before.
    fn drop(&mut self) {
        if let Some(feed) = self.pool().feed().filter(|_| !self.word().has(word::ENDED)) {
            feed.told(self.id()).forget(self.id());
        }
    }
}
