//! The scenes that are tried.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Attempts, Handler, Scene};

/// How long one scene may take, so that all of them take about a minute; `LOOM_MAX_DURATION` in the environment sets
/// another (in seconds). A scene that has more orders than that says so.
const AT_MOST: Duration = Duration::from_secs(8);

fn check(name: &str, scene: Scene) {
    let mut model = loom::model::Builder::new();
    let bound = *model.preemption_bound.get_or_insert(scene.bound);
    let at_most = *model.max_duration.get_or_insert(AT_MOST);
    model.max_branches = 20_000;
    let (began, orders) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let count = orders.clone();
    model.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        scene.run();
    });
    let all = if began.elapsed() < at_most { "all" } else { "the first, in the time there was," };
    let orders = orders.load(Ordering::Relaxed);
    println!("{name}: {all} {orders} orders with up to {bound} preemptions");
}

macro_rules! scenes {
    ($($name:ident: $scene:expr;)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name), $scene);
            }
        )*
    };
}

const HEDGED: Scene = Scene { attempts: Attempts::Hedged, ..Scene::HTTP1 };
const SPAWNED: Scene = Scene { attempts: Attempts::Spawned, ..Scene::HTTP1 };

scenes! {
    http1_undisturbed: Scene { bound: 2, ..Scene::HTTP1 };
    http1_abort: Scene { bound: 2, leaves: true, ..Scene::HTTP1 };
    http1_abort_of_a_waiting_handler: Scene { bound: 2, handler: Handler::Waits, leaves: true, ..Scene::HTTP1 };
    http1_abort_of_a_hanging_handler: Scene { bound: 2, handler: Handler::Hangs, leaves: true, ..Scene::HTTP1 };
    http1_ignored_abort: Scene { bound: 2, handler: Handler::Waits, leaves: true, ignores: true, ..Scene::HTTP1 };
    http1_limit: Scene { handler: Handler::Waits, limit: true, ..Scene::HTTP1 };
    http1_limit_of_a_hanging_handler: Scene { bound: 2, handler: Handler::Hangs, limit: true, ..Scene::HTTP1 };
    http1_limit_of_a_body: Scene { limit: true, ..Scene::HTTP1 };
    http1_abort_and_limit: Scene { handler: Handler::Waits, leaves: true, limit: true, ..Scene::HTTP1 };
    http1_ignored_abort_and_limit: Scene { handler: Handler::Waits, leaves: true, ignores: true, limit: true, ..Scene::HTTP1 };
    http1_finish: Scene { handler: Handler::Finishes, ..Scene::HTTP1 };
    http1_finish_and_abort: Scene { handler: Handler::Finishes, leaves: true, ..Scene::HTTP1 };
    http1_finish_and_limit: Scene { handler: Handler::Finishes, limit: true, ..Scene::HTTP1 };
    http1_killed: Scene { bound: 2, handler: Handler::Waits, killed: true, ..Scene::HTTP1 };
    http1_killed_and_limit: Scene { bound: 2, handler: Handler::Hangs, killed: true, limit: true, ..Scene::HTTP1 };
    http2_undisturbed: Scene::HTTP2;
    http2_reset: Scene { leaves: true, ..Scene::HTTP2 };
    http2_reset_of_a_hanging_handler: Scene { bound: 2, handler: Handler::Hangs, leaves: true, ..Scene::HTTP2 };
    http2_ignored_reset: Scene { handler: Handler::Waits, leaves: true, ignores: true, ..Scene::HTTP2 };
    http2_limit: Scene { limit: true, ..Scene::HTTP2 };
    http2_limit_of_a_hanging_handler: Scene { handler: Handler::Hangs, limit: true, ..Scene::HTTP2 };
    http2_reset_and_limit: Scene { leaves: true, limit: true, ..Scene::HTTP2 };
    http2_finish: Scene { handler: Handler::Finishes, ..Scene::HTTP2 };
    http2_finish_and_reset: Scene { handler: Handler::Finishes, leaves: true, ..Scene::HTTP2 };
    http2_killed: Scene { killed: true, ..Scene::HTTP2 };
    http2_known_length: Scene { bound: 2, known: true, ..Scene::HTTP2 };
    http2_known_length_and_reset: Scene { known: true, leaves: true, ..Scene::HTTP2 };
    http2_known_length_and_late_reset: Scene { known: true, leaves: true, turn: 2, ..Scene::HTTP2 };
    http2_late_reset: Scene { leaves: true, turn: 2, ..Scene::HTTP2 };
    http2_later_reset: Scene { leaves: true, turn: 3, ..Scene::HTTP2 };
    http2_known_length_and_limit: Scene { known: true, limit: true, ..Scene::HTTP2 };
    attempts_at_once: Scene { bound: 2, handler: Handler::Waits, ..HEDGED };
    attempts_at_once_and_abort: Scene { bound: 2, handler: Handler::Waits, leaves: true, ..HEDGED };
    attempts_at_once_and_ignored_abort: Scene { handler: Handler::Waits, leaves: true, ignores: true, ..HEDGED };
    attempts_at_once_and_limit: Scene { handler: Handler::Hangs, limit: true, ..HEDGED };
    attempts_at_once_that_finish: Scene { handler: Handler::Finishes, leaves: true, ..HEDGED };
    attempts_at_once_and_killed: Scene { handler: Handler::Waits, killed: true, ..HEDGED };
    attempt_in_a_task: Scene { handler: Handler::Waits, ..SPAWNED };
    attempt_in_a_task_that_returns_at_once: Scene { ..SPAWNED };
    attempt_in_a_task_and_abort: Scene { handler: Handler::Hangs, leaves: true, ..SPAWNED };
    attempt_in_a_task_and_ignored_abort: Scene { handler: Handler::Waits, leaves: true, ignores: true, ..SPAWNED };
    attempt_in_a_task_and_limit: Scene { handler: Handler::Hangs, limit: true, ..SPAWNED };
    attempt_in_a_task_that_finishes: Scene { handler: Handler::Finishes, ..SPAWNED };
    attempt_in_a_task_that_finishes_and_limit: Scene { handler: Handler::Finishes, limit: true, ..SPAWNED };
    attempt_in_a_task_and_killed: Scene { handler: Handler::Waits, killed: true, ..SPAWNED };
}
