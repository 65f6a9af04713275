//! What a request needs only until the fate of its response is known, and gives back when something long begins.

#[cfg(feature = "serve")]
use std::sync::atomic::Ordering;
use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{Arc, Weak},
    task::{Context, Waker},
};

#[cfg(feature = "serve")]
use axum::extract::MatchedPath;
use http::{Method, uri::PathAndQuery};

use super::{producer::Waiting, shared::Shared, word};
use crate::{connection::Connection, pool::lock, queue::Queue};

/// Who is woken when something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// The outermost response future, then the outermost body.
    Response,
    /// The innermost response future; the first of several. The others, and what goes on by itself, have
    /// [news](super::alone::News) of their own.
    Handler,
    /// The innermost body, which a middleware may have put into a task of its own.
    Producer,
}

/// The passage of a request through its handler, and of its response to the client.
///
/// There may be a million requests whose continuation runs for an hour: they keep neither their connection's account, nor
/// the buffer that they were read into, nor the room for what they no longer wait for.
#[derive(Default)]
pub(super) struct Passage {
    connection: Option<Connection>,
    /// As the server read it: a slice of the connection's buffer, which it keeps in memory as a whole.
    path: Option<PathAndQuery>,
    /// One that [`Verb`] has no place for.
    method: Option<Method>,
    /// What is left of both, once the buffer was let go.
    name: Option<Box<str>>,
    #[cfg(feature = "serve")]
    route: Option<MatchedPath>,
    response: Option<Waker>,
    handler: Option<Waker>,
    producer: Option<Waker>,
    /// The bodies that handlers gave and that are watched.
    bodies: Queue<Weak<Waiting>>,
}

/// A [`Passage`], or what is left of it.
pub(super) enum Passing {
    Under(Box<Passage>),
    /// It is over, and its request is named by its method and its route.
    #[cfg(feature = "serve")]
    Routed(MatchedPath),
    /// It is over, and its request is named by this.
    Named(Box<str>),
}

impl Passing {
    pub(super) fn new(connection: Option<Connection>, method: Method, path: Option<PathAndQuery>) -> Self {
        let method = Some(method).filter(|method| Verb::of(method).name().is_none());
        Self::Under(Box::new(Passage { connection, path, method, ..Passage::default() }))
    }

    /// It is over, but for what is beyond anybody's reckoning: a copy of the request that is sent into the service once
    /// more.
    fn again(&mut self) -> &mut Passage {
        if !matches!(self, Self::Under(_)) {
            let mut passage = Box::<Passage>::default();
            match std::mem::replace(self, Self::Named(Box::default())) {
                Self::Under(_) => {}
                #[cfg(feature = "serve")]
                Self::Routed(route) => passage.route = Some(route),
                Self::Named(name) => passage.name = Some(name),
            }
            *self = Self::Under(passage);
        }
        match self {
            Self::Under(passage) => passage,
            _ => unreachable!("it was just begun again"),
        }
    }

    fn passage(&mut self) -> Option<&mut Passage> {
        match self {
            Self::Under(passage) => Some(passage),
            _ => None,
        }
    }
}

impl Passage {
    fn waker(&mut self, who: Waits) -> &mut Option<Waker> {
        match who {
            Waits::Response => &mut self.response,
            Waits::Handler => &mut self.handler,
            Waits::Producer => &mut self.producer,
        }
    }
}

impl Shared {
    pub(super) fn connection(&self) -> Option<Connection> {
        lock(&self.passing).passage()?.connection.clone()
    }

    /// The head of the response is handed over, or, on HTTP/2, the trailers are.
    pub(super) fn tell_connection_of_head(&self) {
        if let Some(connection) = lock(&self.passing).passage().and_then(|passage| passage.connection.as_ref()) {
            connection.head(&self.exchange);
        }
    }

    #[cfg(feature = "serve")]
    pub(crate) fn set_route(&self, route: MatchedPath) {
        let mut passing = lock(&self.passing);
        let Some(passage) = passing.passage() else { return };
        // A nested router matches a longer route later, on the same request; the first is that of the outermost
        // router, which is the whole one in axum.
        if passage.route.is_none() {
            passage.route = Some(route);
            self.routed.store(true, Ordering::Release);
        }
    }

    #[cfg(feature = "serve")]
    pub(crate) fn has_route(&self) -> bool {
        self.routed.load(Ordering::Acquire)
    }

    pub(super) fn add_body(&self, body: &Arc<Waiting>) {
        let mut passing = lock(&self.passing);
        let bodies = &mut passing.again().bodies;
        for other in std::mem::take(bodies).filter(|other| other.strong_count() > 0) {
            bodies.push_back(other);
        }
        bodies.push_back(Arc::downgrade(body));
    }

    /// The bodies that handlers gave and that are watched, as long as they are there.
    pub(super) fn bodies(&self) -> Vec<Arc<Waiting>> {
        let mut passing = lock(&self.passing);
        let bodies = passing.passage().map(|passage| passage.bodies.iter().filter_map(Weak::upgrade).collect());
        bodies.unwrap_or_default()
    }

