//! Sessions: what is committed when, and what a continuation may still change.
//!
//! PHP locks a session's file for as long as its script runs: a visitor's second request waits for the first one's
//! background work, unless that calls `session_write_close()`. Here nothing is locked, and the only question is when changes
//! are stored. What follows describes `tower-sessions`, and holds for every session middleware that stores on the way out.
//!
//! # Before the response leaves
//!
//! The session layer stores what the handler changed, and sets the cookie, when the response passes through it. Only
//! then does the response leave, and only after that do continuations start. So a client that has read the response finds the
//! session as the handler left it, on this connection and on any other, and a second request of the same visitor waits for no
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
//! crate, so the session layer has to be outside at least one of them, as above. With the session layer inside
//! all of them, a finished response bypasses it: no cookie is set, and changes are stored only when the handler
//! returns. A response that is *returned* passes through it in either order.
//!
//! # What comes after
//!
//! Continuations, the rest of a handler after `finish`, hooks, and the producers of bodies all run after the session has been
//! stored. They can use a clone of the `Session`:
//!
//! | to | |
//! |---|---|
//! | read it | works: as it was when the request loaded it, or as the handler left it |
//! | change values | needs a `save().await` of its own; without one the change is lost silently |
//! | keep what other requests stored meanwhile | `load().await` first, change, then save: a session is stored whole, and saving overwrites it |
//! | log the visitor out, `delete().await` | works at once; the cookie stays, and refers to nothing |
//! | change the cookie: `cycle_id`, `flush` with a new session, an expiry | impossible: the response head has left. The visitor would come back with the old cookie |
//! | create a session for a visitor who had none | impossible, for the same reason |
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
//! Between `load` and `save` another request can still store something, which is then lost: data that several requests
//! change at the same time belongs in a table of its own, under the session's or the user's id.
//!
//! A time limit, a drain's deadline, or a client that leaves can end a handler before its response passes through the session
//! layer: then nothing is stored, as after any handler that was dropped. Save by hand, under a
//! [shield](crate::Lifecycle::shield), what must not be lost.
