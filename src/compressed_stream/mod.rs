//! Compresses streams without holding them up: what a handler has written reaches the client when it says flush, and
//! when it pauses.
//!
//! A compressor collects its input, since that is how it finds what repeats. In front of an event stream or a progress
//! bar it therefore shows nothing for a long time, and then everything at once. This one is told when to let go: by an
//! [`Output`](crate::Output) that is flushed, by any body that gives an empty frame, and by a producer that has
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
//! Bodies whose length is not known, event streams among them, with gzip, Brotli or zstd: whichever the client weighs most
//! (RFC 9110, section 12.5.3), and of equals the last named here. A body whose length is known, or declared, as that of a
//! file, is left to other layers, as are responses that are encoded already, parts (206, `Content-Range`), gRPC,
//! `Cache-Control: no-transform`, what has a digest (RFC 9530), also one that `Trailer` names, and media types that are
//! compressed by their nature. Trailers are kept, but for digests that nothing announced.
//!
//! A `HEAD` request is answered with the head of its `GET`, unless its body was taken off before it came here, as by a router
//! that is nested as a service: then it passes through.
//!
//! The compressed response has a `Content-Encoding`, no length, no `Accept-Ranges`, and a weak `ETag`, which a 304 for it
//! has, too. `Vary` names `Accept-Encoding`, also where the client gets the plain body.
//!
//! A body that fails, or is cut at its limit, ends without the end of its compressed stream, so that a decoder
//! notices.
//!
//! # Memory
//!
//! Each open stream has a compressor of its own, for as long as it is open: of some 300 KiB with gzip; of up to 1 MiB with the
//! others, which grows with what was sent, to 4 MiB with zstd and 15 MiB with Brotli. [`Level::Best`] takes up to 16 MiB
//! with zstd and 40 MiB with Brotli. Where thousands of event streams are open at a time, offer gzip alone.
//!
//! Beyond what a decoder needs for it, an encoder collects no more than 512 KiB before it gives something out.
//!
//! # Order
//!
//! It is one of the layers of this crate and may stand anywhere among them. An `EarlyCloseLayer` *outside* of it
//! buffers what is compressed, but for event streams. *Inside* of it, a body that was measured has a known length
//! and is left alone.
//!
//! # Differences from `tower_http::compression`
//!
//! That one compresses bodies of every length, and leaves event streams out. Both may stand around one router: the
//! inner one decides, since the outer one sees an encoded response.

use std::time::Duration;

use tower_layer::Layer;

use self::accept::Offer;
pub use self::{future::ResponseFuture, service::CompressedStream};

mod accept;
mod body;
mod encoder;
mod future;
mod service;

/// Layer that compresses streams. See the [module docs](self).
///
/// Of several around one route the innermost decides.
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

/// How hard a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Level {
    /// As fast as the encoding goes.
    Fastest,
    /// A fair middle: gzip 6, Brotli 4, zstd 3.
    #[default]
    Default,
    /// As small as it gets: gzip 9, Brotli 11, zstd 19 with a window of 2 MiB. For what is not in a hurry, and has
    /// [memory](self#memory).
    Best,
}

impl CompressedStreamLayer {
    /// With all encodings, a middle level, and a flush whenever the producer pauses.
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

    /// How hard it compresses.
    #[must_use]
    pub const fn level(mut self, level: Level) -> Self {
        self.settings.level = level;
        self
    }

    /// How long the producer may have nothing to give before what it gave is flushed; zero by default, which flushes
    /// at once. A producer of many small pieces compresses better with some milliseconds; each piece begins them anew, so that
    /// one that never pauses for so long is seen only when the encoder gives something out, or when it says flush.
    ///
    /// `None` flushes only when the producer says so, with [`Output::flush`](crate::Output::flush) or an empty frame. What
    /// it does not flush may wait for the end.
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
