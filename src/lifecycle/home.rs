//! Where requests are served: what those of a thread share, and the deadlines of each runtime.

use std::{
    borrow::Cow,
    cell::RefCell,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use tokio::runtime::Handle;

use super::{deadlines::Deadlines, seat::Seat, shared::Shared};
use crate::pool::{Pool, lock};

/// What requests share that were first seen on one thread: there are as many counts of those who use it as there are threads.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) pool: Arc<Pool>,
    /// Those of the runtime in which they are served, if that is known: a thread of the user's own, which is in no runtime or in
    /// one of its own, may have something of theirs begin. Where the layers stand alone it never is.
    deadlines: OnceLock<Arc<Deadlines<Shared>>>,
    /// Of an attempt at a durable job, which no client asked for.
    pub(crate) seat: Option<Arc<Seat>>,
    /// Of requests whose layers stand alone, in whichever runtimes.
    is_alone: bool,
}

thread_local! {
    /// Those of this thread: one for each pool and runtime that it has to do with.
    static HERE: RefCell<Vec<Weak<Home>>> = const { RefCell::new(Vec::new()) };
    /// That of requests whose layers stand alone.
    static ALONE: Arc<Home> = Arc::new(Home::of_layers_alone());
}

impl Home {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool, deadlines: OnceLock::new(), seat: None, is_alone: false }
    }

    fn of_layers_alone() -> Self {
        Self { is_alone: true, ..Self::new(Pool::global().clone()) }
    }

    /// The one where the layers stand alone: one runtime may make a request's future, and another poll it.
    pub(super) fn alone() -> Arc<Self> {
        // On a thread that ends there is nobody to keep it.
        ALONE.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Self::of_layers_alone()))
    }

    /// The one for requests of a connection that is served on this thread.
    pub(crate) fn here(pool: &Arc<Pool>) -> Arc<Self> {
        let Ok(runtime) = Handle::try_current() else { return Arc::new(Self::new(pool.clone())) };
        // One that is not the one goes behind the borrow: with it may go the last of a pool, and what the user gave it.
        let at = |place: usize| HERE.try_with(|here| here.borrow().get(place).map(Weak::upgrade)).ok().flatten();
        let mut place = 0;
        while let Some(known) = at(place) {
            match known.filter(|known| known.is_of(pool, &runtime)) {
                Some(known) => return known,
                None => place += 1,
            }
        }
        let new = Self::new(pool.clone());
        new.is_here();
        let new = Arc::new(new);
        // On a thread that ends there is nobody to keep it for.
        let _ = HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            here.retain(|known| known.strong_count() > 0);
            here.push(Arc::downgrade(&new));
        });
        new
    }

    fn is_of(&self, pool: &Arc<Pool>, runtime: &Handle) -> bool {
        let deadlines = self.deadlines.get();
        Arc::ptr_eq(&self.pool, pool) && deadlines.is_some_and(|deadlines| deadlines.runtime().id() == runtime.id())
    }

    /// Of an attempt at a durable job.
    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(super) fn of_job(pool: Arc<Pool>, seat: Arc<Seat>) -> Arc<Self> {
        let home = Self { seat: Some(seat), ..Self::new(pool) };
        home.is_here();
        Arc::new(home)
    }

    /// Its requests are served in the runtime that the caller is in, unless another is known.
    pub(super) fn is_here(&self) {
        if !self.is_alone && self.deadlines.get().is_none() {
            if let Ok(runtime) = Handle::try_current() {
                // Two streams of a connection may come at once.
                let _ = self.deadlines.set(deadlines_of(runtime));
            }
        }
    }

    pub(super) fn deadlines(&self) -> Option<&Arc<Deadlines<Shared>>> {
        self.deadlines.get()
    }
}

impl Shared {
    /// Whether it is known where its limit is waited for.
    pub(super) fn knows_deadlines(&self) -> bool {
        self.runtime().is_some() || lock(&self.core).deadlines.is_some()
    }

    /// Those of the runtime that it is served in; if that is not known, those of the first that asked.
    ///
    /// # Panics
    ///
    /// If that is not known, nobody has asked, and the caller is in none.
    pub(super) fn deadlines(&self) -> Cow<'_, Arc<Deadlines<Self>>> {
        self.home().is_here();
        if let Some(known) = self.home().deadlines() {
            return Cow::Borrowed(known);
        }
        let asked = lock(&self.core).deadlines.clone();
        Cow::Owned(asked.unwrap_or_else(|| {
            // Outside of the lock: there may be none.
            let here = deadlines_here();
            lock(&self.core).deadlines.get_or_insert(here).clone()
        }))
    }
}

