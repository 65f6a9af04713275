//! Sessions: what is committed when, and what a continuation may still change.
//!
//! PHP locks a session's file for as long as its script runs: a visitor's second request waits for the first one's
//! background work, unless that says `session_write_close()`. Here nothing is locked, and the question is only when changes
//! are stored. What follows is said of `tower-sessions`, and goes for every session middleware that stores on the way
//! out.
//!
//! # Before the response leaves
//!
//! The session's layer stores what the handler changed, and sets the cookie, when the response passes through it. Only
//! then does the response leave, and only after that do continuations start. So whoever has read the response finds the
//! session as it was left, on this connection and on any other, and a second request of the same visitor waits for no
//! continuation.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_epilogue::{EarlyCloseLayer, TimeLimitLayer};
//! use tower_sessions::{MemoryStore, SessionManagerLayer};
//!
//! let app: Router = Router::new()
//!     .route("/", get(async || "hello"))
//!     .layer((EarlyCloseLayer::new(), TimeLimitLayer::default())) // next to the routes
//!     .layer(SessionManagerLayer::new(MemoryStore::default()));
//! # let _ = app;
//! ```
//!
//! **The order matters for [`finish`](crate::Lifecycle::finish) alone.** Its response leaves from the innermost layer of this
//! crate, so the session's layer has to stand outside of one: as above. With the session's layer inside of
//! all of them, a finished response passes it by: no cookie is set, and what was changed is stored only when the handler
//! returns. A response that is *returned* passes through it in either order.
//!
//! # What comes after
//!
//! Continuations, the rest of a handler after `finish`, hooks, and the producers of bodies all run when the session has been
//! stored. They may have a clone of the `Session`, and:
//!
//! | | |
//! |---|---|
//! | read it | as it was when the request loaded it, or as its handler left it |
//! | change values | with a `save().await` of their own; without one the change is lost, and nothing says so |
//! | what other requests stored meanwhile | is overwritten by that save: a session is stored whole. `load().await` first, change, save |
//! | log the visitor out, `delete().await` | works at once; the cookie stays, and leads to nothing |
//! | the cookie: `cycle_id`, `flush` with a new session, an expiry | no: its head has left. The visitor would come back with the old one |
//! | a session for a visitor who had none | no, for the same reason |
//!
//! ```
//! use tower_epilogue::Continuation;
//! use tower_sessions::Session;
//!
//! async fn order(session: Session) -> (Continuation, &'static str) {
//!     let later = session.clone();
//!     let work = Continuation::new(async move {
//!         // … the order is placed, some seconds later.
//!         let noted = async {
//!             later.load().await?; // what the visitor did meanwhile
//!             later.insert("last_order", 4711).await?;
//!             later.save().await
//!         };
//!         if let Err(error) = noted.await {
//!             eprintln!("the order is not noted: {error}");
//!         }
//!     });
//!     (work, "Your order is being placed.\n")
//! }
//! # let _ = order;
//! ```
//!
//! Between `load` and `save` another request can still store something, which is then lost: whatever several requests
//! change at once belongs into a table of its own, under the session's or the user's id.
//!
//! A time limit, a drain's deadline and a client that leaves end a handler before its response passes through the session's
//! layer: then nothing is stored, as after any handler that was dropped. Under a
//! [shield](crate::Lifecycle::shield), save by hand what must not be lost.
