//! Answers whose timing tells nothing.
//!
//! "If there is an account with this address, a mail is on its way." The words are the same for everybody, and yet the
//! answer tells: where an account is found, a token is made, stored and mailed, and the answer comes later. A
//! stranger with a list of addresses and a clock learns who has an account. Filling the gap with a sleep hides it only as
//! far as the sleep is longer than the work, on the worst day.
//!
//! # The look-up is the continuation
//!
//! What is not known when the answer leaves cannot show in it:
//!
//! ```
//! use axum::{Form, Router, routing::post};
//! use tower_epilogue::Continuation;
//! # #[derive(serde::Deserialize)] struct Reset { email: String }
//! # async fn find_account(_: &str) -> Option<u64> { None }
//! # async fn mail_token(_: u64) {}
//!
//! async fn reset(Form(reset): Form<Reset>) -> (Continuation, &'static str) {
//!     let work = Continuation::new(async move {
//!         if let Some(account) = find_account(&reset.email).await {
//!             mail_token(account).await;
//!         }
//!     });
//!     (work, "If there is an account with this address, a mail is on its way.\n")
//! }
//! # let _: Router = Router::new().route("/reset", post(reset));
//! ```
//!
//! The example `password_reset` has it beside the tempting way, to be compared with `curl`.
//!
//! # What else could tell
//!
//! - **Whether there is a continuation.** Both cases return one, and it decides. A handler that looks up first and then
//!   returns a continuation for the one case only has leaked already.
//! - **The answer itself**: status, headers, cookies, and length are the same, byte for byte, but for the date.
//! - **Whatever stands in front**: a rate limit that counts by account, a validation that asks a database. It belongs
//!   into the continuation, or must not depend on what is found.
//! - **The next request.** It does not wait for the continuation: the connection is free again, or closed, before that
//!   starts. But a continuation that keeps the processor or the database busy slows down whatever runs beside it, and where
//!   continuations are few at a time, a long one can have the next be refused or wait. A stranger who measures *other*
//!   requests meanwhile may see that much. Keep what the found case does short on the processor, or hand it to
//!   a queue.
//! - **The end of the server.** A drain waits longer for the found case.
//! - **The mail**, of course, tells whoever can read it.
//!
//! The same goes for sign-ups ("this address is taken"), invitations, and logins. A login has to answer what it found;
//! there, do the same work in both cases, such as hashing the password of nobody.
//!
//! # How it is tested
//!
//! Under a clock that counts nothing but waiting, both answers take the same time to the nanosecond, none. Over real
//! sockets, a rank test cannot tell the two apart that finds the tempting way out at once.
