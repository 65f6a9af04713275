//! Responds with an exact `Content-Length` and `Connection: close`, so that the client need not wait for the work
//! that follows: the folk recipe of PHP's `ob_start`, done for every kind of response.
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
//! - A body of unknown length is buffered, up to [`buffer_limit`](EarlyCloseLayer::buffer_limit) bytes (1 MiB by
//!   default) and for up to [`patience`](EarlyCloseLayer::patience) (1 s by default); then its length is declared.
//!   Past either, it streams on with the framing that the server chooses (RFC 9112, section 6.3). Large chunks are
//!   not copied; small ones are gathered, each byte once.
//! - On HTTP/1 it gets `Connection: close` (RFC 9112, section 9.6); never on HTTP/2 (RFC 9113, section 8.2.2). With
//!   [`keep_alive`](EarlyCloseLayer::keep_alive) only if the body is delimited by the end of the connection: past the
//!   limit on HTTP/1.0.
//! - A wrong `Content-Length` from the handler is corrected and logged. If the body streams on, it is removed if what
//!   was read of the body proves it wrong.
//! - A body that fails before the head is sent becomes a 500; after that, the connection is broken off.
//! - Trailers are kept, in chunks on HTTP/1.1 and beside a length on HTTP/2; where they cannot be sent, the length is
//!   declared instead. On HTTP/1.1 that is the case for a client that does not ask for them (`TE: trailers`), and,
//!   because hyper sends no others, for trailers that the handler's `Trailer` header does not name.
//! - A `HEAD` request is answered with the headers of its `GET`.
//! - With [`map_buffer`](EarlyCloseLayer::map_buffer), a function of yours may change each whole body before it
//!   leaves.
//! - Informational responses, 204, 304, upgrades, successful `CONNECT`s, event streams, gRPC,
//!   `multipart/x-mixed-replace` and responses with `X-Accel-Buffering: no` pass through untouched.
//!
//! Without this layer a continuation delays the client just as little; the connection then stays open for its next
//! request.
//!
//! # Compression
//!
//! With the feature `compression`, `EarlyCloseLayer::compress` makes this layer compress with gzip, deflate, Brotli
//! or zstd, as tower-http's `CompressionLayer` negotiates and encodes them, and declare the length of the result.
//! `EarlyCloseLayer::compress_with` takes a `CompressionLayer` with other settings.
//!
//! - The buffer limit applies to the encoded bytes. Past it, or past the patience, the encoded body streams on.
//! - `Vary` names `accept-encoding`, `Accept-Ranges` is removed, and a strong `ETag` becomes a weak one (RFC 9110,
//!   section 8.8.1), also in a matching 304. A client can use that for `If-None-Match`, which compares weakly, but
//!   not for `If-Match` or a range.
//! - `HEAD` gets the headers of its `GET`, whose body is encoded to find them; if a body of known length was removed
//!   before it reached this layer, all headers except the length. A removed body of unknown length looks like an
//!   empty one, and is not encoded.
//! - Responses that tower-http's predicate excludes are not compressed (by default: images, gRPC, event streams and
//!   bodies of fewer than 32 bytes), nor are responses that are encoded already, or ranges.
//!
//! Differences from `CompressionLayer`: the exact length; `Cache-Control: no-transform` and digests of the content
//! (RFC 9530) are honoured, also if `Trailer` names them, and removed from trailers if nothing announces them; ETags
//! are weakened; and `compress` reuses its gzip compressors for bodies of known length within the limit, which takes
//! a fraction of the time for small pages. At most 16 are kept, of about 300 KiB each.
//!
//! Whether a stream's output is flushed through the encoder when the stream pauses is up to the encoder, and a flush
//! of an [`Output`](crate::Output) does not reach it. An event stream passes through uncompressed. For progress
//! output, set the patience to zero, and put a `CompressedStreamLayer` (feature `compressed-stream`) inside this
//! layer, to take over the compression.

use std::{future::Future, time::Duration};

use axum_core::BoxError;
use bytes::Bytes;
use http::response::Parts;
#[cfg(feature = "compression")]
use tower_http::compression::{CompressionLayer, predicate::Predicate};
use tower_layer::Layer;

use self::map::MapBuffer;
pub use self::{future::ResponseFuture, service::EarlyClose};

mod body;
#[cfg(feature = "compression")]
mod compress;
mod cut;
mod future;
#[cfg(feature = "compression")]
mod gzip;
mod map;
mod reading;
mod rules;
mod service;
mod shaping;

/// Layer that declares a response's exact length and closes its connection. See the [module docs](self).
///
/// Of several around one route the innermost applies.
#[derive(Clone, Debug)]
pub struct EarlyCloseLayer {
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    buffer_limit: usize,
    patience: Duration,
    close: bool,
    map: Option<MapBuffer>,
    #[cfg(feature = "compression")]
    compress: Option<compress::Compress>,
}

impl EarlyCloseLayer {
    /// With a buffer of 1 MiB and a patience of 1 s.
    #[must_use]
    pub const fn new() -> Self {
        let settings = Settings {
            buffer_limit: 1024 * 1024,
            patience: Duration::from_secs(1),
            close: true,
            map: None,
            #[cfg(feature = "compression")]
            compress: None,
        };
        Self { settings }
    }

