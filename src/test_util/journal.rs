//! What happened to every request of a server.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::Story;
use crate::{
    epilogue::{Epilogue, EpilogueBuilder},
    event::{Event, EventKind, RequestId},
    pool::lock,
};

/// Every phase of every request, in order, as the [event function](EpilogueBuilder::on_event) was told.
///
/// A [`TestServer`](super::TestServer) has one. For a server of another kind, give
/// [`listener`](Self::listener) to its epilogue. Cloning is cheap; clones are the same journal.
#[derive(Clone, Default)]
pub struct Journal {
    events: Arc<Mutex<Vec<Event>>>,
    news: Arc<Notify>,
}

impl Journal {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A function for [`EpilogueBuilder::on_event`] that writes into this journal.
    pub fn listener(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let journal = self.clone();
        move |event| {
            lock(&journal.events).push(event.clone());
            journal.news.notify_waiters();
        }
    }

    /// An [`Epilogue`]'s builder that writes into this journal.
    pub fn epilogue(&self) -> EpilogueBuilder {
        Epilogue::builder().on_event(self.listener())
    }

    /// All events so far, in the order in which they were told.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        lock(&self.events).clone()
    }

    /// What happened to each request so far, in the order of the requests' arrival.
    #[must_use]
    pub fn stories(&self) -> Vec<Story> {
        let mut stories: Vec<Story> = Vec::new();
        let mut places = std::collections::HashMap::new();
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

    /// Waits until `found` says so of the stories so far. Waits without end: put a timeout around it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn until(&self, found: impl Fn(&[Story]) -> bool) {
        loop {
            // Enlisted before the look, so that what is told after it is heard of.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if found(&self.stories()) {
                return;
            }
            news.await;
        }
    }

    /// Waits until `count` requests have ended, whatever else goes on. Waits without end.
    pub async fn ended(&self, count: usize) {
        self.until(|stories| stories.iter().filter(|story| story.has_ended()).count() >= count).await;
    }

    /// Waits until the handlers of `count` requests have begun. Waits without end.
    ///
    /// Before a client leaves: of a client that leaves at once, a server may never see the request.
    pub async fn begun(&self, count: usize) {
        let begun = |story: &&Story| story.has(&EventKind::HandlerStart);
        self.until(|stories| stories.iter().filter(begun).count() >= count).await;
    }

    /// Holds the contract against each request.
    ///
    /// # Panics
    ///
    /// With the first [`Story::assert_contract`] that does.
    #[track_caller]
    pub fn assert_contract(&self) {
        self.stories().iter().for_each(Story::assert_contract);
    }

    /// For whoever waits for the next event.
    pub(super) fn news(&self) -> &Notify {
        &self.news
    }

    pub(super) fn all_ended(&self) -> bool {
        let events = lock(&self.events);
        let mut open = std::collections::HashSet::new();
        for event in events.iter() {
            match event.kind() {
                EventKind::Ended => open.remove(&event.request()),
                _ => open.insert(event.request()),
            };
        }
        open.is_empty()
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
