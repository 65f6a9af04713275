//! Sessions of tower-sessions in SQLite: committed before the response leaves, and nobody waits for a continuation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use axum::{Router, routing::get};
use support::{Gate, Notes, Server, h2client::Http2};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};
use tower_sessions::{Session, SessionManagerLayer, SessionStore, session::Id};
use tower_sessions_rusqlite_store::{RusqliteStore, tokio_rusqlite::Connection};

async fn store() -> RusqliteStore {
    let store = RusqliteStore::new(Connection::open_in_memory().await.unwrap());
    store.migrate().await.unwrap();
    store
}

fn layered(app: Router, store: &RusqliteStore) -> Router {
    // Our layers next to the routes, so that a finished response passes through the session's layer.
    app.layer((EarlyCloseLayer::new().keep_alive(), IgnoreAbortLayer::off(), TimeLimitLayer::default()))
        .layer(SessionManagerLayer::new(store.clone()).with_secure(false))
}

/// What the store has for the visitor of this cookie.
async fn stored(store: &RusqliteStore, cookie: &str, key: &str) -> Option<u64> {
    let id: Id = cookie.split_once('=').unwrap().1.parse().unwrap();
    store.load(&id).await.unwrap()?.data.get(key)?.as_u64()
}

/// Asks as the visitor of `cookie`: the status, the body, and the visitor's cookie from now on.
async fn visit(server: &Server, path: &str, cookie: Option<&str>) -> (u16, String, String) {
    let mut client = server.connect().await;
    let header = cookie.map(|cookie| format!("cookie: {cookie}\r\n")).unwrap_or_default();
    client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n{header}\r\n")).await;
    let reply = client.reply_by_length(false).await;
    let set = reply.header("set-cookie").map(|set| set.split(';').next().unwrap().to_owned());
    (reply.status, reply.text(), set.or(cookie.map(ToOwned::to_owned)).unwrap_or_default())
}

async fn count(session: &Session) -> u64 {
    let visits = session.get::<u64>("visits").await.unwrap().unwrap_or(0) + 1;
    session.insert("visits", visits).await.unwrap();
    visits
}

#[tokio::test]
async fn the_session_is_committed_before_the_response_leaves_and_no_request_waits_for_a_continuation() {
    for finishes in [false, true] {
        let store = store().await;
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let returns = {
            let (notes, gate) = (theirs.clone(), opens.clone());
            async move |session: Session| {
                let visits = count(&session).await;
                let work = Continuation::new(async move {
                    notes.add(format!("continuation {visits}"));
                    gate.passed().await;
                });
                (work, visits.to_string())
            }
        };
        let finished = async move |session: Session, lifecycle: Lifecycle| {
            let visits = count(&session).await;
            assert!(lifecycle.finish(visits.to_string()).await.unwrap().is_flushed());
            theirs.add(format!("continuation {visits}"));
            opens.passed().await;
        };
        let app = if finishes { get(finished) } else { get(returns) };
        let server = Server::start(layered(Router::new().route("/", app), &store)).await;

        let (status, text, cookie) = visit(&server, "/", None).await;
        assert_eq!((status, text.as_str()), (200, "1"));
        assert!(cookie.starts_with("id="), "finishes: {finishes}: {cookie}");
        // Whoever has the response finds the session.
        assert_eq!(stored(&store, &cookie, "visits").await, Some(1));
        notes.seen("continuation 1").await;

        // The same visitor again, while the first continuation still runs.
        for visits in 2..=5_u64 {
            let (status, text, same) = visit(&server, "/", Some(&cookie)).await;
            assert_eq!((status, text, &same), (200, visits.to_string(), &cookie));
            assert_eq!(stored(&store, &cookie, "visits").await, Some(visits));
        }
        assert!(!gate.is_open() && server.epilogue.running() >= 5);
        gate.open();
        server.journal.ended(5).await;
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn http_2_as_well() {
    let (store, gate) = (store().await, Gate::closed());
    let opens = gate.clone();
    let handler = async move |session: Session| {
        let visits = count(&session).await;
        (Continuation::new(async move { opens.passed().await }), visits.to_string())
    };
    let server = Server::start(layered(Router::new().route("/", get(handler)), &store)).await;
    let first = Http2::connect(server.address).await.get("/").await.unwrap();
    let cookie = first.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(stored(&store, &cookie, "visits").await, Some(1));
    assert_eq!(visit(&server, "/", Some(&cookie)).await.1, "2");
    gate.open();
    server.journal.ended(2).await;
}

/// What a continuation may change, and how: with a `save` of its own; without one it is lost.
#[tokio::test]
async fn a_continuation_changes_the_session_only_with_a_save_of_its_own() {
    for saves in [false, true] {
        let store = store().await;
        let handler = async move |session: Session| {
            count(&session).await;
            let later = session.clone();
            let work = Continuation::new(async move {
                later.insert("mailed", 1_u64).await.unwrap();
                if saves {
                    later.save().await.unwrap();
                }
            });
            (work, "at once")
        };
        let server = Server::start(layered(Router::new().route("/", get(handler)), &store)).await;
        let (_, text, cookie) = visit(&server, "/", None).await;
        assert_eq!(text, "at once");
        server.journal.ended(1).await;
        assert_eq!(stored(&store, &cookie, "mailed").await, saves.then_some(1), "saves: {saves}");
        assert_eq!(stored(&store, &cookie, "visits").await, Some(1));
    }
}

/// A session is one record: saved from what was loaded before, it takes back what others stored meanwhile. So it is
/// loaded anew first.
#[tokio::test]
async fn a_continuation_that_reloads_keeps_what_the_visitor_did_meanwhile() {
    for reloads in [false, true] {
        let (store, gate) = (store().await, Gate::closed());
        let opens = gate.clone();
        let slow = async move |session: Session| {
            count(&session).await;
            let later = session.clone();
            let work = Continuation::new(async move {
                opens.passed().await;
                if reloads {
                    later.load().await.unwrap();
                }
                later.insert("mailed", 1_u64).await.unwrap();
                later.save().await.unwrap();
            });
            (work, "at once")
        };
        let quick = async |session: Session| count(&session).await.to_string();
        let app = Router::new().route("/slow", get(slow)).route("/quick", get(quick));
        let server = Server::start(layered(app, &store)).await;
        let (_, _, cookie) = visit(&server, "/slow", None).await;
        assert_eq!(visit(&server, "/quick", Some(&cookie)).await.1, "2");
        gate.open();
        server.journal.ended(2).await;
        assert_eq!(stored(&store, &cookie, "mailed").await, Some(1));
        let visits = if reloads { 2 } else { 1 };
        assert_eq!(stored(&store, &cookie, "visits").await, Some(visits), "reloads: {reloads}");
    }
}

#[tokio::test]
async fn a_continuation_can_log_the_visitor_out() {
    let store = store().await;
    let handler = async |session: Session| {
        count(&session).await;
        let later = session.clone();
        (Continuation::new(async move { later.delete().await.unwrap() }), "at once")
    };
    let server = Server::start(layered(Router::new().route("/", get(handler)), &store)).await;
    let (_, _, cookie) = visit(&server, "/", None).await;
    server.journal.ended(1).await;
    assert_eq!(stored(&store, &cookie, "visits").await, None);
}
