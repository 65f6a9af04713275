//! Replies with background work: *redirect and continue*, *empty and gone*, *202 with a `Location`*.
//!
//! [`Then`] adds work to any reply; `reply.then(work)` is short for `(Continuation::new(work), reply)`:
//!
//! ```
//! use axum::{Json, Router, response::{IntoResponse, NoContent, Redirect}, routing::post};
//! use tower_epilogue::{Continuation, reply::{Accepted, Then}};
//!
//! /// Redirect and continue: 303, and the client is on the next page while the order is worked on.
//! async fn order(form: String) -> (Continuation, Redirect) {
//!     Redirect::to("/thanks").then(async move { println!("packing {form}") })
//! }
//!
//! /// Empty and gone: 204, which ends with its head, so that the connection is free at once.
//! async fn ping() -> impl IntoResponse {
//!     NoContent.then(async { println!("counted") })
//! }
//!
//! /// 202: it has begun, and this is where it can be asked about.
//! async fn convert() -> impl IntoResponse {
//!     Accepted::at("/jobs/7").with(Json("queued")).then_blocking(|| println!("converting"))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app: Router =
//!     Router::new().route("/order", post(order)).route("/ping", post(ping)).route("/convert", post(convert));
//!
//! # use axum::{body::Body, http::{Request, StatusCode}};
//! # use tower::ServiceExt;
//! let response = app.oneshot(Request::post("/convert").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(response.status(), StatusCode::ACCEPTED);
//! assert_eq!(response.headers()["location"], "/jobs/7");
//! # }
//! ```

use std::future::Future;

use axum_core::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::LOCATION};

use crate::continuation::Continuation;

/// Adds work that runs after a reply. See the [module docs](self).
///
/// Called again, it adds work that runs after the first.
pub trait Then: IntoResponse + Sized {
    /// Adds a [`Continuation`] that awaits `work`.
    fn then<F>(self, work: F) -> (Continuation, Self)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        (Continuation::new(work), self)
    }

    /// Adds a [`Continuation`] that calls `work` on a thread of its own, where it may block.
    fn then_blocking<F>(self, work: F) -> (Continuation, Self)
    where
        F: FnOnce() + Send + 'static,
    {
        (Continuation::blocking(work), self)
    }
}

impl<R: IntoResponse> Then for R {}

/// 202 Accepted (RFC 9110, section 15.3.3): the work has begun or will, and `Location` says where to ask about it.
///
/// As with axum's `Redirect`, a location that is no valid header value becomes a 500. The continuation of a reply
/// runs whatever becomes of the reply, so even then.
#[derive(Clone, Debug)]
#[must_use = "needs to be returned from a handler or otherwise turned into a Response to be useful"]
pub struct Accepted<R = ()> {
    location: String,
    reply: R,
}

impl Accepted {
    /// With an empty body. `uri` may be relative to the request's own.
    pub fn at(uri: &str) -> Self {
        Self { location: uri.to_owned(), reply: () }
    }
}

impl<R> Accepted<R> {
    /// Adds the body and headers of `reply`.
    pub fn with<T>(self, reply: T) -> Accepted<T> {
        Accepted { location: self.location, reply }
    }

    /// Where to ask about the work.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }
}

impl<R: IntoResponse> IntoResponse for Accepted<R> {
    fn into_response(self) -> Response {
        match HeaderValue::try_from(self.location) {
            Ok(location) => (StatusCode::ACCEPTED, [(LOCATION, location)], self.reply).into_response(),
            Err(error) => {
                let mut response = (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
                // What was to come along with the reply was returned all the same (contract rule 1).
                for work in Continuation::take_from(self.reply.into_response().extensions_mut()) {
                    work.attach(&mut response);
                }
                response
            }
        }
    }
}
