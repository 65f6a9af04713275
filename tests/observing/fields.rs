//! What a panic said has a field of its own in the log, beside the message: of two fields of one name, JSON keeps one.

use axum::{Router, routing::get};
use tower_epilogue::{Continuation, Lifecycle};

use crate::support::{MemoryServer, logs};

#[tokio::test(start_paused = true)]
async fn a_panic_is_told_with_what_panicked_and_what_it_said() {
    let logs = logs();
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| -> () { panic!("said by the hook") }).unwrap();
        Continuation::new(async { panic!("said by the continuation") })
    };
    let panics = async || -> &'static str { panic!("said by the handler") };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).route("/panics", get(panics)));
    server.get("/").await;
    server.get("/panics").await;
    server.stop().await;

    for (what, route) in [("handler", "GET /panics"), ("continuation", "GET /"), ("hook", "GET /")] {
        let lines = logs.with(&format!("said by the {what}"));
        let told = format!("a {what} panicked route=\"{route}\" panic=\"said by the {what}\"");
        assert!(lines.len() == 1 && lines[0].ends_with(&told), "{told}: {lines:#?}");
    }
}
