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

    /// How many continuations run at once; any number by default. Attempts at durable jobs are among them; blocking ones
    /// are not: see [`max_blocking`](Self::max_blocking).
    ///
    /// Beyond that they wait, first come, first served, and the time limit counts meanwhile. One whose limit passes
    /// while it waits is polled once and then dropped, as any whose limit passes before it starts.
    ///
    /// Under [`WhenFull::Refuse`], the default, a request keeps a place from its arrival until its handler has returned
    /// without a continuation. So what is accepted has its place; and as many handlers run at once, at most, as
    /// places are left.
    pub fn max_running(mut self, continuations: usize) -> Self {
        self.asked.max_running = Some(continuations);
        self.bounds();
        self
    }

    /// How many continuations wait for those that run, 1,024 by default. Of use with
    /// [`max_running`](Self::max_running) or [`max_blocking`](Self::max_blocking).
    pub fn max_waiting(mut self, continuations: usize) -> Self {
        self.asked.max_waiting = Some(continuations);
        self
    }

    /// What happens beyond [`max_running`](Self::max_running) and [`max_waiting`](Self::max_waiting);
    /// [`WhenFull::Refuse`] by default.
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.asked.when_full = policy;
        self
    }

    /// Bounds the continuations of one [class](crate::Continuation::class), besides the bound of all. What waits for a
    /// place in its class takes none of the others.
    ///
    /// Which class a request's continuation is of is known only when its handler has returned. To have requests
    /// refused before that, put a [`ReserveLayer`](crate::ReserveLayer) around the routes that return it; without one,
    /// what there is no room for waits beyond the bound, which is counted ([`Load::over`]) and logged. Named twice, the
    /// last bound holds.
    pub fn class(mut self, name: &'static str, bound: Bound) -> Self {
        let classes = &mut self.bounds().classes;
        classes.retain(|gate| gate.class != Some(name));
        classes.push(Gate::new(Some(name), bound));
        self
    }

    /// How many threads run blocking continuations at once, of the [500](crate::Continuation::blocking) that all of a process
    /// share; the others wait for one. More than those there never are. While [`max_waiting`](Self::max_waiting) of them
    /// wait, new requests are refused, unless the policy is another.
    pub fn max_blocking(mut self, threads: usize) -> Self {
        self.pool.threads.most = Some(threads);
        self.asked.blocking = true;
        self.bounds();
        self
    }

    /// While so many handlers and bodies outlive their response, new requests are refused: those that called
    /// [`finish`](crate::Lifecycle::finish), and those whose client left and that ignore it. Any number by default; at least
    /// one.
    ///
    /// None of them is ever ended for it (contract rule 5), so those that are under way may come to more.
    pub fn max_detached(mut self, works: usize) -> Self {
        // Of none there is nothing to refuse for.
        self.bounds().max_detached = Some(works.max(1));
        self
    }

    /// When a client that was refused shall come again: the `Retry-After`, in whole seconds; 1 s by default.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.bounds().retry_after = delay;
        self
    }

    /// Requests that are never refused, such as those for a health check. It is asked only when a request would be.
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

    /// Has `handler` called with the error of each continuation that fails
    /// ([`Continuation::try_new`](crate::Continuation::try_new)), in place of a line in the log. It runs before the
    /// request's hooks, and its future has the [hook limit](Self::hook_limit). A panic in it costs that request only.
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
    /// What runs and waits, of what [`max_running`](EpilogueBuilder::max_running) bounds; `None` if that is not set.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        self.pool.bounds.as_ref()?.all.as_deref().map(Gate::load)
    }

    /// The same for a [class](EpilogueBuilder::class); `None` if it has no bound.
    #[must_use]
    pub fn class_load(&self, class: &str) -> Option<Load> {
        self.pool.bounds.as_ref()?.class(class).map(Arc::as_ref).map(Gate::load)
    }

    /// How many requests were refused, for whatever bound.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.pool.bounds.as_ref().map_or(0, |bounds| bounds.refused())
    }

    /// How many handlers and bodies outlive their response at this moment.
    #[must_use]
    pub fn detached(&self) -> usize {
        self.pool.detached()
    }
}
