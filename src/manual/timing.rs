//! Responses whose timing reveals nothing: no timing side channel, no user enumeration.
//!
//! "If there is an account with this address, a mail is on its way." The words are the same for everybody, and yet the
//! response gives it away: if an account is found, a token is created, stored and mailed, and the response arrives later. An
//! attacker with a list of addresses and a clock learns who has an account. Filling the gap with a sleep hides it only as
//! long as the sleep is longer than the work, on the worst day.
//!
//! # The look-up is the continuation
//!
//! What is not known when the response leaves cannot show in its timing:
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
//! The example `password_reset` has it side by side with the naive version, to compare with `curl`.
//!
//! # What else could give it away
//!
//! - **Whether there is a continuation.** In both cases the handler returns one, and the continuation decides. A
//!   handler that looks up first, and then returns a continuation in only one case, has leaked already.
//! - **The response itself**: status, headers, cookies, and length must be the same, byte for byte, except for the
//!   date.
//! - **Whatever comes before the handler**: a rate limit per account, a validation that queries a database. It
//!   belongs in the continuation, or must not depend on what is found.
//! - **The next request.** It does not wait for the continuation: the connection is free again, or closed, before
//!   that starts. But a continuation that keeps the processor or the database busy slows down whatever runs beside
//!   it, and if only a few continuations run at a time, a long one can cause the next request to be refused or to
//!   wait. An attacker who measures *other* requests meanwhile may see that much. Keep the processor time of the
//!   found case short, or hand the work to a queue.
//! - **The end of the server.** A drain waits longer for the found case.
//! - **The mail**, of course, tells anyone who can read it.
//!
//! The same goes for sign-ups ("this address is taken"), invitations, and logins. A login has to say what it found;
//! there, do the same work in both cases, such as hashing a password even if there is no such user.
//!
//! # How it is tested
//!
//! Under a paused clock, which advances only while everything waits, both responses take the same time to the
//! nanosecond: none. Over real sockets, a rank test that detects the naive version at once cannot tell the two cases
//! apart.
