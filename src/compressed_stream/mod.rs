//! Compresses streaming responses (server-sent events, progress output) without delaying them: what a handler has
//! written reaches the client when the handler flushes, and when it pauses.
//!
//! A compressor buffers its input to find repetitions. With an event stream or a progress bar, the client therefore
//! sees nothing for a long time, and then everything at once. This layer flushes the compressor when an
//! [`Output`](crate::Output) is flushed, when any body yields an empty frame, and when the producer has
//! nothing more to give at the moment.
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, http::{Request, header::ACCEPT_ENCODING}, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{CompressedStreamLayer, Lifecycle, Output, OutputError, OutputResponse};
//!
//! async fn progress(lifecycle: Lifecycle) -> OutputResponse {
//!     lifecycle.output(async |mut output: Output| {
//!         output.write("half of it\n").await?;
//!         output.flush().await?; // read by the client, and decoded, before the other half is there
//!         output.write("all of it\n").await
//!     })
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app: Router = Router::new().route("/", get(progress)).layer(CompressedStreamLayer::new());
//! let request = Request::get("/").header(ACCEPT_ENCODING, "gzip").body(Body::empty()).unwrap();
//! let response = app.oneshot(request).await.unwrap();
//! assert_eq!(response.headers()["content-encoding"], "gzip");
//! assert_eq!(response.headers()["vary"], "accept-encoding");
//! assert!(to_bytes(response.into_body(), 1000).await.unwrap().starts_with(&[0x1f, 0x8b]));
//! # }
//! ```
//!
//! # What it compresses
//!
//! Bodies of unknown length, event streams included, with gzip, Brotli or zstd: whichever the client gives the
//! highest weight (RFC 9110, section 12.5.3); among equals zstd before Brotli before gzip. Left to other layers are
//! bodies whose length is known or declared, such as files, responses that are encoded already, partial responses
//! (206, `Content-Range`), gRPC, `Cache-Control: no-transform`, responses with a digest (RFC 9530), also one that
//! `Trailer` names, and media types that are already compressed. Trailers are kept, except for digests that nothing
//! announced.
//!
//! A `HEAD` request is answered with the head of its `GET`, unless its body was removed before it reached this layer,
//! for example by a router that is nested as a service: then it passes through.
//!
//! The compressed response has a `Content-Encoding`, no length, no `Accept-Ranges`, and a weak `ETag`; so has a 304
//! that matches. `Vary` names `Accept-Encoding`, even if the client gets the plain body.
//!
//! A body that fails, or is cut at its limit, ends without the end of its compressed stream, so that a decoder
//! notices.
//!
//! # Memory
//!
//! Each open stream has a compressor of its own for as long as it is open: about 300 KiB with gzip; up to 1 MiB with
//! the others, growing with what was sent to 4 MiB with zstd and 15 MiB with Brotli. [`Level::Best`] takes up to 16
//! MiB with zstd and 40 MiB with Brotli. If thousands of event streams are open at a time, offer gzip only.
//!
//! Apart from that, an encoder buffers no more than 512 KiB before it emits output.
//!
//! # Order
//!
//! It is one of the layers of this crate and may be put anywhere among them. An `EarlyCloseLayer` *outside* it
//! buffers the compressed output, except that of event streams. With an `EarlyCloseLayer` *inside* it, a body that
//! was measured has a known length and is left alone.
//!
//! # Differences from `tower_http::compression`
//!
//! `CompressionLayer` compresses bodies of every length, and leaves out event streams. Both may be put around one
//! router: the inner one decides, because the outer one sees an encoded response.

use std::time::Duration;

use tower_layer::Layer;

use self::accept::Offer;
pub use self::{future::ResponseFuture, service::CompressedStream};

mod accept;
mod body;
mod encoder;
mod future;
mod service;

/// Layer that compresses streaming responses. See the [module docs](self).
///
/// Of several around one route the innermost applies.
#[derive(Clone, Copy, Debug)]
pub struct CompressedStreamLayer {
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    offer: Offer,
    level: Level,
    pause: Option<Duration>,
}

/// How much effort goes into compressing a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Level {
    /// As fast as the encoding goes.
    Fastest,
    /// A compromise: gzip 6, Brotli 4, zstd 3. The default.
    #[default]
    Default,
    /// As small as possible: gzip 9, Brotli 11, zstd 19 with a window of 2 MiB. It takes time, and
    /// [memory](self#memory).
    Best,
}

impl CompressedStreamLayer {
    /// With all encodings, [`Level::Default`], and a flush whenever the producer pauses.
    #[must_use]
    pub const fn new() -> Self {
        let offer = Offer { gzip: true, brotli: true, zstd: true };
        Self { settings: Settings { offer, level: Level::Default, pause: Some(Duration::ZERO) } }
    }

    /// Whether gzip is offered (RFC 1952); it is by default.
    #[must_use]
    pub const fn gzip(mut self, offered: bool) -> Self {
        self.settings.offer.gzip = offered;
        self
    }

    /// Whether Brotli is offered (RFC 7932); it is by default.
    #[must_use]
    pub const fn br(mut self, offered: bool) -> Self {
        self.settings.offer.brotli = offered;
        self
    }

    /// Whether zstd is offered (RFC 8878); it is by default.
    #[must_use]
    pub const fn zstd(mut self, offered: bool) -> Self {
        self.settings.offer.zstd = offered;
        self
    }

    /// The level of compression; [`Level::Default`] by default.
    #[must_use]
    pub const fn level(mut self, level: Level) -> Self {
        self.settings.level = level;
        self
    }

    /// How long the producer may pause before its output is flushed; zero by default, which flushes at once. A
    /// producer of many small chunks compresses better with a few milliseconds. Each chunk restarts the time, so the
    /// output of a producer that never pauses for that long appears only when the encoder emits it, or when the
    /// producer flushes.
    ///
    /// `None` flushes only on [`Output::flush`](crate::Output::flush) or an empty frame. Anything else may be delayed
    /// until the end.
    ///
    /// # Panics
    ///
    /// It does not. But outside of all tokio runtimes, and in one without timers
    /// ([`enable_time`](tokio::runtime::Builder::enable_time)), a response whose producer pauses fails as if its body had
    /// panicked, unless the time is zero, or `None`.
    #[must_use]
    pub fn flush_on_pause(mut self, pause: impl Into<Option<Duration>>) -> Self {
        self.settings.pause = pause.into();
        self
    }
}

impl Default for CompressedStreamLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for CompressedStreamLayer {
    type Service = CompressedStream<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CompressedStream::new(inner, self.settings)
    }
}
