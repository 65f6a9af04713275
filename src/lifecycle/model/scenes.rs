//! The scenes that are tried.

use super::{Handler, Scene};

fn check(scene: Scene) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(scene.bound));
    model.max_branches = 20_000;
    model.check(move || scene.run());
}

macro_rules! scenes {
    ($($name:ident: $scene:expr;)*) => {
        $(
            #[test]
            fn $name() {
                check($scene);
            }
        )*
    };
}

scenes! {
    http1_undisturbed: Scene { ..Scene::HTTP1 };
    http1_abort: Scene { leaves: true, ..Scene::HTTP1 };
    http1_abort_of_a_waiting_handler: Scene { handler: Handler::Waits, leaves: true, ..Scene::HTTP1 };
    http1_abort_of_a_hanging_handler: Scene { handler: Handler::Hangs, leaves: true, ..Scene::HTTP1 };
    http1_ignored_abort: Scene { handler: Handler::Waits, leaves: true, ignores: true, ..Scene::HTTP1 };
    http1_limit: Scene { handler: Handler::Waits, limit: true, ..Scene::HTTP1 };
    http1_limit_of_a_hanging_handler: Scene { handler: Handler::Hangs, limit: true, ..Scene::HTTP1 };
    http1_limit_of_a_body: Scene { limit: true, ..Scene::HTTP1 };
    http1_abort_and_limit: Scene { handler: Handler::Waits, leaves: true, limit: true, ..Scene::HTTP1 };
    http1_ignored_abort_and_limit: Scene { handler: Handler::Waits, leaves: true, ignores: true, limit: true, ..Scene::HTTP1 };
    http1_finish: Scene { handler: Handler::Finishes, ..Scene::HTTP1 };
    http1_finish_and_abort: Scene { handler: Handler::Finishes, leaves: true, ..Scene::HTTP1 };
    http1_finish_and_limit: Scene { handler: Handler::Finishes, limit: true, ..Scene::HTTP1 };
    http1_killed: Scene { handler: Handler::Waits, killed: true, ..Scene::HTTP1 };
    http1_killed_and_limit: Scene { handler: Handler::Hangs, killed: true, limit: true, ..Scene::HTTP1 };
    http2_undisturbed: Scene::HTTP2;
    http2_reset: Scene { leaves: true, ..Scene::HTTP2 };
    http2_reset_of_a_hanging_handler: Scene { handler: Handler::Hangs, leaves: true, ..Scene::HTTP2 };
    http2_ignored_reset: Scene { handler: Handler::Waits, leaves: true, ignores: true, ..Scene::HTTP2 };
    http2_limit: Scene { limit: true, ..Scene::HTTP2 };
    http2_limit_of_a_hanging_handler: Scene { handler: Handler::Hangs, limit: true, ..Scene::HTTP2 };
    http2_reset_and_limit: Scene { leaves: true, limit: true, ..Scene::HTTP2 };
    http2_finish: Scene { handler: Handler::Finishes, ..Scene::HTTP2 };
    http2_finish_and_reset: Scene { handler: Handler::Finishes, leaves: true, ..Scene::HTTP2 };
    http2_killed: Scene { killed: true, ..Scene::HTTP2 };
}
