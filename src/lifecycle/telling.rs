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
        let route = Route { name, method, matched, is_job: self.is_job };
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Method, Version, uri::PathAndQuery};

    use super::*;
    use crate::{
        lifecycle::{Home, shared::Arrival},
        pool::{Pool, lock},
    };

    fn arrive(pool: &Arc<Pool>) -> Arc<Shared> {
        Shared::new(Arrival {
            home: Home::here(pool),
            connection: None,
            method: Method::GET,
            path: Some(PathAndQuery::from_static("/path?query")),
            version: Version::HTTP_11,
            uploaded: true,
            is_job: false,
        })
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_request_that_has_ended_or_never_will() {
        let (pool, seen) = (Pool::default(), Arc::new(Mutex::new(Vec::new())));
        let theirs = seen.clone();
        pool.listen(Arc::new(move |event: &Event| {
            lock(&theirs).push((event.kind().name(), event.route().to_owned(), event.class()));
        }));
        let pool = Arc::new(pool);
        let feed = pool.feed().unwrap();
        let told_of = |shared: &Shared| feed.told(shared.id()).len();

        let ended = arrive(&pool);
        ended.note_told_class(Some("mail"));
        ended.tell(EventKind::ContinuationWaits);
        assert_eq!(told_of(&ended), 1);
        assert!(ended.end(|_| true));
        ended.note_told_class(Some("mail"));
        ended.tell(EventKind::Slow);
        assert_eq!(told_of(&ended), 0);

        // Its runtime has ended.
        let lost = arrive(&pool);
        let id = lost.id();
        assert_eq!(told_of(&lost), 1);
        drop(lost);
        assert_eq!(feed.told(id).len(), 0);

        feed.delivered().await;
        let route = || "GET /path".to_owned();
        let all = [
            (EventKind::Arrived.name(), route(), None),
            (EventKind::ContinuationWaits.name(), route(), Some("mail")),
            (EventKind::Ended.name(), route(), None),
            (EventKind::Arrived.name(), route(), None),
        ];
        assert_eq!(*lock(&seen), all);
    }
}
