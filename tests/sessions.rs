//! Sessions, kept by tower-sessions in SQLite: stored before the response is released, and held up by no continuation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

mod support;

use axum::{Router, routing::get};
use support::{Client, Gate, Notes, Reply, Server};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle};
use tower_sessions::{Session, SessionManagerLayer};
use tower_sessions_rusqlite_store::{RusqliteStore, tokio_rusqlite::Connection};

async fn sessions() -> SessionManagerLayer<RusqliteStore> {
    let store = RusqliteStore::new(Connection::open_in_memory().await.unwrap());
    store.migrate().await.unwrap();
    // `with_always_save` is off: what is stored is what was changed.
    SessionManagerLayer::new(store).with_secure(false)
}

/// `/set` puts a name into the session and continues behind the gate; `/finish` does so by `finish`; `/get` reads it.
async fn app(notes: &Notes, gate: &Gate) -> Router {
    let (passes, tells) = (gate.clone(), notes.clone());
    let set = async move |session: Session| {
        session.insert("name", "Ada").await.unwrap();
        let work = async move {
            tells.add("continuing");
            passes.passed().await;
            session.insert("mail", "sent").await.unwrap();
            session.insert("unsaved", "no").await.unwrap();
            session.remove::<String>("unsaved").await.unwrap();
            session.save().await.unwrap();
            session.insert("late", "lost").await.unwrap();
            tells.add("continued");
        };
        (Continuation::new(work), "set")
    };
    let (passes, tells) = (gate.clone(), notes.clone());
    let finish = async move |session: Session, lifecycle: Lifecycle| {
        session.insert("name", "Grace").await.unwrap();
        lifecycle.finish("finished").await.unwrap();
        tells.add("continuing");
        passes.passed().await;
        tells.add("continued");
    };
    let read = async |session: Session| {
        let get = async |key| session.get::<String>(key).await.unwrap().unwrap_or_else(|| "none".to_owned());
        format!("{} {} {}", get("name").await, get("mail").await, get("late").await)
    };
    Router::new()
        .route("/set", get(set))
        .route("/finish", get(finish))
        .route("/get", get(read))
        .layer((EarlyCloseLayer::new().keep_alive(), IgnoreAbortLayer::new()))
        .layer(sessions().await)
}

async fn with_cookie(client: &mut Client, path: &str, cookie: &str) -> Reply {
    client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\ncookie: {cookie}\r\n\r\n")).await;
    client.reply_by_length(false).await
}

fn cookie(reply: &Reply) -> String {
    reply.header("set-cookie").expect("a session begins").split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_session_is_stored_before_the_response_and_a_second_request_does_not_wait() {
    for (path, name) in [("/set", "Ada"), ("/finish", "Grace")] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = Server::start(app(&notes, &gate).await).await;
        let mut first = server.connect().await;
        first.send_get(path).await;
        let reply = first.reply_by_length(false).await;
        assert_eq!(reply.status, 200);
        let cookie = cookie(&reply);
        notes.seen("continuing").await;
        // On the same connection, and on another, while the continuation waits.
        assert_eq!(with_cookie(&mut first, "/get", &cookie).await.text(), format!("{name} none none"), "{path}");
        let mut second = server.connect().await;
        assert_eq!(with_cookie(&mut second, "/get", &cookie).await.text(), format!("{name} none none"), "{path}");
        assert_eq!(notes.all(), ["continuing"], "it still waits");
        gate.open();
        server.journal.ended(3).await;
        assert_eq!(notes.all(), ["continuing", "continued"]);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_continuation_changes_what_it_saves_itself() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    gate.open();
    let server = Server::start(app(&notes, &gate).await).await;
    let mut client = server.connect().await;
    client.send_get("/set").await;
    let cookie = cookie(&client.reply_by_length(false).await);
    server.journal.ended(1).await;
    let reply = with_cookie(&mut client, "/get", &cookie).await;
    assert_eq!(reply.text(), "Ada sent none", "what came after the `save` is lost");
    assert!(reply.header("set-cookie").is_none());
    assert!(server.stop().await.is_clean());
}
