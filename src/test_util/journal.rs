//! What happened to every request of a server.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    panic::Location,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Line, Story, in_time};
use crate::{
    epilogue::{Epilogue, EpilogueBuilder},
    event::{Event, EventKind, RequestId},
    pool::lock,
};

/// Every phase of every request, in order, as reported to the [event function](EpilogueBuilder::on_event).
///
/// A [`TestServer`](super::TestServer) has one. For any other server, pass [`listener`](Self::listener) to
/// [`EpilogueBuilder::on_event`]. Cloning is cheap; clones are the same journal.
#[derive(Clone, Default)]
pub struct Journal {
    told: Arc<Mutex<Told>>,
    news: Arc<Notify>,
    patience: Option<Duration>,
}

/// All events, and what is asked of them again and again: counted as they come, for there may be many.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    open: HashSet<RequestId>,
    begun: HashSet<RequestId>,
    ended: usize,
}

impl Told {
    fn push(&mut self, event: Event) {
        let request = event.request();
        match event.kind() {
            EventKind::Ended => {
                self.ended += 1;
                self.open.remove(&request);
            }
            kind => {
                if *kind == EventKind::HandlerStart {
                    self.begun.insert(request);
                }
                self.open.insert(request);
            }
        }
        self.events.push(event);
    }
}

impl Journal {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same journal, whose waits fail the test after so long.
    pub(super) fn within(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// A function for [`EpilogueBuilder::on_event`] that writes into this journal.
    pub fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let journal = self.clone();
        move |event| {
            lock(&journal.told).push(event.clone());
            journal.news.notify_waiters();
        }
    }

    /// An [`Epilogue`]'s builder that writes into this journal.
    pub fn epilogue(&self) -> EpilogueBuilder {
        Epilogue::builder().on_event(self.listener())
    }

    /// All events so far, in the order in which they were reported.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        lock(&self.told).events.clone()
    }

    /// What happened to each request so far, in the order of the requests' arrival.
    #[must_use]
    pub fn stories(&self) -> Vec<Story> {
        let mut stories: Vec<Story> = Vec::new();
        let mut places = HashMap::new();
        for event in self.events() {
            let place = *places.entry(event.request()).or_insert_with(|| {
                stories.push(Story::new(event.request()));
                stories.len() - 1
            });
            stories[place].push(event);
        }
        stories.sort_by_key(Story::request);
        stories
    }

    /// What happened to one request so far.
    #[must_use]
    pub fn story(&self, request: RequestId) -> Story {
        let mut story = Story::new(request);
        self.events().into_iter().filter(|event| event.request() == request).for_each(|event| story.push(event));
        story
    }

    /// What happened to the only request.
    ///
    /// # Panics
    ///
    /// If there was none, or more than one.
    #[must_use]
    #[track_caller]
    pub fn only(&self) -> Story {
        let mut stories = self.stories();
        match (stories.pop(), stories.is_empty()) {
            (Some(story), true) => story,
            (None, _) => panic!("no request has begun"),
            (Some(_), false) => panic!("there was more than one request:\n{self}"),
        }
    }

    /// What happened to the request that arrived last.
    ///
    /// # Panics
    ///
    /// If there was none.
    #[must_use]
    #[track_caller]
    pub fn last(&self) -> Story {
        match self.stories().pop() {
            Some(story) => story,
            None => panic!("no request has begun"),
        }
    }

    /// Waits until `found` returns `true` for the stories so far.
    ///
    /// # Panics
    ///
    /// With the journal of a [`TestServer`](super::TestServer): if it takes longer than the server's
    /// [patience](super::TestServerBuilder::patience). Any other journal waits without end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    #[track_caller]
    pub fn until(&self, found: impl Fn(&[Story]) -> bool) -> impl Future<Output = ()> {
        let said = move |journal: &Self| found(&journal.stories());
        self.wait(Location::caller(), "the journal says what is waited for".to_owned(), said)
    }

    /// Waits until `count` requests have ended, whatever else is running; panics like [`until`](Self::until).
    #[track_caller]
    pub fn ended(&self, count: usize) -> impl Future<Output = ()> {
        let ended = move |journal: &Self| lock(&journal.told).ended >= count;
        self.wait(Location::caller(), format!("requests that have ended: {count}"), ended)
    }

    /// Waits until the handlers of `count` requests have begun; panics like [`until`](Self::until).
    ///
    /// Use it before a client leaves: if a client leaves at once, the server may never see its request.
    #[track_caller]
    pub fn begun(&self, count: usize) -> impl Future<Output = ()> {
        let begun = move |journal: &Self| lock(&journal.told).begun.len() >= count;
        self.wait(Location::caller(), format!("handlers that have begun: {count}"), begun)
    }

    async fn wait(&self, line: Line, what: String, found: impl Fn(&Self) -> bool) {
        let seen = async {
            loop {
                // Before the look, so that what is told after it is heard of.
                let news = self.news.notified();
                if found(self) {
                    return;
                }
                news.await;
            }
        };
        let Some(patience) = self.patience else { return seen.await };
        if in_time(patience, seen).await.is_none() {
            panic!("it did not happen within {patience:?}: {what}\n  in the test at {line}\n{self}");
        }
    }

    /// Asserts the [contract](crate::manual::contract) for each request.
    ///
    /// # Panics
    ///
    /// If [`Story::assert_contract`] panics for one of them.
    #[track_caller]
    pub fn assert_contract(&self) {
        self.stories().iter().for_each(Story::assert_contract);
    }

    /// For whoever waits for the next event.
    pub(super) fn news(&self) -> &Notify {
        &self.news
    }

    pub(super) fn all_ended(&self) -> bool {
        lock(&self.told).open.is_empty()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stories()).finish()
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stories().iter().try_for_each(|story| write!(f, "{story}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Route, status::ConnectionStatus};

    /// Requests of several threads are told of as it comes.
    #[test]
    fn stories_are_in_the_order_of_the_arrivals() {
        let (journal, requests) = (Journal::new(), [RequestId::next(), RequestId::next()]);
        let tell = journal.listener();
        let route = Arc::new(Route { name: "GET /".into(), method: 3, matched: false, is_job: false });
        for request in requests.into_iter().rev() {
            let (kind, status, route) = (EventKind::Arrived, ConnectionStatus::NORMAL, route.clone());
            tell(&Event { request, kind, status, at: Duration::ZERO, route, class: None });
        }
        assert_eq!(journal.stories().iter().map(Story::request).collect::<Vec<_>>(), requests);
        assert_eq!(journal.last().request(), requests[1]);
    }
}