    /// How many bytes of a body of unknown length are held back to measure it; 1 MiB by default. Zero holds none
    /// back.
    ///
    /// Where this layer [compresses](self#compression), it bounds the encoded bytes. It also bounds the bodies that
    /// [`map_buffer`](Self::map_buffer) is called for.
    #[must_use]
    pub const fn buffer_limit(mut self, bytes: usize) -> Self {
        self.settings.buffer_limit = bytes;
        self
    }

    /// How long a body of unknown length may be held back, counted from the response head; 1 s by default. Zero holds
    /// back only what is there at once; where this layer [compresses](self#compression), no more than 1 MiB of it.
    ///
    /// # Panics
    ///
    /// It does not. But a response whose body has to be waited for panics outside of all tokio runtimes, and in one without
    /// timers ([`enable_time`](tokio::runtime::Builder::enable_time)), unless the patience is zero.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Declares the length, but keeps the connection open for the client's next request.
    #[must_use]
    pub const fn keep_alive(mut self) -> Self {
        self.settings.close = false;
        self
    }

    /// Passes each whole body to `map` before its head leaves, and responds with what `map` returns: PHP's
    /// `ob_start(callback)`. It may change the head as well.
    ///
    /// It is called for bodies of known length up to the [`buffer_limit`](Self::buffer_limit), and for bodies of
    /// unknown length that were held back whole, even empty ones. It is not called for streams: responses that pass
    /// through this layer untouched, and bodies past the limit or the patience. A `HEAD` request is answered like its
    /// `GET`; if the body was removed before it reached this layer, or was empty, which looks the same, `map` is not
    /// called and no length is declared. Nor is it once the request's time limit has passed: then the client gets a 503,
    /// whatever was responded by then.
    ///
    /// The bytes are those of the handler, before this layer encodes them. If another layer inside has encoded them,
    /// the parts have a `Content-Encoding`; with a status of 206 they are part of a larger representation, of a file for
    /// example. A body in one piece is not copied. Trailers stay as they were, including a digest of the original bytes.
    ///
    /// If it is called several times, the last function applies.
    ///
    /// # Errors and panics
    ///
    /// If `map` fails or panics, it is logged, and the client is answered with a 500. The continuation runs all the
    /// same.
    ///
    /// # Cancel safety
    ///
    /// Its future counts towards the request's time limit. It is dropped at its next `.await` at the time limit (the
    /// client gets a 503), and when the client leaves, unless aborts are ignored: then it runs to its end, as a
    /// [`Continuation`](crate::Continuation) if the server has dropped the response.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::get};
    /// use http_body_util::BodyExt;
    /// use tower::ServiceExt;
    /// use tower_epilogue::EarlyCloseLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let stamped = EarlyCloseLayer::new().map_buffer(|parts, page| async move {
    ///     let page = String::from_utf8(page.into())?;
    ///     Ok::<_, std::string::FromUtf8Error>((parts, page.replace("{name}", "Ada")))
    /// });
    /// let app: Router = Router::new().route("/", get(|| async { "Hello, {name}!" })).layer(stamped);
    ///
    /// let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    /// assert_eq!(response.headers()["content-length"], "11");
    /// assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "Hello, Ada!");
    /// # }
    /// ```
    #[must_use]
    pub fn map_buffer<F, Fut, B, E>(mut self, map: F) -> Self
    where
        F: Fn(Parts, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(Parts, B), E>> + Send + 'static,
        B: Into<Bytes>,
        E: Into<BoxError>,
    {
        self.settings.map = Some(MapBuffer::new(map));
        self
    }
}

#[cfg(feature = "compression")]
impl EarlyCloseLayer {
    /// Compresses what the client accepts and tower-http's defaults allow, and declares the length of the encoded
    /// bytes. See [Compression](self#compression).
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::get};
    /// use http_body_util::BodyExt;
    /// use tower::ServiceExt;
    /// use tower_epilogue::EarlyCloseLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let app: Router = Router::new()
    ///     .route("/", get(|| async { "la ".repeat(1000) }))
    ///     .layer(EarlyCloseLayer::new().compress());
    ///
    /// let request = Request::get("/").header("accept-encoding", "gzip").body(Body::empty()).unwrap();
    /// let response = app.oneshot(request).await.unwrap();
    /// assert_eq!(response.headers()["content-encoding"], "gzip");
    /// let declared = response.headers()["content-length"].clone();
    /// let encoded = response.into_body().collect().await.unwrap().to_bytes();
    /// assert_eq!(declared, encoded.len().to_string());
    /// assert!(encoded.len() < 100);
    /// # }
    /// ```
    #[must_use]
    pub fn compress(mut self) -> Self {
        self.settings.compress = Some(compress::Compress::with_defaults());
        self
    }

    /// Compresses with the encodings, quality and predicate of `compression`. See
    /// [Compression](self#compression).
    #[must_use]
    pub fn compress_with<P>(mut self, compression: CompressionLayer<P>) -> Self
    where
        P: Predicate + Send + Sync + 'static,
    {
        self.settings.compress = Some(compress::Compress::new(compression));
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
        EarlyClose::new(inner, self.settings.clone())
    }
}
