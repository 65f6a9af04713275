//! Sessions and continuations, with tower-sessions or any other middleware that commits when the handler has answered.
//!
//! # When a session is stored
//!
//! Session middleware loads a session on the way in, or at its first use, and stores it on the way out: *after* the
//! handler has answered and *before* the response goes on. Such a layer is an ordinary one here, so what the handler has
//! changed is committed before the response is released, and before its continuation starts. The client's next request
//! finds it, however soon it comes.
//!
//! The same holds for [`finish`](crate::Lifecycle::finish), if one of our layers stands *inside* of the session layer,
//! next to the routes ([why](super::ordering#finish-and-the-innermost-layer)): the finished response passes through the
//! middleware outside as any other.
//!
//! # Nobody waits for the continuation
//!
//! PHP's sessions are locked until `session_write_close()`, and a second request of the same visitor waits for all that
//! the first does after its response. Here nothing is locked while a continuation runs: a second request on the same
//! connection, on another, or of the same session is answered at once.
//!
//! # What a continuation may still change
//!
//! | | |
//! |---|---|
//! | read what it captured | yes: take the values out in the handler, and move them in |
//! | read the stored session | yes, with a `Session` that was cloned into it; call `load` for what others have changed meanwhile |
//! | change the session | only if it stores it itself: `session.insert(…)`, then `session.save()`. Without the `save` the change is lost, since the middleware has stored the session already |
//! | set or remove the cookie | no: the head has left. So it cannot begin a session, renew its id, or log somebody out at the client. `session.delete()` ends the session at the server |
//!
//! A `save` stores the whole record. The visitor's next requests run at the same time as the continuation and store
//! theirs: the last one wins, and what the other had changed is gone. For results that a visitor is to see later, a row of
//! your own database, which the page reads, is the better place.
