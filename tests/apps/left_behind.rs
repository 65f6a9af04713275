//! An attempt that a middleware gives up on when its client has left, which is ignored: it goes on by itself, and is still the
//! request's, whatever the next attempt comes to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tokio::sync::Notify;
use tower::retry::RetryLayer;
use tower_epilogue::{EpilogueBuilder, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    common::SECOND,
    routes::{hook, work},
    stacks::Again,
    support::{Client, Gate, Notes, Server},
};

/// How the second attempt ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    Returns,
    /// With a limit that ends the first.
    Limits,
    Continues,
    Panics,
}

const ALL: [Second; 4] = [Second::Returns, Second::Limits, Second::Continues, Second::Panics];

struct LeftBehind {
    notes: Notes,
    gate: Gate,
    server: Server,
    client: Client,
}

impl LeftBehind {
    /// The first waits at its gate, and the second has been answered.
    async fn new(second: Second, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Self {
        let (notes, gate, over) = (Notes::default(), Gate::closed(), Arc::new(Notify::new()));
        let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
        let handler = async move |lifecycle: Lifecycle| -> Response {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                let dropped = theirs.on_drop("first is over");
                theirs.add("first");
                opens.passed().await;
                drop(dropped);
                return (work(&theirs, "first"), "first").into_response();
            }
            match second {
                Second::Returns => {}
                Second::Limits => lifecycle.set_time_limit(Duration::from_millis(50)),
                Second::Continues => return (work(&theirs, "second"), "second").into_response(),
                Second::Panics => panic!("as this test wants it"),
            }
            "second".into_response()
        };
        let gives_up = over.clone();
        let impatient = from_fn(move |request: Request, next: Next| {
            let over = gives_up.clone();
            async move {
                tokio::select! {
                    response = next.run(request) => response,
                    () = over.notified() => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
        });
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(impatient);
        let app = app.layer((hook(&notes), IgnoreAbortLayer::new(), RetryLayer::new(Again(1))));
        let server = Server::with(app, setup).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.seen("first").await;
        client.half_close().await;
        server.journal.seen("aborted").await;
        over.notify_one();
        let status = if second == Second::Panics { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        assert_eq!(client.reply().await.status, status, "{second:?}");
        Self { notes, gate, server, client }
    }
}

#[tokio::test]
async fn its_request_ends_behind_it() {
    for second in ALL {
        let LeftBehind { notes, gate, server, client } = LeftBehind::new(second, |builder| builder).await;
        if second == Second::Limits {
            notes.seen("first is over").await;
        } else {
            if second == Second::Continues {
                notes.seen("work: second").await;
            }
            gate.open();
        }
        server.journal.ended(1).await;
        let middle = match second {
            Second::Limits => ["first is over"].as_slice(),
            Second::Continues => &["work: second", "first is over", "work: first"],
            Second::Returns | Second::Panics => &["first is over", "work: first"],
        };
        let status = if second == Second::Limits { "ABORTED | TIMEOUT" } else { "ABORTED" };
        let all = notes.all();
        let (last, rest) = all.split_last().unwrap();
        assert_eq!(rest, [&["first"], middle].concat(), "{second:?}");
        assert!(last.starts_with(&format!("hook: GET / {status} ")), "{second:?}: {last}");
        let ends = server.journal.lines().into_iter().filter(|line| line.starts_with("handler_"));
        let end = if second == Second::Limits { "handler_dropped" } else { "handler_end" };
        assert_eq!(
            ends.map(|line| line.split('/').next().unwrap().to_owned()).collect::<Vec<_>>(),
            ["handler_start", end]
        );
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_drain_names_and_cuts_it() {
    let setup = |builder: EpilogueBuilder| builder.drain_deadline(Duration::from_millis(30));
    let LeftBehind { notes, gate: _gate, server, client } = LeftBehind::new(Second::Returns, setup).await;
    drop(client);
    let report = server.stop().await;
    assert_eq!(report.stragglers().len(), 1, "{report}");
    let all = notes.all();
    assert_eq!(all[..2], ["first", "first is over"]);
    assert!(all[2].starts_with("hook: GET / ABORTED | TIMEOUT "), "{all:?}");
}
