//! Answers with an exact length and lets the client go: the folk recipe of a buffered body, `Content-Length` and
//! `Connection: close`, done for every kind of response.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{Continuation, EarlyCloseLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! async fn page() -> (Continuation, Body) {
//!     let parts = tokio_stream::iter(["any ", "length"].map(Ok::<_, std::io::Error>));
//!     (Continuation::new(async { /* … */ }), Body::from_stream(parts))
//! }
//!
//! let app: Router = Router::new().route("/", get(page)).layer(EarlyCloseLayer::new());
//! let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(response.headers()["content-length"], "10");
//! assert_eq!(response.headers()["connection"], "close");
//! # }
//! ```
//!
//! # What it does to a response
//!
//! - A body of known length is not touched; its length is declared.
//! - A body of unknown length is buffered, without copying, up to [`buffer_limit`](EarlyCloseLayer::buffer_limit)
//!   bytes and for as long as [`patience`](EarlyCloseLayer::patience) lasts; then its length is declared. Past
//!   either, it streams on with the framing that the server chooses (RFC 9112, section 6.3).
//! - On HTTP/1, `Connection: close` (RFC 9112, section 9.6); never on HTTP/2 (RFC 9113, section 8.2.2).
//! - A `Content-Length` that the handler declared, and that is wrong, is corrected and logged.
//! - A body that fails before the head is sent: a 500. After it: a broken connection.
//! - A `HEAD` request is answered with the headers of its `GET`.
//! - Informational responses, 204, 304, upgrades, successful `CONNECT`s, event streams and gRPC pass through
//!   untouched.
//!
//! Without this layer a continuation lets the client go just as early; the connection then stays open for its
//! next request.

use std::time::Duration;

use tower_layer::Layer;

pub use self::{future::ResponseFuture, service::EarlyClose};

mod body;
mod future;
mod service;

/// Layer that ends responses early. See the [module docs](self).
///
/// Of several around one route the innermost decides.
#[derive(Clone, Copy, Debug)]
pub struct EarlyCloseLayer {
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    buffer_limit: usize,
    patience: Duration,
    close: bool,
}

impl EarlyCloseLayer {
    /// With a buffer of 1 MiB and a patience of 1 s.
    #[must_use]
    pub const fn new() -> Self {
        let settings = Settings { buffer_limit: 1024 * 1024, patience: Duration::from_secs(1), close: true };
        Self { settings }
    }

    /// How many bytes of a body of unknown length are held back to measure it. Zero holds none back.
    #[must_use]
    pub const fn buffer_limit(mut self, bytes: usize) -> Self {
        self.settings.buffer_limit = bytes;
        self
    }

    /// How long a body of unknown length may be held back, from the response's head on. Zero holds back only
    /// what is there at once.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Declares the length, and lets the connection live on for the client's next request.
    #[must_use]
    pub const fn keep_alive(mut self) -> Self {
        self.settings.close = false;
        self
    }
}

impl Default for EarlyCloseLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for EarlyCloseLayer {
    type Service = EarlyClose<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EarlyClose::new(inner, self.settings)
    }
}
