//! What a record of the log has in fields of their own, beside its message: what a panic said, since of two fields of one
//! name JSON keeps one; and which request it is about.

use axum::{
    Router,
    body::Body,
    http::{header::CONTENT_LENGTH, request::Parts},
    routing::get,
};
use futures_util::stream;
use tower_epilogue::{Continuation, EarlyCloseLayer, Lifecycle};

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

/// The field `route` of the only record that has both of these in it.
#[track_caller]
fn route_of(marker: &str, message: &str) -> String {
    let lines: Vec<_> = logs().with(marker).into_iter().filter(|line| line.contains(message)).collect();
    assert_eq!(lines.len(), 1, "{marker} {message}: {lines:#?}");
    lines[0].split_once("route=\"").map(|(_, rest)| rest.split('"').next().unwrap_or_default().to_owned()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_length_that_is_put_right_is_told_of_with_its_route() {
    let _logs = logs();
    let long = || Body::from_stream(stream::iter((0..5).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1000]))));
    let app = Router::new()
        .route("/length/too-long/{id}", get(async || ([(CONTENT_LENGTH, "9871")], "short")))
        .route("/length/too-short/{id}", get(async move || ([(CONTENT_LENGTH, "0987")], long())))
        .layer(EarlyCloseLayer::new().buffer_limit(2000));
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/length/too-long/1").await.text(), "short");
    server.get("/length/too-short/1").await;
    server.stop().await;
    let (corrected, left_out) = ("it was corrected", "it was left out");
    assert_eq!(route_of("declared=\"9871\"", corrected), "GET /length/too-long/{id}");
    assert_eq!(route_of("declared=\"0987\"", left_out), "GET /length/too-short/{id}");
}

#[tokio::test(start_paused = true)]
async fn a_function_on_refused_requests_that_panics_is_told_of_with_the_route() {
    let _logs = logs();
    let handler = async || (Continuation::new(std::future::pending()), "accepted");
    let app = Router::new().route("/exempt", get(handler));
    let panics = |_: &Parts| -> bool { panic!("said by the function on refused requests") };
    let server = MemoryServer::with(app, |builder| builder.max_running(1).max_waiting(0).admit_always(panics));
    for status in [200, 503] {
        assert_eq!(server.get("/exempt").await.status, status);
    }
    server.stop().await;
    assert_eq!(route_of("said by the function on refused requests", "`admit_always` panicked"), "GET /exempt");
}
