//! How much an [`Epilogue`] takes on (contract rule 9).

use std::{future::Future, sync::Arc, time::Duration};

use http::request::Parts;

use super::{Epilogue, EpilogueBuilder};
use crate::pool::{
    Failure,
    bounds::{Bound, Bounds, Gate, Load, WhenFull},
};

/// What the builder knows so far of the bound of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    max_running: Option<usize>,
    max_waiting: Option<usize>,
    when_full: WhenFull,
    blocking: bool,
}

impl EpilogueBuilder {
    fn bounds(&mut self) -> &mut Bounds {
        self.pool.bounds.get_or_insert_default()
    }

    /// How many continuations run at once; any number by default, at least one. Attempts at durable jobs count among
    /// them; blocking continuations do not: see [`max_blocking`](Self::max_blocking).
    ///
    /// The others wait, first come, first served, and their time limit counts meanwhile. One whose limit passes while
    /// it waits is polled once and then dropped, like any whose limit passes before it starts.
    ///
    /// Under [`WhenFull::Refuse`], the default, each request reserves a place from its arrival until its handler has
    /// returned without a continuation. So every accepted request has its place; but this and
    /// [`max_waiting`](Self::max_waiting) together [also bound](crate::manual::limits#how-many-continuations) how
    /// many handlers run at once.
    pub fn max_running(mut self, continuations: usize) -> Self {
        self.asked.max_running = Some(continuations);
        self.bounds();
        self
    }

    /// How many continuations wait for a place; 1,024 by default. It has an effect only together with
    /// [`max_running`](Self::max_running) or [`max_blocking`](Self::max_blocking).
    pub fn max_waiting(mut self, continuations: usize) -> Self {
        self.asked.max_waiting = Some(continuations);
        self
    }

    /// What happens to new work beyond [`max_running`](Self::max_running) and [`max_waiting`](Self::max_waiting);
    /// [`WhenFull::Refuse`] by default.
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.asked.when_full = policy;
        self
    }

    /// Bounds the continuations of one [class](crate::Continuation::class), in addition to the common bound. A
    /// continuation that waits for a place in its class occupies no common place.
    ///
    /// The class of a request's continuation is known only once its handler has returned. To refuse requests before
    /// that, put a [`ReserveLayer`](crate::ReserveLayer) around the routes that return it. Without one, a
    /// continuation for which there is no room waits beyond the bound, which is counted ([`Load::over`]) and logged.
    /// If a class is named twice, the last bound applies.
    pub fn class(mut self, name: &'static str, bound: Bound) -> Self {
        let classes = &mut self.bounds().classes;
        classes.retain(|gate| gate.class != Some(name));
        classes.push(Gate::new(Some(name), bound));
        self
    }

    /// How many threads run blocking continuations at once, out of the [500](crate::Continuation::blocking) that the
    /// whole process shares and that a larger number does not raise; the others wait for a thread. While
    /// [`max_waiting`](Self::max_waiting) of them wait, new requests are refused, unless
    /// [`when_full`](Self::when_full) says otherwise.
    pub fn max_blocking(mut self, threads: usize) -> Self {
        self.pool.threads.most = Some(threads);
        self.asked.blocking = true;
        self.bounds();
        self
    }

    /// How many handlers and bodies may outlive their response before new requests are refused: those that called
    /// [`finish`](crate::Lifecycle::finish), and those that ignore that their client has left. Any number by default; at least
    /// one.
    ///
    /// None of them is ever ended because of it (contract rule 5), so requests already under way may exceed it.
    pub fn max_detached(mut self, works: usize) -> Self {
        // Of none there is nothing to refuse for.
        self.bounds().max_detached = Some(works.max(1));
        self
    }

    /// When a refused client should retry: the `Retry-After` of the 503 (RFC 9110, section 10.2.3), in whole seconds,
    /// at least one; 1 s by default.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.bounds().retry_after = delay;
        self
    }

    /// Exempts requests from being refused, health checks for example. It is called only when a request would be
    /// refused.
    ///
    /// ```
    /// # use tower_epilogue::Epilogue;
    /// let epilogue = Epilogue::builder().max_running(100).admit_always(|request| request.uri.path() == "/health");
    /// # let _ = epilogue.build();
    /// ```
    pub fn admit_always<F>(mut self, exempt: F) -> Self
    where
        F: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.bounds().exempt = Some(Box::new(exempt));
        self
    }

    /// Calls `handler` with the error of each continuation that fails
    /// ([`Continuation::try_new`](crate::Continuation::try_new)), instead of logging it. It runs before the request's
    /// hooks, and its future has the [hook limit](Self::hook_limit). A panic in it costs that request only.
    pub fn on_failure<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Failure) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.pool.failures = Some(Box::new(move |failure| Box::pin(handler(failure))));
        self
    }

    /// The bounds as they were asked for, in whatever order.
    pub(super) fn settle_bounds(&mut self) {
        let asked = self.asked;
        let Some(bounds) = self.pool.bounds.as_deref_mut() else { return };
        let waiting = |bound: Bound| asked.max_waiting.map_or(bound, |most| bound.max_waiting(most));
        let all = |most| waiting(Bound::new(most)).when_full(asked.when_full);
        bounds.all = asked.max_running.map(|most| Gate::new(None, all(most)));
        if asked.blocking && asked.when_full == WhenFull::Refuse {
            // Of none that wait there is nothing to refuse for.
            bounds.max_blocking_waiting = Some(waiting(Bound::new(1)).max_waiting.max(1));
        }
    }
}

impl Epilogue {
    /// What runs and waits under the bound of [`max_running`](EpilogueBuilder::max_running); `None` if that is not
    /// set.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        self.pool.bounds.as_ref()?.all.as_deref().map(Gate::load)
    }

    /// What runs and waits in a [class](EpilogueBuilder::class); `None` if it has no bound.
    #[must_use]
    pub fn class_load(&self, class: &str) -> Option<Load> {
        self.pool.bounds.as_ref()?.class(class).map(Arc::as_ref).map(Gate::load)
    }

    /// How many requests have been refused so far, because of any bound.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.pool.bounds.as_ref().map_or(0, |bounds| bounds.refused())
    }

    /// How many handlers and bodies are running beyond their response at this moment.
    #[must_use]
    pub fn detached(&self) -> usize {
        self.pool.detached()
    }
}
