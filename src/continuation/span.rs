//! Which span a continuation runs in.

use tracing::Span;

use super::{Continuation, Extra, Kind};
use crate::{
    event::RequestId,
    pool::{caught, spans},
};

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
        let extra = self.extra();
        if span.id() != extra.span.id() {
            span.follows_from(&extra.span);
        }
        extra.span = span;
        extra.whose = Whose::Own;
        self
    }

    /// The request's span, for a span that follows from it, if it needs one; [`put_span`](Self::put_span) is to come next.
    /// Calls nobody: it is asked under a lock.
    pub(crate) fn lend_span(&mut self) -> Option<Span> {
        let extra = self.extra.as_deref_mut()?;
        if extra.whose != Whose::Request || extra.span.is_none() {
            return None;
        }
        extra.whose = Whose::Lent;
        Some(std::mem::replace(&mut extra.span, Span::none()))
    }

    /// The span that it runs in, for one that has lent the request's; for any other it comes back.
    pub(crate) fn put_span(&mut self, span: Span) -> Option<Span> {
        match self.extra.as_deref_mut() {
            Some(extra) if extra.whose == Whose::Lent => {
                extra.whose = Whose::Own;
                extra.span = span;
                None
            }
            _ => Some(span),
        }
    }

    /// Says something of it, in the span where it was made.
    pub(crate) fn told(&self, says: impl FnOnce()) {
        caught::tell(|| {
            let _span = self.extra.as_ref().map(|extra| extra.span.enter());
            says();
        });
    }

    /// Gives it a span to run in, unless it has one.
    pub(crate) fn begin_span(&mut self, route: impl FnOnce() -> String, id: Option<RequestId>) {
        let (request, class) = match &self.extra {
            Some(extra) if extra.whose == Whose::Own => return,
            Some(extra) => (Some(&extra.span), extra.class),
            None => (None, None),
        };
        let span = match request {
            Some(request) => spans::continuation(request, route, class, id),
            None => spans::continuation(&Span::none(), route, class, id),
        };
        // Where nobody wants it, it needs no memory: very many may run for long.
        if self.extra.is_some() || !span.is_disabled() {
            let extra = self.extra();
            let request = std::mem::replace(&mut extra.span, span);
            extra.whose = Whose::Own;
            caught::close(request);
        }
    }

    /// The work, and what belongs to it. From here on, whoever has them answers for them.
    pub(crate) fn take_apart(mut self) -> (Kind, Option<Box<Extra>>) {
        let (kind, extra) = (self.kind.take(), self.extra.take());
        (kind.unwrap_or_else(|| Kind::Async(Box::pin(async {}))), extra)
    }

    /// The work and the span that it runs in.
    pub(crate) fn into_work(self) -> (Kind, Span) {
        let (kind, extra) = self.take_apart();
        (kind, extra.map_or_else(Span::none, |extra| extra.span))
    }
}