/// The deadlines of each runtime that is in use, and of some that were.
static ALL: Mutex<Vec<Arc<Deadlines<Shared>>>> = Mutex::new(Vec::new());

/// Those of the runtime that the caller is in.
///
/// # Panics
///
/// If it is in none.
fn deadlines_here() -> Arc<Deadlines<Shared>> {
    deadlines_of(Handle::current())
}

fn deadlines_of(runtime: Handle) -> Arc<Deadlines<Shared>> {
    let mut all = lock(&ALL);
    if let Some(known) = all.iter().find(|known| known.runtime().id() == runtime.id()) {
        return known.clone();
    }
    // Nobody tells when a runtime has ended; those that nobody uses are made anew when they are.
    let (used, unused): (Vec<_>, Vec<_>) = all.drain(..).partition(|known| Arc::strong_count(known) > 1);
    *all = used;
    let new = Deadlines::new(runtime);
    all.push(new.clone());
    drop(all);
    // Not under the lock: it may be the last of a runtime.
    drop(unused);
    new
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[tokio::test]
    async fn a_thread_has_one_for_each_pool_and_runtime() {
        let pools = [(); 2].map(|()| Arc::<Pool>::default());
        let [first, other_pool] = [0, 1].map(|place| Home::here(&pools[place]));
        assert!(Arc::ptr_eq(&first, &Home::here(&pools[0])));
        assert!(Arc::ptr_eq(&other_pool, &Home::here(&pools[1])));
        assert!(!Arc::ptr_eq(&first, &other_pool));
        let deadlines = first.deadlines().unwrap();
        assert!(Arc::ptr_eq(deadlines, other_pool.deadlines().unwrap()), "a runtime has one timer");
        let runtime = Builder::new_current_thread().build().unwrap();
        let other_runtime = {
            let _entered = runtime.enter();
            Home::here(&pools[0])
        };
        assert!(!Arc::ptr_eq(&first, &other_runtime));
        assert_eq!(other_runtime.deadlines().unwrap().runtime().id(), runtime.handle().id());
        assert!(Arc::ptr_eq(&first, &Home::here(&pools[0])));
        let (there, here) = (pools[0].clone(), Handle::current());
        let elsewhere = std::thread::spawn(move || {
            let _entered = here.enter();
            Home::here(&there)
        });
        let of_another_thread = elsewhere.join().unwrap();
        assert!(!Arc::ptr_eq(&first, &of_another_thread));
        assert!(Arc::ptr_eq(deadlines, of_another_thread.deadlines().unwrap()));
        runtime.shutdown_background();
    }

    #[test]
    fn where_the_layers_stand_alone_it_is_of_no_runtime_and_one_for_each_thread() {
        let alone = Home::alone();
        assert!(alone.deadlines().is_none() && Arc::ptr_eq(&alone.pool, Pool::global()));
        assert!(Arc::ptr_eq(&alone, &Home::alone()));
        let elsewhere = std::thread::spawn(Home::alone).join().unwrap();
        assert!(!Arc::ptr_eq(&alone, &elsewhere));
    }

    #[test]
    fn outside_of_all_runtimes_it_is_where_it_is_used_first() {
        let pool = Arc::default();
        let home = Home::here(&pool);
        assert!(home.deadlines().is_none() && !Arc::ptr_eq(&home, &Home::here(&pool)));
        let runtimes = [(); 2].map(|()| Builder::new_current_thread().build().unwrap());
        for runtime in &runtimes {
            runtime.block_on(async { home.is_here() });
            assert_eq!(home.deadlines().unwrap().runtime().id(), runtimes[0].handle().id());
        }
    }

    #[test]
    fn nothing_is_kept_of_runtimes_that_have_ended_but_by_those_who_use_it() {
        let pool = Arc::default();
        let used = |used: usize| {
            let runtime = Builder::new_current_thread().build().unwrap();
            let home = runtime.block_on(async { Home::here(&pool) });
            (Arc::downgrade(home.deadlines().unwrap()), (used == 1).then_some(home))
        };
        let all = [0, 1, 2].map(used);
        // The last may be forgotten, too: when another test has a runtime.
        let [first, second, _] = all.each_ref().map(|(deadlines, _)| deadlines.strong_count() > 0);
        assert!(!first && second);
        let known = |home: &Weak<Home>| home.upgrade().is_some_and(|home| Arc::ptr_eq(&home.pool, &pool));
        assert_eq!(HERE.with_borrow(|here| here.iter().filter(|home| known(home)).count()), 1);
    }
}
