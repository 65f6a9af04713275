//! Blocking continuations that have reached their limit before their turn: for the contract they have ended, and they run
//! when it comes. And how those run that come when their request has ended.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use axum_core::BoxError;
use tokio::{runtime::Handle, time::Instant};
use tracing::Span;

use super::{places::Entering, shared::Shared};
use crate::{
    continuation::Owner,
    event::RequestId,
    pool::{
        OnTheList, Pool,
        blocking::{Blocking, panicked},
        caught, lock,
    },
};

impl Shared {
    /// The limit passed while it waited for its place: for the contract it has ended, and it runs when its turn comes.
    pub(super) fn run_blocking_later(
        self: &Arc<Self>,
        work: Box<dyn FnOnce() + Send>,
        entering: Entering,
        class: Option<&'static str>,
        span: Span,
    ) {
        let (pool, route) = (self.pool().clone(), self.route());
        caught::tell(|| {
            tracing::warn!(
                route,
                "a blocking continuation reached its limit before it had a thread: it runs when one is free"
            );
        });
        let (late, stuck) = (Late::begin(self, class), Stuck::begin(&pool));
        let later = async move {
            let places = entering.await;
            let work = move || {
                let (_places, _stuck) = (places, stuck);
                late.has_its_thread();
                work();
            };
            if let Err(payload) = Blocking::start(Box::new(work), pool.clone(), span, route.clone()).await {
                panicked(&pool, &route, &payload);
                caught::dispose(payload);
            }
        };
        if let Err(later) = Pool::spawn_listed(later) {
            caught::discard(later);
        }
    }
}

/// Of a continuation that comes when the request has ended.
impl Owner for Shared {
    fn pool(&self) -> &Arc<Pool> {
        self.pool()
    }

    fn runtime(&self) -> Option<&Handle> {
        self.runtime()
    }

    fn route(&self) -> String {
        self.route()
    }

    fn id(&self) -> Option<RequestId> {
        Some(self.id())
    }

    fn failed(&self, error: BoxError, class: Option<&'static str>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.tell_failure(error, class))
    }
}

/// Whether work that was given to a thread has one yet.
#[derive(Clone, Default)]
pub(super) struct Turn(Arc<Mutex<State>>);

#[derive(Default)]
enum State {
    #[default]
    Waits,
    /// It does not, and its limit has passed.
    Late(Late),
    /// Since then.
    Came(Instant),
}

impl Turn {
    /// Called by the thread, first of all.
    pub(super) fn comes(&self) {
        let before = std::mem::replace(&mut *lock(&self.0), State::Came(Instant::now()));
        if let State::Late(late) = before {
            late.has_its_thread();
        }
    }

    /// Since when it has its thread.
    pub(super) fn came(&self) -> Option<Instant> {
        match *lock(&self.0) {
            State::Came(at) => Some(at),
            State::Waits | State::Late(_) => None,
        }
    }

    /// The limit has passed.
    pub(super) fn is_late(&self, shared: &Arc<Shared>, class: Option<&'static str>) {
        let mut state = lock(&self.0);
        if matches!(*state, State::Waits) {
            *state = State::Late(Late::begin(shared, class));
        }
    }
}

/// A blocking continuation that waits for its turn past its limit. Its request may have ended, but a drain waits for it, and
/// names it, until it has its thread (contract rule 1).
pub(super) struct Late {
    shared: Arc<Shared>,
    class: Option<&'static str>,
    begun: bool,
    /// The last to go.
    _listed: OnTheList,
}

impl Late {
    fn begin(shared: &Arc<Shared>, class: Option<&'static str>) -> Self {
        lock(&shared.core).rare().late.push(class);
        let (pool, weak) = (shared.pool().clone(), Arc::downgrade(shared));
        let key = pool.list(weak);
        Self { shared: shared.clone(), class, begun: false, _listed: OnTheList { pool, key } }
    }

    fn has_its_thread(mut self) {
        self.begun = true;
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let mut core = lock(&self.shared.core);
        let late = &mut core.rare().late;
        if let Some(place) = late.iter().position(|class| *class == self.class) {
            late.remove(place);
        }
        drop(core);
        if !self.begun {
            self.shared.pool().report_lost(&self.shared.route(), "the runtime ended before its turn came");
        }
    }
}

/// A thread that is busy past the limit of its work, or work that waits for one.
struct Stuck(Arc<Pool>);

impl Stuck {
    fn begin(pool: &Arc<Pool>) -> Self {
        pool.stuck_started();
        Self(pool.clone())
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.stuck_ended();
    }
}