    /// Nothing more is to be heard of the connection.
    pub(super) fn leave_connection(&self) {
        if self.exchange.is_listed() {
            if let Some(connection) = self.connection() {
                connection.leave(self);
            }
        }
    }

    /// Has the task of `cx` woken by [`wake`](Self::wake). It looks again afterwards, so that what changes in between is
    /// not missed.
    pub(super) fn register(&self, who: Waits, cx: &Context<'_>) {
        let mut passing = lock(&self.passing);
        let slot = passing.again().waker(who);
        if slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return;
        }
        let old = slot.replace(cx.waker().clone());
        drop(passing);
        // Outside of the lock: it may be the last that a task is kept by.
        drop(old);
    }

    pub(super) fn wake(&self, who: Waits) {
        let waker = lock(&self.passing).passage().and_then(|passage| passage.waker(who).take());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What may take long begins: neither the buffer that the request was read into nor its connection's account is to
    /// wait for it.
    pub(super) fn let_go(&self) {
        let word = self.word();
        let produces = word.has(word::HANDLER | word::PRODUCER | word::UNREAD);
        let over = word.sent().is_some() && !produces && !self.exchange.is_listed();
        let mut passing = lock(&self.passing);
        let Some(passage) = passing.passage() else { return };
        let (mut path, mut old) = (None, None);
        if over {
            let left = passage.take_name(self.verb);
            old = Some(std::mem::replace(&mut *passing, left));
        } else {
            if !passage.is_routed(self.verb) {
                passage.name = Some(passage.text(self.verb).into_boxed_str());
            }
            path = passage.path.take();
        }
        drop(passing);
        drop((path, old));
    }

    /// Method and matched route, else method and path; never a query.
    pub(crate) fn route(&self) -> String {
        match &*lock(&self.passing) {
            Passing::Under(passage) => passage.text(self.verb),
            #[cfg(feature = "serve")]
            Passing::Routed(route) => format!("{} {}", self.verb.name().unwrap_or_default(), route.as_str()),
            Passing::Named(name) => name.to_string(),
        }
    }
}

impl Passage {
    /// Whether its method and its route name it.
    #[cfg(feature = "serve")]
    fn is_routed(&self, verb: Verb) -> bool {
        self.route.is_some() && verb.name().is_some()
    }

    #[cfg(not(feature = "serve"))]
    #[expect(clippy::unused_self, reason = "it has no route")]
    fn is_routed(&self, _: Verb) -> bool {
        false
    }

    /// What is left when it is over.
    fn take_name(&mut self, verb: Verb) -> Passing {
        #[cfg(feature = "serve")]
        if let Some(route) = self.is_routed(verb).then(|| self.route.take()).flatten() {
            return Passing::Routed(route);
        }
        Passing::Named(self.text(verb).into_boxed_str())
    }

    fn text(&self, verb: Verb) -> String {
        if let Some(name) = &self.name {
            return name.to_string();
        }
        let other = || self.method.as_ref().map_or("", Method::as_str);
        let verb = verb.name().unwrap_or_else(other);
        #[cfg(feature = "serve")]
        if let Some(route) = &self.route {
            return format!("{verb} {}", route.as_str());
        }
        format!("{verb} {}", in_ascii(self.path.as_ref().map_or("", PathAndQuery::path)))
    }
}

/// As a client should have sent it (RFC 3986, section 2.1). What hyper lets through has control characters among it, which a
/// terminal obeys that shows a log or a report.
fn in_ascii(path: &str) -> Cow<'_, str> {
    if path.is_ascii() {
        return Cow::Borrowed(path);
    }
    let mut encoded = String::with_capacity(path.len() + 16);
    for character in path.chars() {
        if character.is_ascii() {
            encoded.push(character);
            continue;
        }
        for byte in character.encode_utf8(&mut [0; 4]).bytes() {
            // Writing into a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

/// A method in one byte, but for those that HTTP's own registry of old does not have (RFC 9110, section 9.3, and RFC 5789).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Verb(u8);

const NAMES: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

impl Verb {
    pub(super) fn of(method: &Method) -> Self {
        Self(match *method {
            Method::GET => 0,
            Method::HEAD => 1,
            Method::POST => 2,
            Method::PUT => 3,
            Method::DELETE => 4,
            Method::CONNECT => 5,
            Method::OPTIONS => 6,
            Method::TRACE => 7,
            Method::PATCH => 8,
            _ => u8::MAX,
        })
    }

    pub(super) fn is_head(self) -> bool {
        self == Self::of(&Method::HEAD)
    }

    pub(super) fn is_connect(self) -> bool {
        self == Self::of(&Method::CONNECT)
    }

    fn name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.0)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_own_name() {
        for (place, name) in NAMES.iter().enumerate() {
            let verb = Verb::of(&Method::from_bytes(name.as_bytes()).unwrap());
            assert_eq!((usize::from(verb.0), verb.name()), (place, Some(*name)));
        }
        assert_eq!(Verb::of(&Method::from_bytes(b"PURGE").unwrap()).name(), None);
    }
}
