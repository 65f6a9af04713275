//! Which span a continuation runs in.

use tracing::Span;

use super::{Continuation, Kind};
use crate::{event::RequestId, pool::spans};

/// Whose span a continuation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The request's, to follow from.
    Request,
    /// Lent to whoever makes its own from it.
    Lent,
    /// The one that it runs in.
    Own,
}

impl Continuation {
    /// Has it run in that span, and not in [one that is made for it](crate::manual::observing#spans). It follows from the
    /// one that was current when the continuation was made.
    ///
    /// Make it without a parent (`info_span!(parent: None, …)`), or the request's span stays open until the continuation
    /// has ended. If that is what you want, the request's own can be given: `Span::current()`.
    pub fn in_span(mut self, span: Span) -> Self {
        if span.id() != self.span.id() {
            span.follows_from(&self.span);
        }
        self.span = span;
        self.whose = Whose::Own;
        self
    }

    /// The request's span, for a span that follows from it, if it needs one; [`put_span`](Self::put_span) is to come next.
    /// Calls nobody: it is asked under a lock.
    pub(crate) fn lend_span(&mut self) -> Option<Span> {
        if self.whose != Whose::Request || self.span.is_none() {
            return None;
        }
        self.whose = Whose::Lent;
        Some(std::mem::replace(&mut self.span, Span::none()))
    }

    /// The span that it runs in, for one that has lent the request's; for any other it comes back.
    pub(crate) fn put_span(&mut self, span: Span) -> Option<Span> {
        if self.whose != Whose::Lent {
            return Some(span);
        }
        self.whose = Whose::Own;
        self.span = span;
        None
    }

    /// Gives it a span to run in, unless it has one.
    pub(crate) fn begin_span(&mut self, route: impl FnOnce() -> String, id: Option<RequestId>) {
        if self.whose != Whose::Own {
            self.span = spans::continuation(&self.span, route, self.class, id);
            self.whose = Whose::Own;
        }
    }

    /// The work and the span that it runs in. From here on, whoever has them answers for them.
    pub(crate) fn into_work(mut self) -> (Kind, Span) {
        let span = std::mem::replace(&mut self.span, Span::none());
        let kind = self.kind.take();
        (kind.unwrap_or_else(|| Kind::Async(Box::pin(async {}))), span)
    }
}
