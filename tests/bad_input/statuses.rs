//! A handler that answers with a status that is no final response.

use axum::{Router, response::IntoResponse, routing::get};
use http::StatusCode;
use tower_epilogue::{Continuation, EarlyCloseLayer, ShutdownHookLayer};

use crate::{
    common::told,
    support::{Notes, Server, h2client::Http2, logs},
};

fn app(notes: &Notes, code: u16) -> Router {
    let theirs = notes.clone();
    let handler = async move || {
        let notes = theirs.clone();
        let work = Continuation::new(async move { notes.add("continuation") });
        (StatusCode::from_u16(code).unwrap(), work, "hello").into_response()
    };
    let path = format!("/answers-{code}");
    Router::new().route(&path, get(handler)).layer(ShutdownHookLayer::new(told(notes)))
}

/// hyper would send an empty 500, and on HTTP/2 what the client has to take for a breach of the protocol (RFC 9113, section
/// 8.1.1), while it looked like a response that was flushed.
#[tokio::test]
async fn an_informational_one_is_a_500_that_is_told_of() {
    let logs = logs();
    for (code, early_close) in [(100, false), (101, true), (102, true), (103, false), (199, true)] {
        let notes = Notes::default();
        let app = app(&notes, code);
        let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
        let server = Server::start(app).await;
        let path = format!("/answers-{code}");
        let mut client = Http2::connect(server.address).await;
        for times in 1..=2 {
            let reply = client.get(&path).await.unwrap();
            assert_eq!((reply.status, reply.body.as_slice()), (500, b"Internal Server Error\n".as_slice()), "{code}");
            server.journal.ended(times).await;
        }
        let mut ended = 2;
        // On HTTP/1 the connection is the application's behind a 101.
        if code != 101 {
            let mut client = server.connect().await;
            client.send_get(&path).await;
            let reply = client.response(false).await;
            assert_eq!((reply.status, reply.text().as_str()), (500, "Internal Server Error\n"), "{code}");
            ended += 1;
            server.journal.ended(ended).await;
        }
        assert_eq!(notes.all(), ["continuation", "hook: NORMAL, Flushed"].repeat(ended));
        let lines = logs.with(&path);
        assert_eq!(lines.len(), ended, "{lines:?}");
        assert!(lines[0].contains("ERROR") && lines[0].contains(&format!("status={code}")), "{lines:?}");
        assert!(server.stop().await.is_clean());
    }
}
