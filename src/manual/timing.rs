//! Answers whose timing tells nothing.
//!
//! "If we know this address, a mail is on its way": the text tells nobody who has an account, but the time it takes may.
//! Looking the account up, making a token and talking to a mail server take measurably longer than finding nothing, and
//! whoever asks often enough can tell the two apart (CWE-208, observable timing discrepancy). Sleeping a random time
//! does not help, since it averages out.
//!
//! What helps is to answer *before* the work that could leak:
//!
//! ```
//! use axum::{Router, http::StatusCode, response::IntoResponse, routing::post};
//! use tower_epilogue::Continuation;
//!
//! async fn reset(address: String) -> impl IntoResponse {
//!     let work = Continuation::new(async move {
//!         // Look the account up, and send the mail, if there is one.
//!         # let _ = address;
//!     });
//!     (StatusCode::ACCEPTED, work, "If we know this address, a mail is on its way.")
//! }
//!
//! let app: Router = Router::new().route("/reset", post(reset));
//! # let _ = app;
//! ```
//!
//! The continuation starts after the flush; nothing that it does can be seen in the response. What is left to you:
//!
//! - Nothing before the answer may depend on the secret: no look-up in an extractor or a middleware, no error that only
//!   one of the cases can run into, no header or cookie that only one of them has, and no difference in the length.
//! - The *next* request may tell. A continuation that blocks its worker, holds a lock or fills a pool delays requests
//!   which come while it runs. Use [`Continuation::blocking`](crate::Continuation::blocking) for work that computes
//!   (hashing a password), and do not let requests wait for what the continuation holds.
//! - With [`finish`](crate::Lifecycle::finish) the same holds from its call on.
//! - A drain's report, the log and the events know the request's route and times, but no secret of yours, unless a span
//!   of yours does.
//! - Limits on how often one client may ask belong in front of it, and must count both cases alike.
//!
//! The example `password_reset` is a whole server.
