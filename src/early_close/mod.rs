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
//! - A body of unknown length is buffered up to [`buffer_limit`](EarlyCloseLayer::buffer_limit) bytes and for as long
//!   as [`patience`](EarlyCloseLayer::patience) lasts; then its length is declared. Past either, it streams on with the
//!   framing that the server chooses (RFC 9112, section 6.3). Large pieces are not copied; small ones are gathered,
//!   each byte once.
//! - On HTTP/1, `Connection: close` (RFC 9112, section 9.6); never on HTTP/2 (RFC 9113, section 8.2.2). With
//!   [`keep_alive`](EarlyCloseLayer::keep_alive) only where it is the end of the connection that ends a body: past the
//!   limit on HTTP/1.0.
//! - A `Content-Length` that the handler declared, and that is wrong, is corrected and logged. Where the body streams on, it is
//!   left out if what was read of it shows that.
//! - A body that fails before the head is sent: a 500. After it: a broken connection.
//! - Trailers stay, in chunks on HTTP/1.1 and beside a length on HTTP/2; where they cannot be sent, the length is
//!   declared instead. On HTTP/1.1 that is so for a client that does not ask for them (`TE: trailers`), and, since hyper
//!   sends no others, for those that the handler's `Trailer` header does not name.
//! - A `HEAD` request is answered with the headers of its `GET`.
//! - With [`map_buffer`](EarlyCloseLayer::map_buffer), a function of yours may change each whole body before it leaves.
//! - Informational responses, 204, 304, upgrades, successful `CONNECT`s, event streams, gRPC,
//!   `multipart/x-mixed-replace` and what says `X-Accel-Buffering: no` pass through untouched.
//!
//! Without this layer a continuation lets the client go just as early; the connection then stays open for its
//! next request.
//!
//! # Compression
//!
//! With the feature `compression`, `EarlyCloseLayer::compress` has this layer compress: gzip, deflate, Brotli and zstd,
//! as tower-http's `CompressionLayer` negotiates and encodes them, and then the length of what came of it.
//! `EarlyCloseLayer::compress_with` takes such a layer with settings of its own.
//!
//! - The buffer's limit is about the encoded bytes. Past it, or past the patience, the encoded body streams on.
//! - `Vary` names `accept-encoding`, `Accept-Ranges` goes, and a strong `ETag` becomes a weak one (RFC 9110, section
//!   8.8.1), in a 304 for it as well. A client can use that for `If-None-Match`, which compares weakly, but not for
//!   `If-Match` or a range.
//! - `HEAD` has the headers of its `GET`, whose body is encoded for that; where a body of known length was taken off before
//!   it came here, all but the length. One of unknown length that was taken off looks like an empty one, and is not encoded.
//! - Not compressed is what tower-http's predicate says (by default: images, gRPC, event streams and fewer than 32
//!   bytes), what is encoded already, and ranges.
//!
//! Differences from `CompressionLayer`: the exact length; `Cache-Control: no-transform` and digests of the content
//! (RFC 9530) are honoured, also where `Trailer` names them, and left out of trailers where nothing does; ETags are
//! weakened; and `compress` has bodies of known length within the limit compressed with gzip by compressors that are used
//! again, which for small pages takes a fraction of the time. At most 16 are kept, of some 300 KiB each.
//!
//! Whether what a stream gives is flushed through its encoder when it pauses is for the encoder to say, and no flush of an
//! [`Output`](crate::Output) has a say in it: an event stream passes through uncompressed, and progress output wants a
//! patience of zero, and a `CompressedStreamLayer` (feature `compressed-stream`) inside of this one, which takes the
//! compression over.

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
mod future;
#[cfg(feature = "compression")]
mod gzip;
mod map;
mod reading;
mod rules;
mod service;
mod shaping;

/// Layer that ends responses early. See the [module docs](self).
///
/// Of several around one route the innermost decides.
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

    /// How many bytes of a body of unknown length are held back to measure it. Zero holds none back.
    ///
    /// It bounds the encoded bytes where this layer [compresses](self#compression), and what
    /// [`map_buffer`](Self::map_buffer) is called for.
    #[must_use]
    pub const fn buffer_limit(mut self, bytes: usize) -> Self {
        self.settings.buffer_limit = bytes;
        self
    }

    /// How long a body of unknown length may be held back, from the response's head on. Zero holds back only
    /// what is there at once; where this layer [compresses](self#compression), no more than 1 MiB of it.
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

    /// Hands each whole body to `map` before its head leaves, and answers with what that returns: PHP's
    /// `ob_start(callback)`. It may change the head, too.
    ///
    /// It is called for a body of known length up to the [`buffer_limit`](Self::buffer_limit), and for one of unknown
    /// length that was held back whole; an empty one, too. It is not called for what streams: what passes through this
    /// layer untouched, and what is past the limit or the patience. A `HEAD` request is answered as its `GET` is; where
    /// the body was taken off before it came here, or was empty, which looks the same, `map` is not called and no length is
    /// declared.
    ///
    /// The bytes are those of the handler, before this layer encodes them; what another layer inside has encoded says
    /// so with a `Content-Encoding` among the parts, and what is a part of something larger, as of a file, with its status, a
    /// 206. A body in one piece is not copied. Trailers stay as they were, also a digest of the bytes as they were.
    ///
    /// Of several functions the last one holds.
    ///
    /// # Errors and panics
    ///
    /// If `map` fails or panics, it is logged, and the client is answered with a 500. The continuation runs all the
    /// same.
    ///
    /// # Cancel safety
    ///
    /// Its future counts on the request's clock. It is dropped at its next `.await` at the time limit, where the answer
    /// is a 503, and when the client leaves, unless aborts are ignored: then it runs to its end, as a
    /// [`Continuation`](crate::Continuation) where the server has dropped the response.
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

    /// Compresses as `compression` says: its encodings, its quality, its predicate. See
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
